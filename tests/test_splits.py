"""Order, splits and windows against hand-made lists and slicing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.program import InputError
from data.shaping.assemble import Coded, SplitOptions, split_rows, windows
from data.shaping.splits import (
    CONTEXT,
    TEST,
    TRAIN,
    VALID,
    check_times_complete,
    global_temporal,
    in_order,
    leave_one_out,
    order_of_windows,
    positions,
    sequence_table,
    split_names,
    window_ends,
)

NAMES = ["train", "valid", "test", "context"]
USERS = st.lists(st.lists(st.integers(0, 50), max_size=14), max_size=8)  # per user: items, also none


def flat(users: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(user int32, value int32) of rows grouped by user."""
    pairs = [(user, value) for user, values in enumerate(users) for value in values]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    return rows[:, 0].astype(np.int32), rows[:, 1]


@given(users=USERS, max_history=st.integers(1, 12))
def test_windows_equal_list_slicing(users, max_history):
    user, item = flat(users)
    split = leave_one_out(user)
    targets = np.flatnonzero(positions(user) > 0)
    table = sequence_table(user, item.astype(np.int32), split, targets, max_history=max_history)
    expected = [
        (number, items[max(0, n - max_history) : n], items[n])
        for number, items in enumerate(users)
        for n in range(1, len(items))
    ]
    rows = [(row["user_id"], row["history"], row["target"]) for row in table.to_pylist()]
    assert rows == expected
    assert table["split"].to_pylist() == [NAMES[code] for code in split[targets]]


@given(users=USERS)
def test_leave_one_out_is_the_last_and_the_last_but_one(users):
    user, _ = flat(users)
    expected = []
    for items in users:
        names = ["train"] * len(items)
        if len(items) >= 3:
            names[-2:] = ["valid", "test"]
        expected += names
    assert [NAMES[code] for code in leave_one_out(user)] == expected


def test_global_temporal_by_hand():
    # 12 windows: int(0.8 * 12) = 9 train, up to int(0.9 * 12) = 10 valid, 2 test.
    times = [[0, 10, 20, 30], [5, 15, 25, 35, 45], [7, 50, 51], [46, 52, 53, 49]]
    user, time = flat(times)
    split = global_temporal(user, time)
    # Window times in order: 10 15 20 25 30 35 45 49 50 | 51 | 52 53. The third user's first row (46) is later than no valid target.
    by_user = np.split(split, np.cumsum([len(t) for t in times])[:-1])
    assert [list(part) for part in by_user] == [
        [TRAIN] * 4,
        [TRAIN] * 5,
        [TRAIN, TRAIN, VALID],
        [TRAIN, TEST, TEST, TRAIN],
    ]


def test_a_first_row_later_than_the_first_valid_target_is_context():
    times = [[0, 10, 20, 30, 40], [1, 11, 21, 31, 41], [40, 60], [41, 70]]
    user, time = flat(times)
    # 10 windows: 8 train, 1 valid (60), 1 test (70); 40 and 41 are not later than 60.
    assert CONTEXT not in global_temporal(user, time)
    time[-2] = 61
    assert global_temporal(user, time)[-2:].tolist() == [CONTEXT, TEST]


@given(users=USERS, train=st.integers(10, 80), valid=st.integers(0, 19))
def test_global_temporal_equals_cutting_the_sorted_windows(users, train, valid):
    user, time = flat([sorted(values) for values in users])
    split = global_temporal(user, time, fractions=(Fraction(train, 100), Fraction(train + valid, 100)))
    place = positions(user)
    windows = sorted((int(time[row]), row) for row in range(len(user)) if place[row] > 0)
    cuts = train * len(windows) // 100, (train + valid) * len(windows) // 100
    for number, (_, row) in enumerate(windows):
        assert split[row] == (TRAIN if number < cuts[0] else VALID if number < cuts[1] else TEST)
    first = windows[cuts[0]][0] if cuts[0] < len(windows) else np.inf
    for row in np.flatnonzero(place == 0):
        assert split[row] == (CONTEXT if time[row] > first else TRAIN)


def test_order_is_by_time_and_ties_keep_file_order():
    user = np.array([1, 0, 1, 0, 1, 0], np.int32)
    time = np.array([5, 9, 5, 3, 1, 9])
    assert in_order(user, time).tolist() == [3, 1, 5, 4, 0, 2]


def test_a_user_with_an_unknown_time_keeps_the_file_order():
    user = np.array([0, 0, 0, 1, 1], np.int32)
    time = np.array([9, 0, 3, 8, 7])
    known = np.array([True, False, True, True, True])
    assert in_order(user, time, known).tolist() == [0, 1, 2, 4, 3]


