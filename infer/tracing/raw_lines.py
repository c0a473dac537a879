"""Where a user and items stand in the raw files: the lines, and what became of them.

The data set's manifest says how it was made (adapter, files, names of the columns), so the same folder is searched in the
same way. Amazon lines are compared by the field, other text files by the whole word, parquet files by the mapped column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.adapters.amazon import FIELDS, find_files
from data.adapters.amazon_lines import parse_object, read_blocks
from data.adapters.table_columns import TableFile, read_source

MAX_TEXT = 400


@dataclass(frozen=True)
class RawLine:
    """One line (from 1) or parquet row (from 0) of a raw file; `key` is the id that was looked for."""

    file: str
    line: int
    key: str
    text: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class RawLines:
    """The user's lines and the items' lines, in file order."""

    user: list[RawLine]
    items: list[RawLine]


def find_raw_lines(
    raw: str | Path, config: dict[str, Any], *, user: str | None, items: Sequence[str]
) -> RawLines:
    """Lines of `user` and `items` (raw ids) in the folder; `config` is that of the data set's manifest."""
    if config.get("adapter") == "amazon":
        options = config["amazon"]
        names = FIELDS[options["format"]]
        reviews = find_files(raw, options["reviews"], what="reviews")
        metadata = find_files(raw, options["metadata"], what="metadata") if options.get("metadata") else []
        mine = [] if user is None else list(_lines(reviews, [user], names.user, literals=names.literals))
        return RawLines(mine, _first(_lines(metadata, items, names.item, literals=names.literals)))
    if config.get("adapter") == "tables":
        return _table_lines(raw, config["tables"], user=user, items=items)
    raise InputError(
        f"the data set's manifest names adapter {config.get('adapter')!r}, whose raw files this program cannot search"
        " -> leave out --raw"
    )


def _first(lines: Iterator[RawLine]) -> list[RawLine]:
    """The first line of every key: that is the one which stage 01 reads."""
    found: dict[str, RawLine] = {}
    for line in lines:
        found.setdefault(line.key, line)
    return list(found.values())


def _lines(files: Sequence[Path], keys: Sequence[str], field: str, *, literals: bool) -> Iterator[RawLine]:
    """Lines of JSON files whose `field` is one of `keys`."""
    for path in files:
        for number, key, line in _matching(path, keys):
            fields = parse_object(line, literals=literals)
            if isinstance(fields, dict) and fields.get(field) in keys:
                yield RawLine(path.name, number, fields[field], _short(line), fields)
            elif isinstance(fields, str):
                yield RawLine(path.name, number, key, _short(line), {"broken": fields})


def _matching(path: Path, keys: Sequence[str]) -> Iterator[tuple[int, str, bytes]]:
    """(line number from 1, key, line) of the lines that hold a key as a whole word."""
    if not keys:
        return
    words = b"|".join(re.escape(key.encode()) for key in keys)
    pattern, passed = re.compile(rb"(?<![\w-])(?:" + words + rb")(?![\w-])"), 0
    for block in read_blocks(path, label=f"searching {path.name}"):
        end = 0
        for match in pattern.finditer(block.data):
            if match.start() < end:
                continue
            begin = block.data.rfind(b"\n", 0, match.start()) + 1
            end = block.data.find(b"\n", match.start())
            end = len(block.data) if end < 0 else end
            number = passed + block.data.count(b"\n", 0, begin) + 1
            yield number, match.group().decode(), block.data[begin:end]
        passed += block.data.count(b"\n")


def _table_lines(
    raw: str | Path, options: dict[str, Any], *, user: str | None, items: Sequence[str]
) -> RawLines:
    """Rows of the user's tables; a raw id may be a column of its own beside the id."""
    specs = {name: TableFile(**options[name]) for name in ("items", "interactions", "users")}
    named = ("title", "raw_id")
    item_rows = _first(_table_rows(raw, specs["items"], ("raw_id", "item_id"), items, optional=named))
    keys = [] if user is None else [user]
    if keys and specs["users"].file:
        known = list(_table_rows(raw, specs["users"], ("raw_id", "user_id"), keys, optional=("raw_id",)))
        keys = [str(row.fields["user_id"]) for row in known] or keys
    optional = ("item_id", "timestamp", "rating", "order", "split")
    return RawLines(
        list(_table_rows(raw, specs["interactions"], ("user_id",), keys, optional=optional)), item_rows
    )


def _table_rows(
    raw: str | Path, spec: TableFile, columns: Sequence[str], keys: Sequence[str], *, optional: Sequence[str]
) -> Iterator[RawLine]:
    """Rows of a table in which the first of `columns` that it has is one of `keys`."""
    source, findings = read_source(raw, spec, required=columns[-1:], optional=optional)
    column = next((name for name in columns if source is not None and source.has(name)), None)
    if source is None or column is None:
        raise InputError(f"{findings[0].where}: {findings[0].what} -> check --raw")
    texts = source.cells(column).cast(pa.string())
    matches = pc.is_in(texts, value_set=pa.array(keys, pa.string()))
    for row in np.flatnonzero(matches.to_numpy(zero_copy_only=False)).tolist():
        fields = {name: value[0] for name, value in source.table.slice(row, 1).to_pydict().items()}
        text = ", ".join(f"{name} {value}" for name, value in fields.items())
        yield RawLine(spec.file, row, texts[row].as_py(), _short(text.encode("utf-8", "replace")), fields)


def _short(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def review_key(fields: dict[str, Any], config: dict[str, Any]) -> tuple[str, int] | None:
    """(raw item id, UTC seconds) of an Amazon review line, None for other lines."""
    if config.get("adapter") != "amazon" or "broken" in fields:
        return None
    names = FIELDS[config["amazon"]["format"]]
    time = fields.get(names.time)
    if not isinstance(time, int | float | str) or not str(time).lstrip("-").isdigit():
        return None
    return str(fields.get(names.item)), int(time) // names.per_second
