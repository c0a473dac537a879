"""Adapter goodreads: the UCSD Book Graph, one JSON object a line.

    goodreads_interactions_X.json    user_id, book_id, is_read, rating (0: none), date_added ("Mon Aug 01 13:41:57 -0700 2011")
    goodreads_books_X.json           book_id, title, description, authors, popular_shelves, image_url, ...
    goodreads_book_authors.json      author_id, name

An interaction's time is when the book came on the shelf: `read_at` is empty for most. Categories are the shelves that most readers use,
without those that say what a reader does (to-read, owned, favorites).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.adapters.contract import Loaded, RawLines
from data.adapters.dumps.amazon import find_files
from data.adapters.dumps.lines import Lines, read_blocks
from data.adapters.dumps.parse import parse_lines
from data.adapters.item_text import clean_label, clean_text
from data.adapters.logs.events import JsonLog, find_log_lines, read_log
from data.adapters.logs.options import GoodreadsOptions
from data.shaping.assemble import Funnel
from data.shaping.findings import Finding

DATE = r"^[A-Z][a-z]{2} [A-Z][a-z]{2} \d{2} \d{2}:\d{2}:\d{2} [+-]\d{4} \d{4}$"
READER = ("to-read", "currently-reading", "owned", "favorites", "favourites", "books-i-own", "default", "library", "ebook", "ebooks",
          "kindle", "wish-list", "to-buy", "audiobook", "audiobooks", "re-read", "reread", "my-books", "own-it")  # fmt: skip


def seconds_of(dates: pa.Array) -> pa.Array:
    """UTC seconds int64, null where a text is no date of this kind.

    >>> seconds_of(pa.array(["Thu Jan 01 00:00:10 -0100 1970", "Thu Jan 01 01:00:10 +0100 1970", "last summer"])).to_pylist()
    [3610, 10, None]
    """
    good = pc.fill_null(pc.match_substring_regex(dates, DATE), False)
    dates = pc.if_else(good, dates, None)

    def part(start: int, stop: int) -> pa.Array:
        return pc.utf8_slice_codeunits(dates, start, stop)

    local = pc.binary_join_element_wise(part(26, 30), part(4, 19), " ")
    found = pc.strptime(local, format="%Y %b %d %H:%M:%S", unit="s", error_is_null=True).cast(pa.int64())
    hours, minutes = (pc.cast(part(start, start + 2), pa.int64()) for start in (21, 23))
    offset = pc.add(pc.multiply(hours, 3600), pc.multiply(minutes, 60))
    east = pc.equal(part(20, 21), "+")
    return pc.if_else(east, pc.subtract(found, offset), pc.add(found, offset))


def describe(
    line: dict[str, Any], *, authors: dict[str, str], shelves: int
) -> tuple[str, dict[str, Any]] | str:
    """(book id, its text columns), or why there is none."""
    key = line.get("book_id")
    if not isinstance(key, str) or not key:
        return f"no book_id; keys: {', '.join(list(line)[:6])}"
    listed = [str(one.get("author_id")) for one in _objects(line, "authors")]
    names = [str(one.get("name") or "") for one in sorted(_objects(line, "popular_shelves"), key=_readers)]
    return key, {
        "title": clean_text(str(line.get("title") or "")),
        "description": clean_text(str(line.get("description") or "")),
        "categories": [label for name in names if name not in READER and (label := clean_label(name))][
            :shelves
        ],
        "brand": next((authors[one] for one in listed if one in authors), ""),
    }


def _objects(line: dict[str, Any], key: str) -> list[dict[str, Any]]:
    listed = line.get(key)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _readers(shelf: dict[str, Any]) -> int:
    """Minus how many have a shelf, to sort by: a count is a text of digits; anything else is none."""
    count = str(shelf.get("count"))
    return -int(count) if count.isascii() and count.isdigit() and len(count) < 19 else 0


LOG = JsonLog(
    "user_id", "book_id", "date_added", "rating", seconds_of, partial(describe, authors={}, shelves=0),
    ("interaction", "interactions"), ("book", "books"),
)  # fmt: skip


def files(raw: str | Path, options: GoodreadsOptions) -> list[Path]:
    """Interactions, books, then authors."""
    return [*_interactions(raw, options), *_books(raw, options), *_author_files(raw, options)]


def _interactions(raw: str | Path, options: GoodreadsOptions) -> list[Path]:
    return find_files(raw, options.interactions, what="interactions", group="goodreads")


def _books(raw: str | Path, options: GoodreadsOptions) -> list[Path]:
    return find_files(raw, options.books, what="books", group="goodreads")


def _author_files(raw: str | Path, options: GoodreadsOptions) -> list[Path]:
    matched = (sorted(Path(raw).glob(pattern)) for pattern in options.authors)
    return next((found for found in matched if found), [])


def author_names(paths: Sequence[Path], options: GoodreadsOptions, funnel: Funnel) -> dict[str, str]:
    """Name by author_id; a line without both is broken."""
    known: dict[str, str] = {}

    def named(line: dict[str, Any]) -> tuple[str, str] | str:
        key, name = line.get("author_id"), line.get("name")
        return (
            (key, clean_text(name))
            if isinstance(key, str) and isinstance(name, str)
            else "no author_id or name"
        )

    for path in paths:
        account = Lines(path, options.skip_bad_rows)
        for block in read_blocks(path, account):
            known |= {key: name for _, (key, name) in parse_lines(block, account, named, literals=False)}
            account.passed += len(block.line_starts())
        account.check(options, at_end=True)
        funnel.reject(account)
    return known


def read(raw: str | Path, options: GoodreadsOptions, funnel: Funnel) -> tuple[Loaded, list[Finding]]:
    """The folder as the contract wants it."""
    authors = author_names(_author_files(raw, options), options, funnel)
    log = replace(
        LOG,
        describe=partial(describe, authors=authors, shelves=options.shelves),
        flag="is_read" if options.read_only else None,
    )
    loaded, findings = read_log(log, _interactions(raw, options), _books(raw, options), options, funnel)
    rating = np.where(loaded.rows.rating == 0, np.float32("nan"), loaded.rows.rating)  # 0: not rated
    return replace(loaded, rows=replace(loaded.rows, rating=rating)), findings


def find_lines(
    raw: str | Path, options: GoodreadsOptions, *, user: str | None, items: Sequence[str]
) -> RawLines:
    """The user's lines and the first line of every book."""
    return find_log_lines(LOG, _interactions(raw, options), _books(raw, options), user=user, items=items)
