"""Which runs are seeds of one recipe."""

from __future__ import annotations

from infer.tables.comparison import differing


def test_an_option_of_later_counts_as_switched_off():
    old = {"rate": 1, "rows": 5}
    assert differing(old, old | {"thoughts": 0, "teacher": None}) == []
    assert differing(old, old | {"thoughts": 4, "rate": 2}) == ["rate", "thoughts"]
