"""Adapter amazon: a folder of review dumps, or of the published ratings as csv. Title and metadata rules, exact repeats, item
text of the survivors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.adapters.contract import Loaded, RawLine, RawLines, first_of_each, shown
from data.adapters.dumps import amazon as dump
from data.adapters.dumps.lines import parse_object, read_blocks
from data.adapters.logs import ratings
from data.adapters.options import AmazonOptions
from data.shaping.assemble import Coded, Funnel
from data.shaping.findings import Finding


def files(raw: str | Path, options: AmazonOptions) -> list[Path]:
    """Review files, then metadata files."""
    return [*_reviews(raw, options), *_metadata(raw, options)]


def _reviews(raw: str | Path, options: AmazonOptions) -> list[Path]:
    return dump.find_files(raw, options.reviews, what="reviews")


def _metadata(raw: str | Path, options: AmazonOptions) -> list[Path]:
    return dump.find_files(raw, options.metadata, what="metadata") if options.metadata else []


def read(raw: str | Path, options: AmazonOptions, funnel: Funnel) -> tuple[Loaded | None, list[Finding]]:
    """The reviews whose items the rules keep. Faults of a dump's lines are counted or fatal, those of csv files are findings."""
    reviews, findings = _read_reviews(_reviews(raw, options), options)
    if reviews is None:
        return None, findings
    texts = _metadata(raw, options)
    metadata = dump.scan_metadata(texts, reviews.item_ids, options)
    _count(reviews, metadata, funnel)
    known = np.ones(len(reviews.user), bool)
    rows = Coded(
        reviews.user, reviews.item, reviews.rating, reviews.timestamp, known, split=reviews.split,
        beyond=reviews.beyond,
    )  # fmt: skip
    rows = _drop_items(rows, metadata, options, funnel)
    items = partial(_items, texts, reviews, metadata, options, funnel)
    users = pa.table({"raw_id": reviews.user_ids})
    return Loaded(rows, items, users, len(reviews.item_ids)), []


def _read_reviews(files: list[Path], options: AmazonOptions) -> tuple[dump.Reviews | None, list[Finding]]:
    """Reviews of JSON lines, or of csv files; of both kinds at once never."""
    tables = [path for path in files if ratings.is_csv(path)]
    if not tables:
        return dump.read_reviews(files, options), []
    if len(tables) < len(files):
        raise InputError(
            f"amazon.reviews matches csv files and others ({files[0].name}, {tables[0].name}) -> name one kind"
        )
    return ratings.read_ratings(files, options)


def _items(
    files: list[Path],
    reviews: dump.Reviews,
    metadata: dump.Metadata,
    options: AmazonOptions,
    funnel: Funnel,
    codes: np.ndarray,
) -> pa.Table:
    """items.parquet without item_id of the items that are left."""
    text, unparsed = dump.read_items(
        files, metadata, codes, year=options.format, title_filter=options.title_filter
    )
    funnel.facts["prices_not_parsed"] = unparsed
    funnel.note_unread("prices")
    return text.add_column(0, "raw_id", reviews.item_ids.take(pa.array(codes)))


def _count(reviews: dump.Reviews, metadata: dump.Metadata, funnel: Funnel) -> None:
    lines = [*reviews.lines, *metadata.lines]
    funnel.reject(*lines)
    if reviews.lines:
        funnel.step("review lines", sum(account.total for account in reviews.lines))
    funnel.step("reviews read", len(reviews.user), len(reviews.user_ids), len(reviews.item_ids))
    broken = [sum(account.broken for account in kind.lines) for kind in (reviews, metadata)]
    # Without the folder: the file's hash must not depend on where the dump lies.
    first = next((a.first_broken.removeprefix(f"{a.path.parent}{os.sep}") for a in lines if a.broken), None)
    truncated = [account.path.name for account in lines if account.truncated]
    funnel.facts |= {
        "review_lines_broken": broken[0],
        "ratings_not_parsed": reviews.ratings_not_parsed,
        "metadata_lines": sum(account.total for account in metadata.lines),
        "metadata_lines_broken": broken[1],
        "metadata_items": metadata.distinct,
        "first_broken": first,
        "truncated_files": truncated,
        "reviewed_items_without_metadata": int((metadata.file < 0).sum()),
        "reviewed_items_with_bad_title": int(metadata.bad_title.sum()),
    }
    funnel.note_unread("ratings")
    for name in truncated:
        funnel.note(f"{name} ends in the middle; its whole lines are used")
    if any(broken):
        counts = f"{broken[0]} broken review lines and {broken[1]} broken metadata lines are left out"
        funnel.note(f"{counts}, first: {first}")


def _drop_items(rows: Coded, metadata: dump.Metadata, options: AmazonOptions, funnel: Funnel) -> Coded:
    """Drop the rows of items that the metadata and title rules exclude, and exact repeats where asked."""
    keep_item = np.ones(len(metadata.file), bool)
    if not options.keep_without_metadata:
        keep_item &= metadata.file >= 0
    if options.title_filter == "published":
        keep_item &= ~metadata.bad_title
    rows = rows.take(np.flatnonzero(keep_item[rows.item]))
    funnel.count(f"items with metadata, title filter {options.title_filter}", rows)
    if options.drop_duplicates:
        rows = rows.take(first_of_repeats(rows))
        funnel.count("without exact repeats", rows)
    return rows


def first_of_repeats(rows: Coded) -> np.ndarray:
    """Row numbers (ascending) of the first of every (user, item, time as exact as the source has it)."""
    every = (rows.beyond, rows.timestamp, rows.item, rows.user)
    columns = [column for column in every if column is not None]
    order = np.lexsort(columns)
    same = np.logical_and.reduce([np.diff(column[order]) == 0 for column in columns])
    repeats = np.zeros(len(order), bool)
    repeats[order[1:][same]] = True
    return np.flatnonzero(~repeats)


def find_lines(
    raw: str | Path, options: AmazonOptions, *, user: str | None, items: Sequence[str]
) -> RawLines:
    """The user's review lines and the first metadata line of every item, compared by the field."""
    names = dump.FIELDS[options.format]
    users = [] if user is None else [user]
    found = _reviews(raw, options)
    if all(map(ratings.is_csv, found)):
        mine = list(ratings.find_ratings(found, options, users))
    else:
        mine = [_with_event(line, options) for line in lines_of(found, users, names.user, names)]
    return RawLines(mine, first_of_each(lines_of(_metadata(raw, options), items, names.item, names)))


def lines_of(files: Sequence[Path], keys: Sequence[str], field: str, names: dump.Fields) -> Iterator[RawLine]:
    """Lines of JSON files whose `field` is one of `keys`."""
    for path in files:
        for number, key, line in _matching(path, keys):
            fields = parse_object(line, literals=names.literals)
            if isinstance(fields, str):
                yield RawLine(path.name, number, key, shown(line), {}, broken=fields)
            elif fields.get(field) in keys:
                yield RawLine(path.name, number, fields[field], shown(line), fields)


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


def _with_event(line: RawLine, options: AmazonOptions) -> RawLine:
    """The line with its item and time, where it has both."""
    names, fields = dump.FIELDS[options.format], line.fields
    time: Any = dump.as_int(fields.get(names.time))
    if line.broken or time is None:
        return line
    seconds = time // (1000 if options.unit == "ms" else 1)
    return RawLine(
        line.file, line.line, line.key, line.text, fields, event=(str(fields.get(names.item)), seconds)
    )
