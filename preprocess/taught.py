"""Texts of a teacher (data/reasoning.py) as parts of examples: thoughts before answers, and instructions.

| kind | becomes |
|---|---|
| identifier | the thought of history_to_sid and history_to_tid |
| reasoning | the thought of history_to_instruction |
| instruction | the text of history_to_instruction |

Texts that a published folder brought with its rows (data/releases/sidreasoner.py: columns `reasoning` and `narrative` of sequences)
become the thought of history_to_sid and the text of sequence_narrative, where the data set itself is named as a directory.

A text belongs to the row of sequences whose example_id is its key, in the split that the teacher was told, and to no other: what
a row of another split teaches never enters train. One with a marker of a tokenizer or a semantic ID in it is left out as titles are:
it would be read as that token, whoever wrote it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.program import InputError, warn
from data import artifacts
from data.reasoning import KINDS, WITH_TEXT, column_texts, read_reasoning, rendered
from data.tasks import TaskContext, TaskWindow
from preprocess.examples import RESERVED, Sequences

NARRATIVE = "narrative"

THOUGHT_OF = {
    "history_to_sid": "identifier",
    "history_to_tid": "identifier",
    "history_to_instruction": "reasoning",
}


@dataclass(frozen=True)
class Taught:
    """texts: by kind, {example_id: text}; left_out: rows of the teacher's tables that are no part of it, by kind and reason."""

    texts: dict[str, dict[int, str]] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)

    def instructed(self, keys_N: np.ndarray) -> np.ndarray:
        """bool [N]: rows of these example ids have an instruction."""
        return np.isin(keys_N, list(self.texts.get("instruction", {})))

    def join(self, task: str, windows: Iterable[TaskWindow]) -> Iterator[TaskWindow]:
        """The windows with what was written for them."""
        thoughts = self.texts.get(THOUGHT_OF.get(task, ""), {})
        told = self.texts.get("instruction", {}) if task == "history_to_instruction" else {}
        recited = self.texts.get(NARRATIVE, {}) if task == "sequence_narrative" else {}
        if not thoughts and not told and not recited:
            yield from windows
            return
        for window in windows:
            key = window.key
            yield replace(
                window, thought=thoughts.get(key), instruction=told.get(key), narrative=recited.get(key)
            )


def read_taught(directories: Sequence[str], context: TaskContext, sequences: Sequences) -> Taught:
    """The texts of one directory per kind; InputError for two of a kind.

    One of the directories may be the data set itself: its texts are of the kinds identifier and narrative.
    """
    rows = {
        key: (split, target)
        for key, split, target in zip(
            sequences.example_id.tolist(), sequences.split.tolist(), sequences.target.tolist(), strict=True
        )
    }
    texts: dict[str, dict[int, str]] = {}
    left_out: dict[str, Counter[str]] = {}
    for directory in directories:
        if (Path(directory) / artifacts.SEQUENCES.file).is_file():
            released, marked = released_texts(directory, context)
            _refuse_twice(directory, released, texts)
            texts |= released
            left_out |= {kind: Counter(reserved_marker=count) for kind, count in marked.items() if count}
            continue
        table = read_reasoning(directory, num_items=context.sids.num_items)
        columns = [table[name].to_pylist() for name in ("key", "kind", "split", "target", "text", "status")]
        _refuse_twice(directory, columns[1], texts)
        texts |= {kind: {} for kind in set(columns[1])}
        own = 0
        for key, kind, split, target, text, status in zip(*columns, strict=True):
            if status not in WITH_TEXT:
                left_out.setdefault(kind, Counter())[status] += 1
                continue
            if rows.get(key) != (split, target):
                left_out.setdefault(kind, Counter())["of_another_row"] += 1
                continue
            own += 1
            if RESERVED.search(text):
                left_out.setdefault(kind, Counter())["reserved_marker"] += 1
            else:
                texts[kind][key] = rendered(text, context.sid_text)
        if not own and (written := sum(status in WITH_TEXT for status in columns[-1])):
            warn(
                f"{directory}: none of its {written} texts is of a row of this data -> give texts of these rows and splits"
            )
    return Taught(texts, {kind: dict(counts) for kind, counts in left_out.items()})


def _refuse_twice(directory: str, kinds: Iterable[str], texts: dict[str, dict[int, str]]) -> None:
    if twice := sorted(set(kinds) & texts.keys()):
        raise InputError(
            f"{directory} has texts of kind {twice[0]}, of which there are some already -> one directory per kind "
            f"({', '.join(KINDS)})"
        )


def item_narratives(items: pa.Table, *, data: str) -> list[str]:
    """What a published folder brought about each item; "" where there is nothing, or a marker in it."""
    where = f"{data}/{artifacts.ITEMS.file}"
    texts = column_texts(items, NARRATIVE, num_items=len(items), where=where)
    return ["" if RESERVED.search(text) else text for text in texts]


def released_texts(data: str, context: TaskContext) -> tuple[dict[str, dict[int, str]], dict[str, int]]:
    """(by kind, the texts of a data set's rows; how many have a marker in them and are left out).

    InputError where its release brought none.
    """
    table = artifacts.read_sequences(data, num_items=context.sids.num_items)
    keys, found, marked = table["example_id"].to_pylist(), {}, {}
    where = f"{data}/{artifacts.SEQUENCES.file}"
    for kind, name in ((THOUGHT_OF["history_to_sid"], "reasoning"), (NARRATIVE, NARRATIVE)):
        texts = column_texts(table, name, num_items=context.sids.num_items, where=where)
        if not texts:
            continue
        pairs = {key: text for key, text in zip(keys, texts, strict=True) if text}
        kept = {key: text for key, text in pairs.items() if not RESERVED.search(text)}
        found[kind] = {key: rendered(text, context.sid_text) for key, text in kept.items()}
        marked[kind] = len(pairs) - len(kept)
    if not any(found.values()) and not any(marked.values()):
        raise InputError(
            f"{data} has no texts of rows -> leave it out of reasoning, or prepare it from a folder that has them"
        )
    return found, marked
