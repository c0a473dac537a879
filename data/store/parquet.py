"""Parquet: how it is written here, and how it is read from anywhere.

Pages are written with a checksum each, and verified where a file has them: a flipped bit is never taken for a value. Many writers
write none (pyarrow and pandas unless asked: `pq.write_table(..., write_page_checksum=True)`); a damaged page of such a file can be
read as other values. No checksum covers names, types and the headers of pages, so rows are counted besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PARQUET = {"compression": "zstd", "write_page_checksum": True}
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # what `read_table` raises for a damaged file


def read_table(path: str | Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file, or `columns` of it. One of UNREADABLE where it is none, a checksum fails, or rows are missing.

    Not by pyarrow.parquet.read_table, which makes columns of folders whose names look like values.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        rows = file.metadata.num_rows
        table = file.read(columns=None if columns is None else list(columns))
    if table.num_rows != rows:
        raise pa.ArrowInvalid(f"it holds {table.num_rows} of the {rows} rows that it announces")
    return table
