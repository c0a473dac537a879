"""Raw review dumps as lines: plain or gzip, read in blocks, broken lines counted instead of fatal.

A file is read once from front to back in blocks of whole lines. pyarrow parses a block with an explicit schema; of a
block that it refuses, small pieces are tried, and the pieces with a broken line are read line by line with `json` (and, for
2014 dumps, Python literals with `ast.literal_eval`). A file that ends in the middle of a line or of its gzip stream counts as
one broken line.
"""

from __future__ import annotations

import ast
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from configs.program import InputError, progress

READ_BYTES = 1 << 20
BLOCK_BYTES = 16 << 20
PIECE_BYTES = 1 << 16
MAX_LINE_BYTES = 128 << 20
GIVE_UP_AFTER = 1000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block:
    """Whole lines of a file: their bytes, the number of the first line (from 1) and its offset in the plain text."""

    data: bytes
    first_line: int
    offset: int

    def line_starts(self) -> np.ndarray:
        """Offset of every line in `data` (int64)."""
        ends = np.flatnonzero(np.frombuffer(self.data, np.uint8) == 10)
        starts = np.concatenate([[0], ends + 1])
        return starts[:-1] if starts[-1] == len(self.data) else starts

    def pieces(self) -> Iterator[Block]:
        """The same lines in blocks of about PIECE_BYTES."""
        begin, line = 0, self.first_line
        while begin < len(self.data):
            end = self.data.find(b"\n", begin + PIECE_BYTES) + 1 or len(self.data)
            yield Block(self.data[begin:end], line, self.offset + begin)
            begin, line = end, line + self.data.count(b"\n", begin, end)


@dataclass
class Lines:
    """One file's account: non-empty lines, broken ones, the first broken one, and whether the file ends in the middle."""

    path: Path
    total: int = 0
    broken: int = 0
    first_broken: str = ""
    truncated: bool = False

    def add_broken(self, number: int, why: str) -> None:
        self.broken += 1
        if not self.first_broken:
            self.first_broken = f"{self.path}:{number} ({why})"

    def check(self, max_bad_share: float, *, at_end: bool) -> None:
        """InputError with the first broken line when the share is exceeded; before the end only when it is hopeless."""
        limit = max_bad_share * self.total
        if not at_end:
            limit = max(GIVE_UP_AFTER, 0.5 * self.total)
        if self.broken > limit:
            raise InputError(
                f"{self.path}: {self.broken} of {self.total} lines are broken, more than max_bad_share {max_bad_share};"
                f" first: {self.first_broken} -> check amazon.format and the file, or raise amazon.max_bad_share"
            )


def read_blocks(path: Path, account: Lines | None = None, *, label: str = "") -> Iterator[Block]:
    """The file's blocks in order. `account.truncated` is set when a gzip stream ends early.

    InputError for an unreadable file, corrupt gzip data, or a line longer than any dump has.
    """
    rest, first_line, offset = b"", 1, 0
    for text in _text(path, account, label):
        data = rest + text
        cut = data.rfind(b"\n") + 1
        if not cut:
            if len(data) > MAX_LINE_BYTES:
                raise InputError(f"{path}: no line end in {len(data)} bytes -> is this a JSON-lines file?")
            rest = data
            continue
        block, rest = data[:cut], data[cut:]
        yield Block(block, first_line, offset)
        first_line, offset = first_line + block.count(b"\n"), offset + len(block)
    if account is not None and account.truncated:
        account.total += 1
        account.add_broken(first_line, "the gzip stream ends in the middle")
    elif rest:
        yield Block(rest, first_line, offset)


