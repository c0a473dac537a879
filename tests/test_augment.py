"""Histories that are made for a teacher to answer, by hand and by their shares; windows of rows taken and joined."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from configs.program import InputError
from data.rows import Rows
from infer.models.sequential.windows import joined, row_windows, single_windows
from train.scratch.augment import Augmentation, drawn_from, made_windows, prefixes, sources


def rows_of(histories: list[list[int]], targets: list[int]):
    offsets = np.cumsum([0, *map(len, histories)])
    flat = np.array([item for one in histories for item in one], np.int32)
    count = np.arange(len(targets))
    return Rows(count, count.astype(np.int32), offsets, flat, np.array(targets, np.int32))


def test_made_histories_by_hand():
    rows = rows_of([[0, 1, 2], [3]], [3, 0])
    windows = row_windows(rows)
    chosen = Augmentation(ratio=2, variants=2, drop=0.0, replace=0.0)
    follower = partial(drawn_from, lambda items: np.eye(5)[(items + 1) % 5])
    made = made_windows(windows, chosen, positions=3, first_example=10, follower=follower)
    assert [made.item_I[a:b].tolist() for a, b in zip(made.offsets, made.offsets[1:], strict=False)] == [
        [1, 2, 3],
        [3, 0],
    ] * 2
    assert made.example_I.tolist() == list(range(10, 20))
    replaced = made_windows(
        windows, Augmentation(ratio=1, replace=1.0, drop=0.0), positions=9, first_example=0, follower=follower
    )
    assert replaced.item_I.tolist() == [1, 2, 3, 4, 4, 1], "every item by what follows it alone"
    short = made_windows(
        windows,
        Augmentation(ratio=1, replace=0.0, drop=0.99),
        positions=9,
        first_example=0,
        follower=follower,
    )
    assert (np.diff(short.offsets) >= 1).all() and {3, 0} <= set(short.item_I.tolist()), (
        "the newest item stays"
    )
    asked = prefixes(made, np.tile([5, 3], 2))
    assert asked.history_H.tolist()[:9] == [1, 1, 2, 1, 2, 3, 3, 3, 0] and asked.offsets.tolist()[:6] == [
        0,
        1,
        3,
        6,
        7,
        9,
    ]
    assert asked.users_R.tolist() == [5, 5, 5, 3, 3] * 2, "every made history is its window's user's"
    shares = np.bincount(
        made_windows(
            row_windows(rows_of([[0]] * 4000, [0] * 4000)), Augmentation(ratio=1, drop=0.15, replace=0.4), positions=4,
            first_example=0, follower=partial(drawn_from, lambda items: np.tile([0.0, 0.25, 0.75], (len(items), 1))),
        ).item_I
    )  # fmt: skip
    assert shares.sum() == pytest.approx(8000 * 0.85 + 4000 * 0.15**2, rel=0.02)
    assert (shares / shares.sum()).tolist() == pytest.approx([0.6, 0.1, 0.3], abs=0.02)


def test_windows_are_taken_and_joined():
    rows = rows_of([[0], [4, 5], [], [0, 1]], [1, 6, 2, 2])
    windows = single_windows(rows)
    assert windows.item_I.tolist() == [0, 4, 5, 0, 1] and windows.target_I.tolist() == [1, -1, 6, -1, 2]
    assert windows.example_I.tolist() == [0, -1, 1, -1, 3] and len(windows) == 3
    both = joined(windows, windows.take(np.array([2, 0])))
    assert both.offsets.tolist() == [0, 1, 3, 5, 7, 8] and both.item_I.tolist() == [0, 4, 5, 0, 1, 0, 1, 0]
    assert both.rows_W.tolist() == [1] * 5


def test_what_cannot_be_made_is_refused():
    for wrong in ({"ratio": -1.0}, {"drop": 1.0}, {"replace": 1.1}, {"variants": 0}, {"ratio": 2.0}):
        with pytest.raises(InputError, match="augment:"):
            Augmentation(**wrong)


def test_windows_that_overlap_do_not_multiply_what_is_made():
    """A user of 60 items read ten at a time: fifty windows of one target each. Short histories are taken as they are."""
    walk = list(range(60))
    long = row_windows(rows_of([walk[at : at + 10] for at in range(50)], walk[10:]))
    once, other = Augmentation(ratio=0.5), Augmentation(ratio=0.5, seed=1)
    kept = sources(long, once, positions=10)
    assert len(long) == 50 and len(kept) == 10 == once.most * 50 / 10
    starts = [kept.item_I[at] for at in kept.offsets[:-1]]
    assert starts == sorted(starts) and starts != walk[:10] and len(set(starts)) == 10
    assert (sources(long, once, positions=10).item_I == kept.item_I).all()
    assert (sources(long, other, positions=10).item_I != kept.item_I).any()
    assert len(sources(long, Augmentation(ratio=1, variants=2), positions=10)) == 5, (
        "two histories of each window"
    )
    assert sources(long, Augmentation(ratio=0.5, most=None), positions=10) is long
    of_two = rows_of([[0], [0, 1], [0, 1, 2], [3]], [1, 2, 4, 0])
    short = row_windows(replace(of_two, users_R=np.array([0, 0, 0, 1], np.int32)))
    assert len(short) == 2 and sources(short, once, positions=10) is short
