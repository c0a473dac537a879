"""Adapters minionerec, mimigenrec, sidreasoner and navigen: published folders. Rows are kept word for word, interactions rebuilt.

A user's sequence is what his rows say, one after the other: a row adds those items of its history that do not continue
what is known, then its target. An item that stands in a history only is `context` (history of later rows, no target), or
`train` where no train rows are published but users are, so that stage 01 makes its windows.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa

from data.adapters.contract import Loaded, RawLine, RawLines, shown
from data.adapters.item_text import category_path, clean_text, description_text
from data.adapters.options import ReleaseOptions
from data.artifacts import int_lists
from data.reasoning import escaped, placeholder, replaced
from data.releases.published import Published, PublishedItem, PublishedRows
from data.shaping.assemble import Coded, Funnel
from data.shaping.findings import Finding
from data.shaping.splits import CONTEXT, SPLIT_NAMES, TRAIN


def system_of(options: ReleaseOptions) -> ModuleType:
    """The module in `data.releases` that knows the files."""
    return importlib.import_module(f"data.releases.{options.SYSTEM}")


def files(raw: str | Path, options: ReleaseOptions) -> list[Path]:
    """Every file that is read."""
    return list(system_of(options).files(raw, options.name).values())


def read(raw: str | Path, options: ReleaseOptions, funnel: Funnel) -> tuple[Loaded, list[Finding]]:
    """The folder as the contract wants it; damaged files are refused where they are read."""
    published: Published = system_of(options).read_folder(raw, options.name)
    users = {name: code for code, name in enumerate(dict.fromkeys(published.rows.users))}
    makes_train = published.has_users and "train" not in published.rows.splits
    rows = interactions(published.rows, users, history_only=TRAIN if makes_train else CONTEXT)
    funnel.count("interactions rebuilt", rows)
    funnel.facts |= published.unknown
    for text in published.notes:
        funnel.note(text)
    table = item_table(published.items)
    loaded = Loaded(
        rows, partial(_take, table), pa.table({"raw_id": list(users)}), len(published.items),
        sequence_rows(published.rows, users), keeps_codes=True,
    )  # fmt: skip
    return loaded, []


def _take(items: pa.Table, codes: np.ndarray) -> pa.Table:
    """The items `codes`; placeholders of their narratives become those of the new numbers, or titles of items that are left out."""
    kept = items.take(pa.array(codes))
    if "narrative" not in kept.column_names:
        return kept
    number = {code: at for at, code in enumerate(codes.tolist())}
    titles = items["title"]

    def named(code: int) -> str:
        return placeholder(number[code]) if code in number else escaped(titles[code].as_py())

    texts = [replaced(text, named) for text in kept["narrative"].to_pylist()]
    return kept.set_column(kept.column_names.index("narrative"), "narrative", pa.array(texts, pa.string()))


def item_table(items: Sequence[PublishedItem]) -> pa.Table:
    """items.parquet without item_id, texts cleaned; `source_id` where the folder names the source's ids."""
    columns = {
        "raw_id": pa.array([item.raw_id for item in items], pa.string()),
        "title": pa.array([clean_text(item.title) for item in items], pa.string()),
        "description": pa.array([description_text(item.description) for item in items], pa.string()),
        "categories": pa.array([category_path(item.categories) for item in items], pa.list_(pa.string())),
        "brand": pa.array([clean_text(item.brand) for item in items], pa.string()),
    }
    if any(item.source_id for item in items):
        columns["source_id"] = pa.array([item.source_id for item in items], pa.string())
    if any(item.narrative for item in items):
        columns["narrative"] = pa.array([item.narrative for item in items], pa.string())
    return pa.table(columns)


def sequence_rows(rows: PublishedRows, users: dict[str, int]) -> pa.Table:
    """sequences.parquet without example_id, a column per text; rows without a history are no windows and left out."""
    keep = [at for at, history in enumerate(rows.histories) if history]
    lengths = np.array([len(rows.histories[at]) for at in keep], np.int64)
    flat = np.array([item for at in keep for item in rows.histories[at]], np.int32)
    return pa.table(
        {
            "user_id": pa.array([users[rows.users[at]] for at in keep], pa.int32()),
            "history": int_lists(np.concatenate([[0], np.cumsum(lengths)]), flat),
            "target": pa.array([rows.targets[at] for at in keep], pa.int32()),
            "split": pa.array([rows.splits[at] for at in keep], pa.string()),
            **{name: pa.array([texts[at] for at in keep], pa.string()) for name, texts in rows.texts.items()},
        }
    )


def interactions(rows: PublishedRows, users: dict[str, int], *, history_only: int) -> Coded:
    """Every user's sequence, in order, rebuilt from the rows (no times, no ratings).

    history_only: split code of items that stand in a history of a valid or test row and in no row of their own.

    >>> rows = PublishedRows(["u", "u"], [[5], [5, 6, 7]], [6, 8], ["train", "test"])
    >>> coded = interactions(rows, {"u": 0}, history_only=CONTEXT)  # 7 stands in no row of its own: context
    >>> coded.item.tolist(), [SPLIT_NAMES[code] for code in coded.split.tolist()]
    ([5, 6, 7, 8], ['train', 'train', 'context', 'test'])
    """
    walks: list[list[int]] = [[] for _ in users]
    splits: list[list[int]] = [[] for _ in users]
    for name, history, target, split in zip(
        rows.users, rows.histories, rows.targets, rows.splits, strict=True
    ):
        walk, marks = walks[users[name]], splits[users[name]]
        known = _overlap(walk, history)
        walk += [*history[known:], target]
        marks += [
            *[TRAIN if split == "train" else history_only] * (len(history) - known),
            SPLIT_NAMES.index(split),
        ]
    lengths = [len(walk) for walk in walks]
    total = sum(lengths)
    return Coded(
        np.repeat(np.arange(len(users), dtype=np.int32), lengths),
        np.array([item for walk in walks for item in walk], np.int32),
        np.full(total, np.nan, np.float32),
        np.zeros(total, np.int64),
        np.zeros(total, bool),
        order=np.concatenate([np.arange(length) for length in lengths] or [np.zeros(0, np.int64)]),
        split=np.array([mark for marks in splits for mark in marks], np.int8),
    )


def _overlap(walk: list[int], history: list[int]) -> int:
    """How many items at the start of `history` are the end of `walk`, the most that fit."""
    for length in range(min(len(walk), len(history)), 0, -1):
        if walk[-length:] == history[:length]:
            return length
    return 0


def find_lines(
    raw: str | Path, options: ReleaseOptions, *, user: str | None, items: Sequence[str]
) -> RawLines:
    """The user's rows of every split, numbered from 0 within the folder's rows, and the items."""
    published: Published = system_of(options).read_folder(raw, options.name)
    rows, names = published.rows, [item.raw_id for item in published.items]
    mine = []
    for at in (at for at, name in enumerate(rows.users) if name == user):
        history = ", ".join(names[item] for item in rows.histories[at])
        text = f"{rows.splits[at]}: {history} -> {names[rows.targets[at]]}"
        mine.append(RawLine(f"{rows.splits[at]} rows", at, str(user), shown(text), {}))
    place = {name: at for at, name in enumerate(names)}
    found = [
        RawLine("items", place[key], key, shown(published.items[place[key]].title), {})
        for key in dict.fromkeys(items)
        if key in place
    ]
    return RawLines(mine, found)
