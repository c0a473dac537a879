"""Order, splits and sliding windows of interactions, as arrays.

Everything here works on rows that are grouped by user and sorted by their position in the user's sequence (`in_order`).
A window is one target row with up to `max_history` rows of the same user before it.

  leave_one_out     test = a user's last row, valid = the last but one, the rest train; users with < 3 rows train only
  global_temporal   all windows of all users sorted by the time of their target (stable) and cut at 80 % and 90 % (the
                    published MiniOneRec protocol): one user can have windows in several splits
  time_quantile     windows whose target is no later than the 80 % quantile of the targets' times are train, up to 90 %
                    valid, later ones test (HiD-VAE's MovieLens): equal times stay on one side

A window ends at every row but a user's first, or, with a stride, windows of one length begin at every stride-th row of a user
(`window_ends`). Either way no target of valid or test stands in a train window of its user.

A row's split is the split of the window whose target it is. A user's first row is nobody's target: it is `train`, or
`context` (history only) when it is later than the first valid target of a global-temporal split.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.artifacts import int_lists

TRAIN, VALID, TEST, CONTEXT = range(4)
SPLIT_NAMES = ("train", "valid", "test", "context")


def in_order(
    user: np.ndarray,
    timestamp: np.ndarray,
    known: np.ndarray | None = None,
    beyond: np.ndarray | None = None,
) -> np.ndarray:
    """Row numbers (int64) sorted by (user, time, original order).

    timestamp: int64 UTC seconds; beyond: nanoseconds after them, None where there are none. A user with any row whose time
    is not `known` keeps the original order throughout, because a partial order cannot be merged with it without guessing.
    """
    if known is not None and not known.all():
        untimed = np.zeros(int(user.max(initial=-1)) + 1, bool)
        untimed[user[~known]] = True
        timestamp = np.where(untimed[user], 0, timestamp)
        beyond = None if beyond is None else np.where(untimed[user], 0, beyond)
    by_time = np.argsort(timestamp, kind="stable") if beyond is None else np.lexsort((beyond, timestamp))
    return by_time[np.argsort(user[by_time], kind="stable")]


def steps_back(user: np.ndarray, timestamp: np.ndarray, beyond: np.ndarray | None = None) -> np.ndarray:
    """Row numbers (int64) of rows that are earlier than the row before them, of the same user.

    user: grouped; timestamp, beyond: as for `in_order`.
    """
    step = np.diff(timestamp)
    earlier = step < 0
    if beyond is not None:
        earlier |= (step == 0) & (np.diff(beyond) < 0)
    return np.flatnonzero(earlier & (np.diff(user) == 0)) + 1


def in_file_order(
    user: np.ndarray, timestamp: np.ndarray, known: np.ndarray, beyond: np.ndarray | None = None
) -> tuple[int, int]:
    """(users of several rows whom `in_order` leaves in the original order, those among them whose known times contradict it)."""
    several = np.bincount(user) > 1
    untimed = np.zeros(len(several), bool)
    untimed[user[~known]] = True
    untimed &= several
    rows = np.flatnonzero(known & untimed[user])
    rows = rows[np.argsort(user[rows], kind="stable")]
    back = steps_back(user[rows], timestamp[rows], None if beyond is None else beyond[rows])
    return int(untimed.sum()), len(np.unique(user[rows[back]]))


def user_starts(user: np.ndarray) -> np.ndarray:
    """Row number of the first row of each row's user (int64 [rows]); `user` is grouped."""
    if not len(user):
        return np.zeros(0, np.int64)
    first = np.concatenate([[0], np.flatnonzero(np.diff(user)) + 1])
    return np.repeat(first, np.diff(np.append(first, len(user))))


def positions(user: np.ndarray) -> np.ndarray:
    """Position of each row in its user's sequence, from 0 (int32 [rows]); `user` is grouped."""
    return (np.arange(len(user)) - user_starts(user)).astype(np.int32)


def leave_one_out(user: np.ndarray) -> np.ndarray:
    """Split code of every row (int8 [rows]); `user` is grouped and in order."""
    position = positions(user)
    length = np.bincount(user, minlength=1)[user]
    from_end = length - 1 - position
    split = np.full(len(user), TRAIN, np.int8)
    long_enough = length >= 3
    split[long_enough & (from_end == 0)] = TEST
    split[long_enough & (from_end == 1)] = VALID
    return split


