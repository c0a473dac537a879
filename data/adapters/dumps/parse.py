"""Blocks of raw lines become columns.

pyarrow parses a block with an explicit schema and ignores all other fields. Lines that are plainly no object (they do not
begin with `{` and end with `}`) are left out first, because one of them would cost the whole block. What pyarrow refuses
all the same is tried in small pieces, and what still fails is read line by line with `json` (and, for 2014 dumps, Python
literals with `ast.literal_eval`).
"""

from __future__ import annotations

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

from data.adapters.dumps.lines import Block, Lines, parse_object, read_blocks

PARSE_BYTES = 1 << 22
MAX_SHARE_LEFT_OUT = 0.05
NEWLINE, RETURN, OPENING, CLOSING = b"\n\r{}"


@dataclass(frozen=True)
class Parsed:
    """A block as columns, one row per good line; `table` None: read it line by line.

    lines: all lines of the block; left_out: rows of the lines that have no row in the table; broken: (row, why, line) of
    those that are not just blank.
    """

    block: Block
    table: pa.Table | None
    lines: int
    left_out: tuple[int, ...] = ()
    broken: tuple[tuple[int, str, bytes], ...] = ()

    def starts(self) -> np.ndarray:
        """Offset in the block of the line of every row of the table (int64)."""
        return np.delete(self.block.line_starts(), list(self.left_out))


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
        account.add_broken(account.passed + 1, "the file ends in the middle", account.cut_off)


def _counted(parts: list[Parsed], account: Lines) -> Iterator[Parsed]:
    for parsed in parts:
        account.total += len(parsed.broken) + (0 if parsed.table is None else parsed.table.num_rows)
        for row, why, line in parsed.broken:
            account.add_broken(account.passed + row + 1, why, line)
        yield parsed
        account.passed += parsed.lines


def _parse_block(block: Block, schema: pa.Schema, required: list[str], literals: bool) -> list[Parsed]:
    """The block whole, or in pieces of which some may have no columns."""
    if whole := _parse_whole(block, schema, required, literals):
        return [whole]
    parts = []
    for piece in block.pieces():
        lines, irregular = irregular_lines(piece.data, at_most=0)
        table = None if irregular is None else parse_fast(piece.data, lines, schema, required)
        parts.append(Parsed(piece, table, lines))
    return parts


def _parse_whole(block: Block, schema: pa.Schema, required: list[str], literals: bool) -> Parsed | None:
    """The block's columns without its few irregular lines, or None when there are too many or pyarrow refuses the rest.

    Literals are not left out here: reading one changes warning filters, which belong to the main thread.
    """
    share = 0.0 if literals else MAX_SHARE_LEFT_OUT
    lines, irregular = irregular_lines(block.data, at_most=share)
    if irregular is None:
        return None
    kept, begin, broken = [], 0, []
    for row, first, end in irregular:
        line = block.data[first:end]
        why = parse_object(line, literals=False) if line.strip() else ""
        if not isinstance(why, str):
            return None
        broken += [(row, why, line)] if why else []
        kept.append(memoryview(block.data)[begin:first])
        begin = end
    data = b"".join([*kept, memoryview(block.data)[begin:]]) if irregular else block.data
    table = parse_fast(data, lines - len(irregular), schema, required)
    if table is None:
        return None
    return Parsed(block, table, lines, tuple(row for row, _, _ in irregular), tuple(broken))


def irregular_lines(data: bytes, *, at_most: float) -> tuple[int, list[tuple[int, int, int]] | None]:
    """(number of lines, (row, begin, end) of every line that is not `{...}`, in order).

    The second is None when their share exceeds `at_most`. Only whole-array comparisons touch every byte.
    """
    text = np.frombuffer(data, np.uint8)
    newline = text == NEWLINE
    lines = int(np.count_nonzero(newline)) + (not data.endswith(b"\n"))
    # A newline after anything but `}` (`\r` where lines end in it) ends an irregular line, one before anything but `{`
    # begins one.
    last = RETURN if data[: data.find(b"\n")].endswith(b"\r") else CLOSING
    ends = np.flatnonzero(newline[1:] & (text[:-1] != last)) + 1
    begins = np.flatnonzero(newline[:-1] & (text[1:] != OPENING)) + 1
    if len(ends) + len(begins) > 2 * at_most * lines + 2:
        return lines, None
    found = set(begins.tolist()) | {data.rfind(b"\n", 0, end) + 1 for end in ends.tolist()}
    if not data.startswith(b"{"):
        found.add(0)
    if not data.endswith((b"}", b"\n")):
        found.add(data.rfind(b"\n") + 1)
    if len(found) > at_most * lines:
        return lines, None
    spans, row, seen = [], 0, 0
    for begin in sorted(found):
        row += int(np.count_nonzero(newline[seen:begin]))
        seen = begin
        spans.append((row, begin, data.find(b"\n", begin) + 1 or len(data)))
    return lines, spans


def parse_fast(data: bytes, rows: int, schema: pa.Schema, required: list[str]) -> pa.Table | None:
    """The columns of `rows` lines, or None: pyarrow refuses a line, a required value is null or empty, a string is not
    UTF-8, or rows and lines differ (two objects on a line).

    pyarrow 26 crashes the process on a line `null`: every line must begin with `{` (see `irregular_lines`).
    """
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
            account.add_broken(number, fields, line)
        else:
            rows.append((begin, fields))
    return rows
