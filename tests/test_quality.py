"""rq/quality/measures.py and rq/quality/neighbours.py: every measure by hand arithmetic."""

import math

import numpy as np
import pyarrow as pa
import pytest

from data.artifacts import INT_LIST
from data.sid import SidTable
from rq.quality import measures as quality
from rq.quality import neighbours
from rq.stack.residual import ResidualQuantizer


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
    found = quality.collisions(codes, ["Same", "same ", "x", "a", "b", "a"])
    assert found == {
        "rate": pytest.approx(0.5),
        "distinct": 3,
        "surplus": 3,
        "surplus_of_other_text": 1,
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


def test_pairs_in_rows_are_all_consecutive_pairs_of_the_split():
    table = pa.table(
        {
            "history": pa.array([[1, 2, 3], [4], []], INT_LIST),
            "target": pa.array([7, 8, 9], pa.int32()),
            "split": ["valid", "train", "valid"],
        }
    )
    assert sorted(map(tuple, quality.pairs_in_rows(table, split="valid").tolist())) == [
        (1, 2),
        (2, 3),
        (3, 7),
    ]
    assert quality.pairs_in_rows(table, split="train").tolist() == [[4, 8]]


def test_identical_items_are_listed_apart():
    texts = ["Blue  pen", "x", "blue pen", "y", "x", "x"]
    found = quality.identical_items(texts)
    assert found == {"groups": 2, "items": 5, "surplus": 3, "first_groups": [[0, 2], [1, 4, 5]]}
    assert quality.identical_items(texts, listed=1)["first_groups"] == [[0, 2]]


def test_lift_by_hand_and_the_shuffled_share_is_the_mean_over_shuffles():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]])
    pairs = np.array([[0, 1], [2, 3], [0, 2], [3, 2], [3, 3], [1, 1]])
    found = quality.behaviour(codes, pairs)
    # With them, depth 1: 5 of 6 agree, shuffled 1/2 * 1/3 + 1/2 * 2/3; depth 2: 4 of 6, shuffled 1/2 * 2/3 + 1/6 * 1/3.
    # Without the repeats, firsts are items 0 2 0 3, seconds 1 3 2 2: of 16 shuffled pairs 2 with 2 (twice) and 3 with 3 are no pairs.
    # Depth 1: firsts 0 1 0 1, seconds 0 1 1 1 -> agree 3 of 4; shuffled (2 * 1 + 2 * 3 - 3) / (16 - 3).
    assert found["depth_1"] == pytest.approx(
        {"agreement": 0.75, "shuffled": 5 / 13, "lift": 0.75 * 13 / 5, "lift_with_repeats": 5 / 3}
    )
    # Depth 2: firsts 00 10 00 10, seconds 01 10 10 10 -> agree 2 of 4; shuffled (2 * 3 - 3) / (16 - 3).
    assert found["depth_2"] == pytest.approx(
        {"agreement": 0.5, "shuffled": 3 / 13, "lift": 0.5 * 13 / 3, "lift_with_repeats": 12 / 7}
    )
    assert found["pairs"] == 6 and found["repeats"] == 2
    assert quality.behaviour(codes, pairs[4:]) is None, "only repeats"

    rng, apart = np.random.default_rng(0), pairs[:4]
    first, second = (rng.choice(side, 20_000) for side in apart.T)
    shuffles = (codes[first] == codes[second])[first != second]
    assert shuffles[:, 0].mean() == pytest.approx(5 / 13, abs=0.02)
    assert shuffles.all(1).mean() == pytest.approx(3 / 13, abs=0.02)


def test_random_codes_have_a_lift_of_one_on_a_small_catalogue():
    """Of one in which few items are most of the pairs, so that an item meets itself often when these are shuffled."""
    rng = np.random.default_rng(0)
    popular = rng.permutation(1 / np.arange(1, 61))
    found = [
        quality.behaviour(rng.integers(0, 8, (60, 2)), rng.choice(60, (400, 2), p=popular / popular.sum()))
        for _ in range(300)
    ]
    for depth, of_codes in (("depth_1", 1 / 8), ("depth_2", 1 / 64)):
        lifts = np.array([one[depth]["lift"] for one in found])
        error = lifts.std() / len(lifts) ** 0.5
        assert lifts.mean() == pytest.approx(1, abs=3 * error) and error < 0.05
        assert np.mean([one[depth]["shuffled"] for one in found]) == pytest.approx(of_codes, rel=0.1)