def global_temporal(
    user: np.ndarray,
    timestamp: np.ndarray,
    *,
    fractions: tuple[Fraction, Fraction] = (Fraction(8, 10), Fraction(9, 10)),
) -> np.ndarray:
    """Split code of every row (int8 [rows]); `user` is grouped, rows in order, timestamp int64 UTC seconds.

    The windows are the rows at position >= 1, in time order with ties in (user, position) order; the first
    floor(fractions[0] * n) are train, those up to floor(fractions[1] * n) valid, the rest test, in exact arithmetic.
    """
    targets = np.flatnonzero(positions(user) > 0)
    by_time = targets[np.argsort(timestamp[targets], kind="stable")]
    cuts = [fraction * len(by_time) // 1 for fraction in fractions]
    split = np.full(len(user), TRAIN, np.int8)
    split[by_time[cuts[0] : cuts[1]]] = VALID
    split[by_time[cuts[1] :]] = TEST
    if cuts[0] < len(by_time):
        first = positions(user) == 0
        split[first & (timestamp > timestamp[by_time[cuts[0]]])] = CONTEXT
    return split


def time_quantile(
    user: np.ndarray, timestamp: np.ndarray, ends: np.ndarray, *, fractions: tuple[Fraction, Fraction]
) -> np.ndarray:
    """Split code of every row (int8 [rows]); `user` is grouped, rows in order, timestamp int64 UTC seconds.

    ends: rows where windows end. The two limits are the nearest-rank quantiles of their times (a half rounds up): a row up to the first limit is
    train, a later end up to the second valid, later ones test, and every other row context.
    """
    split = np.full(len(user), CONTEXT, np.int8)
    if not len(ends):
        return np.full(len(user), TRAIN, np.int8)
    times = np.sort(timestamp[ends])
    first, second = (times[int(share * (len(times) - 1) + Fraction(1, 2))] for share in fractions)
    split[ends] = np.where(timestamp[ends] <= second, VALID, TEST)
    split[timestamp <= first] = TRAIN
    return split


@dataclass(frozen=True)
class Windows:
    """Sliding windows: target row numbers (int64 [n]) and the ragged row numbers of their histories."""

    target_rows: np.ndarray
    offsets: np.ndarray
    history_rows: np.ndarray


def windows_at(
    target_rows: np.ndarray, position: np.ndarray, *, max_history: int, stride: int | np.ndarray = 0
) -> Windows:
    """The window of every row in `target_rows` (position >= 1 each), in the order given.

    position: int32 [rows], the position of each row in its user's sequence; rows are grouped by user and in order. stride:
    windows begin at multiples of it where they do not begin with the user, one for all or one each (0: wherever max_history rows
    go back).
    """
    place = position[target_rows].astype(np.int64)
    begin, step = np.maximum(place - max_history, 0), np.maximum(stride, 1)
    length = place - -(-begin // step) * step
    offsets = np.concatenate([[0], np.cumsum(length)])
    flat = np.repeat(target_rows - length - offsets[:-1], length) + np.arange(offsets[-1])
    return Windows(target_rows, offsets, flat)


def window_ends(user: np.ndarray, *, max_history: int, stride: int) -> np.ndarray:
    """Row numbers (int64, ascending) of the targets of all windows; `user` is grouped and in order.

    stride 0: every row but a user's first. Else windows of max_history + 1 rows begin at a user's rows 0, stride, 2 stride, ...
    and end with their target; the last one is shorter where the user's rows end, and there is none that another holds.

    >>> window_ends(np.zeros(9, np.int32), max_history=3, stride=2).tolist()    # rows 0-3, 2-5, 4-7, 6-8
    [3, 5, 7, 8]
    """
    position = positions(user)
    if not stride:
        return np.flatnonzero(position > 0)
    last = np.ones(len(user), bool)
    last[:-1] = user[1:] != user[:-1]
    past = position - max_history
    return np.flatnonzero(((past >= 0) & (past % stride == 0) | last) & (position > 0))


def order_of_windows(
    split: np.ndarray, ends: np.ndarray, timestamp: np.ndarray | None, *, only_train: bool = False
) -> np.ndarray:
    """Row numbers of all targets (neither context nor without split), train then valid then test.

    ends: rows where windows end (`window_ends`); with `only_train` that is said of train rows alone, and every valid and
    test row is a target. Within a split by time of the target where `timestamp` is given (stable), else by user and position.
    """
    if only_train:
        ends = np.union1d(ends[split[ends] == TRAIN], np.flatnonzero((split == VALID) | (split == TEST)))
    targets = ends[(split[ends] != CONTEXT) & (split[ends] >= 0)]
    if timestamp is not None:
        targets = targets[np.argsort(timestamp[targets], kind="stable")]
    return targets[np.argsort(split[targets], kind="stable")]


def sequence_table(
    user: np.ndarray,
    item: np.ndarray,
    split: np.ndarray,
    target_rows: np.ndarray,
    *,
    max_history: int,
    stride: int | np.ndarray = 0,
    timestamp: pa.Array | None = None,
) -> pa.Table:
    """sequences.parquet (without example_id) of the windows at `target_rows`.

    user, item int32 and split int8 [rows], grouped by user and in order; timestamp: int64 [rows] with nulls, or None.
    """
    windows = windows_at(target_rows, positions(user), max_history=max_history, stride=stride)
    columns = {
        "user_id": pa.array(user[target_rows], pa.int32()),
        "history": int_lists(windows.offsets, item[windows.history_rows]),
        "target": pa.array(item[target_rows], pa.int32()),
        "split": split_names(split[target_rows]),
    }
    if timestamp is not None:
        columns["timestamp"] = timestamp.take(pa.array(target_rows))
    return pa.table(columns)


def split_names(split: np.ndarray) -> pa.Array:
    """Split codes (int8) as strings; negative = null."""
    codes = pa.array(split, mask=split < 0)
    return pa.DictionaryArray.from_arrays(codes, pa.array(SPLIT_NAMES)).cast(pa.string())


def check_times_complete(known: np.ndarray, *, kind: str, where: str) -> None:
    """InputError when a split by time meets rows without a time."""
    missing = int((~known).sum())
    if missing:
        row = int(np.flatnonzero(~known)[0])
        raise InputError(
            f"{where}: {missing} of {len(known)} rows have no time (first: row {row}), split.kind {kind} needs"
            " it everywhere -> use leave_one_out, or give a split column and split.kind published"
        )
