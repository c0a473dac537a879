"""Whose integer is it: the ids of a foreign file -> our items.

Stage 01 renumbers items, so a number in somebody's file may be our `item_id` or the id that the source used (our
`raw_id`). A file that says which (a column `raw_id`) is believed. Any other key is read both ways, and where both readings
are possible and differ the file is refused: being wrong by one row would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.program import InputError

KEYS = ("auto", "raw_id", "item_id")


@dataclass(frozen=True)
class Places:
    """Where the ids of a file stand in our items.

    rows_R: int64 [R], item of every id, -1 for an id that is no item; keyed_by: raw_id or item_id, how they were read.
    """

    rows_R: np.ndarray
    keyed_by: str

    def of_items(self, num_items: int) -> np.ndarray:
        """int64 [N]: row of every item in the file, -1 where it has none."""
        rows_N = np.full(num_items, -1, np.int64)
        known = np.flatnonzero(self.rows_R >= 0)
        rows_N[self.rows_R[known]] = known
        return rows_N


def find_items(
    ids: Sequence[int | str] | None,
    raw_ids: Sequence[str],
    *,
    key: str,
    where: str,
    keyed_by: str = "auto",
    count: int = 0,
    surplus: bool = False,
) -> Places:
    """The items of a file's ids.

    ids: None for a bare matrix of `count` rows; key: what the file calls them (raw_id, item_id, anything else); keyed_by:
    what the user says they are, auto = nothing; surplus: ids of no item are allowed, then all items need one.

    InputError when two readings are possible and differ, when none is, or when an item stands twice. A bare matrix is
    possible only where the raw ids are 0..N-1 in order, or where `keyed_by` is item_id.

    >>> find_items([3, 1, 2], ["1", "2", "3"], key="id", where="x.json").rows_R
    array([2, 0, 1])
    >>> find_items([1, 2], ["1", "2", "3"], key="id", where="x.json")  # raw ids 1, 2 or items 1, 2?
    Traceback (most recent call last):
    configs.program.InputError: x.json: `id` 1 is item 0 as raw_id, item 1 as item_id -> say which: keyed_by raw_id or item_id
    """
    if keyed_by not in KEYS:
        raise InputError(f"keyed_by is {keyed_by!r} -> one of {', '.join(KEYS)}")
    if ids is None:
        return _bare(count, raw_ids, where=where, keyed_by=keyed_by)
    read = {name: _reading(ids, raw_ids, name) for name in KEYS[1:]}
    if keyed_by == "auto" and key == "raw_id":
        keyed_by = "raw_id"
    if keyed_by == "auto":
        enough = {
            name: (rows >= 0).all() or (surplus and len(set(rows[rows >= 0].tolist())) == len(raw_ids))
            for name, rows in read.items()
        }
        if all(enough.values()) and not np.array_equal(*read.values()):
            at = int(np.flatnonzero(read["raw_id"] != read["item_id"])[0])
            raw, dense = (_named(read[name][at]) for name in KEYS[1:])
            raise InputError(
                f"{where}: `{key}` {ids[at]} is {raw} as raw_id, {dense} as item_id -> say which: keyed_by raw_id or item_id"
            )
        known = {name: int((rows >= 0).sum()) for name, rows in read.items()}
        keyed_by = max(KEYS[1:], key=lambda name: (enough[name], known[name]))
    rows_R = read[keyed_by]
    _check(ids, rows_R, len(raw_ids), where=where, key=key, keyed_by=keyed_by, surplus=surplus)
    return Places(rows_R, keyed_by)


def _bare(count: int, raw_ids: Sequence[str], *, where: str, keyed_by: str) -> Places:
    """Rows without ids."""
    if count != len(raw_ids):
        raise InputError(
            f"{where} has {count} rows, the data {len(raw_ids)} items -> pass the ids of its rows"
        )
    in_order = all(raw == str(item) for item, raw in enumerate(raw_ids))
    if not in_order and keyed_by != "item_id":
        at = next(item for item, raw in enumerate(raw_ids) if raw != str(item))
        raise InputError(
            f"{where} has rows without ids, and item {at} of the data is raw_id {raw_ids[at]}: whose row {at} is it?"
            " -> pass the ids of its rows, or keyed_by item_id where row i is item i of items.parquet"
        )
    return Places(np.arange(count), "item_id")


def _reading(ids: Sequence[int | str], raw_ids: Sequence[str], name: str) -> np.ndarray:
    """Item int64 [R] of every id read one way, -1 where there is none."""
    if name == "raw_id":
        place = {raw: item for item, raw in enumerate(raw_ids)}
        return np.array([place.get(str(key), -1) for key in ids], np.int64)
    numbers = [int(key) if str(key).isdecimal() and str(int(key)) == str(key) else -1 for key in ids]
    return np.array([number if number < len(raw_ids) else -1 for number in numbers], np.int64)


def _named(item: int) -> str:
    return "no item" if item < 0 else f"item {item}"


def _check(
    ids: Sequence[int | str],
    rows_R: np.ndarray,
    num_items: int,
    *,
    where: str,
    key: str,
    keyed_by: str,
    surplus: bool,
) -> None:
    unknown = np.flatnonzero(rows_R < 0)
    if len(unknown) and not surplus:
        raise InputError(
            f"{where}: {len(unknown)} of {len(ids)} ids are no item (first: `{key}` {ids[unknown[0]]!r}, read as {keyed_by})"
            " -> is it of this data set?"
        )
    known = np.flatnonzero(rows_R >= 0)
    counts = np.bincount(rows_R[known], minlength=num_items)
    if (counts > 1).any():
        raise InputError(f"{where}: item {int(np.argmax(counts > 1))} stands there twice -> keep one")
