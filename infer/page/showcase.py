"""A few rows of a split in words: what the user chose, what the model thought, what it recommended, what came next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.cards import Cards, ItemCard
from data.predictions import THOUGHTS, align, read_predictions
from data.rows import read_rows, sample_rows
from data.sid import SidFormat, SidTable, sid_format

HISTORY_SHOWN = 6
THOUGHTS_SHOWN = 3


@dataclass(frozen=True)
class Recommended:
    """One place of the list: the items of its SID and whether the target is among them."""

    items: list[ItemCard]
    hit: bool


@dataclass(frozen=True)
class Story:
    """One row. `user`: as the source calls them; `place`: the list's place that holds the target, None where it is not in the list.

    thoughts: the first of what the model wrote before its list, a thought that was cut off ending in an ellipsis; `unread`: how
    many more there are.
    """

    example_id: int
    user: str
    history: list[ItemCard]
    older: int
    target: ItemCard
    top: list[Recommended]
    place: int | None
    length: int
    thoughts: list[str]
    unread: int


def stories(
    predictions: str | Path,
    data: str | Path,
    sids: SidTable | None,
    *,
    count: int,
    top: int,
    seed: int,
    examples: Sequence[int] = (),
) -> list[Story]:
    """The rows `examples` of a prediction directory, or a seeded sample of `count`, not chosen by outcome, in row order.

    InputError for an example that was not predicted, or predictions of another data set.
    """
    items = artifacts.read_items(data)
    found, manifest = read_predictions(predictions)
    facts = manifest["facts"]
    rows = read_rows(data, facts["split"], num_items=items.num_rows)
    if not len(found.example_ids_R):
        found = found.and_unanswered(rows.example_ids_R)
    positions = align(found, rows.example_ids_R, max_rows=facts.get("max_rows"), where=str(predictions))
    chosen = sample_rows(len(positions), count, seed)
    if examples:
        unknown = sorted(set(examples) - set(found.example_ids_R.tolist()))
        if unknown:
            raise InputError(
                f"{predictions} has no example {unknown[0]} -> one of {found.example_ids_R[:3].tolist()} ..."
            )
        chosen = np.flatnonzero(np.isin(found.example_ids_R, list(examples)))
    chosen = chosen[np.argsort(positions[chosen])]
    cards = Cards(items, sids, written_as(facts))
    rows, found = rows.take(positions[chosen]), found.take(chosen)
    thoughts, users = read_thoughts(Path(predictions), rows.example_ids_R, cards), user_names(data)
    return [
        _story(row, rows, found, cards, top, thoughts.get(int(rows.example_ids_R[row]), []), users)
        for row in range(len(rows))
    ]


def user_names(data: str | Path) -> dict[int, str]:
    """{user: raw id} of a data set with users.parquet, else {}."""
    if not (Path(data) / artifacts.USERS.file).exists():
        return {}
    users = artifacts.read(data, artifacts.USERS)
    return dict(zip(users["user_id"].to_pylist(), users["raw_id"].to_pylist(), strict=True))


def read_thoughts(predictions: Path, examples: np.ndarray, cards: Cards) -> dict[int, list[str]]:
    """{example: its thoughts, in order} with titles beside semantic IDs; empty where the model wrote none."""
    path, told = predictions / THOUGHTS.file, {}
    if not path.exists():
        return {}
    table = artifacts.read_file(path, columns=["example_id", "thought_index", "text", "finished"])
    mine = table.filter(pc.is_in(table["example_id"], pa.array(examples))).sort_by("thought_index")
    for row in mine.to_pylist():
        text = cards.named(row["text"].strip()) + ("" if row["finished"] else " …")
        told.setdefault(row["example_id"], []).append(text)
    return told


def written_as(facts: dict[str, Any]) -> SidFormat:
    """How the model of these predictions writes semantic IDs; predictions that do not say are of letters."""
    return sid_format(facts.get("sid_format", "letters"))


def _story(
    row: int, rows: Any, found: Any, cards: Cards, top: int, thoughts: Sequence[str], users: dict[int, str]
) -> Story:
    history = rows.history_H[rows.offsets[row] : rows.offsets[row + 1]].tolist()
    target = int(rows.target_R[row])
    members = [
        found.items_M[found.item_offsets[entry] : found.item_offsets[entry + 1]].tolist()
        for entry in range(found.offsets[row], found.offsets[row + 1])
    ]
    return Story(
        int(rows.example_ids_R[row]),
        users.get(int(rows.users_R[row])) or str(rows.users_R[row]),
        [cards(item) for item in history[-HISTORY_SHOWN:]],
        max(0, len(history) - HISTORY_SHOWN),
        cards(target, seen=target in history),
        [
            Recommended([cards(item, seen=item in history) for item in group], target in group)
            for group in members[:top]
        ],
        next((at for at, group in enumerate(members, start=1) if target in group), None),
        len(members),
        list(thoughts[:THOUGHTS_SHOWN]),
        max(0, len(thoughts) - THOUGHTS_SHOWN),
    )


def as_text(told: Sequence[Story]) -> Iterator[str]:
    """Lines for a terminal: `*` marks what was chosen next, `(seen)` what is in the history."""
    for story in told:
        yield f"example {story.example_id}, user {story.user} chose before"
        if story.older:
            yield f"      ... {story.older} older"
        yield from (f"      {_line(card)}" for card in story.history)
        for thought in story.thoughts:
            yield from textwrap.wrap(thought, 110, initial_indent="   ~  ", subsequent_indent="      ") or [
                "   ~  (empty)"
            ]
        if story.unread:
            yield f"      ... {story.unread} more thoughts"
        where = "not in the list" if story.place is None else f"place {story.place}"
        yield f"   -> {_line(story.target)}   [{where} of {story.length}]"
        for place, entry in enumerate(story.top, start=1):
            first, *others = entry.items
            more = f" (+ {len(others)} with this semantic ID)" if others else ""
            yield f"  {'*' if entry.hit else ' '}{place:>3} {_line(first)}{more}"
        yield ""


def _line(card: ItemCard) -> str:
    return "  ".join(part for part in (card.title, card.sid, "(seen)" if card.seen else "") if part)
