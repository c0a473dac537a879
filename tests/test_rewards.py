"""Rewards against hand arithmetic and published values, mixed and from a file of one's own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from configs.program import InputError, NumericError
from data.artifacts import read_items
from data.sid import SidTable
from data.store.output import open_output
from infer.models import counting
from tests import handmade
from train.rewards import RolloutBatch
from train.rewards.mixture import Mixture, build_mixture
from train.rewards.needs import Sources
from train.rewards.ranking import rank_aware
from train.rewards.sid import exact_match
from train.rewards.spec import RewardSpec, read_specs

NAN = float("nan")


def batch(item_ids, targets, levels=2):
    group = len(item_ids[0])
    rows = [
        {"target": [target], "task": "history_to_sid", "any_other_column": 1, "example_id": 100 + p}
        for p, target in enumerate(targets)
    ]
    return RolloutBatch(rows, np.zeros((len(rows), group, levels)), item_ids, np.zeros((len(rows), group)))


def mixture(*rewards, sources=None) -> Mixture:
    return build_mixture(read_specs(list(rewards)), sources)


def test_exact_match_counts_any_item_of_the_semantic_id():
    assert exact_match(batch([[(3,), (7, 8), (9,)]], [8])) == [[0.0, 1.0, 0.0]]


def test_rank_aware_weights_of_a_group_of_sixteen():
    items = [[(i,) for i in range(16)]]
    (rewards,) = rank_aware(batch(items, [15]))
    assert rewards[15] == 0.0
    assert [round(r, 3) for r in rewards[:3]] == [-0.164, -0.103, -0.082]
    (rewards,) = rank_aware(batch(items, [0]))
    assert round(rewards[15], 3) == -0.04
    # the weights of all 16 ranks sum to 1: the hit at rank 0 saves exactly its own share
    assert sum(rewards) == pytest.approx(-1 + 0.16377, abs=1e-5)


def test_a_group_without_the_target_gets_nothing():
    assert rank_aware(batch([[(1,), (2,)], [(1,), (2,)]], [5, 2])) == [
        [0.0, 0.0],
        [pytest.approx(-0.6131, abs=1e-4), 0.0],
    ]


def test_beams_beyond_the_legal_ones_are_none_and_change_no_weight():
    short, padded = [[(1,), (2,), (4,)]], [[(1,), (2,), (4,), ()]]
    assert rank_aware(batch(padded, [2]))[0] == [*rank_aware(batch(short, [2]))[0], None]
    assert exact_match(batch(padded, [2])) == [[0.0, 1.0, 0.0, None]]


OWN = """
import numpy as np

def by_level(batch):
    return [[None, [0.2, 0.4]]]

def scaled(batch, *, factor, titles, embeddings, sids):
    first = [[factor * len(titles[items[0]]) for items in group] for group in batch.item_ids]
    assert embeddings.shape == (sids.num_items, 3)
    return np.array(first)

def ragged(batch):
    return [[1.0]] * len(batch.rows)

def by_three(batch):
    return [[[1, 2, 3], 0] for _ in batch.rows]

def nan(batch):
    return [[0.0, float("nan") if row["target"] == [5] else 1.0] for row in batch.rows]

def broken(batch):
    return [[1 / (row["target"][0] - 5), 0] for row in batch.rows]

def silent(batch):
    return [[None] * 2 for _ in batch.rows]
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "my.py").write_text(OWN)
    return f"{tmp_path}/my.py"


def test_a_mixture_is_the_weighted_sum_and_per_level_where_a_member_is(own):
    one = batch([[(7,), (3,)]], [7])
    total, given = mixture("exact_match", RewardSpec(f"{own}:by_level", weight=0.5))(one)
    np.testing.assert_allclose(total, [[[1, 1], [0.1, 0.2]]])
    assert list(given) == ["exact_match", "by_level"] and given["by_level"].shape == (1, 2, 2)
    total, _ = mixture(RewardSpec(f"{own}:by_level"))(one)
    np.testing.assert_allclose(total, [[[NAN, NAN], [0.2, 0.4]]])
    total, given = mixture("exact_match", RewardSpec("exact_match", weight=-2))(one)
    assert total.tolist() == [[[-1.0], [0.0]]] and list(given) == ["exact_match", "exact_match#2"]


def test_a_cell_for_which_no_member_speaks_is_missing(own):
    one = batch([[(7,), ()]], [7])
    assert np.isnan(mixture(f"{own}:silent")(one)[0]).all()
    np.testing.assert_array_equal(mixture(f"{own}:silent", "exact_match")(one)[0], [[[1.0], [NAN]]])


