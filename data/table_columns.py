"""Reading a user's own tables: parquet or csv(.gz), our column names mapped to theirs, values brought to our types.

Nothing raises for a bad value: each reader returns the column and the findings, so that `data.validate` can list them all
and `data.prepare` can stop at the first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from configs.program import InputError

FIRST_ROWS = 3
# Seconds: 2286-11-20. A larger number is milliseconds, microseconds or nonsense.
LATEST_SECOND = 10**10


@dataclass(frozen=True)
class Finding:
    """A violation of the contract: which file and column, how many rows, the first of them (from 0), and what is wrong."""

    file: str
    column: str
    what: str
    rows: tuple[int, ...] = ()
    count: int = 0

    def __str__(self) -> str:
        where = f"{self.file}: column `{self.column}`" if self.column else self.file
        if not self.rows:
            return f"{where}: {self.what}"
        word = "row" if self.count == 1 else "rows"
        more = f", ... ({self.count} rows)" if self.count > len(self.rows) else ""
        return f"{where} {word} {', '.join(map(str, self.rows))}{more}: {self.what}"


def finding(file: str, column: str, bad: np.ndarray, what: str) -> list[Finding]:
    """One finding for the True rows of `bad` (bool [rows]), none when there are none."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return []
    return [Finding(file, column, what, tuple(rows[:FIRST_ROWS].tolist()), len(rows))]


@dataclass(frozen=True)
class TableFile:
    """One of the user's files.

    Attributes:
        file: path below the raw folder; empty = there is none
        columns: our column name -> the file's, for those that differ
        extras: further columns to keep under their own names
    """

    file: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    extras: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A file's columns under our names, as stored, and its path for messages."""

    path: Path
    table: pa.Table
    theirs: dict[str, str]

    @property
    def name(self) -> str:
        return self.path.name

    def has(self, column: str) -> bool:
        return column in self.table.column_names

    def label(self, column: str) -> str:
        """The column's name in the user's file."""
        return self.theirs.get(column, column)


def read_source(
    raw: str | Path, spec: TableFile, *, required: Sequence[str], optional: Sequence[str]
) -> Source:
    """Read one file. InputError for a missing or unreadable file, a missing column, or an unknown key in the map."""
    path = Path(raw) / spec.file
    allowed = [*required, *optional]
    for name in spec.columns:
        if name not in allowed:
            raise InputError(
                f"column map of {spec.file}: unknown column {name!r} -> one of {', '.join(allowed)}"
            )
    if not path.is_file():
        raise InputError(f"missing file: {path} -> check raw and the tables section of the config")
    present = _column_names(path)
    theirs = {name: spec.columns.get(name, name) for name in allowed}
    for name, column in theirs.items():
        if column not in present and (name in required or name in spec.columns):
            raise InputError(
                f"{path}: no column `{column}` (for {name}); it has {', '.join(present)} -> map it under columns"
            )
    for column in spec.extras:
        if column not in present:
            raise InputError(f"{path}: no column `{column}` (extras); it has {', '.join(present)}")
    names = {name: column for name, column in theirs.items() if column in present}
    names |= {column: column for column in spec.extras if column not in names}
    table = _read(path, sorted(set(names.values())))
    return Source(path, pa.table({name: table[column] for name, column in names.items()}), theirs)


def is_csv(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".csv", ".tsv"))


def _column_names(path: Path) -> list[str]:
    try:
        if not is_csv(path):
            return pq.read_schema(path).names
        with pcsv.open_csv(path, parse_options=_csv_options(path)) as reader:
            return reader.schema.names
    except (pa.ArrowInvalid, OSError) as error:
        kind = "csv" if is_csv(path) else "parquet"
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is not a readable {kind} file: {str(error)[:120]}"
        ) from None


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        if not is_csv(path):
            return pq.read_table(path, columns=columns)
        # Text throughout: a reader that guesses types would turn an id "007" into 7.
        convert = pcsv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=False,
        )
        return pcsv.read_csv(path, parse_options=_csv_options(path), convert_options=convert)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())[:160]} -> check the file") from None


def _csv_options(path: Path) -> pcsv.ParseOptions:
    tab = path.name.removesuffix(".gz").endswith(".tsv")
    return pcsv.ParseOptions(delimiter="\t" if tab else ",", newlines_in_values=True)


def keys(source: Source, column: str) -> tuple[pa.Array, list[Finding]]:
    """An id column as strings (integers and text are both ids); empty and null ids are findings."""
    return _keys(source.table[column], source, column)


