"""What customers are said to prefer, written by whatever system, in MiniOneRec's file: rows of JSON or JSON lines.

    {"split": "train", "user": ..., "user_preference": "...", "context": {"history_items": [...], "target_item": ...}}

or texts of kind preference of a teacher here (preprocess.enrich_histories). Items are named by their raw id or their semantic ID. A row counts only as a window of the train split: other rows, and texts
that name the answer, are left out and counted. `user` decides between windows that are otherwise the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data.reasoning import WITH_TEXT, read_reasoning, rendered
from data.tasks import PREFERENCE_TASKS, Example, TaskContext, TaskWindow
from preprocess.examples.corpora import read_records
from preprocess.examples.rows import Sequences, row_keys


@dataclass(frozen=True)
class Preference:
    """A window of the train split and what its customer prefers."""

    window: TaskWindow
    text: str


def read_preferences(
    path: str | Path, context: TaskContext, sequences: Sequences, raw_ids: Sequence[str]
) -> tuple[list[Preference], dict[str, int]]:
    """(the preferences of train windows in the file's order, each window once; how many rows were skipped by reason)."""
    if Path(path).is_dir():
        return taught_preferences(path, context, sequences)
    number = {raw: item for item, raw in enumerate(raw_ids)}
    train, _ = sequences.rows("train")
    places: dict[tuple[int, ...], list[int]] = {}
    for row, key in zip(train.tolist(), row_keys(sequences, train, context.sids), strict=True):
        places.setdefault(key, []).append(row)
    found: dict[int, Preference] = {}
    skipped: Counter[str] = Counter()
    for at, record in enumerate(read_records(path)):
        try:
            split, told = record["split"], record["user_preference"]
            given, wanted = record["context"]["history_items"], record["context"]["target_item"]
        except (KeyError, TypeError):
            raise InputError(
                f"{path}: record {at} is not split, user_preference, context.history_items, context.target_item "
                "-> pass a preference file"
            ) from None
        text = " ".join((told if isinstance(told, str) else " ".join(map(str, _values(told)))).split())
        items = [_item(named, number, context) for named in [*given, wanted]]
        rows = [] if None in items else places.get(tuple(context.sids.sid_of_item_N[items].tolist()), [])
        if split != "train" or not rows:
            skipped["not_a_train_window"] += 1
        elif not text:
            skipped["empty_preference"] += 1
        elif _names_answer(context, text, items[-1]):
            skipped["answer_in_preference"] += 1
        else:
            row = next(
                (row for row in rows if str(sequences.user_id[row]) == str(record.get("user"))), rows[0]
            )
            if row in found:
                skipped["repeated"] += 1
                continue
            (window,) = sequences.windows(np.array([row]))
            found[row] = Preference(window, text)
    return list(found.values()), dict(skipped)


def taught_preferences(
    directory: str | Path, context: TaskContext, sequences: Sequences
) -> tuple[list[Preference], dict[str, int]]:
    """The same of a directory of stage 06, kind preference."""
    table = read_reasoning(directory, kind="preference", num_items=context.sids.num_items)
    train, _ = sequences.rows("train")
    place = dict(zip(sequences.example_id[train].tolist(), train.tolist(), strict=True))
    found: list[Preference] = []
    skipped: Counter[str] = Counter()
    columns = (table[name].to_pylist() for name in ("key", "split", "target", "text", "status"))
    for key, split, target, text, status in zip(*columns, strict=True):
        row = place.get(key)
        if status not in WITH_TEXT:
            skipped[status] += 1
        elif split != "train" or row is None or sequences.target[row] != target:
            skipped["not_a_train_window"] += 1
        elif _names_answer(context, told := rendered(text, context.sid_text), target):
            skipped["answer_in_preference"] += 1
        else:
            (window,) = sequences.windows(np.array([row]))
            found.append(Preference(window, told))
    return found, dict(skipped)


def preference_examples(context: TaskContext, task: str, chosen: Iterable[Preference]) -> Iterator[Example]:
    """The example of `task` of each preference."""
    for preference in chosen:
        yield PREFERENCE_TASKS[task](context, preference.window, reasoning=preference.text)


def _item(named: Any, number: dict[str, int], context: TaskContext) -> int | None:
    if str(named) in number:
        return number[str(named)]
    codes = context.fmt.parse(str(named), num_levels=context.sids.num_levels)
    items = context.sids.items_of(codes) if codes is not None else ()
    return int(items[0]) if len(items) else None


def _names_answer(context: TaskContext, text: str, target: int) -> bool:
    title = context.titles[target]
    return context.sid_text(target) in text or (bool(title) and title.lower() in text.lower())


def _values(told: Any) -> Iterator[Any]:
    if isinstance(told, dict):
        told = list(told.values())
    for value in told if isinstance(told, list) else [told]:
        yield from _values(value) if isinstance(value, (dict, list)) else [value]
