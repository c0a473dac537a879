"""skip_bad_rows: a number of broken lines is left out, each named and kept whole; one more than it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.adapters.options import AmazonOptions
from tests import publishers
from tests.handmade import call, refuse
from tests.test_prepare import config, dump, read_lines, write_lines
from tests.test_publishers import made

HALF = '{"reviewerID": "U1", "asi'  # ends in the middle of a key
NO_ITEM = '{"reviewerID": "Ü1", "overall": 1.0}'
NAN = '{"reviewerID": "U1", "asin": "B05", "unixReviewTime": NaN}'


def rejects(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "rejects.jsonl").read_text().split("\n") if line]


def test_broken_lines_are_counted_and_kept_up_to_a_number(tmp_path):
    folder, path = dump(tmp_path / "raw"), config(tmp_path / "c.yaml")
    whole = read_lines(folder / "Store.json.gz")
    flags = ["--config", path, "--raw", folder]
    call("data.prepare", *flags, "--output_dir", tmp_path / "clean")
    assert not (tmp_path / "clean/rejects.jsonl").exists()

    write_lines(folder / "Store.json.gz", [whole[0], HALF, *whole[1:40], "", NO_ITEM, *whole[40:], NAN])
    line = refuse("data.prepare", *flags, "--output_dir", tmp_path / "few", "--amazon.skip_bad_rows", 2)
    assert "3 of " in line and "more than skip_bad_rows 2" in line and "Store.json.gz:2 (not JSON" in line
    assert "column" in line and "raise amazon.skip_bad_rows" in line and not (tmp_path / "few").exists()

    out = tmp_path / "three"
    call("data.prepare", *flags, "--output_dir", out, "--amazon.skip_bad_rows", 3)
    found = rejects(out)
    assert [(one["file"], one["line"], one["text"]) for one in found] == [
        ("Store.json.gz", 2, HALF), ("Store.json.gz", 43, NO_ITEM), ("Store.json.gz", len(whole) + 4, NAN)
    ]  # fmt: skip
    assert [one["why"].split(";")[0].split(":")[0] for one in found] == [
        "not JSON",
        "no asin",
        "unixReviewTime is 'nan', not a whole number",
    ]
    assert json.loads((out / "manifest.json").read_text())["counts"]["rejected lines"] == 3
    for name in ("items", "interactions", "sequences"):
        clean, kept = (pq.read_table(place / f"{name}.parquet") for place in (tmp_path / "clean", out))
        assert clean.equals(kept), "the rows of a dump without those lines"


def test_none_may_be_broken_and_none_is(tmp_path):
    folder, path = dump(tmp_path / "raw"), config(tmp_path / "c.yaml")
    flags = ["--config", path, "--raw", folder, "--output_dir", tmp_path / "out", "--amazon.skip_bad_rows", 0]
    call("data.prepare", *flags)
    assert (tmp_path / "out/rejects.jsonl").read_bytes() == b""


def test_a_date_that_is_none_is_a_reject_like_bad_syntax(tmp_path):
    """What the parser took for a good line is kept whole all the same."""
    publishers.yelp(tmp_path / "raw")
    kept = made(tmp_path / "raw", "yelp", **{"yelp.skip_bad_rows": 10}).funnel
    assert kept.facts["review_lines_broken"] == len(kept.rejects) > 0
    text = (tmp_path / "raw/yelp_academic_dataset_review.json").read_text().split("\n")
    assert all(text[one["line"] - 1] == one["text"] for one in kept.rejects)
    assert any(one["why"].startswith("date is") for one in kept.rejects)


def test_a_number_below_zero_is_refused():
    with pytest.raises(InputError, match="amazon.skip_bad_rows is -1"):
        AmazonOptions(skip_bad_rows=-1)
