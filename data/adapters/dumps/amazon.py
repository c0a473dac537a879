"""Reading Amazon review dumps of 2014, 2018 and 2023: raw lines -> coded interactions and item text.

            user          item          rating    time                    item text
  2014      reviewerID    asin          overall   unixReviewTime (s)      title description categories brand price imUrl
  2018      reviewerID    asin          overall   unixReviewTime (s)      title description category brand price image
  2023      user_id       parent_asin   rating    timestamp (ms)          title description features categories store ...

Reviews are read once; users and items become codes while they are read. Metadata is read twice: first only the titles of
reviewed items (for the title filter), then, after filtering, the text of the items that survive. The first of several
metadata lines of an item counts. Nothing is de-duplicated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.adapters.dumps.lines import Lines, parse_object, read_blocks
from data.adapters.dumps.parse import Parsed, parse_blocks, parse_lines
from data.adapters.item_text import (
    category_path,
    clean_label,
    clean_parts,
    kept_title,
    parse_price,
    parse_rating,
    title_is_bad,
)
from data.adapters.logs.options import P5Options
from data.adapters.options import AmazonOptions, TitleFilter, Year
from data.adapters.times import in_seconds, not_of_unit
from data.shaping.coding import Coder


@dataclass(frozen=True)
class Fields:
    """Where one release keeps what; literals: its lines may be printed Python dictionaries."""

    user: str
    item: str
    rating: str
    time: str
    categories: str
    brand: str
    images: tuple[str, ...]
    literals: bool


FIELDS: dict[int, Fields] = {
    2014: Fields("reviewerID", "asin", "overall", "unixReviewTime", "categories", "brand", ("imUrl",), True),
    2018: Fields(
        "reviewerID", "asin", "overall", "unixReviewTime", "category", "brand",
        ("imageURLHighRes", "imageURL", "image"), False,
    ),
    2023: Fields("user_id", "parent_asin", "rating", "timestamp", "categories", "store", ("images",), False),
}  # fmt: skip


@dataclass(frozen=True)
class Reviews:
    """Coded interactions in file order.

    user, item: int32 codes [rows] into user_ids, item_ids (distinct strings in order of first appearance);
    rating: float32 [rows], NaN where missing; timestamp: int64 UTC seconds [rows]; lines: one account per file;
    ratings_not_parsed: ratings that are there and no number; split: int8 [rows], where the files are a published split;
    beyond: nanoseconds after the second int32 [rows], None where there are none.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    user_ids: pa.Array
    item_ids: pa.Array
    lines: tuple[Lines, ...]
    ratings_not_parsed: int
    split: np.ndarray | None = None
    beyond: np.ndarray | None = None


def find_files(raw: str | Path, patterns: Sequence[str], *, what: str, group: str = "amazon") -> list[Path]:
    """The files of the first pattern that matches anything below `raw`, sorted; InputError when none does."""
    root = Path(raw)
    if not root.is_dir():
        raise InputError(f"raw folder does not exist: {root} -> set RAW (or --raw) to the folder of the dump")
    for pattern in patterns:
        if files := sorted(p for p in root.glob(pattern) if p.is_file()):
            return files
    raise InputError(
        f"no {what} file in {root} matches {' or '.join(patterns)} -> check raw and {group}.{what}"
    )


def read_reviews(files: Sequence[Path], options: AmazonOptions) -> Reviews:
    """All interactions of the review files. Broken: no object, no user, item or time.

    InputError above `max_bad_share`, for a file that ends in the middle, and when most times cannot be of their unit.
    """
    names = FIELDS[options.format]
    users, items = Coder(), Coder()
    ratings: list[np.ndarray] = []
    times: list[np.ndarray] = []
    accounts = []
    unparsed = 0
    for path in files:
        account = Lines(path, options.skip_bad_rows)
        accounts.append(account)
        for parsed in parse_blocks(path, account, *_review_columns(names), literals=names.literals):
            table, wrong = _review_rows(parsed, names, account)
            unparsed += wrong
            users.add(table["user"])
            items.add(table["item"])
            ratings.append(table["rating"].to_numpy().astype(np.float32))
            times.append(table["time"].to_numpy())
            account.check(options, at_end=False)
        account.check(options, at_end=True)
    user, user_ids = users.finish()
    item, item_ids = items.finish()
    if not len(user):
        raise InputError(f"{files[0]}: no reviews in {len(files)} file(s) -> check raw and amazon.reviews")
    seconds, beyond = _seconds(np.concatenate(times), options, where=str(files[0]))
    rating = np.concatenate(ratings)
    return Reviews(user, item, rating, seconds, user_ids, item_ids, tuple(accounts), unparsed, beyond=beyond)


