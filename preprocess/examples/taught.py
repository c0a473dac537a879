"""Texts of a teacher (data/reasoning.py) as parts of examples: thoughts before answers, and instructions.

| kind | becomes |
|---|---|
| identifier | the thought of history_to_sid and history_to_tid |
| history | the thought of history_to_sid, before an identifier |
| reasoning | the thought of history_to_instruction |
| instruction | the text of history_to_instruction |
| narrative | the text of sequence_narrative |
| item | the text of item_narrative |
| preference | what `--preferences` takes too (preprocess/examples/preferences.py) |

Texts that a published folder brought with its rows (SIDReasoner, NaviGen) are used where the data set itself is named as a directory.

A text belongs to its own row (data/reasoning.py): what a row of another split teaches never enters train. One with a marker of a tokenizer or a semantic ID in it is left out as titles are:
it would be read as that token, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from configs.program import say
from data import artifacts
from data.prompts import RESERVED
from data.reasoning import ITEM, NARRATIVE, column_texts, rendered, texts_of_rows
from data.store.output import read_manifest
from data.tasks import TaskContext, TaskWindow
from preprocess.examples.rows import Sequences

THOUGHTS_OF = {
    "history_to_sid": ("history", "identifier"),
    "history_to_tid": ("identifier",),
    "history_to_instruction": ("reasoning",),
}


@dataclass(frozen=True)
class Taught:
    """texts: by kind, {example_id: text}; left_out: rows of the teacher's tables that are no part of it, by kind and reason."""

    texts: dict[str, dict[int, str]] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)

    def instructed(self, keys_N: np.ndarray) -> np.ndarray:
        """bool [N]: rows of these example ids have an instruction."""
        return np.isin(keys_N, list(self.texts.get("instruction", {})))

    def written(self, task: str) -> dict[int, str] | None:
        """{example_id: the thought of `task`, or its narrative}: texts of the first kind that was read; None where none was."""
        kinds = {**THOUGHTS_OF, "sequence_narrative": (NARRATIVE,)}.get(task, ())
        return next((self.texts[kind] for kind in kinds if kind in self.texts), None)

    def join(self, task: str, windows: Iterable[TaskWindow]) -> Iterator[TaskWindow]:
        """The windows with what was written for them."""
        thoughts = (self.written(task) or {}) if task in THOUGHTS_OF else {}
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
    for directory in directories:
        say_of_other_sids(directory, context)
    texts, left_out = {}, {kind: dict(counts) for kind, counts in found.left_out.items()}
    for kind, written in found.texts.items():
        kept = {key: text for key, text in written.items() if not RESERVED.search(text)}
        texts[kind] = (
            kept if kind == ITEM else {key: rendered(text, context.sid_text) for key, text in kept.items()}
        )
        if marked := len(written) - len(kept):
            left_out.setdefault(kind, {})["reserved_marker"] = marked
    return Taught(texts, left_out)


def say_of_other_sids(directory: str, context: TaskContext) -> None:
    """Say that texts are written in other semantic IDs than those of the day on which they were made, where that is known."""
    then = (read_manifest(directory) or {}).get("facts", {}).get("sids_sha256")
    if then not in (None, context.sids.sha256):
        say(
            f"{directory}: made when the semantic IDs were {then[:12]}; its texts are written in those of today "
            f"({context.sids.sha256[:12]}), nobody is asked again"
        )


def with_narratives(narratives: Sequence[str], taught: Taught) -> list[str]:
    """One narrative per item: the teacher's where there is one, else what the data set's release brought."""
    told = taught.texts.get(ITEM, {})
    return [told.get(item, released) for item, released in enumerate(narratives)]


def item_narratives(items: pa.Table, *, data: str) -> list[str]:
    """What a published folder brought about each item; "" where there is nothing, or a marker in it."""
    where = f"{data}/{artifacts.ITEMS.file}"
    texts = column_texts(items, NARRATIVE, num_items=len(items), where=where)
    return ["" if RESERVED.search(text) else text for text in texts]
