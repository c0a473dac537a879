"""Texts of a teacher (data/reasoning.py) as parts of examples: thoughts before answers, and instructions.

| kind | becomes |
|---|---|
| identifier | the thought of history_to_sid and history_to_tid |
| reasoning | the thought of history_to_instruction |
| instruction | the text of history_to_instruction |
| narrative | the text of sequence_narrative |

Texts that a published folder brought with its rows (SIDReasoner, NaviGen) are used where the data set itself is named as a directory.

A text belongs to its own row (data/reasoning.py): what a row of another split teaches never enters train. One with a marker of a tokenizer or a semantic ID in it is left out as titles are:
it would be read as that token, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from data import artifacts
from data.reasoning import NARRATIVE, column_texts, rendered, texts_of_rows
from data.tasks import TaskContext, TaskWindow
from preprocess.examples import RESERVED, Sequences

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
    """The texts of one directory per kind, with the semantic IDs of `context`; InputError for two of a kind."""
    rows = {
        key: (split, target)
        for key, split, target in zip(
            sequences.example_id.tolist(), sequences.split.tolist(), sequences.target.tolist(), strict=True
        )
    }
    found = texts_of_rows(directories, rows, num_items=context.sids.num_items)
    texts, left_out = {}, {kind: dict(counts) for kind, counts in found.left_out.items()}
    for kind, written in found.texts.items():
        kept = {key: text for key, text in written.items() if not RESERVED.search(text)}
        texts[kind] = {key: rendered(text, context.sid_text) for key, text in kept.items()}
        if marked := len(written) - len(kept):
            left_out.setdefault(kind, {})["reserved_marker"] = marked
    return Taught(texts, left_out)


def item_narratives(items: pa.Table, *, data: str) -> list[str]:
    """What a published folder brought about each item; "" where there is nothing, or a marker in it."""
    where = f"{data}/{artifacts.ITEMS.file}"
    texts = column_texts(items, NARRATIVE, num_items=len(items), where=where)
    return ["" if RESERVED.search(text) else text for text in texts]
