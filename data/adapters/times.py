"""Times of raw files in UTC seconds, and whether their unit can be true.

Dumps keep seconds or milliseconds, and one read as the other is silent: a 2023 time in seconds read as milliseconds
lies in 1970, a 2018 time in milliseconds read as seconds in the year 49503.
"""

from __future__ import annotations

import numpy as np

# 2286-11-20: a larger number of seconds is milliseconds, microseconds or nonsense; fewer milliseconds are seconds.
LATEST_SECOND = 10**10


def in_seconds(
    times: np.ndarray, known: np.ndarray, *, unit: str, option: str
) -> tuple[np.ndarray, np.ndarray, str, str]:
    """(UTC seconds int64, rows whose time cannot be of this unit bool, what is wrong with them, what to do).

    times: int64 [rows] in `unit` (s or ms), those that are not `known` count for nothing; `option` is the adapter's
    that names the unit. Negative times are left to the caller.

    >>> in_seconds(np.array([1_700_000_000, 1_700_000_000_000]), np.ones(2, bool), unit="ms", option="x")[:2]
    (array([   1700000, 1700000000]), array([ True, False]))
    """
    if unit == "s":
        late = known & (times >= LATEST_SECOND)
        return times, late, "later than the year 2286 as seconds", f"milliseconds? set {option} to ms"
    seconds = times // 1000
    if (late := known & (seconds >= LATEST_SECOND)).any():
        return seconds, late, "later than the year 2286 as milliseconds", "microseconds? divide by 1000"
    early = known & (times >= 0) & (times < LATEST_SECOND)
    return seconds, early, "earlier than May 1970 as milliseconds", f"seconds? set {option} to s"
