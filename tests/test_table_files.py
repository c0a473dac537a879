"""Files of a user's own tables: what cannot be read says what to do, and cells of any length are read."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from data.adapters.options import TableFile
from tests.test_tables import findings_of, load, options, store


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TableFile("none.parquet"), "missing file"),
        (TableFile("items.parquet", {"titel": "title"}), "column `titel`: the column map names no column of ours"),
        (TableFile("items.parquet", {"title": "name"}), "column `name`: missing column (for title) -> it has item_id, title: name the right one under columns, or take it out of the map"),
    (TableFile("none.csv", {"title": "title"}), "column `title`: missing column -> it has item_id, price: name the right one under columns, or take it out of the map"),
        (TableFile("items.parquet", extras=["colour"]), "column `colour`: missing column -> it has item_id, title: name the right one under columns, or take it out of extras"),
    (TableFile("none.csv", {"item_id": "sku"}), "missing column (for item_id) -> it has item_id, price: name the right one under columns\n"),
    (TableFile("semicolons.csv"), "column `item_id`: missing column -> ';' stands between its cells: write the file with commas, or with tabs as .tsv"),
    (TableFile("decimals.csv"), "no readable csv file (CSV parse error: Row #3: Expected 1 columns, got 2: 7;1,5) -> ';' stands between its cells"),
    (TableFile("lines.jsonl"), "no readable parquet file (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.) -> write it as csv(.gz), tsv(.gz) or parquet"),
    (TableFile("open.csv"), "no readable csv file (a quote is open up to line 600002: unexpected end of data) -> write it in UTF-8"),
    (TableFile("opened.csv"), "(a quote is open up to line 600003: ',' expected after '\"') -> write it in UTF-8 with a comma"),
    (TableFile("small.csv"), "(a quote is open up to line 4: unexpected end of data) -> write it in UTF-8 with a comma"),
        (TableFile("twice.csv"), "column `title`: 2 columns have this name"),
        (TableFile("torn.parquet"), ") -> write it again"),
        (TableFile("ragged.csv"), "no readable csv file"),
        (TableFile("latin.csv"), "invalid UTF8 data) -> write it in UTF-8"),
        (TableFile("cut.csv.gz"), "no readable csv file (Truncated compressed stream) -> get the file again"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, spec, message):
    folder = store(tmp_path)
    (folder / "twice.csv").write_text("item_id,title,title\n40,a,b\n7,a,b\n100,a,b\n")
    (folder / "torn.parquet").write_bytes((folder / "items.parquet").read_bytes()[:-200])
    (folder / "none.csv").write_text("item_id,price\n40,1\n7,1\n100,1\n")
    (folder / "semicolons.csv").write_text("item_id;title\n40;a\n7;b\n")
    (folder / "decimals.csv").write_text("item_id;price\n40;1\n7;1,5\n")
    (folder / "lines.jsonl").write_text('{"item_id": 40}\n')
    swallowed = 'item_id,title\n40,"a\n' + "7,b\n" * 600_000
    (folder / "open.csv").write_text(swallowed)
    (folder / "opened.csv").write_text(swallowed + '100,"c\n7,d\n')
    (folder / "small.csv").write_text('item_id,title\n40,a\n7,"b\n100,c\n')
    (folder / "ragged.csv").write_text("item_id,title\n40,a\n7,a,b\n")
    (folder / "latin.csv").write_bytes(b"item_id,title\n40,caf\xe9\n")
    packed = gzip.compress(b"item_id,title\n" + np.random.default_rng(0).bytes(4000).hex().encode() + b",x\n")
    (folder / "cut.csv.gz").write_bytes(packed[:-800])
    found = findings_of(folder, options(items=spec))
    assert message in f"{found[0]}\n", str(found[0])


@pytest.mark.parametrize("name", ["items.csv", "items.tsv.gz"])
def test_a_cell_of_megabytes_is_read(tmp_path, name):
    mark = "\t" if ".tsv" in name else ","
    text = 'a "quoted", long\nline\n' * 200_000
    quoted = '"' + text.replace('"', '""') + '"'
    data = f"item_id{mark}description\n40{mark}short\n7{mark}{quoted}\n100{mark}\n".encode()
    store(tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    loaded = load(tmp_path, options(items=TableFile(name), clean_text=False))
    assert loaded.items["description"].to_pylist() == ["short", text, ""]
    assert loaded.items["raw_id"].to_pylist() == ["40", "7", "100"]


def test_a_quote_within_a_cell_is_a_letter(tmp_path):
    """Inches: an odd number of quotes, none of which begins a cell."""
    folder = store(tmp_path)
    (folder / "inches.csv").write_text('item_id,title\n40,5" pipe\n7,b\n100,c\n')
    loaded = load(folder, options(items=TableFile("inches.csv", {"title": "title"})))
    assert loaded.items["title"].to_pylist()[0] == '5" pipe'
