"""Which examples a data set gives, and how they become rows of the examples table.

The text of every example is rendered by `data.tasks`; here rows are chosen, counted and turned into columns.
Rows are made and written in chunks, so memory does not grow with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts
from data.prompts import ItemTexts
from data.rows import Rows, sample_rows
from data.sid import SidTable
from data.store.lineage import require_same_data
from data.tasks import ITEM_TASKS, TASKS, WINDOW_TASKS, Example, TaskContext, TaskWindow
from infer.models.recency import with_ages

CHUNK = 20_000  # rows per row group


@dataclass(frozen=True)
class Sequences:
    """Columns of sequences.parquet. `history_values[offsets[r]:offsets[r + 1]]` is the history of row r, oldest first.

    age_values: the ages of its items in the same places (infer.models.recency.with_ages), None where nobody asked.
    """

    example_id: np.ndarray
    user_id: np.ndarray
    target: np.ndarray
    offsets: np.ndarray
    history_values: np.ndarray
    split: np.ndarray
    age_values: np.ndarray | None = None

    @classmethod
    def from_table(cls, table: pa.Table) -> Sequences:
        offsets, values = artifacts.ragged(table["history"])
        columns = [table[name].to_numpy() for name in ("example_id", "user_id", "target")]
        return cls(*columns, offsets, values, np.asarray(table["split"].to_pylist(), dtype=object))

    def with_ages(self, data: str | Path, *, num_items: int) -> Sequences:
        """The same with the ages of a data set's history items; InputError where it knows none."""
        aged = with_ages(
            Rows(self.example_id, self.user_id, self.offsets, self.history_values, self.target),
            data,
            num_items=num_items,
        )
        if np.isnan(aged.age_H).all():
            raise InputError(f"ages: {data} has no times of histories -> leave it out")
        return replace(self, age_values=aged.age_H)

    def rows(self, split: str, *, max_rows: int | None = None, seed: int = 0) -> tuple[np.ndarray, int]:
        """(rows of `split` int64 in file order, how many were left out for an empty history).

        With `max_rows` a seeded sample without replacement; each split has a random stream of its own.
        """
        of_split = self.split == split
        empty = np.diff(self.offsets) == 0
        rows = np.flatnonzero(of_split & ~empty)
        kept = sample_rows(len(rows), max_rows, [seed, artifacts.SPLITS.index(split)])
        return rows[kept], int((of_split & empty).sum())

    def starts(self, rows: np.ndarray, max_history: int | None) -> np.ndarray:
        """Where the newest `max_history` items of each row's history begin in `history_values`."""
        starts = self.offsets[rows]
        return starts if max_history is None else np.maximum(starts, self.offsets[rows + 1] - max_history)

    def windows(
        self,
        rows: np.ndarray,
        *,
        max_history: int | None = None,
        environments: Sequence[str] | None = None,
        values_N: np.ndarray | None = None,
    ) -> Iterator[TaskWindow]:
        """The rows with the newest `max_history` items of their history; weight: the target's value, else 1."""
        starts, ends = self.starts(rows, max_history), self.offsets[rows + 1]
        weights = np.ones(len(rows)) if values_N is None else values_N[self.target[rows]]
        for chunk in range(0, len(rows), CHUNK):
            part = slice(chunk, chunk + CHUNK)
            columns = (self.example_id, self.user_id, self.target)
            keys, users, targets = (column[rows[part]].tolist() for column in columns)
            bounds = zip(rows[part].tolist(), starts[part].tolist(), ends[part].tolist(), strict=True)
            for (row, start, end), key, user, target, weight in zip(
                bounds, keys, users, targets, weights[part].tolist(), strict=True
            ):
                moment = None if environments is None else environments[row]
                history = self.history_values[start:end].tolist()
                yield TaskWindow(key, history, target, user, moment, weight, self._ages(start, end))

    def _ages(self, start: int, end: int) -> list[float | None] | None:
        if self.age_values is None:
            return None
        return [None if np.isnan(age) else float(age) for age in self.age_values[start:end]]


def text_kind(task: str) -> str:
    """Which text of an item a task shows or asks for: title, description, tid, or nothing."""
    if task == "history_to_instruction":
        return "tid"
    return next((kind for kind in ("description", "title", "tid") if kind in task), "")


def item_rows(task: str, texts: ItemTexts, sids: SidTable) -> tuple[np.ndarray, dict[str, int]]:
    """(ids int64 of the items that get an example of `task`, ascending; how many were skipped by reason).

    Skipped are items whose text is not shown, and contradictions: where one question has several answers (a title that
    items with different semantic IDs share, a semantic ID that items with different titles share), the item with the lowest id
    gives the answer. Every other item of the catalogue is in, also one without train rows: a title is no interaction.
    """
    usable = np.flatnonzero(texts.usable_N)
    skipped = Counter(reason for reason in texts.reasons if reason)
    if task == "item_narrative":
        return usable, dict(skipped)
    kind = text_kind(task)
    names, codes = (
        [texts.shown[item] for item in usable],
        [tuple(row) for row in sids.codes_NL[usable].tolist()],
    )
    of_sid = task.startswith("sid_to_")
    question, answer = (codes, names) if of_sid else (names, codes)
    kept = _consistent(question, answer)
    if not kept.all():
        skipped["ambiguous_sid" if of_sid else f"ambiguous_{kind}"] = int((~kept).sum())
    return usable[kept], dict(skipped)


