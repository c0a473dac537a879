"""When items were bought, where the data set has times: ages of history items in days, what was popular lately.

Legend: R rows, H history items of all rows, N items, I interactions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import artifacts
from data.rows import Rows

DAY = 86_400
SPAN = 1 << 34  # seconds; more than any two timestamps are apart
LOOK_BACK = 20  # history items that tell which of several interactions at one time a row asks for
TREND = [3000, 9000]  # the latest interactions that `trend` looks at


def with_ages(rows: Rows, data: str | Path, *, num_items: int) -> Rows:
    """`rows` with `age_H`: days between a history item and the newest item of the same history, NaN where unknown.

    Interactions behind the target in the user's own order are not looked at, those of its time neither (where the log lacks the target,
    those behind its time). The occurrences of an item in a history are the ones before it, newest last: so the purchase that is to be
    found never dates an earlier one of the same item. An occurrence that the log does not hold is unknown; without a timestamp of the
    target or of the newest item, the whole row is.
    """
    sequences = artifacts.read_sequences(data, num_items=num_items)
    log = artifacts.read(data, artifacts.INTERACTIONS)
    if "timestamp" not in sequences.column_names or "timestamp" not in log.column_names:
        return replace(rows, age_H=np.full(len(rows.history_H), np.nan))
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
    """How often a history item occurs again, later in its history, int64 [H]."""
    row_H = rows.history_row_H.astype(np.int64)
    key_H = row_H * num_items + rows.history_H
    newest_first = np.lexsort((-np.arange(len(key_H)), key_H))
    sorted_H = key_H[newest_first]
    starts = np.flatnonzero(np.append(True, sorted_H[1:] != sorted_H[:-1])[: len(sorted_H)])
    run = np.diff(np.append(starts, len(sorted_H)))
    later_H = np.empty(len(key_H), np.int64)
    later_H[newest_first] = np.arange(len(key_H)) - np.repeat(starts, run)
    return later_H


@dataclass(frozen=True)
class _Log:
    """All interactions in the order of users and their own: user, item, pair (both as one number), time (NaN where unknown), [I].

    by_pair: places of interactions sorted by pair and place; pairs: the different ones, sorted; pair_place: number of the pair and place as
    one number, sorted.
    """

    user_I: np.ndarray
    item_I: np.ndarray
    pair_I: np.ndarray
    time_I: np.ndarray
    by_pair: np.ndarray
    pairs: np.ndarray
    pair_place: np.ndarray

    @classmethod
    def of(cls, log: pa.Table, num_items: int) -> _Log:
        user, item = log["user_id"].to_numpy().astype(np.int64), log["item_id"].to_numpy()
        order = np.lexsort((log["order"].to_numpy(), user))
        pair = (user * num_items + item)[order]
        by_pair = np.argsort(pair, kind="stable")
        pairs, number = np.unique(pair, return_inverse=True)
        time = log["timestamp"].cast(pa.float64()).to_numpy()[order]
        return cls(
            user[order], item[order], pair, time, by_pair, pairs, number[by_pair] * len(pair) + by_pair
        )

    def before(self, pair: np.ndarray, place: np.ndarray | int) -> np.ndarray:
        """How many entries of `by_pair` stand before the interaction of a pair that would be at `place`."""
        return np.searchsorted(self.pair_place, np.searchsorted(self.pairs, pair) * len(self.pair_I) + place)

    def until(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The place behind the last interaction of each user that has a time, and none later than `time`; 0 where there is none."""
        timed = np.flatnonzero(~np.isnan(self.time_I))
        if not len(timed):
            return np.zeros(len(user), np.int64)
        first = self.time_I[timed].min()
        key = self.user_I[timed] * SPAN + (self.time_I[timed] - first).astype(np.int64)
        by_time = np.argsort(key, kind="stable")
        last = np.maximum.accumulate(timed[by_time])  # places of one user are beyond those of the one before
        asked = user.astype(np.int64) * SPAN + (time - first).clip(min=-1, max=SPAN - 1).astype(np.int64)
        entry = np.searchsorted(key[by_time], asked, side="right") - 1
        own = (entry >= 0) & (self.user_I[last[entry.clip(min=0)]] == user)
        return np.where(own, last[entry.clip(min=0)] + 1, 0)


def _places_of_targets(rows: Rows, asked_R: np.ndarray, log: _Log, num_items: int) -> np.ndarray:
    """Which interaction of the log each row asks for, int64 [R]; where none has its item and time, the place behind its time.

    Of several at one time it is the one that most of the history's newest items stand before, in their order; of those the first.
    """
    place_R, best_R = np.zeros(len(rows), np.int64), np.full(len(rows), -1)
    pair_R = rows.users_R.astype(np.int64) * num_items + rows.target_R
    start_R, stop_R = log.before(pair_R, 0), log.before(pair_R + 1, 0)
    left, turn = np.flatnonzero(start_R < stop_R), 0
    while len(left):
        at = log.by_pair[start_R[left] + turn]
        timed = log.time_I[at] == asked_R[left]
        chosen, at = left[timed], at[timed]
        alike = _items_alike(rows, chosen, at, log)
        better = alike > best_R[chosen]
        place_R[chosen[better]], best_R[chosen[better]] = at[better], alike[better]
        turn += 1
        left = left[start_R[left] + turn < stop_R[left]]
    lost = np.flatnonzero((best_R < 0) & ~np.isnan(asked_R))
    place_R[lost] = log.until(rows.users_R[lost], asked_R[lost])
    return place_R


def _items_alike(rows: Rows, chosen: np.ndarray, at: np.ndarray, log: _Log) -> np.ndarray:
    """How many of the newest items of some rows' histories stand before places of the log, one behind the other, int64."""
    alike, going = np.zeros(len(chosen), np.int64), np.ones(len(chosen), bool)
    lengths = np.diff(rows.offsets)[chosen]
    for back in range(1, LOOK_BACK + 1):
        going = going & (back <= lengths) & (back <= at)
        where = np.flatnonzero(going)
        items, place = rows.history_H[rows.offsets[1:][chosen[where]] - back], at[where] - back
        going[where] = (log.item_I[place] == items) & (log.user_I[place] == log.user_I[at[where]])
        alike += going
    return alike


def _bought(rows: Rows, asked_R: np.ndarray, log: pa.Table, num_items: int) -> np.ndarray:
    """Time of each history item's own interaction, counted back from the row's target, float64 [H]; NaN where unknown."""
    if not log.num_rows:
        return np.full(len(rows.history_H), np.nan)
    known = _Log.of(log, num_items)
    row_H = rows.history_row_H
    pair_H = rows.users_R[row_H].astype(np.int64) * num_items + rows.history_H
    place_H = _places_of_targets(rows, asked_R, known, num_items)[row_H]
    entry_H = known.before(pair_H, place_H) - 1 - _later_occurrences(rows, num_items)
    at_H = known.by_pair[entry_H.clip(min=0)]
    there_H = (entry_H >= 0) & (known.pair_I[at_H] == pair_H) & ~np.isnan(asked_R[row_H])
    return np.where(there_H, known.time_I[at_H], np.nan)
