"""Parquet: how it is written here, and how it is read from anywhere.

Pages are written with a checksum each, and verified where a file has them: a flipped bit is never taken for a value. Many writers
write none (pyarrow and pandas unless asked: `pq.write_table(..., write_page_checksum=True)`); a damaged page of such a file can be
read as other values. No checksum covers names, types and the headers of pages, so rows are counted besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from configs.program import InputError, raise_environment_fault

PARQUET = {"compression": "zstd", "write_page_checksum": True}
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # what `read_table` raises for a damaged file


def read_table(path: str | Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file, or `columns` of it. One of UNREADABLE where it is none, a checksum fails, or rows are missing.

    Not by pyarrow.parquet.read_table, which makes columns of folders whose names look like values.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        rows = file.metadata.num_rows
        if missing := sorted(set(columns or []) - set(file.schema_arrow.names)):
            raise pa.ArrowInvalid(f"it has no column {', '.join(missing)}")
        table = file.read(columns=None if columns is None else list(columns))
    if table.num_rows != rows:
        raise pa.ArrowInvalid(f"it holds {table.num_rows} of the {rows} rows that it announces")
    return table


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """InputError naming file and size where reading it fails because it is no parquet, or damaged."""
    try:
        yield
    except UNREADABLE as error:
        raise_environment_fault(error, where=f"while reading {path}")
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is not a readable parquet file: {str(error)[:100]} -> give parquet, or copy it again"
        ) from None


def read_batches(path: Path, *, rows: int) -> Iterator[pa.RecordBatch]:
    """A parquet file in pieces of at most `rows` rows; InputError as `readable`."""
    with readable(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield from file.iter_batches(batch_size=rows)
