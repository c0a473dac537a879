"""Reading a user's own tables: parquet or csv(.gz), our column names mapped to theirs, values brought to our types.

Nothing raises for a bad file, column or value: each reader returns its column and the findings. A required column that is
missing is one finding; its readers then return empty values and say nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs.program import InputError
from data.adapters.options import TableFile
from data.adapters.times import in_seconds, not_of_unit
from data.shaping.findings import Finding, in_rows
from data.store import csv_text
from data.store.json_text import parse_json
from data.store.parquet import UNREADABLE, read_table

TEXT_LISTS = pa.list_(pa.string())
WRITE_TIMES = (
    "write whole unix seconds, or milliseconds with tables.time_unit ms, or a parquet timestamp column"
)
NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True)
class ColumnSource:
    """A file's columns under our names, and what the file calls them."""

    name: str
    table: pa.Table
    theirs: dict[str, str]

    @property
    def rows(self) -> int:
        return self.table.num_rows

    def has(self, column: str) -> bool:
        return column in self.table.column_names

    def cells(self, column: str) -> pa.Array:
        """The column as one array."""
        return whole(self.table[column])

    def whole_column(self, column: str, what: str, fix: str = "") -> Finding:
        """A finding about a column."""
        return Finding(self.name, self.theirs.get(column, column), what, fix)

    def at(
        self, column: str, bad: np.ndarray, what: str, *, values: pa.Array | None = None, fix: str = ""
    ) -> list[Finding]:
        """A finding about the True rows of `bad`, with the file's name of the column."""
        return in_rows(self.name, self.theirs.get(column, column), bad, what, values=values, fix=fix)


def read_source(
    raw: str | Path, spec: TableFile, *, required: Sequence[str], optional: Sequence[str]
) -> tuple[ColumnSource | None, list[Finding]]:
    """Read one file: (its columns, findings); None where there is no file or it cannot be read."""
    path = Path(raw) / spec.file
    if not path.is_file():
        return None, [
            Finding(str(path), "", "missing file", "check raw and the tables section of the config")
        ]
    try:
        present = _column_names(path)
        source, findings = _choose(path.name, present, spec, required, optional)
        table = _read(path, sorted(set(source.values())))
    except UNREADABLE as error:
        kind = "csv" if csv_text.is_csv(path) else "parquet"
        why = " ".join(str(error).split())[:160]
        what = f"{path.stat().st_size} bytes, no readable {kind} file ({why})"
        return None, [Finding(str(path), "", what, _remedy(path, error))]
    if not table.num_rows and all(name in source for name in required):
        findings.append(Finding(path.name, "", "has no rows", "check the file"))
    columns = {name: table[column] for name, column in source.items()}
    return ColumnSource(path.name, pa.table(columns), spec.columns), findings


def _choose(
    file: str, present: list[str], spec: TableFile, required: Sequence[str], optional: Sequence[str]
) -> tuple[dict[str, str], list[Finding]]:
    """({our name: the file's}, findings) of the columns to read."""
    findings = []
    has = f"it has {', '.join(present)}: name the right one under columns"
    if csv_text.is_csv(Path(file)) and len(present) == 1:
        has = csv_text.other_mark(Path(file), present[0]) or has
    allowed = [*required, *optional]
    for name in spec.columns:
        if name not in allowed:
            fix = f"one of {', '.join(allowed)}; further columns go under extras"
            findings.append(Finding(file, name, "the column map names no column of ours", fix))
    wanted = {name: spec.columns.get(name, name) for name in allowed}
    wanted |= {column: column for column in spec.extras if column not in wanted}
    chosen = {}
    for name, column in wanted.items():
        count = present.count(column)
        if count == 1:
            chosen[name] = column
        elif count > 1:
            findings.append(Finding(file, column, f"{count} columns have this name", "rename them"))
        elif name in required or name in spec.columns or name in spec.extras:
            use = f" (for {name})" if column != name else ""
            findings.append(
                Finding(file, column, f"missing column{use}", has + _without(name, spec, required))
            )
    return chosen, findings


def _without(name: str, spec: TableFile, required: Sequence[str]) -> str:
    """The other way to go on where a column is missing, if there is one."""
    if name in required:
        return ""
    return f", or take it out of {'the map' if name in spec.columns else 'extras'}"


def _column_names(path: Path) -> list[str]:
    return csv_text.column_names(path) if csv_text.is_csv(path) else pq.read_schema(path).names


def _read(path: Path, columns: list[str]) -> pa.Table:
    if csv_text.is_csv(path):
        return csv_text.read_csv(path, columns)
    table = read_table(path, columns=columns)
    return pa.table({name: _plain(table[name]) for name in columns})


