"""Ties may change places, nothing else may."""

from __future__ import annotations

import pytest

from tests.agreement import disagreement

EXPECTED = [("a", -1.0), ("b", -2.0), ("c", -2.00005), ("d", -3.0), ("e", -4.0)]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (EXPECTED, ""),
        ([("a", -1.00004), ("c", -2.0), ("b", -2.00005), ("d", -3.0), ("e", -4.0)], ""),
        ([*EXPECTED[:4], ("f", -4.00005)], ""),  # a tie at the cut
        ([("a", -1.0), ("b", -2.0), ("d", -2.00005), ("c", -3.0), ("e", -4.0)], "c: scores"),
        ([("a", -1.0002), *EXPECTED[1:]], "rank 1: scores"),
        ([("a", float("nan")), *EXPECTED[1:]], "rank 1: scores"),
        (EXPECTED[:4], "4 places for 5"),
        ([*EXPECTED[:3], ("f", -3.0), ("e", -4.0)], "d is missing"),
        ([*EXPECTED[:4], ("d", -4.0)], "a key comes twice"),
    ],
)
def test_what_counts_as_a_difference(found, words):
    assert disagreement(found, EXPECTED).startswith(words) and bool(words) == bool(
        disagreement(found, EXPECTED)
    )


def test_order_is_held_to_a_finer_gap_than_loose_scores():
    """Scores within 1e-3, as between two implementations: a swap of what is 5e-4 apart is seen all the same."""
    found, expected = [("b", -1.0), ("a", -1.0005)], [("a", -1.0), ("b", -1.0005)]
    assert "the other way round" in disagreement(found, expected, atol=1e-3)
    assert not disagreement(found, expected, atol=1e-3, gap=1e-3)
