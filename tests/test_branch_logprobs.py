"""The policy forward scores exactly what the search scored, in every score space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infer.tree import search
from infer.trie import Trie
from tests import tiny
from train.branch_logprobs import row_logprobs


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_sum_over_levels_equals_the_beam_score(kind, space):
    rng = np.random.default_rng(3)
    sizes = (6, 5, 4)
    sids, vocab = tiny.catalogue(rng, items=60, sizes=sizes), tiny.vocabulary(sizes, scattered=rng)
    model = tiny.model(kind, vocab_size=tiny.TEXT_TOKENS + sum(sizes))
    trie, prompts = Trie(sids, vocab), tiny.prompts(rng, rows=4)
    beams = search(model, prompts, trie, 8, space, temperature=1.7)
    logps = row_logprobs(model, trie, prompts, beams.codes_BKL, space=space, temperature=1.7)
    assert logps.requires_grad
    assert torch.allclose(logps.sum(2), beams.scores_BK, atol=1e-4)
