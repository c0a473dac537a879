"""Logs of one line per event, cut by a delimiter, as coded interactions: read in blocks, so that memory holds codes, not text.

What a row cannot mean is a finding with its number (from 0, without a header) and its value: an empty id, a negative time, one
of another unit, a rating off the scale. A line that does not fit the columns is refused where it stands.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from configs.program import InputError, progress
from data.adapters.contract import RawLine, shown
from data.adapters.times import in_seconds, joined, not_of_unit
from data.shaping.assemble import Coded
from data.shaping.coding import Coder
from data.shaping.findings import FIRST_ROWS, Finding

BLOCK_BYTES = 16 << 20
SEPARATOR = "\x1f"  # stands for a delimiter of two characters, which the csv reader does not know
IDS = ("user", "item")


@dataclass(frozen=True)
class Layout:
    """How the lines of a file are cut. delimiter: `,`, a tab, `|` or `::`; names: the columns of a file without a header line;
    quoted: cells may stand in double quotes."""

    delimiter: str
    names: tuple[str, ...] = ()
    quoted: bool = False

    @property
    def one_character(self) -> str:
        return self.delimiter if len(self.delimiter) == 1 else SEPARATOR


def decoded(path: Path) -> tuple[str, bool]:
    """(text of a small file, whether it was Latin-1): UTF-8, or the Latin-1 of older releases."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error}) -> get the file again") from None
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("latin-1"), True


def cells(path: Path, layout: Layout) -> tuple[list[dict[str, str]], bool]:
    """(the rows of a small file by column, whether it was Latin-1); InputError for a row of another width."""
    text, latin = decoded(path)
    delimiter, quoting = layout.one_character, csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE
    if len(layout.delimiter) > 1:
        text = text.replace(layout.delimiter, SEPARATOR)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is no csv ({error}) -> get the file again"
        ) from None
    names = list(layout.names) or (lines.pop(0) if lines else [])
    for number, line in enumerate(lines):
        if len(line) != len(names):
            raise InputError(
                f"{path}: row {number} has {len(line)} fields, not {len(names)} ({', '.join(names)}) -> get the file again"
            )
    return [dict(zip(names, line, strict=True)) for line in lines], latin


def header(path: Path, layout: Layout) -> list[str]:
    """The columns of a file."""
    return list(layout.names) or _reader(path, layout, {}).schema.names