def _remedy(path: Path, error: Exception) -> str:
    """What to do with a file that cannot be read for `error`."""
    if csv_text.is_csv(path):
        return csv_text.remedy(path, error)
    named = path.name.endswith(".parquet")
    return "write it again" if named else "write it as csv(.gz), tsv(.gz) or parquet, and name it so"


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Categories, views and large types as the plain ones."""
    return column.cast(_plain_type(column.type))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind


def keys(source: ColumnSource, column: str) -> tuple[pa.Array, list[Finding]]:
    """An id column as strings (integers and text are both ids); empty and null ids are findings."""
    if not source.has(column):
        return pa.array([""] * source.rows, pa.string()), []
    text, missing, wrong = _keys(source.cells(column))
    if wrong:
        return text, [source.whole_column(column, wrong)]
    return text, source.at(column, missing, "null or empty id")


def _keys(values: pa.Array) -> tuple[pa.Array, np.ndarray, str]:
    """(ids as text, "" where missing; missing bool; what is wrong with their type)."""
    usable = (
        pa.types.is_integer(values.type) or pa.types.is_string(values.type) or pa.types.is_null(values.type)
    )
    if not usable:
        hint = " (a column of integers with gaps?)" if pa.types.is_floating(values.type) else ""
        missing = np.ones(len(values), bool)
        wrong = f"wrong type: ids are {values.type}{hint}, not integers or text"
        return pa.array([""] * len(values), pa.string()), missing, wrong
    text = values.cast(pa.string()).fill_null("")
    return text, pc.equal(text, "").to_numpy(zero_copy_only=False), ""


def key_lists(source: ColumnSource, column: str) -> tuple[np.ndarray, pa.Array, list[Finding]]:
    """A list-of-ids column: (offsets int64 [rows + 1], flat ids as strings, findings).

    Text cells may be JSON lists or ids separated by whitespace or commas.
    """
    nothing = np.zeros(source.rows + 1, np.int64), pa.array([], pa.string())
    if not source.has(column):
        return *nothing, []
    values = source.cells(column)
    if pa.types.is_string(values.type):
        text = pc.utf8_trim_whitespace(pc.replace_substring_regex(values, r"[\[\],\"'\s]+", " ")).fill_null(
            ""
        )
        empty = pa.scalar([], TEXT_LISTS)
        values = pc.if_else(pc.equal(text, ""), empty, pc.utf8_split_whitespace(text))
    if not pa.types.is_list(values.type):
        return *nothing, [source.whole_column(column, f"wrong type: {values.type}, not a list of ids")]
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    findings = source.at(
        column, lengths == 0, "empty history", fix="a row needs at least one item before its target"
    )
    flat, missing, wrong = _keys(values.flatten())
    if wrong:
        return *nothing, [*findings, source.whole_column(column, wrong)]
    return (
        offsets,
        flat,
        findings + source.at(column, rows_of(offsets, missing), "null or empty id in the list"),
    )


def rows_of(offsets: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """bool [rows]: the row's slice of `flat` (bool) has a True."""
    rows = np.zeros(len(offsets) - 1, bool)
    rows[np.searchsorted(offsets, np.flatnonzero(flat), side="right") - 1] = True
    return rows


def texts(source: ColumnSource, column: str, *, nulls: bool = False) -> tuple[pa.Array, list[Finding]]:
    """A text column; a list of strings is joined by spaces, numbers are printed. Without `nulls` a null is empty text."""
    empty = pa.nulls(source.rows, pa.string()) if nulls else pa.array([""] * source.rows, pa.string())
    if not source.has(column):
        return empty, []
    values = source.cells(column)
    if pa.types.is_list(values.type) and _is_textual(values.type.value_type):
        values = pc.binary_join(values.cast(TEXT_LISTS), " ")
    elif not _is_textual(values.type):
        return empty, [source.whole_column(column, f"wrong type: {values.type}, not text")]
    values = values.cast(pa.string())
    return values if nulls else values.fill_null(""), []


def _is_textual(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_null(kind)
    )


def text_lists(source: ColumnSource, column: str) -> tuple[pa.Array, list[Finding]]:
    """A list<string> column without nulls. Text cells: a JSON list, or one element (none when empty)."""
    if not source.has(column):
        return pa.array([[]] * source.rows, TEXT_LISTS), []
    values = source.cells(column)
    if pa.types.is_list(values.type) and _is_textual(values.type.value_type):
        values = values.cast(TEXT_LISTS)
        return pc.if_else(values.is_null(), pa.scalar([], TEXT_LISTS), values), []
    if not pa.types.is_string(values.type):
        wrong = source.whole_column(column, f"wrong type: {values.type}, not a list of text")
        return pa.array([[]] * len(values), TEXT_LISTS), [wrong]
    rows, bad = [], np.zeros(len(values), bool)
    for number, cell in enumerate(values.to_pylist()):
        cell = (cell or "").strip()
        parsed = [cell] if cell else []
        if cell.startswith("["):
            try:
                parsed = parse_json(cell, where=column)
            except InputError:
                bad[number] = True
        rows.append([str(part) for part in parsed])
    return pa.array(rows, TEXT_LISTS), source.at(column, bad, "not a JSON list", values=values)