def _seconds(
    times: np.ndarray, options: AmazonOptions, *, where: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """UTC seconds and what is beyond them; single dates out of range are a dump's noise, most of them are another unit."""
    known = np.ones(len(times), bool)
    wrong, what, fix = not_of_unit(times, known, unit=options.unit, option="amazon.time_unit")
    if 2 * np.count_nonzero(wrong) > len(times):
        first = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{where}: {np.count_nonzero(wrong)} of {len(times)} times are {what} (review {first}: {times[first]}) -> {fix}"
        )
    return in_seconds(times, options.unit)


_REVIEW = pa.schema(
    [("user", pa.string()), ("item", pa.string()), ("rating", pa.float64()), ("time", pa.int64())]
)


def _review_columns(names: Fields) -> tuple[pa.Schema, list[str]]:
    """(schema, required columns) of a review line."""
    source = (names.user, names.item, names.rating, names.time)
    schema = pa.schema([(name, field.type) for name, field in zip(source, _REVIEW, strict=True)])
    return schema, [names.user, names.item, names.time]


def _review_rows(parsed: Parsed, names: Fields, account: Lines) -> tuple[pa.Table, int]:
    """(the block's good rows as `_REVIEW`, ratings that are there and no number)."""
    if parsed.table is not None:
        columns = [names.user, names.item, names.rating, names.time]
        return parsed.table.select(columns).rename_columns(_REVIEW.names), 0
    rows = [
        row for _, row in parse_lines(parsed.block, account, _review_picker(names), literals=names.literals)
    ]
    *columns, unparsed = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    arrays = [pa.array(column, kind) for column, kind in zip(columns, _REVIEW.types, strict=True)]
    return pa.table(arrays, schema=_REVIEW), sum(unparsed)


def _review_picker(names: Fields) -> Callable[[dict[str, Any]], tuple | str]:
    def pick(review: dict[str, Any]) -> tuple | str:
        user, item = review.get(names.user), review.get(names.item)
        for key, value in ((names.user, user), (names.item, item)):
            if not isinstance(value, str) or not value:
                return f"no {key}; keys: {', '.join(list(review)[:6])}"
        time = as_int(review.get(names.time))
        if time is None:
            return f"{names.time} is {str(review.get(names.time))[:40]!r}, not a whole number"
        rating = parse_rating(raw := review.get(names.rating))
        return _utf8(user), _utf8(item), rating, time, rating is None and raw not in (None, "")

    return pick


def as_int(value: Any) -> int | None:
    """A whole number or its text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    exact = isinstance(value, str) or number == value
    return number if exact and abs(number) < 1 << 62 else None


def _utf8(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class Metadata:
    """Where each reviewed item's first metadata line is, and what the title filter says of it.

    file: int32 [items], -1 = no metadata; offset: int64 [items] in the file's plain text; bad_title: bool [items].
    """

    file: np.ndarray
    offset: np.ndarray
    bad_title: np.ndarray
    distinct: int
    lines: tuple[Lines, ...]


def scan_metadata(files: Sequence[Path], item_ids: pa.Array, options: AmazonOptions | P5Options) -> Metadata:
    """First pass over the metadata: `item_ids` are the distinct items of the reviews, the codes of all that follows."""
    names = FIELDS[options.format]
    file = np.full(len(item_ids), -1, np.int32)
    offset = np.zeros(len(item_ids), np.int64)
    bad_title = np.zeros(len(item_ids), bool)
    coder = Coder()
    accounts = []
    for number, path in enumerate(files):
        account = Lines(path, options.skip_bad_rows)
        accounts.append(account)
        schema = pa.schema([(names.item, pa.string()), ("title", pa.string())])
        for parsed in parse_blocks(path, account, schema, [names.item], literals=names.literals):
            ids, titles, starts = _title_rows(parsed, names, account)
            coder.add(ids)
            code = pc.index_in(ids, value_set=item_ids).fill_null(-1).to_numpy()
            rows = np.flatnonzero(code >= 0)
            rows = rows[file[code[rows]] < 0]
            found, first = np.unique(code[rows], return_index=True)
            rows = rows[first]
            file[found], offset[found] = number, parsed.block.offset + starts[rows]
            bad_title[found] = [title_is_bad(title) for title in titles.take(pa.array(rows)).to_pylist()]
            account.check(options, at_end=False)
        account.check(options, at_end=True)
    return Metadata(file, offset, bad_title, len(coder.finish()[1]), tuple(accounts))


def _title_rows(parsed: Parsed, names: Fields, account: Lines) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """(item ids, raw titles or null, line starts) of the block's good lines."""
    if parsed.table is not None:
        return _whole(parsed.table[names.item]), _whole(parsed.table["title"]), parsed.starts()

    def pick(item: dict[str, Any]) -> tuple | str:
        key, title = item.get(names.item), item.get("title")
        if not isinstance(key, str) or not key:
            return f"no {names.item}; keys: {', '.join(list(item)[:6])}"
        return _utf8(key), _utf8(title) if isinstance(title, str) else None

    rows = parse_lines(parsed.block, account, pick, literals=names.literals)
    ids, titles = ([fields[n] for _, fields in rows] for n in (0, 1))
    starts = np.array([start for start, _ in rows], np.int64)
    return pa.array(ids, pa.string()), pa.array(titles, pa.string()), starts


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


