"""rq/ids/collisions.py: repaired codes are different, cheap and legal."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from rq.ids import collisions
from rq.stack.residual import ResidualQuantizer


def random_case(seed, num, sizes, distinct):
    """Vectors with many duplicates, a random stack of these sizes, nearest codes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((distinct, 3)).astype(np.float32)[rng.integers(0, distinct, num)]
    books = tuple((rng.standard_normal((k, 3)) / 2**i).astype(np.float32) for i, k in enumerate(sizes))
    quantizer = ResidualQuantizer(books)
    return x, quantizer, quantizer.encode(x)


@settings(max_examples=150)
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


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), num=st.integers(2, 5))
def test_no_more_items_move_than_must_and_their_total_distance_is_least(seed, num):
    x, quantizer, nearest = random_case(seed, num, (1, 5), distinct=3)
    codes = collisions.reassign(x, nearest, quantizer)
    cost = (((x - quantizer.codebooks[0][0])[:, None] - quantizer.codebooks[1][None]) ** 2).sum(2)
    rows = np.arange(num)
    moves = int((codes[:, 1] != nearest[:, 1]).sum())
    assert moves == num - len(np.unique(nearest[:, 1]))
    best = min(
        cost[rows, list(order)].sum()
        for order in permutations(range(5), num)
        if (np.array(order) != nearest[:, 1]).sum() == moves
    )
    assert cost[rows, codes[:, 1]].sum() == pytest.approx(best, rel=1e-4)


def test_taken_codes_are_not_given_out_and_what_finds_none_says_so():
    cost = np.array([[0.0, 1, 2, 9], [0.0, 3, 2, 9], [0.0, 9, 9, 1]])
    zeros = np.zeros(3, np.int32)
    assert collisions.fewest_moves(cost, zeros).tolist() == [1, 0, 3]
    assert collisions.fewest_moves(cost, zeros, np.array([0])).tolist() == [1, 2, 3]
    assert collisions.fewest_moves(cost, zeros, np.array([0, 3])).tolist() == [1, 2, -1]


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), num=st.integers(2, 60), distinct=st.integers(1, 60))
def test_sinkhorn_rounds_never_add_collisions_and_move_last_codes_only(seed, num, distinct):
    x, quantizer, nearest = random_case(seed, num, (3, 4, 8), distinct)
    codes, sizes = collisions.repair_collisions(x, nearest, quantizer, repair="sinkhorn")
    before, after = (len(np.unique(c, axis=0)) for c in (nearest, codes))
    assert after >= before and sizes == (3, 4, 8)
    assert np.array_equal(codes[:, :-1], nearest[:, :-1])
    assert (codes >= 0).all() and (codes < np.array(sizes)).all()


def test_sinkhorn_rounds_tell_a_group_of_different_items_apart_but_not_identical_ones():
    quantizer = ResidualQuantizer((np.zeros((1, 2), np.float32), np.eye(8, 2, dtype=np.float32)))
    x = np.array([[1.0, 0.0], [1.0, 0.1], [1.1, 0.0], [5.0, 5.0], [5.0, 5.0]], np.float32)
    nearest = quantizer.encode(x)
    assert len(np.unique(nearest[:3], axis=0)) == 1
    codes = collisions.sinkhorn_rounds(x, nearest, quantizer)
    assert len(np.unique(codes[:3], axis=0)) > 1 and np.array_equal(codes[3], codes[4])


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


def test_collision_rank_is_the_published_ordinal():
    codes = np.array([[1, 1], [0, 2], [1, 1], [3, 3]], np.int32)
    quantizer = ResidualQuantizer((np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)))
    out, sizes = collisions.repair_collisions(np.zeros((4, 1)), codes, quantizer, repair="collision_rank")
    assert out[:, 2].tolist() == [1, 0, 2, 0] and sizes == (4, 4, 3)


def test_last_codes_by_popularity_and_ids_dealt_out_at_random():
    x, quantizer, nearest = random_case(3, 14, (3, 2, 4), distinct=6)
    plain, _ = collisions.repair_collisions(x, nearest, quantizer, repair="reassign")
    popularity = np.array([0, 5, 5, 9, 1, 2, 0, 7, 7, 7, 3, 4, 8, 6])
    ranked, sizes = collisions.repair_collisions(
        x, nearest, quantizer, repair="popularity", popularity_N=popularity
    )
    assert (
        sizes == (3, 2, 4)
        and np.array_equal(ranked[:, :2], plain[:, :2])
        and len(np.unique(ranked, axis=0)) == 14
    )
    for prefix in np.unique(ranked[:, :2], axis=0):
        members = np.flatnonzero((ranked[:, :2] == prefix).all(1))
        assert sorted(ranked[members, 2]) == list(range(len(members)))
        assert (np.diff(popularity[members[np.argsort(ranked[members, 2])]]) <= 0).all()
    shuffled = [
        collisions.repair_collisions(x, nearest, quantizer, repair="shuffled", seed=seed)[0]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(shuffled[0], shuffled[1]) and not np.array_equal(shuffled[0], shuffled[2])
    assert sorted(map(tuple, shuffled[0].tolist())) == sorted(map(tuple, plain.tolist())), (
        "the same IDs, other items"
    )
    assert not np.array_equal(shuffled[0], plain)
