"""csv that somebody else wrote: its columns as text, with cells of any length and line breaks in quotes, or what to do with it.

A quote that nobody closes swallows the rows up to the next one. The library does not mind; a file with an odd number of quotes, and one
with a row of more than the library's block, is therefore read before by one that does.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv

LARGEST_ROW = 256 << 20


def is_csv(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".csv", ".tsv"))


def column_names(path: Path) -> list[str]:
    """The cells of the first line; one of UNREADABLE (data.store.parquet) where it is no csv."""
    with _in_blocks(path, lambda options: pcsv.open_csv(path, options, _cut(path))) as reader:
        return reader.schema.names


def read_csv(path: Path, columns: Sequence[str]) -> pa.Table:
    """Columns as they stand; one of UNREADABLE where it is no csv."""
    if _quotes(path) % 2:  # each is closed, or stands within a cell (5" pipe)
        _check_quotes(path)
    # Text throughout: a reader that guesses types would turn an id "007" into 7.
    convert = pcsv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
    )
    return _in_blocks(path, lambda options: pcsv.read_csv(path, options, _cut(path), convert))


def other_mark(path: Path, header: str) -> str:
    """What to do with a file whose header is cut by another character than its name says, "" where it is not."""
    other = next((mark for mark in ";\t|," if mark in header), "")
    if not other or _mark(path) in header:
        return ""
    return f"{other!r} stands between its cells: write the file with commas, or with tabs as .tsv"


def remedy(path: Path, error: Exception) -> str:
    """What to do with a file that cannot be read for `error`."""
    if isinstance(error, OSError) or "compressed" in str(error):
        return "get the file again"
    with _opened(path) as file:
        header = file.readline(1 << 16).decode("utf-8", "replace")
    return other_mark(path, header) or (
        "write it in UTF-8 with a comma (.tsv: a tab) between cells, and close every quote"
    )


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.name.endswith(".gz") else open(path, "rb")


def _mark(path: Path) -> str:
    """What stands between cells, by the file's name."""
    return "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","


def _cut(path: Path) -> pcsv.ParseOptions:
    return pcsv.ParseOptions(delimiter=_mark(path), newlines_in_values=True)


def _in_blocks(path: Path, read: Callable[[pcsv.ReadOptions], Any]) -> Any:
    """`read` with the library's blocks of 1 MiB, which are quickest, or with large ones where a row does not fit."""
    try:
        return read(pcsv.ReadOptions())
    except pa.ArrowInvalid as error:
        if "block size" not in str(error):
            raise
    _check_quotes(path)
    return read(pcsv.ReadOptions(block_size=LARGEST_ROW))


def _quotes(path: Path) -> int:
    try:
        with _opened(path) as file:
            return sum(part.count(b'"') for part in iter(lambda: file.read(1 << 22), b""))
    except (EOFError, zlib.error) as error:
        raise OSError(str(error)) from None


def _check_quotes(path: Path) -> None:
    """ArrowInvalid where a quote is not closed before a delimiter, a line's end or the file's."""
    before = csv.field_size_limit(LARGEST_ROW)
    try:
        with io.TextIOWrapper(_opened(path), "utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_mark(path), strict=True)
            try:
                for _ in reader:
                    pass
            except csv.Error as error:
                raise pa.ArrowInvalid(f"a quote is open up to line {reader.line_num}: {error}") from None
    except (EOFError, zlib.error) as error:
        raise OSError(str(error)) from None
    finally:
        csv.field_size_limit(before)
