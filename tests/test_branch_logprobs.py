"""The policy forward scores exactly what the search scored and what a row per rollout scores, in every score space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.search.scoring import LevelScorer, Parity
from infer.search.tree import search
from infer.search.trie import Trie, sparse_level
from tests import families, tiny
from tests.row_layout import row_logprobs
from train.policy.logprobs import tree_logprobs
from train.scale import normaliser
from train.scale.normaliser import full_normaliser

SIZES = (6, 5, 4)


def gradients(model):
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


def setup(seed, kind="qwen3", *, items=60, rows=4, longest=9):
    rng = np.random.default_rng(seed)
    sids, vocab = tiny.catalogue(rng, items=items, sizes=SIZES), tiny.vocabulary(SIZES, scattered=rng)
    model = tiny.model(kind, vocab_size=tiny.TEXT_TOKENS + sum(SIZES))
    return model, Trie(sids, vocab), tiny.prompts(rng, rows=rows, longest=longest)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_sum_over_levels_equals_the_beam_score(kind, space):
    model, trie, prompts = setup(3, kind)
    beams = search(model, prompts, trie, 8, space, parity=Parity(temperature=1.7))
    found = tree_logprobs(model, trie, prompts, beams, space=space, temperature=1.7)
    assert found.logps_PGL.requires_grad
    assert torch.allclose(found.logps_PGL.sum(2), beams.scores_BK, atol=1e-4)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 1000),
    group=st.integers(1, 12),
    space=st.sampled_from(["full", "level", "trie"]),
    sparse=st.booleans(),
)
def test_the_tree_has_the_values_and_gradients_of_a_row_per_rollout(seed, group, space, sparse):
    model, trie, prompts = setup(seed)
    if sparse:
        trie.levels = [_as_sparse(level) for level in trie.levels]
    beams = search(model, prompts, trie, group, space)
    torch.manual_seed(seed)
    slope_PGL = torch.randn(beams.codes_BKL.shape)
    layout = {"space": space, "temperature": 1.0}
    tree = tree_logprobs(model, trie, prompts, beams, **layout).logps_PGL
    (tree * slope_PGL).sum().backward()
    ours = gradients(model)
    rows = row_logprobs(model, trie, prompts, beams, **layout)
    (rows * slope_PGL).sum().backward()
    torch.testing.assert_close(tree, rows, atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(ours, gradients(model), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max()) + 1e-6, rtol=0)


def _as_sparse(level):
    children = level.table_MC >= 0
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), children.sum(1).cumsum(0)]).numpy().astype(np.int32)
    return sparse_level(ptr, children.nonzero()[:, 1].numpy().astype(np.int32), level.table_MC.device)


@pytest.mark.parametrize("kind", sorted(families.CAUSAL))
def test_every_family_has_the_values_of_its_rows(kind):
    """Sliding windows, learned positions, scaled and soft-capped logits."""
    rng = np.random.default_rng(5)
    sids, vocab = tiny.catalogue(rng, items=40, sizes=SIZES), tiny.vocabulary(SIZES)
    model = families.model(kind, vocab_size=tiny.TEXT_TOKENS + sum(SIZES))
    trie, prompts = Trie(sids, vocab), tiny.prompts(rng, rows=3, longest=20)
    beams = search(model, prompts, trie, 6)
    layout = {"space": "full", "temperature": 1.0}
    tree = tree_logprobs(model, trie, prompts, beams, **layout).logps_PGL
    torch.testing.assert_close(
        tree, row_logprobs(model, trie, prompts, beams, **layout), atol=1e-4, rtol=1e-4
    )


def test_entropy_and_legal_mass_are_those_of_the_distribution_over_codes():
    model, trie, prompts = setup(2, rows=1)
    beams = search(model, prompts, trie, 3)
    found = tree_logprobs(model, trie, prompts, beams, space="full", temperature=1.0)
    logits_V = model(torch.tensor(prompts)).logits[0, -1].log_softmax(0)
    legal_X = torch.cat([logits_V[trie.tokens[0][code]][None] for code in range(6) if trie.child(0, torch.zeros(1, dtype=torch.long), torch.tensor([code])) >= 0])  # fmt: skip
    mass, share_X = legal_X.logsumexp(0), legal_X.log_softmax(0)
    torch.testing.assert_close(found.log_mass_PGL[0, :, 0], mass.detach().expand(3), atol=1e-5, rtol=1e-5)
    entropy = -(share_X.exp() * share_X).sum()
    torch.testing.assert_close(found.entropy_PGL[0, :, 0], entropy.detach().expand(3), atol=1e-5, rtol=1e-5)
    trie_space = tree_logprobs(model, trie, prompts, beams, space="trie", temperature=1.0)
    assert trie_space.log_mass_PGL.abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_the_streamed_normaliser_has_the_gradient_of_the_plain_one(kind, monkeypatch):
    monkeypatch.setattr(normaliser, "LEAST_COLUMNS", 32)
    monkeypatch.setattr(normaliser, "BLOCK_BYTES", {"cpu": 4, "cuda": 4})
    model = families.model(kind, vocab_size=150)
    scorer = LevelScorer(model, Trie(tiny.catalogue(np.random.default_rng(0), items=9, sizes=(4, 4)), tiny.vocabulary((4, 4))), "full", Parity(temperature=1.3))  # fmt: skip
    torch.manual_seed(0)
    values = []
    for streamed in (True, False):
        hidden_RD = torch.randn(7, scorer.weight_VD.shape[1], generator=torch.Generator().manual_seed(1))
        hidden_RD.requires_grad_()
        if streamed:
            log_R = full_normaliser(hidden_RD, scorer.weight_VD, scorer.bias_V, scorer.transform)
        else:
            log_R = scorer.transform(hidden_RD @ scorer.weight_VD.t()).logsumexp(1)
        (log_R * torch.arange(7)).sum().backward()
        values.append((log_R.detach(), hidden_RD.grad, scorer.weight_VD.grad.clone()))
        model.zero_grad()
    for ours, plain in zip(*values, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
