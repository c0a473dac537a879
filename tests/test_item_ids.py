"""Whose integer is it: ids of a foreign file read as the source's numbers and as ours, refused where the two differ."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.releases import item_ids
from data.releases.item_ids import find_items
from data.sid import read_sids
from rq.vectors.external import external_vectors
from tests.handmade import CODES, call, write_data

FROM_1, PERMUTED, GAPS = ["1", "2", "3", "4"], ["2", "0", "3", "1"], ["0", "2", "4", "6"]
TEXT = ["B0", "B1", "B2", "B3"]
PLAIN = ["0", "1", "2", "3"]


def test_worked_examples_of_the_docstrings():
    assert doctest.testmod(item_ids).failed == 0


@pytest.mark.parametrize(
    ("ids", "raw_ids", "key", "expected"),
    [
        ([1, 2, 3, 4], FROM_1, "id", ([0, 1, 2, 3], "raw_id")),  # 4 is no item number
        ([2, 3, 4], FROM_1, "raw_id", ([1, 2, 3], "raw_id")),  # one item missing, and the file says what it is
        ([1, 2, 3], FROM_1, "item_id", "`item_id` 1 is item 0 as raw_id, item 1 as item_id"),
        ([0, 1, 2, 3], PERMUTED, "id", "`id` 0 is item 1 as raw_id, item 0 as item_id"),
        ([0, 1, 2, 3], PERMUTED, "raw_id", ([1, 3, 0, 2], "raw_id")),
        ([6, 4, 2, 0], GAPS, "id", ([3, 2, 1, 0], "raw_id")),
        ([0, 2], GAPS, "id", "`id` 2 is item 1 as raw_id, item 2 as item_id"),
        ([0, 1, 2, 3], GAPS, "item_id", ([0, 1, 2, 3], "item_id")),  # our own layout: 1 and 3 are no raw ids
        ([0, 1, 2, 3], TEXT, "item_id", ([0, 1, 2, 3], "item_id")),
        ([3, 2], PLAIN, "id", ([3, 2], "raw_id")),  # both readings agree
        (["B3", "B0"], TEXT, "id", ([3, 0], "raw_id")),
        (["B3", "B9"], TEXT, "id", "1 of 2 ids are no item (first: `id` 'B9'"),
        ([1, 1], PLAIN, "id", "item 1 stands there twice"),
        ([-1, 0], TEXT, "id", "1 of 2 ids are no item (first: `id` -1"),
        (None, PLAIN, "", ([0, 1, 2, 3], "item_id")),
        (None, PERMUTED, "", "item 0 of the data is raw_id 2: whose row 0 is it?"),
        (None, TEXT, "", "keyed_by item_id"),
        (None, [*PLAIN, "4"], "", "4 rows, the data 5 items"),
    ],
)  # fmt: skip
def test_both_readings_or_a_refusal(ids, raw_ids, key, expected):
    def find(keyed_by: str = "auto"):
        return find_items(ids, raw_ids, key=key, where="x", keyed_by=keyed_by, count=4)

    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            find()
        assert expected in str(caught.value)
        if "is item" in expected:
            assert find("raw_id").rows_R.tolist() != find("item_id").rows_R.tolist()
    else:
        found = find()
        assert (found.rows_R.tolist(), found.keyed_by) == expected


def test_external_vectors_go_to_the_items_they_name(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = str(tmp_path / "v.parquet")
    for key, refused in (("raw_id", False), ("item_id", True)):
        pq.write_table(pa.table({key: [1, 2, 3], "embedding": x.tolist()}), path)
        if refused:
            with pytest.raises(InputError, match="keyed_by raw_id or item_id"):
                external_vectors(path, ids=None, first_row=0, keyed_by="auto", raw_ids=FROM_1)
        keyed_by = "raw_id" if refused else "auto"
        got, missing = external_vectors(path, ids=None, first_row=0, keyed_by=keyed_by, raw_ids=FROM_1)
        assert got.tolist() == [*x.tolist(), [0, 0]] and missing == 1


def test_imported_ids_go_to_the_items_they_name(tmp_path):
    data = write_data(tmp_path / "data")
    own = pa.table({"item_id": np.arange(12, dtype=np.int32), "codes": CODES.tolist()})
    pq.write_table(own, tmp_path / "sids.parquet")

    def bring(source: str, name: str, *flags: object) -> np.ndarray:
        flags = ["--source", tmp_path / source, "--data", data, "--output_dir", tmp_path / name, *flags]
        call("rq.import_sids", *flags)
        return read_sids(tmp_path / name).codes_NL

    assert np.array_equal(bring("sids.parquet", "own"), CODES)
    rows = {f"B{n:04d}": [f"<{'abc'[at]}_{c}>" for at, c in enumerate(codes)] for n, codes in enumerate(CODES.tolist())}  # fmt: skip
    (tmp_path / "more.json").write_text(json.dumps(rows | {"B9999": ["<a_0>", "<b_0>", "<c_0>"]}))
    with pytest.raises(InputError, match="1 IDs of no item .*B9999.*--allow_surplus"):
        bring("more.json", "more")
    assert np.array_equal(bring("more.json", "more", "--allow_surplus", "true"), CODES)
    text = json.dumps(rows)
    (tmp_path / "twice.json").write_text(text[:-1] + ', "B0000": ["<a_1>", "<b_1>", "<c_1>"]}')
    with pytest.raises(InputError, match="the key 'B0000' twice"):
        bring("twice.json", "twice")