def test_lift_without_pairs_or_without_chance_agreement():
    codes = np.array([[0, 0], [1, 1]])
    assert quality.behaviour(codes, np.empty((0, 2), np.int32)) is None
    assert quality.behaviour(codes, np.array([[0, 1]]))["depth_1"] == {
        "agreement": 0.0,
        "shuffled": 0.0,
        "lift": None,
        "lift_with_repeats": None,
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


def test_labels_are_measured_where_items_differ_and_nmi_equals_the_library():
    from sklearn.metrics import normalized_mutual_info_score

    paths = [["shop", "a", "p"], ["shop", "a", "q"], ["shop", "b"], ["shop"], ["shop", "b", "p"]]
    levels = quality.label_levels(paths)
    assert [(level, count) for level, _, count in levels] == [(1, 2), (2, 2)]
    assert levels[0][1].tolist() == [0, 0, 1, -1, 1] and levels[1][1].tolist() == [0, 1, -1, -1, 0]
    assert len(quality.label_levels(paths, most=1)) == 1

    rng = np.random.default_rng(3)
    codes, label = rng.integers(0, 4, (200, 3)), rng.integers(-1, 5, 200)
    found, known = quality.label_agreement(codes, label), label >= 0
    assert found["items"] == known.sum()
    for depth in (1, 2):
        ours, prefix = found[f"depth_{depth}"], quality.prefix_ids(codes[known], depth)
        assert ours["nmi"] == pytest.approx(normalized_mutual_info_score(label[known], prefix))
        majority = sum(np.bincount(label[known][prefix == p]).max() for p in np.unique(prefix))
        assert (
            ours["purity"] == pytest.approx(majority / known.sum()) and ours["prefixes"] == prefix.max() + 1
        )


def test_affected_targets_are_those_whose_id_another_item_has():
    table = SidTable(np.array([[0, 0], [0, 0], [1, 0]], np.int32), (2, 1))
    found = neighbours.affected_targets(table, np.array([0, 2, 1, 2]))
    assert found == {"rows": 4, "affected": 2, "share": 0.5}
    assert neighbours.affected_targets(table, np.array([], np.int32))["share"] is None


def test_neighbours_by_behaviour_are_the_most_frequent_partners():
    pairs = np.array([[0, 1], [1, 0], [0, 2], [3, 0], [0, 3], [2, 2]])
    item, other = neighbours.pair_neighbours(pairs, num_items=4, most=2)
    assert list(zip(item, other, strict=True)) == [(0, 1), (0, 3), (1, 0), (2, 0), (3, 0)]
    # Prefixes 0 0 1 1: item 0 shares with 1 only (1/2), item 1 with 0 (1/1), 2 and 3 with none: mean 3/8.
    found = neighbours.neighbour_hits(np.array([[0], [0], [1], [1]]), (item, other))
    assert found["depth_1"]["rate"] == pytest.approx(3 / 8)
    assert found["depth_1"]["chance"] == pytest.approx(1 / 3) and found["items"] == 4
    assert neighbours.neighbour_hits(np.array([[0]]), (item[:0], other[:0])) is None
    assert [x.tolist() for x in neighbours.as_lists((item, other))] == [[1, 3], [0], [0], [0]]


def test_embedding_neighbours_leave_the_item_out_even_among_identical_ones():
    x = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0], [0, 1.1]], np.float32)
    item, other = neighbours.embedding_neighbours(x, most=2)
    assert (item != other).all() and 4 not in item and 4 not in other
    assert sorted(other[item == 0].tolist()) == [1, 2] and other[item == 3][0] == 5


def test_of_many_items_a_sample_is_looked_up_among_all_of_them(monkeypatch):
    import faiss

    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)).astype(np.float32)
    x[7] = 0
    codes = np.stack([(x[:, 0] > 0), (x[:, 1] > 0)], axis=1).astype(np.int32)
    whole, sides = neighbours.embedding_neighbours(x, most=5), []
    monkeypatch.setattr(
        faiss, "knn", lambda q, b, k, knn=faiss.knn: sides.append((len(q), len(b))) or knn(q, b, k)
    )
    item, other = neighbours.embedding_neighbours(x, most=5, queries=100)
    again = neighbours.embedding_neighbours(x, most=5, queries=100)
    assert sides == [(100, 399)] * 2 and len(np.unique(item)) == 100 and 7 not in item
    assert np.array_equal(again[0], item) and np.array_equal(again[1], other)
    asked = np.isin(whole[0], item)
    assert np.array_equal(whole[0][asked], item) and np.array_equal(whole[1][asked], other)
    for queries in (399, 400):
        same = neighbours.embedding_neighbours(x, most=5, queries=queries)
        assert all(map(np.array_equal, same, whole))
        assert neighbours.embedding_hits(codes, x, most=5, queries=queries) == neighbours.neighbour_hits(
            codes, whole
        )
    found = neighbours.embedding_hits(codes, x, most=5, queries=100)
    assert (found["queries"], found["of"], found["items"]) == (100, 399, 100)
    exact = neighbours.neighbour_hits(codes, whole)["depth_1"]["rate"]
    assert found["depth_1"]["rate"] == pytest.approx(exact, abs=0.1)
    assert neighbours.QUERIES == 20_000, "as rq/README.md says"


def test_list_spread_by_hand():
    codes = np.array([[0, 0], [0, 1], [1, 0], [0, 0]])
    found = neighbours.list_spread(codes, [np.array([0, 1, 2]), np.array([0, 3]), np.array([], int)])
    assert found["lists"] == 2 and found["length"] == 2.5
    assert found["depth_1"] == {"distinct": 1.5, "share": 3 / 5}
    assert found["depth_2"] == {"distinct": 2.0, "share": 4 / 5}
    assert neighbours.list_spread(codes, []) is None
