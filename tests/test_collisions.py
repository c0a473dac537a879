"""rq/collisions.py: repaired codes are different, cheap and legal."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from rq import collisions
from rq.residual import ResidualQuantizer


def random_case(seed, num, sizes, distinct):
    """Vectors with many duplicates, a random stack of these sizes, nearest codes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((distinct, 3)).astype(np.float32)[rng.integers(0, distinct, num)]
    books = tuple((rng.standard_normal((k, 3)) / 2**i).astype(np.float32) for i, k in enumerate(sizes))
    quantizer = ResidualQuantizer(books)
    return x, quantizer, quantizer.encode(x)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    fill=st.floats(0.05, 1),
    distinct=st.integers(1, 10),
)
def test_reassigned_codes_are_all_different_up_to_full_capacity(seed, sizes, fill, distinct):
    num = max(1, int(fill * np.prod(sizes)))
    x, quantizer, nearest = random_case(seed, num, sizes, distinct)
    codes, out_sizes = collisions.repair_collisions(x, nearest, quantizer, repair="reassign")
    assert out_sizes == tuple(sizes) and len(np.unique(codes, axis=0)) == num
    assert (codes >= 0).all() and (codes < np.array(sizes)).all()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), num=st.integers(2, 5))
def test_last_codes_have_the_least_total_distance(seed, num):
    x, quantizer, nearest = random_case(seed, num, (1, 5), distinct=3)
    codes = collisions.reassign(x, nearest, quantizer)
    if len(np.unique(nearest, axis=0)) == num:
        assert np.array_equal(codes, nearest)
    cost = ((x - quantizer.codebooks[0][0])[:, None] - quantizer.codebooks[1][None]) ** 2
    cost = cost.sum(2)
    best = min(sum(cost[i, c] for i, c in enumerate(order)) for order in permutations(range(5), num))
    assert cost[np.arange(num), codes[:, 1]].sum() == pytest.approx(best, rel=1e-4)


def test_prefixes_without_a_collision_keep_their_codes():
    x, quantizer, nearest = random_case(7, 36, (6, 40), distinct=30)
    codes = collisions.reassign(x, nearest, quantizer)
    clean = [p for p in range(6) if len(np.unique(s := nearest[nearest[:, 0] == p, 1])) == len(s)]
    assert clean and len(clean) < 6
    kept = np.isin(nearest[:, 0], clean)
    assert np.array_equal(codes[kept], nearest[kept])
    assert np.array_equal(codes[:, 0], nearest[:, 0])


def test_items_that_lose_least_leave_an_overfull_code():
    cost = np.array([[0, 9, 9], [0, 1, 9], [0, 9, 2], [0, 8, 9], [9, 0, 9]], float)
    codes = collisions.spill(cost, np.array([0, 0, 0, 0, 1], np.int32), room=2)
    assert codes.tolist() == [0, 1, 2, 0, 1]


def test_a_prefix_over_its_room_spills_to_the_level_before_and_is_coded_again():
    book = np.array([[0.0], [10.0]], np.float32)
    quantizer = ResidualQuantizer((book, np.array([[-1.0], [0.0]], np.float32)))
    x = np.array([[0.0], [0.1], [3.0]], np.float32)
    codes = collisions.reassign(x, quantizer.encode(x), quantizer)
    assert codes[2].tolist() == [1, 0] and codes[:2, 0].tolist() == [0, 0]
    assert sorted(codes[:2, 1].tolist()) == [0, 1]


def test_more_items_than_semantic_ids_is_an_input_error():
    x, quantizer, nearest = random_case(0, 7, (2, 3), distinct=7)
    with pytest.raises(InputError, match=r"7 items do not fit into 6 semantic IDs \(2 x 3\)"):
        collisions.repair_collisions(x, nearest, quantizer, repair="reassign")


def test_collision_level_counts_items_with_the_same_codes():
    codes = np.array([[1, 1], [0, 2], [1, 1], [1, 1], [0, 2], [3, 3]], np.int32)
    quantizer = ResidualQuantizer((np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)))
    out, sizes = collisions.repair_collisions(np.zeros((6, 1)), codes, quantizer, repair="collision_level")
    assert out[:, 2].tolist() == [0, 0, 1, 2, 1, 0] and sizes == (4, 4, 3)
    assert np.array_equal(out[:, :2], codes) and out.dtype == np.int32


def test_none_leaves_the_codes():
    x, quantizer, nearest = random_case(1, 9, (2, 2), distinct=2)
    codes, sizes = collisions.repair_collisions(x, nearest, quantizer, repair="none")
    assert np.array_equal(codes, nearest) and sizes == (2, 2)
