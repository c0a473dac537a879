"""The rows that are scored and the train rows that baselines, groups and novelty count: a prepared data set
as arrays.

Legend: R rows (examples), H history items of all rows, T train interactions, N items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.store.manifest import read_manifest

CATEGORY = {"category": 1, "category_2": 2}  # names of groups: which of a target's categories


@dataclass(frozen=True)
class Rows:
    """Histories and targets of one split, in the order of sequences.parquet.

    example_ids_R int64, users_R int32, target_R int32; the history of row r is
    `history_H[offsets[r] : offsets[r + 1]]` (int32, oldest first), offsets int64 [R + 1]. age_H: days before the newest
    item of the same history, NaN where unknown (infer/models/recency.py); None where nobody asked.
    """

    example_ids_R: np.ndarray
    users_R: np.ndarray
    offsets: np.ndarray
    history_H: np.ndarray
    target_R: np.ndarray
    age_H: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.example_ids_R)

    @cached_property
    def history_row_H(self) -> np.ndarray:
        """The row of every history item, int64 [H]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def between(self, first: int, last: int) -> Rows:
        """Rows first, first + 1, ... last - 1, as views."""
        history = slice(self.offsets[first], self.offsets[last])
        return Rows(
            self.example_ids_R[first:last],
            self.users_R[first:last],
            self.offsets[first : last + 1] - history.start,
            self.history_H[history],
            self.target_R[first:last],
            None if self.age_H is None else self.age_H[history],
        )

    def take(self, rows: np.ndarray) -> Rows:
        """The rows at positions `rows` (int64), in that order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        taken = np.repeat(self.offsets[:-1][rows], lengths) + within
        ages = None if self.age_H is None else self.age_H[taken]
        return Rows(
            self.example_ids_R[rows],
            self.users_R[rows],
            offsets,
            self.history_H[taken],
            self.target_R[rows],
            ages,
        )


@dataclass(frozen=True)
class SequenceRow:
    """A row of sequences.parquet. position, rows: its row number and their count, over all splits."""

    example_id: int
    split: str
    user_id: int
    history: tuple[int, ...]
    target: int
    timestamp: int | None
    position: int
    rows: int


def sequence_row(sequences: pa.Table, position: int) -> SequenceRow:
    """The row at a position of sequences.parquet, or of a part of it."""
    row = sequences.slice(position, 1).to_pylist()[0]
    named = {name: row[name] for name in ("example_id", "split", "user_id", "target")}
    history, timestamp = tuple(row["history"]), row.get("timestamp")
    return SequenceRow(
        **named, history=history, timestamp=timestamp, position=position, rows=sequences.num_rows
    )


@dataclass(frozen=True)
class TrainLog:
    """What a recommender may be fitted on, sorted by user and position: users_T, items_T int32."""

    users_T: np.ndarray
    items_T: np.ndarray
    num_items: int

    @cached_property
    def popularity_N(self) -> np.ndarray:
        """Train interactions of every item, int64 [N]."""
        return np.bincount(self.items_T, minlength=self.num_items)


def read_rows(data: str | Path, split: str, *, num_items: int) -> Rows:
    """The rows of a split of a prepared data set; InputError when there are none."""
    table = artifacts.read_sequences(data, num_items=num_items)
    table = table.filter(pc.equal(table["split"], split))
    if not table.num_rows:
        raise InputError(
            f"{data}/sequences.parquet has no rows of split {split!r} -> prepare the data with that split"
        )
    offsets, history = artifacts.ragged(table["history"])
    return Rows(
        table["example_id"].to_numpy(),
        table["user_id"].to_numpy(),
        offsets,
        history,
        table["target"].to_numpy(),
    )


def read_columns(data: str | Path, names: Sequence[str], rows: Rows) -> dict[str, np.ndarray]:
    """Further columns as texts [R], row by row: of sequences.parquet, else of the target's row of items.parquet.

    `category` and `category_2`, where the data set has no column of that name, are the first and second of the target's
    categories (coarse to fine): the 20 that most rows have, the others as `(other)`, items without one as `(none)`; a `/` in a
    name is shown as `|`.
    """
    if not names:
        return {}
    sequences, items = artifacts.read(data, artifacts.SEQUENCES), artifacts.read_items(data)
    ids = sequences["example_id"].to_numpy()
    order = np.argsort(ids)
    at = order[np.searchsorted(ids[order], rows.example_ids_R)]
    found = {}
    for name in names:
        choices = [
            (table, take)
            for table, take in ((sequences, at), (items, rows.target_R))
            if _is_flat(table, name)
        ]
        if not choices and (depth := CATEGORY.get(name)):
            paths = items["categories"].take(pa.array(rows.target_R)).to_pylist()
            found[name] = most_frequent(
                [path[depth - 1] if path and len(path) >= depth else "(none)" for path in paths]
            )
            continue
        if not choices:
            known = [*sequences.column_names, *items.column_names]
            raise InputError(f"{data} has no column {name!r} to group by -> one of {', '.join(known)}")
        table, take = choices[0]
        text = pc.fill_null(pc.cast(table[name].take(pa.array(take)), pa.string()), "")
        found[name] = np.array(text.to_pylist())
    return found


def _is_flat(table: pa.Table, name: str) -> bool:
    return name in table.column_names and not pa.types.is_nested(table[name].type)


def most_frequent(values: Sequence[str], *, most: int = 20) -> np.ndarray:
    """The values as texts, all but the `most` most frequent as `(other)`.

    >>> most_frequent(["a", "b", "a", "b/c", "b"], most=2).tolist()
    ['a', 'b', 'a', '(other)', 'b']
    """
    kept = {value for value, _ in Counter(values).most_common(most)}
    return np.array([value.replace("/", "|") if value in kept else "(other)" for value in values])


def read_train_log(data: str | Path, *, num_items: int) -> TrainLog:
    """The rows of interactions.parquet whose split is `train`, not those of context, valid and test."""
    table = artifacts.read(data, artifacts.INTERACTIONS)
    if "split" not in table.column_names:
        raise InputError(
            f"{data}/interactions.parquet has no `split` column: what is train? -> run data.prepare again"
        )
    table = table.filter(pc.equal(table["split"], "train"))
    if not table.num_rows:
        raise InputError(f"{data}/interactions.parquet has no train rows -> choose a split that leaves some")
    users, items = table["user_id"].to_numpy(), table["item_id"].to_numpy()
    if items.min() < 0 or items.max() >= num_items:
        raise InputError(
            f"{data}/interactions.parquet: `item_id` is outside 0..{num_items - 1} -> run data.prepare again"
        )
    by_time = np.lexsort((table["order"].to_numpy(), users))
    return TrainLog(users[by_time], items[by_time], num_items)


def has_stride(data: str | Path) -> bool:
    """Whether the windows of a data set begin at every so many rows of a user only (`split.stride`), so that most of what follows what
    is nobody's target."""
    split = (read_manifest(data) or {}).get("config", {}).get("split") or {}
    return bool(split.get("stride"))


