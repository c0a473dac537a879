"""Parquet from anywhere: damage of a file whose pages have checksums is never read as other values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data import artifacts
from data.adapters import tables
from data.adapters.options import TableFile, TablesOptions
from data.store.parquet import PARQUET, read_batches

VALUES = np.random.default_rng(0).integers(0, 1 << 30, 120).tolist()


def footer_of(whole: bytes) -> int:
    """Where the footer begins: names, types and sizes, without a checksum."""
    return len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")


def outcomes(folder: Path, **how: object) -> dict[str, set[str]]:
    """What came of a flipped bit at every fifth byte, of pages and of the footer."""
    path = folder / "t.parquet"
    pq.write_table(pa.table({"x": VALUES}), path, use_dictionary=False, **how)
    whole = path.read_bytes()
    found: dict[str, set[str]] = {"pages": set(), "footer": set()}
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            table = artifacts.read_file(path)
        except InputError:
            came = "refused"
        else:
            came = "right" if table.columns[0].to_pylist() == VALUES else "wrong"
        found["pages" if place < footer_of(whole) else "footer"].add(came)
    return found


def test_damaged_pages_are_refused_where_they_have_checksums(tmp_path):
    assert "wrong" not in outcomes(tmp_path, **PARQUET)["pages"]
    assert "wrong" in outcomes(tmp_path, compression="none")["pages"], "nothing there could tell"


def test_rows_that_a_footer_or_a_page_denies_are_missed(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [5, 6, 7]}), path, **PARQUET)
    whole = path.read_bytes()
    denied = []
    for place in (place for place, byte in enumerate(whole) if byte == 2 * 3):  # as thrift writes a 3
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                rows = artifacts.read_file(path).num_rows
            except InputError as error:
                denied += ["of the 3 rows that it announces" in str(error)]
            else:
                assert rows == 3, (place, bit)
    assert any(denied)


def test_a_table_of_a_user_is_checked_too(tmp_path):
    path = tmp_path / "interactions.parquet"
    columns = {"user_id": VALUES, "item_id": [0] * len(VALUES), "order": [0] * len(VALUES)}
    pq.write_table(
        pa.table(columns), path, use_dictionary=False, compression="none", write_page_checksum=True
    )
    (tmp_path / "items.csv").write_text("item_id,title\n0,zero\n")
    chosen = TablesOptions(items=TableFile("items.csv"), interactions=TableFile(path.name))
    whole = path.read_bytes()
    place = whole.index(int(VALUES[100]).to_bytes(8, "little"))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    _, findings = tables.load(tmp_path, chosen)
    assert "no readable parquet file" in str(findings[0]) and "crc" in str(findings[0]).lower()
    pq.write_table(pa.table(columns), path, use_dictionary=False, compression="none")
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert not any("parquet" in str(finding) for finding in tables.load(tmp_path, chosen)[1])


@pytest.mark.parametrize("place", [0, 1])
def test_a_file_of_two_groups_is_read_whole(tmp_path, place):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": VALUES, "y": VALUES[::-1]}), path, row_group_size=50, **PARQUET)
    name = "xy"[place]
    assert artifacts.read_file(path, columns=[name])[name].to_pylist() == [VALUES, VALUES[::-1]][place]


def test_a_column_that_is_not_there_is_named(tmp_path):
    pq.write_table(pa.table({"x": VALUES}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="no column y"):
        artifacts.read_file(tmp_path / "t.parquet", columns=["x", "y"])


def test_a_stream_of_batches_is_checked_as_a_table_is(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": VALUES}), path, use_dictionary=False, **PARQUET)
    assert [value for batch in read_batches(path, rows=50) for value in batch.column(0).to_pylist()] == VALUES
    whole = path.read_bytes()
    middle = footer_of(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    with pytest.raises(InputError, match=r"t\.parquet \(\d+ bytes\) is not a readable parquet file"):
        list(read_batches(path, rows=50))
