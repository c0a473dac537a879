"""Texts of a teacher (data/reasoning.py) as parts of examples: thoughts before answers, and instructions.

| kind | becomes |
|---|---|
| identifier | the thought of history_to_sid and history_to_tid |
| reasoning | the thought of history_to_instruction |
| instruction | the text of history_to_instruction |

A text belongs to the row of sequences whose example_id is its key, in the split that the teacher was told, and to no other: what
a row of another split teaches never enters train.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from configs.program import InputError
from data.reasoning import KINDS, WITH_TEXT, read_reasoning, rendered
from data.tasks import TaskContext, TaskWindow
from preprocess.examples import Sequences

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
        if not thoughts and not told:
            yield from windows
            return
        for window in windows:
            yield replace(window, thought=thoughts.get(window.key), instruction=told.get(window.key))


def read_taught(directories: Sequence[str], context: TaskContext, sequences: Sequences) -> Taught:
    """The texts of one directory per kind; InputError for two of a kind."""
    rows = {
        key: (split, target)
        for key, split, target in zip(
            sequences.example_id.tolist(), sequences.split.tolist(), sequences.target.tolist(), strict=True
        )
    }
    texts: dict[str, dict[int, str]] = {}
    left_out: dict[str, Counter[str]] = {}
    for directory in directories:
        table = read_reasoning(directory, num_items=context.sids.num_items)
        columns = [table[name].to_pylist() for name in ("key", "kind", "split", "target", "text", "status")]
        twice = set(columns[1]) & texts.keys()
        if twice:
            raise InputError(
                f"{directory} has texts of kind {twice.pop()}, of which there are some already -> one directory per kind "
                f"({', '.join(KINDS)})"
            )
        texts |= {kind: {} for kind in set(columns[1])}
        for key, kind, split, target, text, status in zip(*columns, strict=True):
            if status not in WITH_TEXT:
                left_out.setdefault(kind, Counter())[status] += 1
            elif rows.get(key) != (split, target):
                left_out.setdefault(kind, Counter())["of_another_row"] += 1
            else:
                texts[kind][key] = rendered(text, context.sid_text)
    return Taught(texts, {kind: dict(counts) for kind, counts in left_out.items()})