def products(items: pa.Table) -> np.ndarray:
    """The product of every item, int64 [N]: items whose title and description are the same text are one product.

    Case and white space do not count. A title alone does not make a product, because a catalogue can have a broken
    title that many different items share; an item without title is a product of its own.
    """
    title, description = (
        pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(items[name]), r"\s+", " "))
        for name in ("title", "description")
    )
    named = pc.binary_join_element_wise(title, description, "\0").combine_chunks().dictionary_encode()
    product_N = named.indices.to_numpy().astype(np.int64)
    nameless = np.flatnonzero(pc.equal(title, "").to_numpy())
    product_N[nameless] = len(named.dictionary) + np.arange(len(nameless))
    return np.unique(product_N, return_inverse=True)[1]


def goes_on(
    users_R: np.ndarray, offsets: np.ndarray, history_H: np.ndarray, target_R: np.ndarray
) -> np.ndarray:
    """bool [R]: whether a row's history is the end of the history of the row before it, of the same user, and its target.

    Row 2 of (1 2) -> 3, (2 3) -> 4 goes on with row 1; a row without history never does.
    """
    lengths, count = np.diff(offsets), len(target_R)
    # A row of `full` is its history followed by its target, so a history of n items goes on exactly when it equals the n values that
    # stand right before it.
    full = np.empty(len(history_H) + count, history_H.dtype)
    is_target = np.zeros(len(full), bool)
    is_target[np.cumsum(lengths + 1) - 1] = True
    full[is_target], full[~is_target] = target_R, history_H
    before = np.maximum(np.arange(len(full)) - np.repeat(lengths, lengths + 1), 0)
    row = np.repeat(np.arange(count), lengths + 1)
    found = np.bincount(row[(full != full[before]) & ~is_target], minlength=count) == 0
    found[:1] = False
    found[1:] &= (users_R[1:] == users_R[:-1]) & (lengths[1:] <= lengths[:-1] + 1) & (lengths[1:] > 0)
    return found


def sample_rows(total: int, max_rows: int | None, seed: int | list[int]) -> np.ndarray:
    """Row numbers (int64, ascending) of a seeded sample without replacement, or all rows where there are no more."""
    if max_rows is None or max_rows >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, max_rows, replace=False))
