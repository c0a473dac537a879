"""k-core and time windows against dictionaries and lists."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.program import InputError
from data.shaping.filtering import Window, core, parse_window, widened_core

YEAR = 365 * 86400


def naive_core(rows: list[tuple[int, int]], user_k: int, item_k: int) -> list[int]:
    """Row numbers that survive, by counting in dictionaries until nothing changes."""
    kept = list(range(len(rows)))
    while True:
        users, items = Counter(rows[n][0] for n in kept), Counter(rows[n][1] for n in kept)
        stays = [n for n in kept if users[rows[n][0]] >= user_k and items[rows[n][1]] >= item_k]
        if stays == kept:
            return kept
        kept = stays


def columns(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(rows, np.int32).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), max_size=120)


@given(rows=ROWS, user_k=st.integers(0, 6), item_k=st.integers(0, 6))
def test_core_equals_counting_in_dictionaries(rows, user_k, item_k):
    user, item = columns(rows)
    kept, rounds = core(user, item, user_k=user_k, item_k=item_k)
    assert kept.tolist() == naive_core(rows, user_k, item_k)
    last = [rows[n] for n in kept]
    assert (rounds[0].rows, rounds[-1].rows) == (len(rows), len(last))
    assert (rounds[-1].users, rounds[-1].items) == (len({u for u, _ in last}), len({i for _, i in last}))
    assert all(a.rows > b.rows for a, b in zip(rounds, rounds[1:], strict=False))


def test_core_sides_are_counted_separately():
    # Three users with two rows each on one item: a 2-core of users keeps all, a 7-core of items nothing.
    user, item = columns([(0, 0), (0, 0), (1, 0), (1, 0), (2, 0), (2, 0)])
    assert len(core(user, item, user_k=2, item_k=6)[0]) == 6
    assert len(core(user, item, user_k=2, item_k=7)[0]) == 0
    assert len(core(user, item, user_k=3, item_k=0)[0]) == 0


def seconds(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp())


def test_window_is_months_of_utc_and_its_end_is_the_first_second():
    window = parse_window("2016-10", "2018-11")
    times = np.array(
        [seconds(2016, 10, 1) - 1, seconds(2016, 10, 1), seconds(2018, 11, 1), seconds(2018, 11, 1) + 1]
    )
    assert window.mask(times).tolist() == [False, True, True, False]
    assert window.mask(times, np.array([True, False, True, True])).tolist() == [False, False, True, False]
    assert str(window) == "2016-10..2018-11"
    assert parse_window("", "") is None
    assert parse_window("", "2000-01").mask(np.array([0, seconds(2000, 2, 1)])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("start", "end"), [("2016", ""), ("2016-13", ""), ("", "16-01"), ("2018-02", "2018-01")]
)
def test_bad_months_are_refused(start, end):
    with pytest.raises(InputError, match=r"filters\.(start|end)"):
        parse_window(start, end)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=80
    ),
    min_items=st.integers(0, 8),
    min_year=st.integers(2000, 2006),
    k=st.integers(0, 3),
)
def test_widening_is_a_search_from_the_narrow_window(rows, min_items, min_year, k):
    user, item = columns([row[:2] for row in rows])
    times = np.array([seconds(2000 + row[2], 6, 1) for row in rows])
    expected = None
    for year in range(2006, min_year - 1, -1):
        inside = [n for n, row in enumerate(rows) if year <= 2000 + row[2] <= 2008]
        kept = [inside[n] for n in naive_core([rows[n][:2] for n in inside], k, k)]
        expected = kept, year
        if len({rows[n][1] for n in kept}) >= min_items:
            break
    options = {"user_k": k, "item_k": k, "min_items": min_items, "min_year": min_year}
    window = Window((2006, 1), (2009, 1))
    if not expected[0]:
        with pytest.raises(InputError, match="filters leave nothing"):
            widened_core(user, item, times, window=window, **options)
        return
    result = widened_core(user, item, times, window=window, **options)
    assert (result.keep.tolist(), result.window.start[0]) == expected
    assert result.window.end == window.end
    assert result.out_of_window == sum(not expected[1] <= 2000 + row[2] <= 2008 for row in rows)


def test_nothing_left_says_which_step_lost_the_rows():
    user, item = columns([(0, 0), (1, 0), (2, 1)])
    with pytest.raises(InputError) as caught:
        widened_core(user, item, np.zeros(3, np.int64), user_k=2, item_k=1, before="reviews read: 900")
    message = str(caught.value)
    assert "reviews read: 900, then k-core user_k=2 item_k=1: 3 rows, 3 users, 2 items" in message
    assert "lower filters.user_k" in message


def test_rows_without_a_time_are_in_no_window():
    user, item = columns([(0, 0), (0, 0), (0, 1)])
    times, known = np.array([seconds(2001, 1, 1), 0, seconds(2001, 1, 1)]), np.array([True, False, True])
    result = widened_core(
        user, item, times, known, user_k=0, item_k=0, window=parse_window("1970-01", "2005-01")
    )
    assert result.keep.tolist() == [0, 2]
