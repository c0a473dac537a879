"""Every reward of train/rewards against hand arithmetic: the examples of the docstrings, ragged groups, other depths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.sid import SidTable
from tests import handmade
from tests.test_layering import ROOT
from train.rewards import RolloutBatch, registry
from train.rewards.items import diversity, novelty, semantic
from train.rewards.needs import Sources, resolve
from train.rewards.ranking import rank_discount, rank_margin
from train.rewards.sid import cid_match, cid_prefix, first_diff, hepo, partial_hit, prefix_match
from train.rewards.teacher import cgrf_h, collaborative
from train.rewards.thoughts import thought_length

# item 0 is the target (1, 2, 3); the others differ from it at the last, the middle, the first and at every level
CODES = np.array([[1, 2, 3], [1, 2, 4], [1, 5, 3], [6, 2, 3], [6, 5, 4]], np.int32)
SIDS = SidTable(CODES, (7, 6, 5))


def batch(items, *, target=0, sids=SIDS, history=(1,)):
    """One group of rollouts, each the ID of an item; None is a place beyond the legal ones."""
    codes = np.array([[0] * sids.num_levels if item is None else sids.codes_NL[item] for item in items])
    held = [
        () if item is None else tuple(sids.items_of_sid(sids.sid_of_item_N[item]).tolist()) for item in items
    ]
    row = {"target": [target], "example_id": 5, "history": list(history)}
    return RolloutBatch([row], codes[None], [held], np.zeros((1, len(items))))


class Teacher:
    """An item model with the same scores for every history."""

    def __init__(self, *chances):
        self.score_N, self.num_items = np.log(np.array(chances, np.float32)), len(chances)

    def score(self, rows, items_RC=None):
        assert items_RC is None and len(rows) == 1 and rows.history_H.tolist() == [1]
        return self.score_N[None].repeat(len(rows), 0)


def test_rewards_of_codes_have_the_values_of_their_papers():
    group = batch([0, 1, 2, 3, None])
    assert partial_hit(group, sids=SIDS) == [[100, 10, 1, 0, None]]
    assert prefix_match(group, sids=SIDS) == [pytest.approx([1.1, 0.6, 0.35, 0.1, None])]
    gpr = prefix_match(group, sids=SIDS, values=[0.2, 0.5, 1], valid=0)
    assert gpr == [[1, 0.5, 0.2, 0, None]]
    assert hepo(group, sids=SIDS) == [[[0.2, 0.5, 1], [0.2, 0.5, 0], [0.2, 0, 0], [0, 0, 0], None]]
    assert first_diff(group, sids=SIDS) == [[[1, 1, 1], [1, 1, -1], [1, -1, None], [-1, None, None], None]]
    group = batch([0, 3, 2, 4, None])
    assert cid_match(group, sids=SIDS) == [pytest.approx([1, 0.5, 0.7, 0.15, None])]
    assert cid_prefix(batch([0, 3, 2, 1]), sids=SIDS) == [pytest.approx([1, 0, 0.5, 0.8])]


def test_other_depths_follow_the_rule_or_are_asked_for():
    sids = SidTable(np.array([[0, 0], [0, 1], [1, 0]], np.int32), (2, 2))
    group = batch([0, 1, 2], sids=sids)
    assert prefix_match(group, sids=sids, valid=0) == [[1, 0.5, 0]]
    assert partial_hit(group, sids=sids) == [[10, 1, 0]]
    assert hepo(group, sids=sids, values=[0.3, 1]) == [[[0.3, 1], [0.3, 0], [0, 0]]]
    for reward in (hepo, cid_match, cid_prefix):
        with pytest.raises(InputError, match=f"reward {reward.__name__}: 3 values .* of 2 levels"):
            reward(group, sids=sids)


def test_rank_discount_rewards_the_place_of_the_hit():
    assert rank_discount(batch([1, 2, 0])) == [[0, 0, 0.5]]
    assert rank_discount(batch([3, 0, None])) == [pytest.approx([0, 0.63093, None], abs=1e-5)]


def test_rank_margin_says_how_far_the_target_is_below_the_list():
    missed = replace(
        batch([1, 2, None]), scores_PG=np.array([[-4.0, -5.0, -np.inf]]), target_P=np.array([-6.0])
    )
    (near,) = rank_margin(missed, scale=0.2)
    assert near[:2] == pytest.approx([0.07358] * 2, abs=1e-5) and near[2] is None
    assert rank_margin(replace(batch([1, 0]), target_P=np.array([-6.0]))) == [
        [0, pytest.approx(0.63093, abs=1e-5)]
    ]
    with pytest.raises(InputError, match="thought.score_target true"):
        rank_margin(batch([1]))
    with pytest.raises(InputError, match="above 0 and below 1"):
        rank_margin(missed, scale=1.0)


def test_rank_discount_falls_back_on_the_longest_right_prefix_where_no_beam_is_the_target():
    near = {"sids": SIDS, "fallback": [0.05, 0.2]}
    assert rank_discount(batch([1, 2, 3, 4, None]), **near) == [[0.2, 0.05, 0, 0, None]]
    assert rank_discount(batch([1, 0, 2]), **near) == [pytest.approx([0, 0.63093, 0], abs=1e-5)]
    with pytest.raises(InputError, match="3 values in fallback -> one per level but the last"):
        rank_discount(batch([1]), sids=SIDS, fallback=[0.1, 0.2, 1])


def test_thoughts_lose_what_they_have_too_much_or_too_little():
    lengths = np.array([[0, 5, 10, 80, 90, 100, 130]])
    group = replace(batch([0] * 7), thought_PG=lengths)
    assert thought_length(group, most=100, soft=20) == [pytest.approx([0, 0, 0, 0, -0.5, -1, -1])]
    assert thought_length(group, most=100, soft=20, least=10) == [
        pytest.approx([-1, -0.5, 0, 0, -0.5, -1, -1])
    ]
    with pytest.raises(InputError, match="0 < soft <= most"):
        thought_length(group, most=100, soft=0)
    with pytest.raises(InputError, match="these rollouts have no thoughts"):
        thought_length(batch([0]), most=100, soft=20)


def test_collaborative_is_the_mean_probability_of_an_id_or_its_percentile():
    sids = SidTable(CODES[[0, 0, 2, 3, 4]], SIDS.sizes)  # items 0 and 1 share an ID
    teacher = Teacher(0.3, 0.1, 0.35, 0.05, 0.2)
    ((shared, second, missing),) = collaborative(batch([0, 2, None], sids=sids), teacher=teacher)
    assert shared == pytest.approx(np.log(0.2)) and second == pytest.approx(np.log(0.35)) and missing is None
    (found,) = collaborative(batch([2, 3, 4]), teacher=teacher, scale="percentile")
    assert found == pytest.approx([0.9, 0.1, 0.5])
    assert collaborative(batch([2, 3], history=()), teacher=teacher) == [[None, None]], "no history"
    with pytest.raises(InputError, match="scale 'rank' -> one of logit, percentile"):
        collaborative(batch([0]), teacher=teacher, scale="rank")


def test_cgrf_h_trusts_the_teacher_as_far_as_it_ranks_the_target():
    first = Teacher(0.4, 0.3, 0.15, 0.1, 0.05)
    (found,) = cgrf_h(batch([0, 1, 2, 3]), teacher=first, sids=SIDS)
    assert found == pytest.approx([1, 2 / 3, 1 / 3, 0], abs=1e-6), "target first: the teacher's order alone"
    second = Teacher(0.2, 0.5, 0.1, 0.1, 0.1)
    gate = (1 / np.log2(3) - 0.5) / 0.5
    (found,) = cgrf_h(batch([2, 1, None]), teacher=second, sids=SIDS)
    assert gate == pytest.approx(0.262, abs=5e-4)
    assert found == [pytest.approx((1 - gate) * 0.2), pytest.approx(gate + (1 - gate) * 0.5), None]
    last = Teacher(0.02, 0.5, 0.2, 0.18, 0.1)
    (found,) = cgrf_h(batch([1, 2, 3]), teacher=last, sids=SIDS)
    assert found == pytest.approx([0.5, 0.2, 0]), "target behind all others: the prefix alone"
    (found,) = cgrf_h(batch([0, 1], history=()), teacher=first, sids=SIDS)
    assert found == [1, 0.5]


def test_semantic_is_the_mean_cosine_of_an_id():
    sids = SidTable(CODES[[0, 0, 2, 3]], SIDS.sizes)
    vectors = np.array([[1, 0], [0, 2], [3, 3], [0, 0]], np.float32)
    (found,) = semantic(batch([0, 2, 3, None], sids=sids), embeddings=vectors)
    assert found == [pytest.approx(0.5), pytest.approx(np.sqrt(0.5)), 0, None]


def test_novelty_and_diversity_work_against_popular_and_equal_rollouts():
    (found,) = novelty(batch([0, 1, None]), popularity=np.array([3, 0, 9, 9, 9]))
    information = -np.log2(np.array([4, 1]) / 35)
    assert found == [pytest.approx(information[0] / information[1]), pytest.approx(1), None]
    assert diversity(batch([0, 1, 3, None])) == [[0.5, 0.5, 1.0, None]]
    assert diversity(batch([0, None])) == [[0.0, None]]


def test_popularity_counts_train_interactions(tmp_path):
    """Through the door that a run uses; a data set of other items is refused."""
    data = handmade.write_data(tmp_path / "data", sequences=[("train", 0, [0], 1)])
    columns = {
        "user_id": pa.array([0, 0, 1], pa.int32()),
        "item_id": pa.array([4, 4, 4], pa.int32()),
        "order": pa.array([0, 1, 0], pa.int32()),
        "split": ["train", "train", "valid"],
    }
    pq.write_table(pa.table(columns), data / "interactions.parquet")
    handmade.resign(data)
    sids = SidTable(handmade.CODES, handmade.SIZES)
    (count_N,) = resolve(["popularity"], Sources(sids, data=str(data))).values()
    assert count_N[4] == 2 and count_N.sum() == 2
    with pytest.raises(InputError, match="items, the semantic IDs 5"):
        resolve(["popularity"], Sources(SIDS, data=str(data)))


def test_every_reward_has_a_line_in_the_readme():
    text = (ROOT / "train/README.md").read_text()
    assert [name for name in registry() if f"`{name}`" not in text] == []