def _keys(values: pa.ChunkedArray | pa.Array, source: Source, column: str) -> tuple[pa.Array, list[Finding]]:
    values = whole(values)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_integer(values.type) or _is_text(values.type)):
        found = [Finding(source.name, source.label(column), f"ids are {values.type} -> integers or text")]
        return pa.array([""] * len(values), pa.string()), found
    text = values.cast(pa.string())
    missing = pc.or_kleene(text.is_null(), pc.equal(text, "")).fill_null(True).to_numpy(zero_copy_only=False)
    return text.fill_null(""), finding(source.name, source.label(column), missing, "null or empty id")


def key_lists(source: Source, column: str) -> tuple[np.ndarray, pa.Array, list[Finding]]:
    """A list-of-ids column: (offsets int64 [rows + 1], flat ids as strings, findings).

    Text cells may be JSON lists or ids separated by whitespace or commas.
    """
    values = whole(source.table[column])
    label = source.label(column)
    if _is_text(values.type):
        text = pc.utf8_trim_whitespace(
            pc.replace_substring_regex(values.cast(pa.string()), r"[\[\],\"'\s]+", " ")
        )
        split = pc.utf8_split_whitespace(text)
        values = pc.if_else(pc.equal(text, ""), pa.scalar([], pa.list_(pa.string())), split)
    if not pa.types.is_list(values.type) and not pa.types.is_large_list(values.type):
        found = [Finding(source.name, label, f"is {values.type}, not a list")]
        return np.zeros(len(values) + 1, np.int64), pa.array([], pa.string()), found
    empty = pc.fill_null(pc.list_value_length(values), 0)
    lengths = empty.to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    found = finding(
        source.name, label, lengths == 0, "empty history: a row needs at least one item before its target"
    )
    flat, more = _keys(values.flatten(), source, column)
    if more and more[0].rows:
        rows = np.searchsorted(offsets, np.array(more[0].rows), side="right") - 1
        more = [Finding(source.name, label, "null id in a list", tuple(rows.tolist()), more[0].count)]
    return offsets, flat, found + more


def texts(source: Source, column: str) -> pa.Array:
    """A text column without nulls; a list of strings is joined by spaces; numbers are printed."""
    if not source.has(column):
        return pa.array([""] * source.table.num_rows, pa.string())
    values = whole(source.table[column])
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.binary_join(values.cast(pa.list_(pa.string())), " ")
    return values.cast(pa.string()).fill_null("")


def text_lists(source: Source, column: str) -> tuple[pa.Array, list[Finding]]:
    """A list<string> column without nulls. Text cells: a JSON list, or one element (none when empty)."""
    kind = pa.list_(pa.string())
    if not source.has(column):
        return pa.array([[]] * source.table.num_rows, kind), []
    values = whole(source.table[column])
    if not _is_text(values.type):
        try:
            values = values.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return pa.array([[]] * len(values), kind), [
                Finding(source.name, source.label(column), f"is {values.type}, not a list of text")
            ]
        return pc.if_else(values.is_null(), pa.scalar([], kind), values), []
    rows, bad = [], np.zeros(len(values), bool)
    for number, cell in enumerate(values.to_pylist()):
        cell = (cell or "").strip()
        parsed = [cell] if cell else []
        if cell.startswith("["):
            try:
                parsed = json.loads(cell)
            except ValueError:
                bad[number] = True
        rows.append([str(part) for part in parsed])
    return pa.array(rows, kind), finding(source.name, source.label(column), bad, "not a JSON list")


def numbers(source: Source, column: str, kind: pa.DataType) -> tuple[pa.Array, list[Finding]]:
    """A numeric column of `kind` with nulls; empty csv cells are null; what is no number is a finding."""
    values = whole(source.table[column])
    label = source.label(column)
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if _is_text(values.type):
        values = pc.utf8_trim_whitespace(values.cast(pa.string()))
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
        good = pc.match_substring_regex(values, r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$").fill_null(True)
        bad = ~good.to_numpy(zero_copy_only=False)
        found = finding(source.name, label, bad, f"not a number: {_first(values, bad)}")
        values = pc.if_else(good, values, pa.scalar(None, pa.string())).cast(pa.float64())
    elif (
        pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_null(values.type)
    ):
        found = []
    else:
        return pa.nulls(len(values), kind), [Finding(source.name, label, f"is {values.type}, not a number")]
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
        if pa.types.is_integer(kind):
            fraction = pc.not_equal(pc.floor(values), values).fill_null(False).to_numpy(zero_copy_only=False)
            found += finding(source.name, label, fraction, f"not a whole number: {_first(values, fraction)}")
            values = pc.floor(values)
    return values.cast(kind, safe=False), found


def whole(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One contiguous array."""
    if isinstance(values, pa.Array):
        return values
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _first(values: pa.Array, bad: np.ndarray) -> str:
    rows = np.flatnonzero(bad)
    return repr(values[int(rows[0])].as_py()) if len(rows) else ""
