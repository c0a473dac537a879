"""Times of raw files in UTC seconds and what they have beyond, and whether their unit can be true.

Dumps keep seconds or milliseconds, and one read as the other is silent: a 2023 time in seconds read as milliseconds
lies in 1970, a 2018 time in milliseconds read as seconds in the year 49503.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# 2286-11-20: a larger number of seconds is milliseconds, microseconds or nonsense; fewer milliseconds are seconds.
LATEST_SECOND = 10**10
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def in_seconds(times: np.ndarray, unit: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(UTC seconds int64, nanoseconds beyond them int32 [rows], or None where all times are whole seconds).

    times: int64, or float64 with a fraction, [rows] in `unit` (of PER_SECOND). The seconds are what is stored; what is beyond
    them puts the events of one second in order.

    >>> in_seconds(np.array([1_500_000_000_900, 1_500_000_001_000]), "ms")
    (array([1500000000, 1500000001]), array([900000000,         0], dtype=int32))
    """
    whole, per = times.astype(np.int64, copy=False), PER_SECOND[unit]
    step = np.int32(10**9 // per)
    beyond = np.zeros(len(whole), np.int32) if per == 1 else (whole % per).astype(np.int32) * step
    if times.dtype.kind == "f":
        beyond += np.rint((times - whole) * step).astype(np.int32)
    return whole if per == 1 else whole // per, beyond if beyond.any() else None


def not_of_unit(
    times: np.ndarray, known: np.ndarray, *, unit: str, option: str
) -> tuple[np.ndarray, str, str]:
    """(rows whose time cannot be of this unit bool, what is wrong with them, what to do).

    times: int64 [rows] in `unit` (s or ms), those that are not `known` count for nothing; `option` is the adapter's
    that names the unit. Negative times are left to the caller.

    >>> not_of_unit(np.array([1_700_000_000, 1_700_000_000_000]), np.ones(2, bool), unit="ms", option="x")[0]
    array([ True, False])
    """
    latest = LATEST_SECOND * PER_SECOND[unit]
    late = known & (times >= latest)
    if late.any():
        name = "seconds" if unit == "s" else "milliseconds"
        first = int(times[np.argmax(late)])
        return late, f"later than the year 2286 as {name}", _finer(first, unit, option)
    if unit == "s":
        return late, "", ""
    early = known & (times >= 0) & (times < LATEST_SECOND)
    return early, "earlier than May 1970 as milliseconds", f"seconds? set {option} to s"


def _finer(time: int, unit: str, option: str) -> str:
    """What to do with a time that is too large for its unit, by its number of digits."""
    if time < LATEST_SECOND * 10**3:
        return f"milliseconds? set {option} to ms"
    also = f" and set {option} to ms" if unit == "s" else ""
    if time < LATEST_SECOND * 10**6:
        return f"microseconds? divide by 1000{also}"
    return f"nanoseconds? divide by 1000000{also}"


def joined(parts: Sequence[np.ndarray | None], sizes: Sequence[int]) -> np.ndarray | None:
    """The nanoseconds of blocks of `sizes` rows as one array; None where no block has any."""
    if all(part is None for part in parts):
        return None
    blocks = zip(parts, sizes, strict=True)
    return np.concatenate([np.zeros(size, np.int32) if part is None else part for part, size in blocks])