_TEXT = pa.schema(
    [
        ("title", pa.string()),
        ("description", pa.string()),
        ("categories", pa.list_(pa.string())),
        ("brand", pa.string()),
        ("price", pa.float32()),
        ("image", pa.string()),
    ]
)


def read_items(
    files: Sequence[Path], metadata: Metadata, items: np.ndarray, *, year: Year, title_filter: TitleFilter
) -> tuple[pa.Table, int]:
    """(text of the surviving items, prices that are there and no number); `items`: codes int [n], row i is items[i].

    Columns: title, description, brand string; categories list<string> coarse to fine; price float32, image string, both
    null where unknown. Without metadata all is empty.
    """
    rows: list[tuple] = [("", "", [], "", None, None)] * len(items)
    unparsed = 0
    for number, path in enumerate(files):
        mine = np.flatnonzero(metadata.file[items] == number)
        mine = mine[np.argsort(metadata.offset[items[mine]])]
        for row, line in zip(mine.tolist(), _lines_at(path, metadata.offset[items[mine]]), strict=True):
            rows[row], wrong = _item_fields(line, FIELDS[year], title_filter)
            unparsed += wrong
    columns = zip(*rows, strict=True) if rows else [()] * len(_TEXT)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, _TEXT.types, strict=True)]
    return pa.table(arrays, schema=_TEXT), unparsed


def _lines_at(path: Path, offsets: np.ndarray) -> Iterator[bytes]:
    """The lines that start at the ascending `offsets` of the file's plain text."""
    if not len(offsets):
        return
    done = 0
    for block in read_blocks(path, label=f"text of {path.name}"):
        last = int(np.searchsorted(offsets, block.offset + len(block.data)))
        for begin in (offsets[done:last] - block.offset).tolist():
            end = block.data.find(b"\n", begin)
            yield block.data[begin : end if end >= 0 else len(block.data)]
        done = last
        if done == len(offsets):
            return


def _item_fields(line: bytes, names: Fields, title_filter: TitleFilter) -> tuple[tuple, bool]:
    """(the item's columns as in `_TEXT`, whether its price is there and no number)."""
    item = parse_object(line, literals=names.literals)
    assert isinstance(item, dict), "the first pass read this line"
    parts = clean_parts(item.get("description")) + clean_parts(item.get("features"))
    brand, raw_price = item.get(names.brand), item.get("price")
    price = parse_price(raw_price)
    fields = (
        kept_title(item.get("title"), title_filter),
        " ".join(parts),
        category_path(item.get(names.categories)),
        clean_label(brand) if isinstance(brand, str) else "",
        price,
        _first_image([item[key] for key in names.images if item.get(key)]),
    )
    return fields, price is None and raw_price not in (None, "")


def _first_image(values: list[Any]) -> str | None:
    """The first address of strings, lists of strings, or 2023's lists of {hi_res, large, thumb}."""
    for value in values:
        first = value[0] if isinstance(value, list) else value
        if isinstance(first, dict):
            first = first.get("hi_res") or first.get("large") or first.get("thumb")
        if isinstance(first, str) and first:
            return _utf8(first)
    return None
