"""Raw review dumps as lines: plain or gzip, read in blocks, broken lines counted instead of fatal.

A file is read once from front to back in blocks of whole lines (`data.adapters.dumps.parse` turns them into columns). A
file that ends in the middle of a line or of its gzip stream is refused, or with `allow_truncated` has one broken line more.
"""

from __future__ import annotations

import ast
import json
import os
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError, progress
from data.adapters.logs.options import P5Options, YelpOptions
from data.adapters.options import AmazonOptions

READ_BYTES = 1 << 20
BLOCK_BYTES = 16 << 20
PIECE_BYTES = 1 << 16
MAX_LINE_BYTES = 128 << 20
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

    def line(self, start: int) -> bytes:
        """The line that begins at an offset of `data`, without its end."""
        end = self.data.find(b"\n", start)
        return self.data[start : len(self.data) if end < 0 else end]

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

    passed: lines, empty ones too, of the blocks that are done with. kept: how many of the broken ones are kept whole, as
    rejects [{"file", "line", "why", "text"}]; None = none. cut_off: what there is of a last line that ends in the middle.
    """

    path: Path
    kept: int | None = None
    passed: int = 0
    total: int = 0
    broken: int = 0
    first_broken: str = ""
    truncated: bool = False
    cut_off: bytes = b""
    rejects: list[dict[str, Any]] = field(default_factory=list)

    def add_broken(self, number: int, why: str, line: bytes = b"") -> None:
        """Count line `number` (from 1); `line`: its text, as far as it was read."""
        self.broken += 1
        if len(self.rejects) < (self.kept or 0):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            self.rejects.append({"file": self.path.name, "line": number, "why": why, "text": text})
        if not self.first_broken:
            self.first_broken = f"{self.path}:{number} ({why})"

    def check(self, options: AmazonOptions | P5Options | YelpOptions, *, at_end: bool) -> None:
        """InputError with the first broken line when the share is exceeded; before the end only when it is hopeless.

        At the end also for a file that was cut off.
        """
        if at_end and self.truncated and not options.allow_truncated:
            raise InputError(
                f"{self.path} ends in the middle of a line or of its gzip stream (after {self.total - 1} lines)"
                f" -> get the file again, or set {options.GROUP}.allow_truncated true to use its whole lines"
            )
        allowed, limit = "max_bad_share", options.max_bad_share * self.total
        if options.skip_bad_rows is not None:
            allowed, limit = "skip_bad_rows", options.skip_bad_rows
        elif not at_end:
            limit = max(GIVE_UP_AFTER, 0.5 * self.total)
        if self.broken > limit:
            raise InputError(
                f"{self.path}: {self.broken} of {self.total} lines are broken, more than {allowed} {getattr(options, allowed)};"
                f" first: {self.first_broken} -> check {options.GROUP}.{options.KIND} and the file, or raise {options.GROUP}.{allowed}"
            )


def read_blocks(path: Path, account: Lines | None = None, *, label: str = "") -> Iterator[Block]:
    """The file's blocks in order. `account.truncated` is set when a gzip stream or the last line ends early.

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
    last = b"".join(rest)
    begun = account is not None and last.lstrip().startswith(b"{")
    if begun and isinstance(parse_object(last, literals=True), str):
        account.truncated = True
    if account is not None and account.truncated:
        account.cut_off = last
    elif held:
        yield Block(last, offset)


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