def window_rows(
    task: str,
    sequences: Sequences,
    rows: np.ndarray,
    *,
    texts: ItemTexts | None,
    titles: ItemTexts,
    max_history: int | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """Those of `rows` that `task` can be made of, and how many cannot be, by reason.

    texts: what the task answers with, for its targets; titles: of the histories of titles_*, which need at least one.
    """
    reasons = np.full(len(rows), "", object)
    if task.startswith("titles"):
        shown = np.append(0, np.cumsum(titles.usable_N[sequences.history_values]))
        titled = shown[sequences.offsets[rows + 1]] > shown[sequences.starts(rows, max_history)]
        reasons[~titled] = "history_without_title"
    if texts is not None:
        of_target = np.array(texts.reasons, object)[sequences.target[rows]]
        reasons = np.where(of_target == "", reasons, of_target)
    return rows[reasons == ""], dict(Counter(reasons[reasons != ""].tolist()))


def row_keys(
    sequences: Sequences, rows: np.ndarray, sids: SidTable, *, max_history: int | None = None
) -> Iterator[tuple[int, ...]]:
    """Newest `max_history` items and target of each row as numbers of distinct semantic IDs: equal keys read equal to a model."""
    sid_N = sids.sid_of_item_N
    starts, ends = sequences.starts(rows, max_history), sequences.offsets[rows + 1]
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        history = sequences.history_values[start:end]
        yield (*sid_N[history].tolist(), int(sid_N[sequences.target[row]]))


def distinct_rows(
    sequences: Sequences, rows: np.ndarray, sids: SidTable, *, max_history: int | None = None
) -> np.ndarray:
    """`rows` without those whose history and target repeat those of an earlier row as semantic IDs, as far as they are shown."""
    first: dict[tuple[int, ...], int] = {}
    for row, key in zip(rows.tolist(), row_keys(sequences, rows, sids, max_history=max_history), strict=True):
        first.setdefault(key, row)
    return np.array(sorted(first.values()), rows.dtype)


def sampled(task: str, total: int, *, share: float, cap: int | None, seed: int) -> np.ndarray:
    """Positions (int64, ascending) of the seeded sample of a task: `share` of its rows, at most `cap` of them.

    Each task has a random stream of its own. A share never rounds to nothing.
    """
    wanted = total if share >= 1 else max(min(total, 1), round(share * total))
    most = wanted if cap is None else min(wanted, cap)
    return sample_rows(total, most, [seed, len(artifacts.SPLITS), TASKS.index(task)])


def _consistent(questions: Sequence[Hashable], answers: Sequence[Hashable]) -> np.ndarray:
    """bool per row: its answer is that of the first row with the same question."""
    first: dict[Hashable, Hashable] = {}
    pairs = zip(questions, answers, strict=True)
    return np.array([first.setdefault(question, answer) == answer for question, answer in pairs], dtype=bool)


def item_examples(context: TaskContext, task: str, items: np.ndarray) -> Iterator[Example]:
    """The example of `task` of each item."""
    for item in items.tolist():
        yield ITEM_TASKS[task](context, item=item)


def window_examples(context: TaskContext, task: str, windows: Iterable[TaskWindow]) -> Iterator[Example]:
    """The example of `task` of each window."""
    for window in windows:
        yield WINDOW_TASKS[task](context, window)


def schema(*, ages: bool = False) -> pa.Schema:
    """That of examples/<name>/<split>.parquet, with or without the ages of histories."""
    columns = artifacts.EXAMPLES.required | artifacts.EXAMPLES.optional
    return pa.schema([(name, kind) for name, kind in columns.items() if ages or name != "ages"])


def tables(examples: Iterable[Example], *, ages: bool = False) -> Iterator[pa.Table]:
    """Examples tables of at most CHUNK rows over all `examples`."""
    iterator = iter(examples)
    while chunk := list(islice(iterator, CHUNK)):
        yield to_table(chunk, ages=ages)


def to_table(examples: Sequence[Example], *, ages: bool = False) -> pa.Table:
    """The rows of `examples` in `schema`; `data.tasks.from_row` inverts it."""
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
    wanted = schema(ages=ages)
    for entry in wanted:
        if entry.name not in columns:
            values = [getattr(example, entry.name) for example in examples]
            columns[entry.name] = pa.array(values, entry.type)
    return pa.table([columns[entry.name] for entry in wanted], schema=wanted)


def check_belong(data: str | Path, sids: str | Path, *, num_items: int, num_sids: int) -> None:
    """Refuse semantic IDs of another data set; InputError naming both directories."""
    if num_items != num_sids:
        raise InputError(
            f"{sids} has semantic IDs of {num_sids} items, but {data} has {num_items} items "
            "-> run scripts/04_build_sids.sh on this data set"
        )
    require_same_data(sids, data, again="scripts/02_embed_items.sh and scripts/04_build_sids.sh")
