"""The gallery: a page of rows, each from what its user chose to the picture that was drawn for them.

One file, nothing fetched, no script. Every text of data or of a model is escaped by the template engine; pictures are inline as small
JPEGs, and link to the file itself.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.cards import Cards, ItemCard
from data.rows import sample_rows
from data.sid import SidTable, sid_format
from generation.pictures import thumbnail
from rq.quality import frame

HISTORY_SHOWN, ITEMS_SHOWN, LONGEST_SIDE = 6, 2, 512
MEASURES = (
    ("alignment/prompt.own", "picture and its own prompt"),
    ("alignment/prompt.others", "picture and the prompts of others"),
    ("alignment/prompt.win", "own prompt fits better than another's"),
    ("alignment/item", "picture and titles of the recommended items"),
    ("alignment/target", "picture and the title of what was chosen next"),
    ("personalisation/titles.own", "picture and titles of its user's history"),
    ("personalisation/titles.others", "picture and titles of others' histories"),
    ("personalisation/titles.win", "own history fits better than another's"),
    ("personalisation/pictures.own", "picture and pictures of its user's history"),
    ("personalisation/pictures.others", "picture and pictures of others' histories"),
    ("personalisation/pictures.win", "own pictures fit better than another's"),
)
SHARES = (
    ("all/made_share", "rows with a picture"),
    ("all/refused_share", "rows refused"),
    ("all/exact_duplicate_share", "exact duplicates"),
    ("all/near_duplicate_share", "near duplicates"),
    ("all/blank_share", "blank"),
)


@dataclass(frozen=True)
class Pictured:
    """One row of the gallery. picture: a data address of a JPEG."""

    uid: str
    history: list[ItemCard]
    older: int
    recommended: list[ItemCard]
    more: int
    target: ItemCard | None
    hit: bool
    terms: list[str]
    prompt: str
    ground_truth: str | None
    source: str
    seed: int
    picture: str
    size: str


@dataclass(frozen=True)
class Gallery:
    """Everything that the template shows."""

    title: str
    data: str
    protocol: dict[str, Any]
    metrics: dict[str, dict[str, float | None]]
    stories: list[Pictured]


def stories_of(
    rows: Sequence[dict[str, Any]],
    pictures: Sequence[Path],
    histories: Sequence[Sequence[int]],
    items: pa.Table,
    sids: SidTable | None,
    *,
    count: int,
    seed: int,
) -> list[Pictured]:
    """A seeded sample, not chosen by outcome, in the order of the rows."""
    cards = Cards(items, sids, None if sids is None else sid_format("letters"))
    return [
        _shown(rows[place], pictures[place], histories[place], cards)
        for place in np.sort(sample_rows(len(rows), count, seed))
    ]


def _shown(row: dict[str, Any], picture: Path, history: Sequence[int], cards: Cards) -> Pictured:
    target = row["target_item"]
    inline = base64.b64encode(thumbnail(picture, longest=LONGEST_SIDE)).decode()
    size = f"{row['width']} x {row['height']}" + (
        f", {row['frames']} frames" if row["type"] == "video" else ""
    )
    return Pictured(
        row["uid"],
        [cards(item) for item in history[-HISTORY_SHOWN:]],
        max(0, len(history) - HISTORY_SHOWN),
        [cards(item, seen=item in history) for item in row["item_ids"][:ITEMS_SHOWN]],
        max(0, len(row["item_ids"]) - ITEMS_SHOWN),
        None if target is None else cards(target, seen=target in history),
        target in row["item_ids"],
        row["terms"],
        row["prompt"],
        None if row["source"] == "oracle" else row["ground_truth"],
        row["source"],
        row["seed"],
        f"data:image/jpeg;base64,{inline}",
        size,
    )


def page(gallery: Gallery) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("gallery.html.j2").render(
        gallery=gallery,
        head=frame.head(f"{gallery.title} · gallery"),
        measures=[(words, gallery.metrics[name]) for name, words in MEASURES if name in gallery.metrics],
        shares=[(words, gallery.metrics[name]["value"]) for name, words in SHARES],
    )
