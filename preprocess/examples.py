"""Which examples a data set gives, and how they become rows of the examples table.

The text of every example is rendered by `data.tasks`; here rows are chosen, counted and turned into columns.
Rows are made and written in chunks, so memory does not grow with their number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts, tasks
from data.rows import sample_rows
from data.sid import SidTable
from data.store.lineage import require_same_data
from data.tasks import Example, TaskContext

CHUNK = 20_000  # rows per row group
MIN_TITLE = 3  # characters; a shorter title tells items apart by chance only
ITEM_TASKS: dict[str, Callable[..., Example]] = {
    "sid_to_title": tasks.sid_to_title,
    "title_to_sid": tasks.title_to_sid,
}
# What a tokenizer may read as one of its markers, or as a semantic ID, although it is only text of a shop.
RESERVED = re.compile(r"<\|[^<>]*\|>|<[^<>\s]+>|\[/?(?:INST|SYS|CLS|SEP|MASK|PAD|UNK|BOS|EOS)\]")
SCHEMA = pa.schema(list((artifacts.EXAMPLES.required | artifacts.EXAMPLES.optional).items()))


@dataclass(frozen=True)
class Sequences:
    """Columns of sequences.parquet. `history_values[offsets[r]:offsets[r + 1]]` is the history of row r, oldest first."""

    example_id: np.ndarray
    user_id: np.ndarray
    target: np.ndarray
    offsets: np.ndarray
    history_values: np.ndarray
    split: np.ndarray

    @classmethod
    def from_table(cls, table: pa.Table) -> Sequences:
        offsets, values = artifacts.ragged(table["history"])
        columns = [table[name].to_numpy() for name in ("example_id", "user_id", "target")]
        return cls(*columns, offsets, values, np.asarray(table["split"].to_pylist(), dtype=object))

    def rows(self, split: str, *, max_rows: int | None = None, seed: int = 0) -> tuple[np.ndarray, int]:
        """(rows of `split` int64 in file order, how many were left out for an empty history).

        With `max_rows` a seeded sample without replacement; each split has a random stream of its own.
        """
        of_split = self.split == split
        empty = np.diff(self.offsets) == 0
        rows = np.flatnonzero(of_split & ~empty)
        kept = sample_rows(len(rows), max_rows, [seed, artifacts.SPLITS.index(split)])
        return rows[kept], int((of_split & empty).sum())


def sequence_examples(
    context: TaskContext, sequences: Sequences, rows: np.ndarray, *, max_history: int | None = None
) -> Iterator[Example]:
    """The history_to_sid example of each row, over the newest `max_history` items of its history."""
    starts, ends = sequences.offsets[rows], sequences.offsets[rows + 1]
    if max_history is not None:
        starts = np.maximum(starts, ends - max_history)
    columns = (sequences.example_id, sequences.user_id, sequences.target)
    for chunk in range(0, len(rows), CHUNK):
        part = slice(chunk, chunk + CHUNK)
        keys, users, targets = (column[rows[part]].tolist() for column in columns)
        for start, end, key, user, target in zip(
            starts[part].tolist(), ends[part].tolist(), keys, users, targets, strict=True
        ):
            history = sequences.history_values[start:end].tolist()
            yield tasks.history_to_sid(context, key=key, history=history, target=target, user_id=user)


def plain_titles(titles: Sequence[str]) -> list[str]:
    """Titles with whitespace collapsed, so that what a model writes can be compared with them."""
    return [" ".join(title.split()) for title in titles]


def item_rows(
    task: str, titles: Sequence[str], sids: SidTable, *, max_title: int | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """(ids int64 of the items that get an example of `task`, ascending; how many were skipped by reason).

    Skipped are titles below three or above `max_title` characters, titles that hold a marker of a tokenizer or a
    semantic ID, and contradictions: where one question has several answers (a title that items with different semantic IDs share, a
    semantic ID that items with different titles share), the item with the lowest id gives the answer.
    Every other item of the catalogue is in, also one without train rows: a title is no interaction.
    """
    reasons = np.array([_unusable(title, max_title) for title in titles], dtype=object)
    usable = np.flatnonzero(reasons == "")
    names, codes = [titles[item] for item in usable], [tuple(row) for row in sids.codes_NL[usable].tolist()]
    question, answer = (names, codes) if task == "title_to_sid" else (codes, names)
    kept = _consistent(question, answer)
    skipped = Counter(reasons[reasons != ""].tolist())
    if not kept.all():
        skipped["ambiguous_title" if task == "title_to_sid" else "ambiguous_sid"] = int((~kept).sum())
    return usable[kept], dict(skipped)


def _unusable(title: str, max_title: int | None) -> str:
    """Why a title cannot be in a text task, or nothing."""
    if len(title) < MIN_TITLE:
        return "short_title"
    if max_title is not None and len(title) > max_title:
        return "long_title"
    return "reserved_marker" if RESERVED.search(title) else ""


def _consistent(questions: Sequence[Hashable], answers: Sequence[Hashable]) -> np.ndarray:
    """bool per row: its answer is that of the first row with the same question."""
    first: dict[Hashable, Hashable] = {}
    pairs = zip(questions, answers, strict=True)
    return np.array([first.setdefault(question, answer) == answer for question, answer in pairs], dtype=bool)


def item_examples(context: TaskContext, task: str, items: np.ndarray) -> Iterator[Example]:
    """The example of `task` of each item."""
    for item in items.tolist():
        yield ITEM_TASKS[task](context, item=item)


def tables(examples: Iterable[Example]) -> Iterator[pa.Table]:
    """Examples tables of at most CHUNK rows over all `examples`."""
    iterator = iter(examples)
    while chunk := list(islice(iterator, CHUNK)):
        yield to_table(chunk)


def to_table(examples: Sequence[Example]) -> pa.Table:
    """The rows of `examples` in the schema of examples/<name>/<split>.parquet; `data.tasks.from_row` inverts it."""
    messages = [message for example in examples for message in example.messages]
    structs = pa.StructArray.from_arrays(
        [pa.array([message[key] for message in messages], pa.string()) for key in ("role", "content")],
        fields=list(artifacts.MESSAGE),
    )
    answers = pa.StructArray.from_arrays(
        [
            pa.array([getattr(example.answer, entry.name) for example in examples], entry.type)
            for entry in artifacts.ANSWER
        ],
        fields=list(artifacts.ANSWER),
    )
    offsets = np.cumsum([0, *(len(example.messages) for example in examples)]).astype(np.int32)
    columns = {
        "messages": pa.ListArray.from_arrays(pa.array(offsets), structs),
        "answer": answers,
    }
    for entry in SCHEMA:
        if entry.name not in columns:
            values = [getattr(example, entry.name) for example in examples]
            columns[entry.name] = pa.array(values, entry.type)
    return pa.table([columns[entry.name] for entry in SCHEMA], schema=SCHEMA)


def check_belong(data: str | Path, sids: str | Path, *, num_items: int, num_sids: int) -> None:
    """Refuse semantic IDs of another data set; InputError naming both directories."""
    if num_items != num_sids:
        raise InputError(
            f"{sids} has semantic IDs of {num_sids} items, but {data} has {num_items} items "
            "-> run scripts/04_build_sids.sh on this data set"
        )
    require_same_data(sids, data, again="scripts/02_embed_items.sh and scripts/04_build_sids.sh")
