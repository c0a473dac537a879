"""rq/quality.py: every measure by hand arithmetic."""

import math

import numpy as np
import pyarrow as pa
import pytest

from data.artifacts import INT_LIST
from rq import quality
from rq.residual import ResidualQuantizer


def test_code_use_by_hand():
    use = quality.code_use(np.array([0, 0, 0, 2]), size=4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    # Differences over all ordered pairs of (3, 0, 1, 0): 2 * (3 + 2 + 3 + 1 + 0 + 1) = 20, over 2 * 4 * 4.
    assert use["used"] == 2 and use["size"] == 4
    assert use["entropy_nats"] == pytest.approx(entropy)
    assert use["perplexity"] == pytest.approx(math.exp(entropy))
    assert use["gini"] == pytest.approx(20 / 32)
    assert quality.code_use(np.arange(4), size=4)["gini"] == pytest.approx(0)


def test_collisions_by_hand():
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 1]])
    found = quality.collisions(codes, ["same", "same", "x", "a", "b", "a"])
    assert found == {
        "rate": pytest.approx(0.5),
        "distinct": 3,
        "items": 5,
        "groups": 2,
        "largest_group": 3,
        "groups_of_identical_text": 1,
    }
    assert quality.collisions(codes[2:4], ["x", "x"])["largest_group"] == 1


def test_reconstruction_error_by_hand():
    x = np.array([[0.0], [2.0], [4.0]], np.float32)
    quantizer = ResidualQuantizer(
        (np.array([[1.0], [4.0]], np.float32), np.array([[-1.0], [0.0]], np.float32))
    )
    # Spread 4 + 0 + 4. Level 1 leaves -1, 1, 0; level 2 takes -1 from the first and nothing from the others.
    codes = np.array([[0, 0], [0, 1], [1, 1]])
    assert quality.reconstruction_error(x, codes, quantizer) == pytest.approx([2 / 8, 1 / 8])
    assert quality.reconstruction_error(np.ones((3, 1)), codes, quantizer) is None


def test_held_out_pairs_take_the_last_history_item_of_the_split():
    histories = [[1, 2], [3], [], [4, 5, 6]]
    table = pa.table(
        {
            "history": pa.array(histories, INT_LIST),
            "target": pa.array([7, 8, 9, 10], pa.int32()),
            "split": ["valid", "train", "valid", "valid"],
        }
    )
    assert quality.held_out_pairs(table, split="valid").tolist() == [[2, 7], [6, 10]]
    assert quality.held_out_pairs(table, split="test").shape == (0, 2)


def test_lift_by_hand_and_the_shuffled_share_is_the_mean_over_shuffles():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]])
    pairs = np.array([[0, 1], [2, 3], [0, 2], [3, 3]])
    found = quality.behaviour(codes, pairs)
    # Depth 1: firsts 0 1 0 1, seconds 0 1 1 1 -> agree 3 of 4; shuffled 1/2 * 1/4 + 1/2 * 3/4 = 1/2.
    assert found["depth_1"] == pytest.approx({"agreement": 0.75, "shuffled": 0.5, "lift": 1.5})
    # Depth 2: firsts 00 10 00 10, seconds 01 10 10 10 -> agree 2 of 4; shuffled 1/2 * 3/4.
    assert found["depth_2"] == pytest.approx({"agreement": 0.5, "shuffled": 0.375, "lift": 0.5 / 0.375})
    assert found["pairs"] == 4 and found["repeats"] == 1

    rng = np.random.default_rng(0)
    shuffles = [codes[pairs[:, 0], 0] == codes[rng.permutation(pairs[:, 1]), 0] for _ in range(2000)]
    assert np.mean(shuffles) == pytest.approx(0.5, abs=0.02)


def test_lift_without_pairs_or_without_chance_agreement():
    codes = np.array([[0, 0], [1, 1]])
    assert quality.behaviour(codes, np.empty((0, 2), np.int32)) is None
    assert quality.behaviour(codes, np.array([[0, 1]]))["depth_1"] == {
        "agreement": 0.0,
        "shuffled": 0.0,
        "lift": None,
    }
    assert "depth_2" not in quality.behaviour(codes[:, :1], np.array([[0, 1]]))


def test_purity_uses_the_first_level_that_differs():
    categories = [["shop", "a"], ["shop", "a"], ["shop", "b"], ["shop"], ["shop", "b", "c"]]
    codes = np.array([[0, 0], [0, 0], [0, 1], [0, 0], [1, 0]])
    found = quality.purity(codes, categories)
    assert found == pytest.approx(
        {"category_level": 1, "items": 4, "largest_category": 0.5, "depth_1": 3 / 4, "depth_2": 1.0}
    )
    assert quality.purity(codes, [["shop"]] * 5) is None and quality.purity(codes, [[]] * 5) is None
