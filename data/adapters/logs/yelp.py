"""Adapter yelp: the publisher's reviews and businesses, one JSON object a line.

    yelp_academic_dataset_review.json       user_id, business_id, stars, date ("2019-07-01 22:09:11", UTC)
    yelp_academic_dataset_business.json     business_id, name, categories ("Bars, Nightlife"), address, city, state

Of several lines of a business the first counts, and they are counted. `description` is address, city and state. The benchmark of
S3-Rec keeps the year 2019 and its 5-core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.adapters.contract import Loaded, RawLine, RawLines, first_of_each, shown
from data.adapters.dumps.amazon import find_files
from data.adapters.dumps.lines import Lines, parse_object, read_blocks
from data.adapters.dumps.parse import Parsed, parse_blocks, parse_lines
from data.adapters.item_text import clean_label, clean_text, parse_rating
from data.adapters.logs.options import YelpOptions
from data.shaping.assemble import Coded, Funnel
from data.shaping.coding import Coder
from data.shaping.findings import Finding

_TEXT = ("user_id", "business_id", "date")
_SCHEMA = pa.schema([*((name, pa.string()) for name in _TEXT), ("stars", pa.float64())])
FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d")


def files(raw: str | Path, options: YelpOptions) -> list[Path]:
    """Reviews, then businesses."""
    return [*_reviews(raw, options), *_businesses(raw, options)]


def _reviews(raw: str | Path, options: YelpOptions) -> list[Path]:
    return find_files(raw, options.reviews, what="reviews", group="yelp")


def _businesses(raw: str | Path, options: YelpOptions) -> list[Path]:
    return find_files(raw, options.businesses, what="businesses", group="yelp")


def read(raw: str | Path, options: YelpOptions, funnel: Funnel) -> tuple[Loaded, list[Finding]]:
    """The folder as the contract wants it; broken lines are counted or fatal, so there are no findings."""
    rows, user_ids, item_ids, accounts = _read_reviews(_reviews(raw, options), options)
    funnel.step("review lines", sum(account.total for account in accounts))
    funnel.count("reviews read", rows)
    known, repeats, more = _read_businesses(_businesses(raw, options), options)
    broken = [sum(account.broken for account in kind) for kind in (accounts, more)]
    funnel.facts |= {
        "review_lines_broken": broken[0],
        "business_lines_broken": broken[1],
        "repeated_businesses": repeats,
    }
    if any(broken):
        funnel.note(f"{broken[0]} broken review lines and {broken[1]} broken business lines are left out")
    if repeats:
        funnel.note(f"{repeats} further lines of businesses that are listed already: the first line counts")
    listed = np.array([key in known for key in item_ids.to_pylist()], bool)
    rows = rows.take(np.flatnonzero(listed[rows.item]))
    funnel.count("businesses that are listed", rows)

    def items(codes: np.ndarray) -> pa.Table:
        ids = item_ids.take(pa.array(codes))
        return pa.Table.from_pylist([{"raw_id": key} | known[key] for key in ids.to_pylist()], schema=_ITEMS)

    return Loaded(rows, items, pa.table({"raw_id": user_ids}), len(item_ids)), []


_ITEMS = pa.schema(
    [("raw_id", pa.string()), ("title", pa.string()), ("description", pa.string()), ("categories", pa.list_(pa.string())),
     ("brand", pa.string())]
)  # fmt: skip


def _read_reviews(paths: list[Path], options: YelpOptions) -> tuple[Coded, pa.Array, pa.Array, list[Lines]]:
    """(rows in file order, user ids, business ids, accounts of the lines)."""
    users, items, accounts = Coder(), Coder(), []
    ratings, times = [], []
    for path in paths:
        account = Lines(path)
        accounts.append(account)
        for parsed in parse_blocks(path, account, _SCHEMA, list(_TEXT), literals=False):
            table, seconds = _review_rows(parsed, account)
            users.add(table["user_id"])
            items.add(table["business_id"])
            ratings.append(table["stars"].to_numpy().astype(np.float32))
            times.append(seconds)
            account.check(options, at_end=False)
        account.check(options, at_end=True)
    user, user_ids = users.finish()
    item, item_ids = items.finish()
    if not len(user):
        raise InputError(f"{paths[0]}: no reviews in {len(paths)} file(s) -> check raw and yelp.reviews")
    known = np.ones(len(user), bool)
    return (
        Coded(user, item, np.concatenate(ratings), np.concatenate(times), known),
        user_ids,
        item_ids,
        accounts,
    )


def _review_rows(parsed: Parsed, account: Lines) -> tuple[pa.Table, np.ndarray]:
    """(the block's good rows as `_SCHEMA`, their UTC seconds int64)."""
    if parsed.table is not None:
        table = parsed.table.select(_SCHEMA.names)
        seconds = _seconds(table["date"].combine_chunks())
        if not seconds.null_count:
            return table, seconds.to_numpy()
        # Counted as good by the parser: those whose date is none are broken after all.
        bad = seconds.is_null().to_numpy(zero_copy_only=False)
        rows = np.delete(np.arange(parsed.lines), list(parsed.left_out))
        for at in np.flatnonzero(bad).tolist():
            account.add_broken(
                account.passed + int(rows[at]) + 1, f"date is {table['date'][at].as_py()[:40]!r}"
            )
        good = pa.array(~bad)
        return table.filter(good), seconds.filter(good).to_numpy()
    rows = [fields for _, fields in parse_lines(parsed.block, account, _pick, literals=False)]
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    arrays = [pa.array(column, kind) for column, kind in zip(columns[:4], _SCHEMA.types, strict=True)]
    return pa.table(arrays, schema=_SCHEMA), np.array(columns[4], np.int64)


def _pick(review: dict[str, Any]) -> tuple | str:
    for key in _TEXT:
        if not isinstance(review.get(key), str) or not review[key]:
            return f"no {key}; keys: {', '.join(list(review)[:6])}"
    seconds = _seconds(pa.array([review["date"]]))[0].as_py()
    if seconds is None:
        return f"date is {review['date'][:40]!r}"
    return *(review[key] for key in _TEXT), parse_rating(review.get("stars")), seconds


def _seconds(dates: pa.Array) -> pa.Array:
    """UTC seconds int64, null where a text is no date."""
    found = [pc.strptime(dates, format=form, unit="s", error_is_null=True) for form in FORMATS]
    return pc.coalesce(*found).cast(pa.int64())


def _read_businesses(
    paths: list[Path], options: YelpOptions
) -> tuple[dict[str, dict[str, Any]], int, list[Lines]]:
    """(text by business id, further lines of one that is there already, accounts of the lines)."""
    known: dict[str, dict[str, Any]] = {}
    repeats, accounts = 0, []
    for path in paths:
        account = Lines(path)
        accounts.append(account)
        for block in read_blocks(path, account):
            for _, fields in parse_lines(block, account, _business, literals=False):
                key, text = fields
                repeats += key in known
                known.setdefault(key, text)
            account.passed += len(block.line_starts())
        account.check(options, at_end=True)
    return known, repeats, accounts


def _business(line: dict[str, Any]) -> tuple | str:
    key = line.get("business_id")
    if not isinstance(key, str) or not key:
        return f"no business_id; keys: {', '.join(list(line)[:6])}"
    place = [
        clean_text(line[name]) for name in ("address", "city", "state") if isinstance(line.get(name), str)
    ]
    labels = line.get("categories") or ""
    labels = labels.split(",") if isinstance(labels, str) else labels
    return key, {
        "title": clean_text(str(line.get("name") or "")),
        "description": ", ".join(filter(None, place)),
        "categories": [label for part in labels if (label := clean_label(str(part)))],
        "brand": "",
    }


def find_lines(raw: str | Path, options: YelpOptions, *, user: str | None, items: Sequence[str]) -> RawLines:
    """The user's review lines and the first line of every business."""
    mine = list(_lines(_reviews(raw, options), "user_id", [] if user is None else [user]))
    return RawLines(mine, first_of_each(_lines(_businesses(raw, options), "business_id", items)))


def _lines(paths: Sequence[Path], key: str, wanted: Sequence[str]) -> Iterator[RawLine]:
    for path in paths if wanted else ():
        passed = 0
        for block in read_blocks(path, label=f"searching {path.name}"):
            for number, line in enumerate(block.data.split(b"\n"), passed + 1):
                if any(name.encode() in line for name in wanted):
                    fields = parse_object(line, literals=False)
                    if isinstance(fields, dict) and fields.get(key) in wanted:
                        seconds = _seconds(pa.array([str(fields.get("date"))]))[0].as_py()
                        event = None if seconds is None else (str(fields.get("business_id")), seconds)
                        yield RawLine(path.name, number, fields[key], shown(line), fields, event=event)
            passed += len(block.line_starts())
