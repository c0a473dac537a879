"""k-core and time windows on coded columns.

`core` keeps a row while its user has at least `user_k` rows and its item at least `item_k`, both counted on the same
rows, and repeats until nothing drops. `widened_core` applies a time window first and widens its start by one year at a
time while fewer than `min_items` items survive (the published MiniOneRec rule).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from configs.program import InputError


@dataclass(frozen=True)
class Round:
    """What is left after one round of the k-core; round 0 is what went in."""

    rows: int
    users: int
    items: int


@dataclass(frozen=True)
class Window:
    """Months (year, month), both ends inclusive: from the first second of `start` to the first second of `end`, UTC.

    That the last month counts by its first second only is the published rule; for all of October write November.
    """

    start: tuple[int, int]
    end: tuple[int, int]

    def __str__(self) -> str:
        return "{:04d}-{:02d}..{:04d}-{:02d}".format(*self.start, *self.end)

    def mask(self, timestamp: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """bool [rows]: `timestamp` (int64 UTC seconds) lies inside; rows without a time (`known` False) do not."""
        inside = (timestamp >= _month_start(self.start)) & (timestamp <= _month_start(self.end))
        return inside if known is None else inside & known

    def one_year_wider(self) -> Window:
        return Window((self.start[0] - 1, self.start[1]), self.end)


def parse_window(start: str | None, end: str | None) -> Window | None:
    """A Window from "YYYY-MM" strings, or None when both are empty."""
    if not start and not end:
        return None
    window = Window(
        _parse_month(start or "1970-01", "filters.start"), _parse_month(end or "2099-12", "filters.end")
    )
    if window.start > window.end:
        raise InputError(f"filters.start {start} is later than filters.end {end} -> swap them")
    return window


def _parse_month(text: str, field: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{4})-(\d{1,2})", text)
    if not match or not 1 <= int(match[2]) <= 12 or int(match[1]) < 1:
        raise InputError(f"{field} is {text!r} -> write year and month as YYYY-MM, in quotes")
    return int(match[1]), int(match[2])


def _month_start(month: tuple[int, int]) -> int:
    return int(datetime(*month, 1, tzinfo=UTC).timestamp())


def core(
    user: np.ndarray, item: np.ndarray, *, user_k: int, item_k: int
) -> tuple[np.ndarray, tuple[Round, ...]]:
    """The largest set of rows in which every user has >= user_k rows and every item >= item_k.

    user, item: int32 codes [rows]. Returns (kept row numbers int64, ascending; one Round per pass, round 0 first).
    """
    keep = np.arange(len(user))
    users = np.bincount(user, minlength=1)
    items = np.bincount(item, minlength=1)
    rounds = [_count(users, items)]
    while len(keep):
        stays = (users[user] >= user_k) & (items[item] >= item_k)
        if stays.all():
            break
        keep, user, item = keep[stays], user[stays], item[stays]
        users, items = np.bincount(user, minlength=1), np.bincount(item, minlength=1)
        rounds.append(_count(users, items))
    return keep, tuple(rounds)


def _count(users: np.ndarray, items: np.ndarray) -> Round:
    """From the rows per user and the rows per item."""
    return Round(int(users.sum()), int(np.count_nonzero(users)), int(np.count_nonzero(items)))


@dataclass(frozen=True)
class CoreResult:
    """Kept row numbers (int64, ascending), the rounds of the k-core, and the window that was used in the end."""

    keep: np.ndarray
    rounds: tuple[Round, ...]
    window: Window | None
    out_of_window: int


def widened_core(
    user: np.ndarray,
    item: np.ndarray,
    timestamp: np.ndarray,
    known: np.ndarray | None = None,
    *,
    user_k: int,
    item_k: int,
    window: Window | None = None,
    min_items: int = 0,
    min_year: int = 1996,
    before: str = "",
) -> CoreResult:
    """Window, then k-core; with fewer than `min_items` items the window starts a year earlier, down to `min_year`.

    user, item: int32 codes [rows]; timestamp: int64 UTC seconds [rows], `known` False where a row has none. Source:
    MiniOneRec's data set build (3,000 items, 1996). InputError when nothing is left; `before` tells what earlier steps did.
    """
    while True:
        inside = np.arange(len(user)) if window is None else np.flatnonzero(window.mask(timestamp, known))
        kept, rounds = core(user[inside], item[inside], user_k=user_k, item_k=item_k)
        if window is None or rounds[-1].items >= min_items or window.start[0] <= min_year:
            break
        window = window.one_year_wider()
    if not len(kept):
        raise InputError(_nothing_left(before, rounds, user_k, item_k, window))
    return CoreResult(inside[kept], rounds, window, len(user) - len(inside))


def _nothing_left(
    before: str, rounds: tuple[Round, ...], user_k: int, item_k: int, window: Window | None
) -> str:
    first = rounds[0]
    where = f"in {window}" if window else "before it"
    return (
        f"filters leave nothing: {before + ', then ' if before else ''}k-core user_k={user_k} item_k={item_k}:"
        f" {first.rows} rows, {first.users} users, {first.items} items {where}, none after round {len(rounds) - 1}"
        " -> see which step loses the rows: lower filters.user_k or item_k, widen the window, or choose another"
        " title filter"
    )
