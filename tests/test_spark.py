"""Stage 01 with its k-core on Spark: the same tables, bit for bit; needs pyspark and Java (requirements-cluster.txt)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import ROOT
from tests.handmade import refuse

ROWS = int(os.environ.get("SPARK_ROWS", "2000000"))


def write_raw(folder: Path, *, rows: int, seed: int = 0) -> Path:
    """Items and interactions with long tails; ids are text, some times are missing."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    items = rows // 50
    titles = [f"Thing {item}" for item in range(items)]
    pq.write_table(
        pa.table({"item_id": [f"i{item}" for item in range(items)], "title": titles}),
        folder / "items.parquet",
    )
    user, item = (rng.zipf(1.4, rows) % size for size in (rows // 8, items))
    time = pa.array(1_500_000_000 + rng.integers(0, 10**7, rows), mask=rng.random(rows) < 0.01)
    table = pa.table({
        "user": pa.array(np.char.add("u", user.astype(str))), "item_id": pa.array(np.char.add("i", item.astype(str))),
        "timestamp": time, "rating": rng.integers(1, 6, rows).astype(np.float32),
    })  # fmt: skip
    pq.write_table(table, folder / "interactions.parquet", row_group_size=1 << 18)
    return folder


def flags(raw: Path, out: Path, file: str = "interactions.parquet") -> list[object]:
    given = ["--adapter", "tables", "--raw", raw, "--output_dir", out, "--tables.interactions.file", file]
    return [*given, "--tables.interactions.columns", "{user_id: user}", "--split.kind", "leave_one_out"]


def test_what_spark_is_not_for_is_refused(tmp_path, monkeypatch):
    raw, out = write_raw(tmp_path / "raw", rows=400), tmp_path / "out"
    with_spark = [*flags(raw, out), "--engine", "spark"]
    assert "filters.user_k 0" in refuse(
        "data.prepare", *with_spark, "--filters.user_k", 0, "--filters.item_k", 0
    )
    assert "adapter amazon" in refuse("data.prepare", *with_spark, "--adapter", "amazon")
    columns = ["--tables.interactions.columns", "{user_id: user, order: nth}"]
    assert "must have no gaps" in refuse("data.prepare", *with_spark, *columns)
    (raw / "log.csv").write_text("user,item_id\n")
    assert "reads parquet" in refuse("data.prepare", *flags(raw, out, "log.csv"), "--engine", "spark")
    assert not out.exists()
    monkeypatch.setitem(sys.modules, "pyspark", None)
    assert "pip install -r requirements-cluster.txt" in refuse("data.prepare", *with_spark, code=3)


@pytest.mark.long
def test_the_tables_are_those_of_our_own_path_bit_for_bit(tmp_path):
    pytest.importorskip("pyspark")
    raw = write_raw(tmp_path / "raw", rows=ROWS)
    for name, more in (("own", []), ("spark", ["--engine", "spark"])):
        command = [sys.executable, "-m", "data.prepare", *map(str, [*flags(raw, tmp_path / name), *more])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
    kept = pq.read_metadata(tmp_path / "own/interactions.parquet").num_rows
    assert 0 < kept < ROWS
    for table in ("items", "interactions", "sequences", "users"):
        own, spark = ((tmp_path / name / f"{table}.parquet").read_bytes() for name in ("own", "spark"))
        assert own == spark, table
