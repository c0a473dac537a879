"""Events of one second go by what is beyond it, in every adapter that has it; seconds are stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.adapters.logs.delimited import Layout, Log
from data.adapters.options import TableFile, TablesOptions
from data.adapters.times import in_seconds, not_of_unit
from data.shaping.assemble import Prepared
from tests import publishers
from tests.test_publishers import META, made, walks
from tests.test_tables import findings_of, prepared, write

SECOND = 1_500_000_000
MS = [SECOND * 1000 + beyond for beyond in (900, 500, 100)]
OPTIONS = TablesOptions(time_unit="ms", sequence_by="time")
FORMS = {
    "integers": MS,
    "text": [f"{MS[0]}", f"{MS[1]}.0", f" {MS[2]}"],
    "typed_ms": pa.array(MS, pa.timestamp("ms")),
    "typed_us": pa.array([SECOND * 10**6 + n for n in (9, 5, 1)], pa.timestamp("us", "UTC")),
    "typed_ns": pa.array([SECOND * 10**9 + n for n in (9, 5, 1)], pa.timestamp("ns")),
}


def ids(made: Prepared, table: str, column: str) -> list[str]:
    """The raw ids of a column of items."""
    return [made.items["raw_id"][item].as_py() for item in getattr(made, table)[column].to_pylist()]


def tables(folder: Path, **columns: Any) -> Path:
    """Three events of a user, the latest first."""
    write(folder / "items.parquet", {"item_id": ["a", "b", "c"]})
    write(folder / "interactions.parquet", {"user_id": ["u"] * 3, "item_id": ["c", "b", "a"]} | columns)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_tables(tmp_path, form):
    found = prepared(tables(tmp_path, timestamp=FORMS[form]), OPTIONS, kind="leave_one_out")
    assert ids(found, "interactions", "item_id") == ["a", "b", "c"]
    assert ids(found, "sequences", "target") == ["b", "c"], "the newest is the test target"
    assert found.interactions["timestamp"].to_pylist() == [SECOND] * 3, "whole seconds are stored"


def test_an_order_that_contradicts_what_is_beyond_the_second_needs_a_rule(tmp_path):
    folder = tables(tmp_path, timestamp=MS, order=[0, 1, 2])
    (found,) = findings_of(folder, TablesOptions(time_unit="ms"))
    assert found.rows == (1, 2) and "the order contradicts the times" in found.what
    found = prepared(folder, OPTIONS, kind="leave_one_out")
    assert ids(found, "interactions", "item_id") == ["a", "b", "c"]


def test_a_user_with_an_unknown_time_keeps_the_file_order_within_a_second_too(tmp_path):
    found = prepared(tables(tmp_path, timestamp=[MS[0], None, MS[2]]), OPTIONS, kind="leave_one_out")
    assert ids(found, "interactions", "item_id") == ["c", "b", "a"]


def test_ratings_in_milliseconds_and_in_seconds_with_a_fraction(tmp_path):
    late = [(1, item, 4.0, time) for item, time in zip((4, 3, 1), MS, strict=True)]
    expected = {"1": [(item, SECOND) for item in "134"]}
    folder = publishers.movielens(tmp_path / "ms", "csv", late)
    assert walks(made(folder, "movielens", {"time_unit": "ms"})) == expected
    folder = publishers.movielens(tmp_path / "s", "csv", [(*row[:3], row[3] / 1000) for row in late])
    assert walks(made(folder, "movielens")) == expected


def amazon_2023(folder: Path, form: str) -> dict[str, Any]:
    """Three reviews of a second, the latest first, and one of them once more; the adapter's options."""
    events = list(zip(("C", "B", "A", "A"), [*MS, MS[2]], strict=True))
    if form == "csv":
        rows = [("U", item, 5.0, time) for item, time in events]
        publishers.table(folder / "Games.csv", ["user_id", "parent_asin", "rating", "timestamp"], rows)
    else:
        lines = [
            {"user_id": "U", "parent_asin": item, "rating": 5.0, "timestamp": time} for item, time in events
        ]
        publishers.write(folder / "Games.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return META | {"format": 2023, "reviews": ["Games*"]}


@pytest.mark.parametrize("form", ["csv", "json"])
def test_amazon_2023(tmp_path, form):
    options = amazon_2023(tmp_path / "raw", form)
    assert walks(made(tmp_path / "raw", "amazon", options)) == {"U": [(item, SECOND) for item in "AABC"]}


def test_a_repeat_is_exact_to_the_millisecond(tmp_path):
    options = amazon_2023(tmp_path, "csv") | {"drop_duplicates": True}
    with open(tmp_path / "Games.csv", "a") as file:
        file.write(f"U,C,5.0,{MS[1]}\n")
    assert walks(made(tmp_path, "amazon", options)) == {"U": [(item, SECOND) for item in "ABCC"]}


def test_blocks_with_and_without_a_fraction_are_one_log(tmp_path):
    log, layout = Log("s", "x.time_unit"), Layout(",", ("user", "item", "time"))
    for name, times in (("a", (7, 8)), ("b", (9.5, 9.25))):
        (tmp_path / name).write_text("".join(f"u,{time},{time}\n" for time in times))
        assert log.read(tmp_path / name, layout, {name: name for name in layout.names}) == []
    rows, _, items = log.finish()
    assert (rows.timestamp.tolist(), rows.beyond.tolist()) == ([7, 8, 9, 9], [0, 0, 500_000_000, 250_000_000])
    settled = rows.in_sequence()
    assert items.take(settled.item).to_pylist() == ["7", "8", "9.25", "9.5"] and settled.beyond is None


@pytest.mark.parametrize("unit", ["s", "ms"])
def test_whole_seconds_have_nothing_beyond_them(unit):
    times = np.array([SECOND, 0, SECOND + 1]) * (1000 if unit == "ms" else 1)
    for given in (times, times.astype(np.float64)):
        seconds, beyond = in_seconds(given, unit)
        assert seconds.tolist() == [SECOND, 0, SECOND + 1] and seconds.dtype == np.int64 and beyond is None


@pytest.mark.parametrize(
    ("digits", "unit", "fix"),
    [
        (13, "s", "milliseconds? set x to ms"),
        (16, "s", "microseconds? divide by 1000 and set x to ms"),
        (19, "s", "nanoseconds? divide by 1000000 and set x to ms"),
        (16, "ms", "microseconds? divide by 1000"),
        (19, "ms", "nanoseconds? divide by 1000000"),
        (10, "ms", "seconds? set x to s"),
    ],
)
def test_a_unit_that_fits_is_named(digits, unit, fix):
    times = np.array([1_500_000_000 * 10 ** (digits - 10)])
    wrong, what, told = not_of_unit(times, np.ones(1, bool), unit=unit, option="x")
    assert wrong.tolist() == [True] and what and told == fix


def test_sets_of_finer_times_made_before_are_refused():
    """By the version of the stage; sets of whole seconds are as they were."""
    from data.adapters.options import AmazonOptions
    from data.prepare import PrepareArgs, version

    made = {"raw": "r", "output_dir": "o"}
    fine = [PrepareArgs(**made, adapter="tables", tables=OPTIONS), PrepareArgs(**made, amazon=AmazonOptions(format=2023)),
            PrepareArgs(**made, adapter="kuairand")]  # fmt: skip
    whole = [
        PrepareArgs(**made, adapter="tables"),
        PrepareArgs(**made),
        PrepareArgs(**made, adapter="yelp"),
        PrepareArgs(**made, adapter="mind"),
    ]
    assert [version(args) for args in fine + whole] == [2] * 3 + [1] * 4
    csv = {"items": TableFile("items.csv.gz")}
    prices = [
        PrepareArgs(**made, adapter="tables", tables=replace(tables, **csv))
        for tables in (TablesOptions(), OPTIONS)
    ]
    assert [version(args) for args in prices] == [3, 4], (
        "prices of a csv were once read with a decimal comma left out"
    )
