"""Raw review dumps as lines: plain or gzip, read in blocks, broken lines counted instead of fatal.

A file is read once from front to back in blocks of whole lines. pyarrow parses a block with an explicit schema. Where it
refuses, the block is tried again without the lines that break off, then in small pieces, and what still fails is read line
by line with `json` (and, for 2014 dumps, Python literals with `ast.literal_eval`). A file that ends in the middle of a line or of its gzip stream counts as
one broken line.
"""

from __future__ import annotations

import ast
import json
import os
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from configs.program import InputError, progress

READ_BYTES = 1 << 20
PARSE_BYTES = 1 << 22
BLOCK_BYTES = 16 << 20
PIECE_BYTES = 1 << 16
MAX_LINE_BYTES = 128 << 20
MAX_SHARE_AROUND = 0.05
GIVE_UP_AFTER = 1000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block:
    """Whole lines of a file: their bytes and their offset in the plain text."""

    data: bytes
    offset: int

    def line_starts(self) -> np.ndarray:
        """Offset of every line in `data` (int64)."""
        ends = np.flatnonzero(np.frombuffer(self.data, np.uint8) == 10)
        starts = np.concatenate([[0], ends + 1])
        return starts[:-1] if starts[-1] == len(self.data) else starts

    def pieces(self) -> Iterator[Block]:
        """The same lines in blocks of about PIECE_BYTES."""
        begin = 0
        while begin < len(self.data):
            end = self.data.find(b"\n", begin + PIECE_BYTES) + 1 or len(self.data)
            yield Block(self.data[begin:end], self.offset + begin)
            begin = end


@dataclass
class Lines:
    """One file's account: non-empty lines, broken ones, the first broken one, and whether the file ends in the middle.

    passed: lines, empty ones too, of the blocks that are done with.
    """

    path: Path
    passed: int = 0
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
    rest: list[bytes] = []
    held, offset = 0, 0
    for text in _text(path, account, label):
        cut = text.rfind(b"\n") + 1
        if not cut:
            rest.append(text)
            held += len(text)
            if held > MAX_LINE_BYTES:
                raise InputError(f"{path}: no line end in {held} bytes -> is this a JSON-lines file?")
            continue
        block = b"".join([*rest, memoryview(text)[:cut]])
        yield Block(block, offset)
        offset += len(block)
        rest, held = [text[cut:]], len(text) - cut
    if held and not (account is not None and account.truncated):
        yield Block(b"".join(rest), offset)


def _text(path: Path, account: Lines | None, label: str) -> Iterator[bytes]:
    """Plain text of the file in pieces of about BLOCK_BYTES."""
    if not os.access(path, os.R_OK):
        raise InputError(f"cannot read {path} -> check the file and its permissions")
    with open(path, "rb") as file:
        size = path.stat().st_size
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        step = READ_BYTES if compressed else BLOCK_BYTES
        chunks = iter(lambda: file.read(step), b"")
        reading = progress(
            chunks, label=label or f"reading {path.name}", total=-(-size // step), unit="block"
        )
        yield from _inflated(reading, path, account) if compressed else reading


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


@dataclass(frozen=True)
class Parsed:
    """A block as columns, one row per good line, with each row's line start; `table` None: read it line by line.

    lines: all lines of the block; broken: (line of the block, why) of those that were left out.
    """

    block: Block
    table: pa.Table | None
    starts: np.ndarray
    lines: int
    broken: tuple[tuple[int, str], ...] = ()


def parse_blocks(
    path: Path, account: Lines, schema: pa.Schema, required: list[str], *, literals: bool
) -> Iterator[Parsed]:
    """Every block of the file in order, as columns where that is possible; the lines of those are counted here.

    Blocks are parsed by a few threads while the next ones are read.
    """
    workers = pa.cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[Parsed]]] = deque()
        for block in read_blocks(path, account):
            ahead.append(pool.submit(_parse_block, block, schema, required, literals))
            if len(ahead) > workers:
                yield from _counted(ahead.popleft().result(), account)
        while ahead:
            yield from _counted(ahead.popleft().result(), account)
    if account.truncated:
        account.total += 1
        account.add_broken(account.passed + 1, "the gzip stream ends in the middle")


def _counted(parts: list[Parsed], account: Lines) -> Iterator[Parsed]:
    for parsed in parts:
        account.total += len(parsed.broken) + (0 if parsed.table is None else parsed.table.num_rows)
        for line, why in parsed.broken:
            account.add_broken(account.passed + line + 1, why)
        yield parsed
        account.passed += parsed.lines


def _parse_block(block: Block, schema: pa.Schema, required: list[str], literals: bool) -> list[Parsed]:
    """The block whole, or in pieces of which some may have no columns."""
    if whole := _parse_whole(block, schema, required, literals):
        return [whole]
    parts = []
    for piece in block.pieces():
        starts = piece.line_starts()
        table = parse_fast(piece.data, len(starts), schema, required)
        parts.append(Parsed(piece, table, starts, len(starts)))
    return parts


def _parse_whole(block: Block, schema: pa.Schema, required: list[str], literals: bool) -> Parsed | None:
    """The block's columns, or None when that does not do.

    Lines that do not end in a brace are broken off, or blank: a few of them are left out, so that they do not cost the
    block. Not among literals: reading those changes warning filters, which belong to the main thread.
    """
    starts = block.line_starts()
    ends = np.append(starts[1:], len(block.data))
    unclosed = _unclosed(block.data, starts, ends)
    rows = np.flatnonzero(unclosed).tolist()
    if len(rows) > (0 if literals else MAX_SHARE_AROUND * len(starts)):
        return None
    kept, begin, broken = [], 0, []
    for row in rows:
        line = block.data[starts[row] : ends[row]]
        why = parse_object(line, literals=False) if line.strip() else ""
        if not isinstance(why, str):
            return None
        broken += [(row, why)] if why else []
        kept.append(memoryview(block.data)[begin : starts[row]])
        begin = ends[row]
    good = starts[~unclosed]
    data = b"".join([*kept, memoryview(block.data)[begin:]]) if rows else block.data
    table = parse_fast(data, len(good), schema, required)
    return None if table is None else Parsed(block, table, good, len(starts), tuple(broken))


def _unclosed(data: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """bool [lines]: the line's last character before its line end is no closing brace."""
    text = np.frombuffer(data, np.uint8)
    last = ends - 1 - (text[ends - 1] == ord("\n"))
    last = np.maximum(last - (text[last] == ord("\r")), 0)
    return (last < starts) | (text[last] != ord("}"))


def parse_fast(data: bytes, rows: int, schema: pa.Schema, required: list[str]) -> pa.Table | None:
    """The columns of `rows` lines, or None: pyarrow refuses a line, a required value is null or empty, a string is not
    UTF-8, or rows and lines differ (blank lines, two objects on a line)."""
    # pyarrow 26 crashes the process on a line `null`: it is shown nothing but lines that begin an object.
    if not data.startswith(b"{") or data.count(b"\n{") != rows - 1:
        return None
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=PARSE_BYTES),
            parse_options=options,
        )
        if table.num_rows != rows or any(_has_gap(table[name]) for name in required):
            return None
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
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
    for number, line in enumerate(block.data.split(b"\n"), account.passed + 1):
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
