"""How far a run is, in words that every trainer uses. Nothing heavy is imported here."""

from __future__ import annotations

METRICS_FILE = "metrics.jsonl"
EVERY_SECONDS = 30  # between two lines that say how far a run is


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(600), duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
