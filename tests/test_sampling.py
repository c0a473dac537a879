"""Draws follow the exact law of the legal items."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from configs.program import InputError
from infer.search.sampling import Ancestral, StochasticBeam
from infer.search.tree import search
from infer.search.trie import Trie
from tests import tiny

SIZES = (3, 2, 2)
DRAWS = 4000


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(5)
    sids, vocab = tiny.catalogue(rng, items=9, sizes=SIZES), tiny.vocabulary(SIZES)
    model, trie = tiny.model(vocab_size=tiny.TEXT_TOKENS + sum(SIZES), seed=3), Trie(sids, vocab)
    everything = search(model, [[4, 7, 9]], trie, 100, "trie")
    count = int(everything.counts_B[0])
    law = torch.zeros(count).index_put_(
        (everything.nodes_BK[0, :count],), everything.scores_BK[0, :count].exp()
    )
    assert count == len(sids.sids_SL) and float(law.sum()) == pytest.approx(1, abs=1e-5)
    return model, trie, law


def test_draws_without_replacement_follow_the_exact_law(case):
    """Frequencies of ordered pairs: p(i) p(j) / (1 - p(i)), within five standard errors."""
    model, trie, law = case
    beams = search(model, [[4, 7, 9]] * DRAWS, trie, 2, "trie", sampler=StochasticBeam(seed=1))
    assert (beams.nodes_BK[:, 0] != beams.nodes_BK[:, 1]).all() and (beams.counts_B == 2).all()
    for first, second in permutations(range(len(law)), 2):
        expected = float(law[first] * law[second] / (1 - law[first]))
        seen = ((beams.nodes_BK[:, 0] == first) & (beams.nodes_BK[:, 1] == second)).float().mean()
        assert abs(float(seen) - expected) < 5 * (expected / DRAWS) ** 0.5 + 2e-3
    assert torch.allclose(beams.scores_BK.exp(), law[beams.nodes_BK], atol=1e-4)


def test_inclusion_probabilities_make_unbiased_estimates(case):
    model, trie, law = case
    values = torch.arange(1.0, len(law) + 1)
    beams = search(model, [[4, 7, 9]] * DRAWS, trie, 3, "trie", sampler=StochasticBeam(seed=2))
    weights = (beams.scores_BK - beams.log_inclusion_BK).exp()
    estimates = (weights * values[beams.nodes_BK]).sum(1)
    error = float(estimates.std()) / DRAWS**0.5
    assert abs(float(estimates.mean()) - float(law @ values)) < 5 * error
    assert (beams.log_inclusion_BK <= 0).all()


def test_asking_for_everything_draws_everything(case):
    model, trie, law = case
    beams = search(model, [[4, 7, 9]] * 3, trie, 50, "trie", sampler=StochasticBeam())
    for row in range(3):
        count = int(beams.counts_B[row])
        assert sorted(beams.nodes_BK[row, :count].tolist()) == list(range(len(law)))
        assert torch.allclose(beams.log_inclusion_BK[row, :count], torch.zeros(count))
        assert (beams.log_inclusion_BK[row, count:] == float("-inf")).all()
    assert not torch.equal(beams.nodes_BK[0], beams.nodes_BK[1])


def test_fewer_legal_items_than_draws_leave_no_nan(case):
    model, trie, _ = case
    two = Trie(trie.sids, trie.vocab, catalogues=[[0, 4], range(6)])
    beams = search(model, [[4, 7, 9]] * 2, two, 3, "trie", sampler=StochasticBeam(), roots_B=[0, 1])
    assert beams.counts_B.tolist() == [2, 3] and (beams.log_inclusion_BK[1] < 0).all()
    assert beams.log_inclusion_BK[0].tolist() == pytest.approx([0, 0, float("-inf")])


def test_draws_with_replacement_follow_the_law(case):
    model, trie, law = case
    beams = search(model, [[4, 7, 9]] * (DRAWS // 4), trie, 4, "trie", sampler=Ancestral(seed=3))
    seen = torch.bincount(beams.nodes_BK.flatten(), minlength=len(law)) / DRAWS
    assert ((seen - law).abs() < 5 * (law / DRAWS).sqrt() + 2e-3).all()
    assert torch.allclose(beams.scores_BK.exp(), law[beams.nodes_BK], atol=1e-4)


@pytest.mark.parametrize("kind", [StochasticBeam, Ancestral])
def test_equal_seeds_draw_alike_and_others_differ(case, kind):
    model, trie, _ = case
    first, again, other = (
        search(model, [[4, 7], [5]], trie, 3, "trie", sampler=kind(seed=seed)).nodes_BK for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_samplers_need_the_law_of_the_legal_items(case):
    model, trie, _ = case
    for options in ({"score_space": "full"}, {"score_space": "trie", "exclude": np.array([[0]])}):
        with pytest.raises(InputError):
            search(model, [[4]], trie, 2, sampler=StochasticBeam(), **options)


@pytest.mark.parametrize("kind", [StochasticBeam, Ancestral])
def test_a_row_draws_by_its_key_whatever_is_beside_it(case, kind):
    model, trie, _ = case
    prompts, keys = [[4, 7], [5], [4, 7], [9, 9, 9]], [10, 11, 12, -5]
    whole = search(model, prompts, trie, 3, "trie", sampler=kind(1, keys)).nodes_BK
    for rows in ([0], [3, 1], [2, 0, 1]):
        part = search(
            model, [prompts[r] for r in rows], trie, 3, "trie", sampler=kind(1, [keys[r] for r in rows])
        )
        assert torch.equal(part.nodes_BK, whole[rows])
    assert not torch.equal(whole[0], whole[2]), "equal prompts with other keys"
    # Another catalogue beside it widens the tables, not the draw.
    two = Trie(trie.sids, trie.vocab, catalogues=[[0, 4], range(len(trie.sids.sids_SL))])
    beside = search(model, prompts[:2], two, 3, "trie", sampler=kind(1, keys[:2]), roots_B=[1, 0])
    assert torch.equal(beside.nodes_BK[0], whole[0])
