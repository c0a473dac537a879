"""Adapter yelp: the publisher's reviews and businesses, one JSON object a line.

    yelp_academic_dataset_review.json       user_id, business_id, stars, date ("2019-07-01 22:09:11", UTC)
    yelp_academic_dataset_business.json     business_id, name, categories ("Bars, Nightlife"), address, city, state

Of several lines of a business the first counts, and they are counted. `description` is address, city and state. The benchmark of
S3-Rec keeps the year 2019 and its 5-core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.adapters.contract import Loaded, RawLines
from data.adapters.dumps.amazon import find_files
from data.adapters.item_text import clean_label, clean_text
from data.adapters.logs.events import JsonLog, find_log_lines, read_log
from data.adapters.logs.options import YelpOptions
from data.shaping.assemble import Funnel
from data.shaping.findings import Finding

FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d")


def files(raw: str | Path, options: YelpOptions) -> list[Path]:
    """Reviews, then businesses."""
    return [*_reviews(raw, options), *_businesses(raw, options)]


def _reviews(raw: str | Path, options: YelpOptions) -> list[Path]:
    return find_files(raw, options.reviews, what="reviews", group="yelp")


def _businesses(raw: str | Path, options: YelpOptions) -> list[Path]:
    return find_files(raw, options.businesses, what="businesses", group="yelp")


def _seconds(dates: pa.Array) -> pa.Array:
    """UTC seconds int64, null where a text is no date."""
    found = [pc.strptime(dates, format=form, unit="s", error_is_null=True) for form in FORMATS]
    return pc.coalesce(*found).cast(pa.int64())


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


LOG = JsonLog(
    "user_id", "business_id", "date", "stars", _seconds, _business, ("review", "reviews"), ("business", "businesses")
)  # fmt: skip


def read(raw: str | Path, options: YelpOptions, funnel: Funnel) -> tuple[Loaded, list[Finding]]:
    """The folder as the contract wants it."""
    return read_log(LOG, _reviews(raw, options), _businesses(raw, options), options, funnel)


def find_lines(raw: str | Path, options: YelpOptions, *, user: str | None, items: Sequence[str]) -> RawLines:
    """The user's review lines and the first line of every business."""
    return find_log_lines(LOG, _reviews(raw, options), _businesses(raw, options), user=user, items=items)
