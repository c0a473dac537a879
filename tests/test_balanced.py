"""rq/constructors/capacity.py, rq/constructors/balanced.py: sizes exactly within bounds, the optimum, codes that encoding reproduces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from configs.program import InputError
from rq.constructors import balanced, capacity, load
from rq.constructors.balanced import Balanced, balanced_kmeans, train_balanced
from tests.test_residual import clustered, save_to


def optimum(cost_NK, low, high):
    """Cost of the best assignment: `high` seats per centre, of which the first `low` must be taken."""
    seats = np.repeat(np.arange(cost_NK.shape[1]), high)
    must = np.tile(np.r_[np.full(low, -1e4), np.zeros(high - low)], cost_NK.shape[1])
    rows, columns = linear_sum_assignment(cost_NK[:, seats] + must)
    return cost_NK[rows, seats[columns]].sum()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 90),
    codes=st.integers(1, 12),
    slack=st.sampled_from([0.0, 0.5, 3.0]),
    ties=st.booleans(),
)
def test_exchanges_reach_the_optimum_of_scipy(seed, num, codes, slack, ties):
    rng = np.random.default_rng(seed)
    cost_NK = rng.integers(0, 4, (num, codes)).astype(float) if ties else rng.random((num, codes)) ** 3
    low, high = capacity.bounds(num, codes, slack=slack)
    start = capacity.round_to_bounds(cost_NK, cost_NK.argmin(1), low=low, high=high)
    found, optimal, graph = capacity.exchange(cost_NK, start, low=low, high=high, limit=10**6)
    sizes = np.bincount(found, minlength=codes)
    assert optimal and low <= sizes.min() and sizes.max() <= high
    assert cost_NK[np.arange(num), found].sum() == pytest.approx(optimum(cost_NK, low, high), abs=1e-6)
    if not ties:
        assert np.array_equal((cost_NK - capacity.prices(graph)).argmin(1), found)


def test_500_points_against_the_optimum():
    x = clustered(500, 32, clusters=60, seed=1)
    level = balanced_kmeans(x, 32, low=14, high=17, seed=0)
    cost_NK = balanced.blocked_distances(x, level.codebook_KD)
    sizes = np.bincount(level.codes_N, minlength=32)
    assert sizes.min() >= 14 and sizes.max() <= 17
    ours = cost_NK[np.arange(500), level.codes_N].sum()
    assert ours == pytest.approx(optimum(cost_NK, 14, 17), rel=1e-9)
    free = cost_NK.min(1).sum()
    assert ours > 1.01 * free, "the bounds did not bind: this test shows nothing"


@pytest.mark.parametrize(
    ("num", "codes", "slack", "expected"),
    [
        (3686, 256, 0, (13, 15)),
        (10, 10, 0, (1, 2)),
        (5, 8, 0, (0, 1)),
        (3459, 256, 0, (12, 14)),
        (511, 256, 0, (1, 2)),
    ],
)
def test_bounds_are_the_published_ones_and_can_always_be_met(num, codes, slack, expected):
    low, high = capacity.bounds(num, codes, slack=slack)
    assert (low, high) == expected and low * codes <= num <= high * codes


def test_every_level_is_within_bounds_and_encoding_gives_the_same_codes(tmp_path):
    x = clustered(600, 12, clusters=20)
    quantizer, codes = train_balanced(x, Balanced(sizes=[16, 24, 7]), seed=0)
    for level, size in enumerate(quantizer.sizes):
        low, high = capacity.bounds(600, size, slack=0)
        counts = np.bincount(codes[:, level], minlength=size)
        assert low <= counts.min() and counts.max() <= high
    assert np.array_equal(quantizer.encode(x), codes)
    assert np.array_equal(quantizer.encode(x[:37]), codes[:37]), "a vector's codes depend on it alone"
    save_to(tmp_path / "q", quantizer)
    assert np.array_equal(load(tmp_path / "q")[0].encode(x), codes)


def test_slack_widens_the_sizes():
    x = clustered(400, 6, clusters=5)
    tight, loose = (train_balanced(x, Balanced(sizes=[16], slack=[s]), seed=0)[1] for s in (0.0, 2.0))
    spread = [np.bincount(codes[:, 0], minlength=16).std() for codes in (tight, loose)]
    assert spread[0] <= 1 < spread[1]


def test_a_separating_last_level_tells_apart_what_a_plain_one_merges(tmp_path):
    """100 pairs that differ along one axis of little variance, among items that vary along all others."""
    x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    x[:, 7] *= 0.3
    x[1:200:2, :7] = x[:200:2, :7]
    merged = []
    for separate in (0, 1):
        quantizer, codes = train_balanced(x, Balanced(sizes=[24, 24, 8], separate=separate), seed=0)
        assert np.array_equal(quantizer.encode(x), codes)
        low, high = capacity.bounds(300, 8, slack=0)
        counts = np.bincount(codes[:, 2], minlength=8)
        assert low <= counts.min() and counts.max() <= high
        merged.append(int((codes[:200:2] == codes[1:200:2]).all(1).sum()))
    assert merged[1] < 0.3 * merged[0]
    save_to(tmp_path / "q", quantizer)
    loaded, _ = load(tmp_path / "q")
    assert np.array_equal(loaded.encode(x), codes)
    cost = loaded.distances(2, loaded.residual(x, codes[:, :2]))
    assert np.array_equal(cost.argmin(1), codes[:, 2])


def test_inertia_is_near_unbounded_kmeans_where_clusters_are_equal():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((8, 5)) * 10
    x = (np.repeat(centres, 25, axis=0) + rng.standard_normal((200, 5)) * 0.1).astype(np.float32)
    level = balanced_kmeans(x, 8, low=25, high=25, seed=0)
    assert balanced.inertia(x, level.codebook_KD, level.codes_N) < 5 * 0.1**2 * 1.5


@pytest.mark.parametrize(
    "x",
    [
        np.ones((1, 3)),
        np.ones((40, 3)),
        np.eye(3)[[0, 1, 2, 0, 1]],
        np.eye(3)[np.arange(60) % 3],
        np.zeros((9, 2)),
    ],
    ids=["one item", "constant", "more codes than items", "three distinct vectors", "zeros"],
)
def test_few_distinct_vectors_stay_within_bounds(x):
    x = x.astype(np.float32)
    quantizer, codes = train_balanced(x, Balanced(sizes=[8, 4]), seed=0)
    for level, size in enumerate((8, 4)):
        low, high = capacity.bounds(len(x), size, slack=0)
        counts = np.bincount(codes[:, level], minlength=size)
        assert low <= counts.min() and counts.max() <= high
    assert len(np.unique(quantizer.encode(x), axis=0)) <= len(np.unique(x, axis=0))


def test_bad_input_is_refused():
    x = clustered(50, 4, clusters=3)
    x[3, 1] = np.nan
    with pytest.raises(InputError, match="not finite"):
        balanced_kmeans(x, 4, low=1, high=50, seed=0)
    with pytest.raises(InputError, match="no assignment of 50 points to 4 codes"):
        balanced_kmeans(np.nan_to_num(x), 4, low=1, high=12, seed=0)
    for bad in ({"sizes": []}, {"sizes": [4, 0]}, {"slack": [0.1, 0.2]}, {"slack": [-1.0]}, {"iterations": 0},
                {"sizes": [8], "separate": 2}):  # fmt: skip
        with pytest.raises(InputError, match="balanced"):
            Balanced(**bad)


def test_equal_seeds_give_equal_codes():
    x = clustered(300, 6, clusters=30)
    books = [train_balanced(x, Balanced(sizes=[16, 8]), seed=seed)[0].codebooks for seed in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(books[0], books[1], strict=True))
    assert not np.array_equal(books[0][0], books[2][0])