def test_windows_come_by_split_and_then_by_time():
    user = np.array([0, 0, 0, 1, 1, 1], np.int32)
    place = window_ends(user, max_history=9, stride=0)
    split = np.array([TRAIN, TRAIN, TEST, CONTEXT, CONTEXT, VALID], np.int8)
    assert order_of_windows(split, place, None).tolist() == [1, 5, 2], "context is never a target"
    split = np.array([TRAIN, TRAIN, TEST, VALID, VALID, -1], np.int8)
    assert order_of_windows(split, place, None).tolist() == [1, 4, 2], "neither is a row without split"
    split = np.array([TRAIN, TEST, TEST, TRAIN, TRAIN, TEST], np.int8)
    assert order_of_windows(split, place, np.array([0, 9, 8, 0, 7, 8])).tolist() == [4, 2, 5, 1]


def test_split_names_keep_unknown_as_null():
    assert split_names(np.array([0, -1, 3], np.int8)).to_pylist() == ["train", None, "context"]


def test_timestamps_of_targets_keep_their_nulls():
    user, item = np.array([0, 0, 0], np.int32), np.array([4, 5, 6], np.int32)
    times = pa.array([1, None, 3])
    table = sequence_table(user, item, leave_one_out(user), np.array([1, 2]), max_history=5, timestamp=times)
    assert table["timestamp"].to_pylist() == [None, 3]


def test_a_split_by_time_needs_every_time():
    check_times_complete(np.array([True, True]), kind="time_quantile", where="x")
    with pytest.raises(InputError, match=r"1 of 2 rows have no time \(first: row 1\).*leave_one_out"):
        check_times_complete(np.array([True, False]), kind="global_temporal", where="interactions")


def test_shares_are_cut_as_they_are_written():
    # .7 + .1 is .7999... as floats, and int(.7999... * 10) is 7.
    user, time = flat([list(range(11))])
    rows = Coded(user, user, np.zeros(11, np.float32), time, np.ones(11, bool))
    split = split_rows(rows, SplitOptions(train_share=0.7, valid_share=0.1))
    assert np.bincount(split).tolist() == [8, 1, 2]


def strided(items: list[int], *, length: int, stride: int) -> list[tuple[list[int], int]]:
    """(history, target) of windows that begin at every stride-th item, without those that another holds."""
    found: list[tuple[int, int]] = []
    for begin in range(0, len(items), stride):
        end = min(begin + length, len(items))
        if end - begin > 1 and (not found or end > found[-1][1]):
            found.append((begin, end))
    return [(items[begin : end - 1], items[end - 1]) for begin, end in found]


@given(users=USERS, longest=st.integers(1, 6), stride=st.integers(1, 6), kind=st.sampled_from(["leave_one_out", "time_quantile"]))  # fmt: skip
def test_strided_windows_equal_slicing_and_no_later_target_is_in_a_train_window(users, longest, stride, kind):
    stride = min(stride, longest)
    user, time = flat([sorted(values) for values in users])
    item = np.arange(len(user), dtype=np.int32)  # every row is an item of its own: (user, order)
    rows = Coded(user, item, item.astype(np.float32), time, np.ones(len(user), bool))
    options = SplitOptions(kind=kind, max_history=longest, stride=stride)
    split = split_rows(rows, options)
    made = windows(rows, split, options).to_pylist()
    got = sorted((row["user_id"], row["history"], row["target"]) for row in made)
    expected = []
    for number in range(len(users)):
        own = item[user == number].tolist()
        if kind == "time_quantile":
            expected += [(number, *window) for window in strided(own, length=longest + 1, stride=stride)]
            continue
        train = own[:-2] if len(own) >= 3 else own
        expected += [(number, *window) for window in strided(train, length=longest + 1, stride=stride)]
        expected += [(number, own[max(0, n - longest) : n], own[n]) for n in range(len(train), len(own))]
    if kind == "leave_one_out":
        assert got == sorted(expected)
    else:
        assert got == sorted(expected), "every window is in a split"
        in_time = sorted(int(time[row["target"]]) for row in made)
        if in_time:
            limits = [in_time[int(share * (len(in_time) - 1) + Fraction(1, 2))] for share in (Fraction(8, 10), Fraction(9, 10))]  # fmt: skip
            for row in made:
                at = time[row["target"]]
                assert row["split"] == ("train" if at <= limits[0] else "valid" if at <= limits[1] else "test")  # fmt: skip
    seen = {item for row in made if row["split"] == "train" for item in [*row["history"], row["target"]]}
    later = [row["target"] for row in made if row["split"] != "train"]
    assert not seen & set(later) and len(later) == len(set(later))
    assert {int(n) for n in np.flatnonzero(split == TRAIN)} >= seen, "rows of train windows count as train"
    assert not {int(n) for n in np.flatnonzero(split == TRAIN)} & set(later)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "leave_one_out", "max_history": 4, "stride": 5}, "rows between two windows would be lost"),
        ({"kind": "global_temporal", "stride": 2}, "takes every row -> leave_one_out or time_quantile"),
        ({"kind": "published", "stride": 2}, "takes every row -> leave_one_out or time_quantile"),
    ],
)
def test_strides_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SplitOptions(**options)