def _text(path: Path, account: Lines | None, label: str) -> Iterator[bytes]:
    """Plain text of the file in pieces of about BLOCK_BYTES."""
    if not os.access(path, os.R_OK):
        raise InputError(f"cannot read {path} -> check the file and its permissions")
    with open(path, "rb") as file:
        size = path.stat().st_size
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        chunks = iter(lambda: file.read(READ_BYTES), b"")
        reading = progress(
            chunks, label=label or f"reading {path.name}", total=-(-size // READ_BYTES), unit="MiB"
        )
        pieces: list[bytes] = []
        held = 0
        for piece in _inflated(reading, path, account) if compressed else reading:
            pieces.append(piece)
            held += len(piece)
            if held >= BLOCK_BYTES:
                yield b"".join(pieces)
                pieces, held = [], 0
        if held:
            yield b"".join(pieces)


def _inflated(chunks: Iterator[bytes], path: Path, account: Lines | None) -> Iterator[bytes]:
    """Decompressed pieces of at most BLOCK_BYTES of a gzip file of one or several members."""
    inflater = zlib.decompressobj(wbits=31)
    done = True
    for chunk in chunks:
        while chunk:
            try:
                piece = inflater.decompress(chunk, BLOCK_BYTES)
            except zlib.error as error:
                raise InputError(f"{path}: corrupt gzip data ({error}) -> download the file again") from None
            if piece:
                yield piece
            done = inflater.eof
            if done:
                # Zero bytes after the last member are padding.
                chunk = inflater.unused_data.lstrip(b"\0")
                inflater = zlib.decompressobj(wbits=31)
            else:
                chunk = inflater.unconsumed_tail
    if not done:
        yield inflater.flush()
        if account is not None:
            account.truncated = not inflater.eof


def parse_blocks(
    path: Path, account: Lines, schema: pa.Schema, required: list[str]
) -> Iterator[tuple[Block, pa.Table | None]]:
    """Every block of the file with its columns (one row per line), or None where it must be read line by line."""
    for block in read_blocks(path, account):
        table = parse_fast(block, schema, required)
        if table is not None:
            account.total += table.num_rows
            yield block, table
            continue
        for piece in block.pieces():
            table = parse_fast(piece, schema, required)
            if table is not None:
                account.total += table.num_rows
            yield piece, table


def parse_fast(block: Block, schema: pa.Schema, required: list[str]) -> pa.Table | None:
    """The block's columns, one row per line, or None: pyarrow refuses a line, a required value is null or empty, a
    string is not UTF-8, or rows and lines differ (blank lines, two objects on a line)."""
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pj.read_json(
            pa.BufferReader(block.data),
            read_options=pj.ReadOptions(block_size=READ_BYTES),
            parse_options=options,
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    lines = block.data.count(b"\n") + (not block.data.endswith(b"\n"))
    if table.num_rows != lines or any(_has_gap(table[name]) for name in required):
        return None
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return table


def _has_gap(column: pa.ChunkedArray) -> bool:
    """True when a value is null, or an empty string."""
    if column.null_count or not pa.types.is_string(column.type):
        return column.null_count > 0
    return len(column) > 0 and pc.min(pc.binary_length(column)).as_py() == 0


def parse_lines(
    block: Block, account: Lines, pick: Callable[[dict[str, Any]], tuple | str], *, literals: bool
) -> list[tuple[int, tuple]]:
    """(line start in the block, picked fields) of every good line; broken ones go to the account.

    pick: object -> tuple of fields, or a string that says what is wrong with it. literals: also accept Python literals.
    """
    rows = []
    start = 0
    for number, line in enumerate(block.data.split(b"\n"), block.first_line):
        begin, start = start, start + len(line) + 1
        if not line.strip():
            continue
        account.total += 1
        fields = parse_object(line, literals=literals)
        if isinstance(fields, dict):
            fields = pick(fields)
        if isinstance(fields, str):
            account.add_broken(number, fields)
        else:
            rows.append((begin, fields))
    return rows


def parse_object(line: bytes, *, literals: bool) -> dict[str, Any] | str:
    """The object on a line, or why there is none."""
    text = line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not literals:
            return f"not JSON: {error}"
        value = _literal(text)
        if value is None:
            return "neither JSON nor a Python literal"
    return value if isinstance(value, dict) else f"a {type(value).__name__}, not an object"


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            # Titles such as 'Vol. \d' raise a SyntaxWarning each.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
