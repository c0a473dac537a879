"""How often test was looked at for a row of a table."""

from __future__ import annotations

from infer.tables.stored import with_row


def row(**runs: str) -> dict:
    return {"runs": {run: {"predictions": made} for run, made in runs.items()}, "looks": 1, "metrics": {}}


def test_a_run_that_leaves_and_comes_back_another_is_another_look():
    rows = with_row({}, "sft", row(s0="a", s1="b", s2="c"))
    rows = with_row(rows, "sft", row(s0="a"))
    assert rows["sft"]["looks"] == 1 and list(rows["sft"]["earlier"]) == ["s1", "s2"]
    same = with_row(rows, "sft", row(s0="a", s1="b", s2="c"))["sft"]
    assert same["looks"] == 1 and "earlier" not in same
    anew = with_row(rows, "sft", row(s0="a", s1="x", s2="c"))["sft"]
    assert anew["looks"] == 2
    assert with_row({"sft": same}, "sft", row(s0="a", s3="d"))["sft"]["looks"] == 2, "s3 in the place of two"
