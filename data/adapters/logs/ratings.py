"""Amazon's ratings as csv: those without a review text of 2014 and 2018, and the published 5-core of 2023 with its splits.

2014   ratings_X.csv                       user, item, rating, time                       no header
2018   X.csv                               item, user, rating, time                       no header
2023   X.csv, X.{train,valid,test}.csv     user_id, parent_asin, rating, timestamp, ...   milliseconds
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data.adapters.contract import RawLine
from data.adapters.dumps.amazon import Reviews
from data.adapters.logs.delimited import Layout, Log, lines_with
from data.adapters.options import AmazonOptions
from data.shaping.findings import Finding
from data.shaping.splits import SPLIT_NAMES

LAYOUTS = {
    2014: Layout(",", ("user_id", "parent_asin", "rating", "timestamp")),
    2018: Layout(",", ("parent_asin", "user_id", "rating", "timestamp")),
    2023: Layout(",", quoted=True),
}
COLUMNS = {"user": "user_id", "item": "parent_asin", "rating": "rating", "time": "timestamp"}
SPLITS = SPLIT_NAMES[:3]


def is_csv(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".csv")


def split_of_name(path: Path) -> int | None:
    """The split code that a file is named for, None for a file of all rows.

    >>> split_of_name(Path("Games.valid.csv.gz")), split_of_name(Path("Games.csv"))
    (1, None)
    """
    parts = path.name.removesuffix(".gz").split(".")
    return SPLITS.index(parts[-2]) if len(parts) > 2 and parts[-2] in SPLITS else None


def read_ratings(files: Sequence[Path], options: AmazonOptions) -> tuple[Reviews | None, list[Finding]]:
    """(all interactions, []), or (None, what is wrong). Files of a split: train first, so that equal times keep its order."""
    splits = {path: split_of_name(path) for path in files}
    if None in splits.values() and len(set(splits.values())) > 1:
        whole = next(path.name for path, split in splits.items() if split is None)
        what = "stands beside files of a split, its rows would count twice"
        return None, [
            Finding(
                whole, "", what, "narrow amazon.reviews, e.g. X.*.csv* for the split, X.csv* for all rows"
            )
        ]
    log = Log(options.unit, "amazon.time_unit", (1.0, 5.0), "amazon csv files have 1 to 5 stars")
    findings: list[Finding] = []
    for path in sorted(files, key=lambda path: (splits[path] or 0, path.name)):
        findings += log.read(path, LAYOUTS[options.format], COLUMNS, split=splits[path])
    if findings := findings + log.findings():
        return None, findings
    rows, user_ids, item_ids = log.finish()
    if not len(rows.user):
        return None, [Finding(files[0].name, "", "has no rows", "check raw and amazon.reviews")]
    return Reviews(
        rows.user, rows.item, rows.rating, rows.timestamp, user_ids, item_ids, (), 0, rows.split, rows.beyond
    ), []


def find_ratings(files: Sequence[Path], options: AmazonOptions, users: Sequence[str]) -> Iterator[RawLine]:
    """The rows of users."""
    event = (COLUMNS["item"], COLUMNS["time"], 1000 if options.unit == "ms" else 1)
    for path in files:
        yield from lines_with(path, LAYOUTS[options.format], COLUMNS["user"], users, event=event)
