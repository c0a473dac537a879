"""The policy forward scores exactly what the search scored and what a row per rollout scores, in every score space."""

from __future__ import annotations

from contextlib import nullcontext

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
from train.scale import tables
from train.scale.tables import lookups_of, table_scores

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


@pytest.mark.parametrize("kept", [0, 2**30])
@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_rows_and_the_streamed_normaliser_have_the_gradients_of_the_plain_ones(kind, kept, monkeypatch):
    monkeypatch.setattr(tables, "LEAST_COLUMNS", 32)
    monkeypatch.setattr(tables, "BLOCK_BYTES", {"cpu": 4, "cuda": 4})
    monkeypatch.setattr(tables, "KEPT_BYTES", {"cpu": kept, "cuda": kept})
    model = families.model(kind, vocab_size=150)
    scorer = LevelScorer(model, Trie(tiny.catalogue(np.random.default_rng(0), items=9, sizes=(4, 4)), tiny.vocabulary((4, 4))), "full", Parity(temperature=1.3))  # fmt: skip
    columns_C = torch.tensor([3, 140, 7])
    values = []
    for streamed in (True, False):
        hidden_RD = torch.randn(7, scorer.weight_VD.shape[1], generator=torch.Generator().manual_seed(1))
        hidden_RD.requires_grad_()
        given = (hidden_RD, scorer.weight_VD, scorer.bias_V, scorer.transform)
        if streamed:
            rows_CD, log_R = table_scores(*given, columns_C=columns_C, normalise=True)
        else:
            rows_CD = scorer.weight_VD[columns_C]
            log_R = scorer.transform(hidden_RD @ scorer.weight_VD.t()).logsumexp(1)
        ((log_R * torch.arange(7)).sum() + rows_CD.square().sum()).backward()
        values.append((log_R.detach(), rows_CD.detach(), hidden_RD.grad, scorer.weight_VD.grad.clone()))
        model.zero_grad()
    for ours, plain in zip(*values, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padding", [None, 5])
def test_lookups_write_into_the_gradient_of_the_head(padding):
    """Tied table: the gradient of embeddings and head is the plain one, and it is one tensor of the table's size."""
    model = families.model("qwen3", vocab_size=150, tied=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.get_input_embeddings().padding_idx = padding
    ids_BT = torch.tensor([[5, 9, 5, 140]])
    gradients = []
    for shared in (True, False):
        model.zero_grad()
        with lookups_of(model) if shared else nullcontext() as lookups:
            hidden_BTD = model.base_model(ids_BT).last_hidden_state
        assert not shared or lookups.weight is not None
        weight_VD = lookups.weight if shared else model.get_output_embeddings().weight
        _, log_R = table_scores(
            hidden_BTD[0], weight_VD, None, lambda logits: logits, columns_C=torch.tensor([], dtype=torch.long), normalise=True
        )  # fmt: skip
        log_R.sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
    assert gradients[0][9].abs().sum() > 0


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_second_pass_adds_to_the_gradient_that_is_there(tied, watched, monkeypatch):
    """In place, where nobody watches: the gradient is the sum of both passes, and no other tensor of its size was made."""
    monkeypatch.setattr(tables, "LEAST_COLUMNS", 32)
    monkeypatch.setattr(tables, "BLOCK_BYTES", {"cpu": 4, "cuda": 4})
    model = families.model("qwen3", vocab_size=150, tied=tied)
    head_VD, ids_BT, seen = model.get_output_embeddings().weight, torch.tensor([[5, 9, 140]]), []
    if watched:
        head_VD.register_hook(lambda grad_VD: seen.append(grad_VD.data_ptr()))

    def backward(table: torch.Tensor | None) -> None:
        with lookups_of(model) as lookups:
            hidden_BTD = model.base_model(ids_BT).last_hidden_state
        rows_CD, log_R = table_scores(
            hidden_BTD[0], head_VD if lookups.weight is None else lookups.weight, None, lambda logits: logits,
            columns_C=torch.tensor([3, 140]), normalise=True, table=table,
        )  # fmt: skip
        (log_R.sum() + rows_CD.square().sum()).backward()

    backward(None)
    once = {name: part.grad.clone() for name, part in model.named_parameters()}
    place, zeros = head_VD.grad.data_ptr(), torch.zeros_like
    made = []
    monkeypatch.setattr(
        torch, "zeros_like", lambda like, **told: made.append(like.shape) or zeros(like, **told)
    )
    backward(head_VD)
    assert (
        head_VD.grad.data_ptr() == place and (head_VD.shape in made) == watched and len(seen) == 2 * watched
    )
    for name, part in model.named_parameters():
        torch.testing.assert_close(part.grad, 2 * once[name], atol=1e-5, rtol=1e-4)


def test_lookups_alone_still_reach_the_table():
    model = families.model("qwen3", vocab_size=150, tied=True)
    with lookups_of(model):
        model.base_model(torch.tensor([[5, 9]])).last_hidden_state.square().sum().backward()
    grad_VD = model.get_input_embeddings().weight.grad
    assert (grad_VD.abs().sum(1) > 0).nonzero().flatten().tolist() == [5, 9]


def test_what_hangs_on_the_embeddings_acts_behind_the_lookups():
    """Dropout of everything leaves nothing; once the lookups came last and gave the vectors back as they were."""
    model = families.model("qwen3", vocab_size=150, tied=True)
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _table, _args, output: output * 0.0)
    model.base_model.layers[0].register_forward_pre_hook(lambda _layer, args: seen.append(args[0]))
    for inside in (lookups_of(model), nullcontext()):
        with inside:
            model.base_model(torch.tensor([[5, 9]]))
    assert len(seen) == 2 and not any(hidden_BTD.any() for hidden_BTD in seen)


def test_lookups_leave_other_tables_alone():
    for model in (families.model("gemma2", vocab_size=150), families.model("gpt2", vocab_size=150)):
        model.get_input_embeddings().weight.requires_grad_(False)
        with lookups_of(model) as lookups:
            model.base_model(torch.tensor([[5, 9]]))
        assert lookups.weight is None
