"""The title-only files of D3, MiniOneRec's ancestor, written: no semantic IDs, item numbers shuffled.

    {train,valid,test}/{D}.csv   user, items as source ids, numbers and titles, with ratings and times of history and target
    info/{D}.txt                 title and item number, tab-separated, one item per line
    {D}.item.json, {D}.item2id   as MiniOneRec's, by the shuffled numbers, so that stage 01 (adapter minionerec) reads the folder

A rating or time that the data set lacks is an empty cell (None inside a history).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLUMNS = (
    "user_id", "history_item_asin", "item_asin", "history_item_id", "item_id", "history_item_title", "item_title",
    "history_rating", "rating", "history_timestamp", "timestamp",
)  # fmt: skip
Event = tuple[int, Any, Any]  # item, rating, time


@dataclass(frozen=True)
class D3Items:
    """What is written for every item, by item id: source id, number in the files, title."""

    raw_ids: Sequence[str]
    numbers: Sequence[int]
    titles: Sequence[str]


def shuffled_numbers(count: int, seed: int) -> list[int]:
    """The number of every item: a seeded permutation of 0..count - 1."""
    return np.random.default_rng(seed).permutation(count).tolist()


def events_of(walk: Sequence[Event], history: Sequence[int], target: int) -> list[Event]:
    """The events of a row within its user's walk, target last: where history and target stand there one after the other.

    Events without rating and time where they do not (a published row whose walk is not complete).

    >>> events_of([(3, 5.0, 10), (4, 1.0, 20), (3, 2.0, 30)], [4], 3)
    [(4, 1.0, 20), (3, 2.0, 30)]
    """
    wanted = [*history, target]
    items = [item for item, *_ in walk]
    for start in range(len(items) - len(wanted) + 1):
        if items[start : start + len(wanted)] == wanted:
            return list(walk[start : start + len(wanted)])
    return [(item, None, None) for item in wanted]


def csv_text(rows: Sequence[tuple[str, Sequence[Event]]], items: D3Items) -> str:
    """A split file of (user, events with the target last) rows; histories are printed lists."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for user, events in rows:
        cells: list[Any] = [user]
        for column in (items.raw_ids, items.numbers, items.titles):
            values = [column[item] for item, *_ in events]
            cells += [str(values[:-1]), values[-1]]
        for place in (1, 2):
            values = [event[place] for event in events]
            cells += [str(values[:-1]), "" if values[-1] is None else values[-1]]
        writer.writerow(cells)
    return out.getvalue()


def info_text(items: D3Items) -> str:
    """info/*.txt in the order of the numbers; tabs and line breaks of a title become spaces."""
    order = np.argsort(items.numbers).tolist()
    return "".join(f"{' '.join(items.titles[item].split())}\t{items.numbers[item]}\n" for item in order)
