"""What a group is under every kind of rollout, which codes are given or forced, and who may read a file of hints."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.program import InputError
from data.sid import SidTable
from infer.search.tree import Beams, search
from infer.search.trie import Trie
from tests import tiny
from train.policy.batches import free_codes
from train.policy.hints import find_hints, read_hints, write_hints
from train.policy.rollouts import join, roll_out, subtree, with_branch
from train.policy.settings import GrpoSettings

SIZES = (3, 3, 3)
CODES = np.array(
    [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 2, 2], [1, 0, 0], [1, 1, 1], [1, 1, 2], [2, 2, 2]], np.int32
)
SIDS = SidTable(CODES, SIZES)  # item n is row n of sids_SL
PROMPT = [3, 5, 7]


@pytest.fixture(scope="module")
def model():
    return tiny.model(vocab_size=tiny.TEXT_TOKENS + sum(SIZES))


@pytest.fixture(scope="module")
def trie():
    return Trie(SIDS, tiny.vocabulary(SIZES))


def rolled(model, trie, *, rows=4, targets=None, keys=None, hints=None, seed=0, **settings):
    settings = GrpoSettings(**{"rollout_space": "trie", "logprob_space": "trie"} | settings)
    targets = np.full(rows, 7) if targets is None else np.array(targets)
    keys = range(rows) if keys is None else keys
    return roll_out(model, trie, [PROMPT] * rows, targets, settings, seed=seed, keys=keys, hints_P=hints)


def test_weights_of_a_stochastic_beam_make_means_expectations(model, trie):
    """Against the exact expectation over the eight items, within four standard errors; each group has distinct items."""
    exact = search(model, [PROMPT], trie, 8, "trie")
    chance = torch.zeros(8).scatter(0, exact.nodes_BK[0], exact.scores_BK[0].exp())
    assert float(chance.sum()) == pytest.approx(1, abs=1e-5)
    value = torch.tensor([0.0, 1, 2, 5, -3, 4, 0, 1])
    found = rolled(model, trie, rows=1500, num_generations=3, rollouts="stochastic_beam")
    nodes = found.beams.nodes_BK
    assert all(len(set(group)) == 3 for group in nodes[:50].tolist())
    means = (found.weights_PG * value[nodes]).mean(1)
    spread = float(means.std()) / len(means) ** 0.5
    assert float(means.mean()) == pytest.approx(float((chance * value).sum()), abs=4 * spread)
    every = rolled(model, trie, rows=1, num_generations=8, rollouts="stochastic_beam")
    torch.testing.assert_close(every.weights_PG / 8, every.beams.scores_BK.exp(), atol=1e-6, rtol=1e-5)


def test_a_draw_depends_on_seed_and_example_alone(model, trie):
    for kind in ("sample", "stochastic_beam", "dynamic_sampling"):
        whole = rolled(model, trie, rollouts=kind, num_generations=4, keys=[9, 4, 7, 2]).beams.nodes_BK
        alone = rolled(model, trie, rows=1, rollouts=kind, num_generations=4, keys=[7]).beams.nodes_BK
        other = rolled(
            model, trie, rollouts=kind, num_generations=4, keys=[9, 4, 7, 2], seed=1
        ).beams.nodes_BK
        assert whole[2].tolist() == alone[0].tolist() and whole.tolist() != other.tolist(), kind
    assert rolled(model, trie).given_PG.any().item() is False


def test_dynamic_sampling_keeps_hits_then_variety(model, trie, monkeypatch):
    drawn = [[5, 2, 7, 2, 0, 7, 5, 5, 2]]  # 9 = 1.5 * 6 draws, the target is 7

    def made(*args, **kwargs):
        nodes = torch.tensor(drawn)
        codes = torch.as_tensor(CODES[nodes.numpy()]).long()
        scores = torch.arange(9.0)[None]
        return Beams(codes, scores, nodes, torch.tensor([9]), trie.prefixes(codes))

    monkeypatch.setattr("train.policy.rollouts.search", made)
    found = rolled(model, trie, rows=1, rollouts="dynamic_sampling", num_generations=6).beams
    assert found.nodes_BK.tolist() == [[7, 7, 5, 2, 0, 2]], (
        "hits, one of each by frequency, then repeats as drawn"
    )
    assert found.scores_BK.tolist() == [[2, 5, 0, 1, 4, 3]]
    assert found.codes_BKL[0, 4].tolist() == CODES[0].tolist() and found.counts_B.tolist() == [6]


def test_the_ground_truth_takes_the_last_place_and_is_marked(model, trie):
    plain = rolled(model, trie, rows=8, num_generations=3, rollout_space="full", targets=range(8))
    found = rolled(
        model, trie, rows=8, num_generations=3, rollout_space="full", targets=range(8), add_ground_truth=True
    )
    for target in range(8):
        before = plain.beams.nodes_BK[target].tolist()
        lacks = target not in before
        expected = [*before[:2], target] if lacks else before
        assert found.beams.nodes_BK[target].tolist() == expected
        assert found.given_PG[target].tolist() == [False, False, lacks]
    torch.testing.assert_close(found.beams.prefixes_BKL, trie.prefixes(found.beams.codes_BKL))
    assert found.beams.codes_BKL[:, -1].tolist() != plain.beams.codes_BKL[:, -1].tolist()
    together = join([found.take([0, 1]), found.take(range(2, 8))])
    assert torch.equal(together.beams.nodes_BK, found.beams.nodes_BK)


@pytest.mark.parametrize("space", ["full", "trie"])
def test_hints_are_the_least_depth_that_finds_the_target(model, trie, space):
    """By brute force: among the items that begin with the hint, the target is in the two best."""
    engine = SimpleNamespace(
        model=model, sids=SIDS, trie=trie, batches=lambda prompts: [np.arange(len(prompts))]
    )
    depths = find_hints(engine, [PROMPT] * 8, np.arange(8), group=2, space=space, temperature=1.0)
    order = search(model, [PROMPT], trie, 8, space).nodes_BK[0].tolist()
    for target in range(8):
        least = 2
        for depth in (1, 0):
            same = [node for node in order if (CODES[node, :depth] == CODES[target, :depth]).all()]
            least = depth if target in _beam(model, trie, same, space) else least
        assert depths[target] == least
    found = rolled(
        model, trie, rows=8, num_generations=2, rollout_space=space, targets=range(8), hints=depths, hint=True
    )
    for target in range(8):
        nodes = [node for node in found.beams.nodes_BK[target].tolist() if node >= 0]
        assert all((CODES[node, : depths[target]] == CODES[target, : depths[target]]).all() for node in nodes)
        assert target in nodes or depths[target] == 2
    legal = found.beams.nodes_BK >= 0
    assert torch.equal(found.beams.prefixes_BKL[legal], trie.prefixes(found.beams.codes_BKL)[legal])


def _beam(model, trie, allowed, space):
    confined = Trie(SIDS, trie.vocab, catalogues=[np.array(sorted(allowed))])
    return search(model, [PROMPT], confined, 2, space).nodes_BK[0].tolist()


def test_hint_files_are_read_by_their_example_and_refused_for_other_ids(tmp_path):
    path = tmp_path / "hints.parquet"
    write_hints(path, [11, 12, 13], np.array([0, 2, 1], np.int8), sids=SIDS)
    assert read_hints(path, [13, 11], sids=SIDS).tolist() == [1, 0]
    other = SidTable(CODES[::-1].copy(), SIZES)
    (tmp_path / "text.parquet").write_text("no table")
    for file, ids, sids, words in (
        (path, [11], other, "other semantic IDs"),
        (path, [11, 14, 15], SIDS, r"lack example 14 \(2 such\)"),
        (tmp_path / "none.parquet", [11], SIDS, "is no file"),
        (tmp_path / "text.parquet", [11], SIDS, "is no hint file"),
    ):
        with pytest.raises(InputError, match=words):
            read_hints(file, ids, sids=sids)


def test_codes_that_the_trie_forces_are_not_free(trie):
    codes = torch.as_tensor(CODES)[None].long()
    free = free_codes(trie, trie.prefixes(codes))[0]
    assert free[0].tolist() == [True, True, True] and free[2].tolist() == [True, True, False]
    assert free[7].tolist() == [True, False, False] and free[5].tolist() == [True, True, True]


def test_a_subtree_has_all_siblings_of_the_beams_and_the_catalogue_where_they_are_enough(model, trie):
    beams = search(model, [PROMPT, [2]], trie, 2, "trie")
    found = subtree(beams, SIDS, trie)
    for row in range(2):
        nodes = found.nodes_BK[row][found.nodes_BK[row] >= 0].tolist()
        kept = beams.nodes_BK[row].tolist()
        expected = {n for n in range(8) if any((CODES[n, :2] == CODES[k, :2]).all() for k in kept)}
        assert nodes[:2] == kept and set(nodes) == expected and len(nodes) == len(expected)
        assert int(found.counts_B[row]) == len(nodes)
    everything = subtree(search(model, [PROMPT], trie, 8, "trie"), SIDS, trie)
    assert sorted(everything.nodes_BK[0].tolist()) == list(range(8))
    more = with_branch(beams, trie, torch.as_tensor(CODES[[4, 7]]).long())
    assert more.codes_BKL[:, 0].tolist() == CODES[[4, 7]].tolist() and more.counts_B.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rollouts": "sample"}, "rollouts sample draws legal items"),
        ({"rollouts": "stochastic_beam", "rollout_space": "trie"}, "logprob_space trie"),
        ({"hint_loss": 0.1}, "rollout.hint_loss 0.1 is read only with hint true"),
        ({"target_loss": -1.0}, "target_loss -1.0 must not be negative"),
        ({"sigma_floor": float("nan")}, "sigma_floor nan"),
        ({"epsilon": 1.5}, "epsilon 1.5 must lie"),
        ({"delta": 1.1}, "delta 1.1 must lie above"),
        ({"updates": 0}, "updates 0"),
        ({"replay": 1.0}, "replay 1.0 must lie"),
        ({"sync_reference": 10, "beta": 0.0}, "sync_reference 10 is read only with beta above 0"),
        ({"sync_reference": 3, "updates": 2}, "sync_reference 3 is no multiple of updates 2"),
        ({"loss": "expected"}, "logprob_space trie"),
        ({"loss": "expected", "logprob_space": "trie", "updates": 2}, "without updates"),
        ({"loss": "expected", "logprob_space": "trie", "baseline": "siblings"}, "without baseline"),
        (
            {"rollouts": "stochastic_beam", "rollout_space": "trie", "logprob_space": "trie", "baseline": "siblings"},
            "siblings knows no inclusion weights",
        ),
        ({"logprob_space": "words"}, "logprob_space 'words' -> one of full, level, trie"),
        ({"num_generations": 1}, "at least 2 rollouts"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        GrpoSettings(**given)
