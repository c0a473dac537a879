"""A few rows of a split in words: what the user chose, what came next, what the model recommended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data import artifacts
from data.predictions import align, read_predictions
from data.rows import read_rows, sample_rows
from data.sid import FORMATS, SidTable
from infer.tables.results import Result

HISTORY_SHOWN = 6


@dataclass(frozen=True)
class ItemCard:
    """One item in words. `seen`: it is in the row's history."""

    item_id: int
    title: str
    category: str
    sid: str
    seen: bool = False


@dataclass(frozen=True)
class Recommended:
    """One place of the list: the items of its SID and whether the target is among them."""

    items: list[ItemCard]
    hit: bool


@dataclass(frozen=True)
class Story:
    """One row. `place`: the list's place that holds the target, None where it is not in the list."""

    user_id: int
    history: list[ItemCard]
    older: int
    target: ItemCard
    top: list[Recommended]
    place: int | None
    length: int


class Cards:
    """Items as cards, from items.parquet and the SID table."""

    def __init__(self, items: pa.Table, sids: SidTable) -> None:
        self._titles = items["title"].to_pylist()
        self._categories = items["categories"]
        self._sids = sids

    def __call__(self, item: int, seen: bool = False) -> ItemCard:
        path = self._categories[item].as_py()
        title = self._titles[item].strip() or f"(no title, item {item})"
        return ItemCard(item, title, " › ".join(path[-2:]), self._sids.text(item, FORMATS["letters"]), seen)


def stories(result: Result, data: Path, sids: SidTable, *, count: int, top: int, seed: int) -> list[Story]:
    """A seeded sample of `count` predicted rows, not chosen by outcome, in row order."""
    items = artifacts.read_items(data)
    rows = read_rows(data, result.split, num_items=items.num_rows)
    predictions, _ = read_predictions(result.directory)
    positions = align(
        predictions, rows.example_ids_R, max_rows=result.protocol.get("max_rows"), where=str(result.directory)
    )
    chosen = sample_rows(len(positions), count, seed)
    chosen = chosen[np.argsort(positions[chosen])]
    rows, predictions, cards = rows.take(positions[chosen]), predictions.take(chosen), Cards(items, sids)
    told = []
    for row in range(len(rows)):
        history = rows.history_H[rows.offsets[row] : rows.offsets[row + 1]].tolist()
        target = int(rows.target_R[row])
        entries = range(predictions.offsets[row], predictions.offsets[row + 1])
        members = [
            predictions.items_M[predictions.item_offsets[e] : predictions.item_offsets[e + 1]].tolist()
            for e in entries
        ]
        shown = [
            Recommended([cards(item, item in history) for item in group], target in group)
            for group in members[:top]
        ]
        place = next((at for at, group in enumerate(members, start=1) if target in group), None)
        told.append(
            Story(
                int(rows.users_R[row]),
                [cards(item) for item in history[-HISTORY_SHOWN:]],
                max(0, len(history) - HISTORY_SHOWN),
                cards(target, target in history),
                shown,
                place,
                len(members),
            )
        )
    return told