def test_needs_are_resolved_by_name(own, tmp_path):
    data = handmade.write_data(tmp_path / "data", sequences=[("train", 0, [0], 1)])
    sids = SidTable(handmade.CODES, handmade.SIZES)
    vectors = tmp_path / "e"
    with open_output(handmade.Made(), "embed_items", version=1, inputs={}, directory=vectors) as out:
        out.write_array("embeddings.npy", np.ones((sids.num_items, 3), np.float32))
    spec = RewardSpec(f"{own}:scaled", params={"factor": 2}, needs=["titles", "embeddings", "sids"])
    sources = Sources(sids, data=str(data), embeddings=str(vectors))
    total, _ = mixture(spec, sources=sources)(batch([[(7,), (3,)]], [7]))
    titles = read_items(data)["title"].to_pylist()
    assert total[0, :, 0].tolist() == [2 * len(titles[7]), 2 * len(titles[3])]
    with pytest.raises(InputError, match="--data DIRECTORY"):
        mixture(spec, sources=Sources(sids, embeddings=str(vectors)))
    with pytest.raises(
        InputError, match="needs moon -> one of sids, embeddings, titles, popularity, teacher"
    ):
        mixture(RewardSpec("exact_match", needs=["moon"]), sources=sources)


LIKELY = """
def likely(batch, *, teacher):
    score_PN = teacher.score(batch.histories)
    return [[score_PN[p, items[0]] for items in group] for p, group in enumerate(batch.item_ids)]
"""


def test_a_teacher_scores_the_histories_of_the_prompts(tmp_path):
    """Item 0 was followed by item 1 once and by item 2 three times, item 1 by item 0: only the history decides."""
    follows = sparse.csr_matrix(np.array([[0, 1.0, 3], [1, 0, 0], [0, 0, 0]]))
    with open_output(handmade.Made(), "baseline", version=1, inputs={}, directory=tmp_path / "m") as out:
        counting.CountingModel(np.array([1, 1, 1]), follows, last=1).save(out)
    (tmp_path / "my.py").write_text(LIKELY)
    spec = RewardSpec(f"{tmp_path}/my.py:likely", needs=["teacher"])
    sids = SidTable(np.array([[0], [1], [2]], np.int32), (3,))
    one = batch([[(1,), (2,)], [(1,), (0,)]], [7, 8], levels=1)
    one.rows[0]["history"], one.rows[1]["history"] = [1, 0], [0, 1]
    total, _ = mixture(spec, sources=Sources(sids, teacher=str(tmp_path / "m")))(one)
    assert total[0, 1, 0] > total[0, 0, 0] and total[1, 1, 0] > total[1, 0, 0]
    assert np.exp(total[0, 1, 0]) / np.exp(total[0, 0, 0]) == pytest.approx(3, rel=0.1)
    more = SidTable(np.array([[0], [1], [2], [3]], np.int32), (4,))
    with pytest.raises(InputError, match="has 3 items, the semantic IDs 4"):
        mixture(spec, sources=Sources(more, teacher=str(tmp_path / "m")))


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("ragged", InputError, "ragged gives 1 entries for the 2 rollouts of example 100"),
        ("by_three", InputError, "by_three gives 3 values for the 2 levels of example 100, rollout 0"),
        ("nan", NumericError, "nan is nan for example 101, rollout 1"),
        ("broken", InputError, "broken fails at example 101: ZeroDivisionError"),
    ],
)
def test_a_reward_that_is_wrong_is_named_with_its_row(own, name, error, words):
    with pytest.raises(error, match=words):
        mixture(f"{own}:{name}")(batch([[(1,), (2,)], [(1,), (2,)]], [4, 5]))


def test_rewards_that_are_not_there_are_refused(own):
    for name, words in (
        ("semantics", "unknown reward 'semantics' -> any of exact_match, rank_aware"),
        (f"{own}:absent", "has no function 'absent'"),
        ("nowhere.py:fn", "missing file: nowhere.py"),
    ):
        with pytest.raises(InputError, match=words):
            mixture(name)
    with pytest.raises(InputError, match=r"\{name: x, wieght: 2\}. is no reward"):
        read_specs(["[{name: x, wieght: 2}]"])
    with pytest.raises(InputError, match="none given"):
        read_specs([])
    with pytest.raises(InputError, match="params and in needs"):
        RewardSpec("exact_match", params={"sids": 1}, needs=["sids"])
