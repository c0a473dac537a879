"""The policy forward scores exactly what the search scored, in every score space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infer.search.scoring import Parity
from infer.search.tree import search
from infer.search.trie import Trie
from tests import tiny
from train.policy.logprobs import row_logprobs
from train.policy.losses import group_advantages, grpo


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_sum_over_levels_equals_the_beam_score(kind, space):
    rng = np.random.default_rng(3)
    sizes = (6, 5, 4)
    sids, vocab = tiny.catalogue(rng, items=60, sizes=sizes), tiny.vocabulary(sizes, scattered=rng)
    model = tiny.model(kind, vocab_size=tiny.TEXT_TOKENS + sum(sizes))
    trie, prompts = Trie(sids, vocab), tiny.prompts(rng, rows=4)
    beams = search(model, prompts, trie, 8, space, parity=Parity(temperature=1.7))
    logps = row_logprobs(model, trie, prompts, beams, space=space, temperature=1.7)
    assert logps.requires_grad
    assert torch.allclose(logps.sum(2), beams.scores_BK, atol=1e-4)


@pytest.mark.parametrize("drop", [False, True])
def test_a_group_with_fewer_legal_ids_than_rollouts_has_a_finite_gradient(drop):
    rng = np.random.default_rng(0)
    sids, vocab = tiny.catalogue(rng, items=3, sizes=(4, 4)), tiny.vocabulary((4, 4))
    model = tiny.model(vocab_size=tiny.TEXT_TOKENS + 8)
    trie, prompts = Trie(sids, vocab), tiny.prompts(rng, rows=2)
    beams = search(model, prompts, trie, 8)
    legal = int(beams.counts_B[0])
    assert legal == len(sids.sids_SL) < beams.codes_BKL.shape[1]
    rewards = torch.full(beams.scores_BK.shape, float("nan"))
    rewards[:, :legal] = torch.tensor([[1.0] + [0.0] * (legal - 1), [0.0] * legal])
    advantages = group_advantages(rewards[..., None])
    advantages = advantages.without_flat_groups() if drop else advantages
    policy = row_logprobs(model, trie, prompts, beams, space="full", temperature=1.0)
    cells = int(advantages.cells(2))
    loss, kl = grpo(policy, policy.detach() + 0.1, advantages, beta=0.1, cells=cells)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert torch.isfinite(loss) and torch.isfinite(kl) and all(torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)