def numbers(
    source: ColumnSource, column: str, kind: pa.DataType, *, fix: str = "write it as integers or floats"
) -> tuple[pa.Array, list[Finding]]:
    """A numeric column of `kind` with nulls; empty csv cells and NaN are null; what is no number is a finding that ends in `fix`."""
    if not source.has(column):
        return pa.nulls(source.rows, kind), []
    cells = values = source.cells(column)
    findings = []
    if pa.types.is_string(values.type):
        text = pc.utf8_trim_whitespace(values)
        text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        good = pc.match_substring_regex(text, NUMBER).fill_null(True)
        bad = ~good.to_numpy(zero_copy_only=False)
        findings += source.at(column, bad, "wrong type: not a number", values=cells, fix=fix)
        values = pc.if_else(good, text, pa.scalar(None, pa.string())).cast(pa.float64())
    elif pa.types.is_boolean(values.type) or not _is_textual(values.type):
        wrong = f"wrong type: {values.type}, not numbers"
        return pa.nulls(len(values), kind), [source.whole_column(column, wrong, fix)]
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
        if pa.types.is_integer(kind):
            fraction = pc.not_equal(pc.floor(values), values).fill_null(False).to_numpy(zero_copy_only=False)
            findings += source.at(column, fraction, "wrong type: not a whole number", values=cells, fix=fix)
            values = pc.floor(values)
    return values.cast(kind, safe=False), findings


def timestamps(
    source: ColumnSource, unit: str
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[Finding]]:
    """(UTC seconds int64, 0 where there is none; nanoseconds beyond them int32, or None; known bool; findings)."""
    cells = source.cells("timestamp") if source.has("timestamp") else None
    if cells is not None and pa.types.is_timestamp(cells.type):
        return _typed(source, cells)
    values, findings = numbers(source, "timestamp", pa.int64(), fix=WRITE_TIMES)
    known = ~values.is_null().to_numpy(zero_copy_only=False)
    times = values.fill_null(0).to_numpy()
    findings += source.at("timestamp", times < 0, "negative time", values=values)
    wrong, what, fix = not_of_unit(times, known, unit=unit, option="tables.time_unit")
    return (
        *in_seconds(times, unit),
        known,
        findings + source.at("timestamp", wrong, what, values=values, fix=fix),
    )


def _typed(
    source: ColumnSource, cells: pa.Array
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[Finding]]:
    known = ~cells.is_null().to_numpy(zero_copy_only=False)
    seconds, beyond = in_seconds(cells.cast(pa.int64()).fill_null(0).to_numpy(), cells.type.unit)
    values = pa.array(seconds)
    findings = source.at("timestamp", seconds < 0, "negative time", values=values)
    late, what, _ = not_of_unit(seconds, known, unit="s", option="")
    fix = "the column's unit is not that of its numbers: write it again"
    return seconds, beyond, known, findings + source.at("timestamp", late, what, values=values, fix=fix)


def amounts(
    source: ColumnSource,
    column: str,
    parse: Callable[[Any], float | None],
    *,
    lowest: float | None = None,
    write: str,
) -> tuple[pa.Array, list[Finding], list[Finding]]:
    """(float32 column with nulls, cells that are there and cannot be read: one finding or none, findings) of ratings or prices.

    Text cells are read by `parse`, as every adapter does; what it cannot read is null, and so is a number below `lowest`.
    `write`: how such cells are to be written.
    """
    if not source.has(column):
        return pa.nulls(source.rows, pa.float32()), [], []
    cells, findings = source.cells(column), []
    if pa.types.is_string(cells.type):
        plain = cells.to_pylist()
        values = pa.array([None if cell is None else parse(cell) for cell in plain], pa.float32())
        there = np.fromiter((bool(cell and cell.strip()) for cell in plain), bool, len(plain))
        lost = there & values.is_null().to_numpy(zero_copy_only=False)
    else:
        values, findings = numbers(source, column, pa.float32())
        lost = np.zeros(source.rows, bool)
        if lowest is not None:
            lost = pc.less(values, lowest).fill_null(False).to_numpy(zero_copy_only=False)
            values = pc.if_else(lost, pa.scalar(None, pa.float32()), values)
    what = f"{int(lost.sum())} of {source.rows} cells cannot be read and are left empty"
    return values, source.at(column, lost, what, values=cells, fix=f"write them as {write}"), findings


def whole(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One contiguous array."""
    if isinstance(values, pa.Array):
        return values
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
