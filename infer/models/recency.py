"""When items were bought, where the data set has times: ages of history items in days, what was popular lately.

Legend: R rows, H history items of all rows, N items.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import artifacts
from data.rows import Rows

DAY = 86_400
TREND = [3000, 9000]  # the latest interactions that `trend` looks at
SPAN = 1 << 34  # seconds; more than any two timestamps are apart


def with_ages(rows: Rows, data: str | Path, *, num_items: int) -> Rows:
    """`rows` with `age_H`: days between a history item and the newest item of the same history, NaN where unknown.

    Interactions later than the target's timestamp are not looked at. The target is the last of those with its item, the
    occurrences of an item in a history are the ones before, newest last: so the purchase that is to be found never dates an
    earlier one of the same item. An occurrence that the log does not hold is unknown; without a timestamp of the target or
    of the newest item, the whole row is.
    """
    sequences = artifacts.read_sequences(data, num_items=num_items)
    log = artifacts.read(data, artifacts.INTERACTIONS)
    if "timestamp" not in sequences.column_names or "timestamp" not in log.column_names:
        return replace(rows, age_H=np.full(len(rows.history_H), np.nan))
    log = log.filter(pc.is_valid(log["timestamp"]))
    asked_R = _times_of_rows(rows, sequences)
    bought_H = _bought(rows, asked_R, log, num_items)
    newest_R = np.full(len(rows), np.nan)
    filled = np.flatnonzero(np.diff(rows.offsets) > 0)
    newest_R[filled] = bought_H[rows.offsets[1:][filled] - 1]
    return replace(rows, age_H=(newest_R[rows.history_row_H] - bought_H) / DAY)


def gap_levels(rows: Rows) -> np.ndarray:
    """How long before each history item the one before it was bought, int64 [H]: 1 + floor(log2(1 + days)), 0 where unknown.

    Of rows with ages. The first item of a history has none before it. Ages of 9, 8, 8 and 0 days: 0, 2, 1, 4.
    """
    first_H = np.zeros(len(rows.history_H), bool)
    first_H[rows.offsets[:-1][np.diff(rows.offsets) > 0]] = True
    days_H = np.concatenate([[np.nan], rows.age_H[:-1] - rows.age_H[1:]])[: len(first_H)]
    known_H = ~first_H & (days_H >= 0)
    return np.where(known_H, 1 + np.floor(np.log2(1 + np.where(known_H, days_H, 0))), 0).astype(np.int64)


def recent_popularity(data: str | Path, counts: list[int], *, num_items: int) -> dict[int, np.ndarray]:
    """{k: how often each item is among the k latest train interactions with a time, int64 [N]}; {} without times."""
    log = artifacts.read(data, artifacts.INTERACTIONS)
    if "timestamp" not in log.column_names:
        return {}
    log = log.filter(pc.and_(pc.equal(log["split"], "train"), pc.is_valid(log["timestamp"])))
    if not log.num_rows:
        return {}
    by_time = log["item_id"].to_numpy()[np.argsort(log["timestamp"].to_numpy(), kind="stable")]
    return {k: np.bincount(by_time[-k:], minlength=num_items) for k in counts}


def trend(popularity_N: np.ndarray, recent: dict[int, np.ndarray]) -> np.ndarray:
    """Distribution float64 [N] over items in proportion to (lately + always) / always.

    always: an item's share of all train interactions, each item having one more; lately: the mean over `recent` of its share
    of the latest ones. In a product of models, where what a row sums to does not matter, it is the factor of what has become
    more popular; alone it is no recommender. Items of 3 and 1 interactions, all of the latest of the second:
    always 4/6 and 2/6, ratios 1 and 4.

    >>> trend(np.array([3, 1]), {1: np.array([0, 1])})
    array([0.2, 0.8])
    """
    always_N = (popularity_N + 1) / (popularity_N + 1).sum()
    lately_N = np.mean([count_N / count_N.sum() for count_N in recent.values()], axis=0)
    ratio_N = (lately_N + always_N) / always_N
    return ratio_N / ratio_N.sum()


def _times_of_rows(rows: Rows, sequences: pa.Table) -> np.ndarray:
    """Target timestamps float64 [R], NaN where there is none."""
    ids = sequences["example_id"].to_numpy()
    order = np.argsort(ids)
    found = order[np.searchsorted(ids, rows.example_ids_R, sorter=order)]
    return sequences["timestamp"].cast(pa.float64()).to_numpy()[found]


def _later_occurrences(rows: Rows, num_items: int) -> np.ndarray:
    """How often a history item occurs again, later in its history or as the target, int64 [H]."""
    row_H = rows.history_row_H.astype(np.int64)
    key_H = row_H * num_items + rows.history_H
    newest_first = np.lexsort((-np.arange(len(key_H)), key_H))
    sorted_H = key_H[newest_first]
    starts = np.flatnonzero(np.append(True, sorted_H[1:] != sorted_H[:-1])[: len(sorted_H)])
    run = np.diff(np.append(starts, len(sorted_H)))
    later_H = np.empty(len(key_H), np.int64)
    later_H[newest_first] = np.arange(len(key_H)) - np.repeat(starts, run)
    return later_H + (rows.history_H == rows.target_R[row_H])


def _bought(rows: Rows, asked_R: np.ndarray, log: pa.Table, num_items: int) -> np.ndarray:
    """Time of each history item's own interaction, counted back from the latest one not later than the row's time, float64 [H]."""
    time = log["timestamp"].to_numpy()
    if not len(time):
        return np.full(len(rows.history_H), np.nan)
    pair = log["user_id"].to_numpy().astype(np.int64) * num_items + log["item_id"].to_numpy()
    pairs, group = np.unique(pair, return_inverse=True)
    first = time.min()
    sorted_keys = np.sort(group * SPAN + (time - first))
    wanted = rows.users_R[rows.history_row_H].astype(np.int64) * num_items + rows.history_H
    position = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    asked_H = asked_R[rows.history_row_H]
    known = (pairs[position] == wanted) & ~np.isnan(asked_H)
    until = np.where(known, asked_H - first, 0).clip(max=SPAN - 1).astype(np.int64)
    entry = np.searchsorted(sorted_keys, position * SPAN + until, side="right") - 1
    entry -= _later_occurrences(rows, num_items)
    known &= (entry >= 0) & (sorted_keys[entry] // SPAN == position)
    return np.where(known, sorted_keys[entry] % SPAN + first, np.nan)