def _reader(path: Path, layout: Layout, types: dict[str, pa.DataType]) -> pcsv.CSVStreamingReader:
    """A reader of the columns in `types` (none: of all, for the header)."""
    try:
        stream = pa.input_stream(str(path), compression="gzip" if path.name.endswith(".gz") else None)
        if len(layout.delimiter) > 1:
            stream = pa.TransformInputStream(stream, _one_character(layout.delimiter.encode()))
        return pcsv.open_csv(
            stream,
            read_options=pcsv.ReadOptions(column_names=list(layout.names) or None, block_size=BLOCK_BYTES),
            parse_options=pcsv.ParseOptions(
                delimiter=layout.one_character, quote_char='"' if layout.quoted else False
            ),
            convert_options=pcsv.ConvertOptions(
                include_columns=list(types), column_types=types, strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _one_character(delimiter: bytes):
    """Replaces the delimiter by SEPARATOR in pieces of a stream, also where a piece ends in its middle."""
    held = b""

    def replace(piece: pa.Buffer) -> bytes:
        nonlocal held
        data = held + bytes(piece)
        held = delimiter[:1] if data.endswith(delimiter[:1]) and not data.endswith(delimiter) else b""
        return data[: len(data) - len(held)].replace(delimiter, SEPARATOR.encode())

    return replace


def _unreadable(path: Path, error: Exception) -> InputError:
    why = " ".join(str(error).split())[:200]
    return InputError(f"{path}: cannot be read as a log ({why}) -> check the file, or get it again")


def batches(path: Path, layout: Layout, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """The columns in `types` of a file, block by block."""
    reader = _reader(path, layout, types)
    blocks = -(-path.stat().st_size // BLOCK_BYTES)
    try:
        yield from progress(reader, label=f"reading {path.name}", total=blocks, unit="block")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


@dataclass
class Faults:
    """Findings of rows that come in blocks."""

    found: dict[tuple[str, str, str], Finding] = field(default_factory=dict)

    def at(
        self, file: str, column: str, bad: np.ndarray, what: str, *, first: int, values: pa.Array, fix: str
    ) -> None:
        """The True rows of `bad` (bool [rows of the block]); `first` is the block's first row."""
        rows = np.flatnonzero(bad)
        if not len(rows):
            return
        before = self.found.get((file, column, what), Finding(file, column, what, fix))
        more = rows[: FIRST_ROWS - len(before.rows)].tolist()
        self.found[file, column, what] = Finding(
            file, column, what, fix, before.rows + tuple(first + row for row in more),
            before.values + tuple(repr(values[row].as_py()) for row in more), before.count + len(rows),
        )  # fmt: skip


@dataclass
class Log:
    """Interactions collected from files.

    unit, option: of the times, and what names it in the config; scale: lowest and highest rating, or None for any.
    """

    unit: str
    option: str
    scale: tuple[float, float] | None = None
    scale_option: str = ""
    faults: Faults = field(default_factory=Faults)
    users: Coder = field(default_factory=Coder)
    items: Coder = field(default_factory=Coder)
    _ratings: list[np.ndarray] = field(default_factory=list)
    _times: list[np.ndarray] = field(default_factory=list)
    _beyond: list[np.ndarray | None] = field(default_factory=list)
    _known: list[np.ndarray] = field(default_factory=list)
    _splits: list[np.ndarray] = field(default_factory=list)
    lines: int = 0

    def read(
        self,
        path: Path,
        layout: Layout,
        columns: dict[str, str],
        *,
        keep: dict[str, float] | None = None,
        split: int | None = None,
    ) -> list[Finding]:
        """Add a file. columns: user, item, rating?, time? -> its columns; keep: only rows in which a column has a value;
        split: code of all its rows. Returns a finding when a column is missing."""
        present = header(path, layout)
        wanted = [*columns.values(), *(keep or {})]
        for name in wanted:
            if name not in present:
                return [
                    Finding(
                        path.name, name, "missing column", f"it has {', '.join(present)}: is it this release?"
                    )
                ]
        types = {name: pa.float64() for name in wanted}
        types |= {columns[ours]: pa.string() for ours in IDS}
        row = 0
        for batch in batches(path, layout, types):
            self._add(path.name, batch, columns, row, keep or {}, split)
            row += batch.num_rows
        self.lines += row
        return []

    def _add(
        self,
        file: str,
        batch: pa.RecordBatch,
        columns: dict[str, str],
        row: int,
        keep: dict[str, float],
        split: int | None,
    ) -> None:
        kept = np.ones(batch.num_rows, bool)
        for name, value in keep.items():
            kept &= pc.equal(batch[name], value).fill_null(False).to_numpy(zero_copy_only=False)
        for ours, coder in zip(IDS, (self.users, self.items), strict=True):
            ids = batch[columns[ours]]
            empty = pc.equal(ids, "").to_numpy(zero_copy_only=False) & kept
            self.faults.at(file, columns[ours], empty, "null or empty id", first=row, values=ids, fix="correct the row")  # fmt: skip
            coder.add(ids if kept.all() else ids.filter(pa.array(kept)))
        self._ratings.append(self._rating(file, batch, columns.get("rating"), row, kept)[kept])
        seconds, beyond, known = self._time(file, batch, columns.get("time"), row, kept)
        self._times.append(seconds[kept])
        self._beyond.append(None if beyond is None else beyond[kept])
        self._known.append(known[kept])
        if split is not None:
            self._splits.append(np.full(int(kept.sum()), split, np.int8))

    def _rating(
        self, file: str, batch: pa.RecordBatch, column: str | None, row: int, kept: np.ndarray
    ) -> np.ndarray:
        if column is None:
            return np.full(batch.num_rows, np.nan, np.float32)
        ratings = batch[column].to_numpy(zero_copy_only=False).astype(np.float32)
        if self.scale is not None:
            low, high = self.scale
            off = kept & ((ratings < low) | (ratings > high))
            what = f"rating is not between {low:g} and {high:g}"
            fix = f"another scale? say which: {self.scale_option}"
            self.faults.at(file, column, off, what, first=row, values=batch[column], fix=fix)
        return ratings

    def _time(
        self, file: str, batch: pa.RecordBatch, column: str | None, row: int, kept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """(UTC seconds, what is beyond them, known) of the block's rows."""
        if column is None:
            return np.zeros(batch.num_rows, np.int64), None, np.zeros(batch.num_rows, bool)
        values = batch[column]
        known = values.is_valid().to_numpy(zero_copy_only=False)
        given = values.fill_null(0.0).to_numpy(zero_copy_only=False)
        times = given.astype(np.int64)
        self.faults.at(
            file, column, kept & (times < 0), "negative time", first=row, values=values, fix="correct the row"
        )
        wrong, what, fix = not_of_unit(times, known & kept, unit=self.unit, option=self.option)
        self.faults.at(file, column, wrong, what, first=row, values=values, fix=fix)
        return *in_seconds(given, self.unit), known

    def findings(self) -> list[Finding]:
        return list(self.faults.found.values())

    def finish(self) -> tuple[Coded, pa.Array, pa.Array]:
        """(rows in file order, ids of the user codes, ids of the item codes); this log is empty afterwards."""
        user, user_ids = self.users.finish()
        item, item_ids = self.items.finish()
        beyond = joined(self._beyond, [len(times) for times in self._times])
        self._beyond.clear()
        columns = []
        for parts, kind in ((self._ratings, np.float32), (self._times, np.int64), (self._known, bool)):
            columns.append(np.concatenate(parts) if parts else np.zeros(0, kind))
            parts.clear()
        split = np.concatenate(self._splits) if self._splits else None
        self.users, self.items = Coder(), Coder()
        return Coded(user, item, *columns, split=split, beyond=beyond), user_ids, item_ids


def cells_with(path: Path, layout: Layout, column: str, wanted: Sequence[str]) -> Iterator[RawLine]:
    """Rows of a small file (from 0) in which a column is one of `wanted`."""
    for row, fields in enumerate(cells(path, layout)[0] if wanted else ()):
        if fields[column] in wanted:
            text = layout.delimiter.join(fields.values())
            yield RawLine(path.name, row, fields[column], shown(text), fields)


def lines_with(
    path: Path,
    layout: Layout,
    column: str,
    wanted: Sequence[str],
    *,
    event: tuple[str, str, int] | None = None,
) -> Iterator[RawLine]:
    """Rows of a file (from 0) in which a column is one of `wanted`; event: columns of item and time, and what a second is in
    the unit of the times."""
    names, row = header(path, layout), 0
    sought = pa.array(wanted, pa.string())
    for batch in batches(path, layout, dict.fromkeys(names, pa.string())) if len(wanted) else ():
        for at in np.flatnonzero(
            pc.is_in(batch[column], value_set=sought).to_numpy(zero_copy_only=False)
        ).tolist():
            fields = {name: batch[name][at].as_py() for name in names}
            text = layout.delimiter.join(fields.values())
            seen = None
            if event is not None and fields[event[1]]:
                seen = fields[event[0]], int(float(fields[event[1]])) // event[2]
            yield RawLine(path.name, row + at, fields[column], shown(text), fields, event=seen)
        row += batch.num_rows
