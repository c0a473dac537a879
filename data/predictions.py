"""Prediction files: long-form parquet in an output directory, flat arrays in memory.

A prediction file has one row per predicted entry: a semantic ID with all items that share it, or one item of
a model that ranks items (then `codes` is null). A directory holds `predictions-00000-of-00008.parquet` ...,
contiguous ranges of the examples. What a model wrote before its predictions lies beside them (THOUGHTS).

Legend: R examples, E entries of all examples, M items of all entries, L levels, N items of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.program import InputError, NumericError
from data import artifacts
from data.sid import SidTable
from data.store.output import Output, read_manifest, require_manifest

THOUGHTS = artifacts.Schema(
    "thoughts.parquet",
    "infer.recommend --mode think",
    {
        "example_id": pa.int64(),
        "thought_index": pa.int32(),
        "token_ids": artifacts.INT_LIST,
        "text": pa.string(),
        "finished": pa.bool_(),
    },
    {},
    frozenset(),
)
STEM = "predictions"


@dataclass(frozen=True)
class Predictions:
    """What was predicted for each example, best first.

    example_ids_R int64. The entries of example r are `offsets[r] : offsets[r + 1]` (none: it was answered by no list);
    rank_E float64 from 1, ascending within an example, entries that tie having the mean of their places; score_E float32;
    the items of entry e are `items_M[item_offsets[e] : item_offsets[e + 1]]` (int32); codes_EL int32, or None for a model
    that ranks items.
    """

    example_ids_R: np.ndarray
    offsets: np.ndarray
    rank_E: np.ndarray
    score_E: np.ndarray
    item_offsets: np.ndarray
    items_M: np.ndarray
    codes_EL: np.ndarray | None

    @cached_property
    def row_E(self) -> np.ndarray:
        """The example of every entry, int64 [E]."""
        return np.repeat(np.arange(len(self.example_ids_R)), np.diff(self.offsets))

    @cached_property
    def sizes_E(self) -> np.ndarray:
        """Items of every entry, int64 [E]: 1 where items were ranked, else the SID's group of items."""
        return np.diff(self.item_offsets)

    @cached_property
    def group_E(self) -> np.ndarray:
        """Items that stand in random order at the place of every entry, int64 [E]: those of its SID, or of its rank."""
        if self.codes_EL is not None:
            return self.sizes_E
        new_E = np.diff(self.rank_E, prepend=-1) != 0
        new_E[self.offsets[:-1][np.diff(self.offsets) > 0]] = True
        if new_E.all():
            return self.sizes_E
        lengths = np.diff(np.append(np.flatnonzero(new_E), len(new_E)))
        return np.repeat(lengths, lengths)

    @cached_property
    def entry_M(self) -> np.ndarray:
        """The entry of every item, int64 [M]."""
        return np.repeat(np.arange(len(self.rank_E)), self.sizes_E)

    @cached_property
    def row_M(self) -> np.ndarray:
        """The example of every item, int64 [M]."""
        return np.repeat(np.arange(len(self.example_ids_R)), np.diff(self.member_offsets))

    @cached_property
    def member_offsets(self) -> np.ndarray:
        """The items of example r, of all its entries, are `items_M[member_offsets[r] : member_offsets[r + 1]]`."""
        return self.item_offsets[self.offsets]

    def before(self, entries: np.ndarray) -> np.ndarray:
        """Items ranked ahead of these entries (int64), float64: those of a better rank, or all items of the better SIDs."""
        if self.codes_EL is None:
            return self.rank_E[entries] - 1 - (self.group_E[entries] - 1) / 2
        first = self.member_offsets[self.row_E[entries]]
        return (self.item_offsets[entries] - first).astype(np.float64)

    def first_entries(self, k: int) -> np.ndarray:
        """The entries of the first k places, ascending: k per example, or what an example has."""
        lengths = np.minimum(np.diff(self.offsets), k)
        return np.arange(lengths.sum()) + np.repeat(
            self.offsets[:-1] - (np.cumsum(lengths) - lengths), lengths
        )

    def between(self, first: int, last: int) -> Predictions:
        """Examples first, first + 1, ... last - 1, without a copy of what their entries hold."""
        entries = slice(self.offsets[first], self.offsets[last])
        members = slice(self.item_offsets[entries.start], self.item_offsets[entries.stop])
        return Predictions(
            self.example_ids_R[first:last],
            self.offsets[first : last + 1] - entries.start,
            self.rank_E[entries],
            self.score_E[entries],
            self.item_offsets[entries.start : entries.stop + 1] - members.start,
            self.items_M[members],
            None if self.codes_EL is None else self.codes_EL[entries],
        )

    def and_unanswered(self, example_ids_R: np.ndarray) -> Predictions:
        """These examples and others that were answered by no list."""
        ids_R = np.concatenate([self.example_ids_R, example_ids_R])
        offsets = np.append(self.offsets, np.full(len(example_ids_R), self.offsets[-1]))
        return replace(self, example_ids_R=ids_R, offsets=offsets)

    def take(self, rows: np.ndarray) -> Predictions:
        """The examples at positions `rows` (int64), in that order."""
        entries, offsets = _slices(self.offsets, rows)
        members, item_offsets = _slices(self.item_offsets, entries)
        codes = None if self.codes_EL is None else self.codes_EL[entries]
        return Predictions(
            self.example_ids_R[rows],
            offsets,
            self.rank_E[entries],
            self.score_E[entries],
            item_offsets,
            self.items_M[members],
            codes,
        )


def _slices(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions of the values of `rows` one row after the other, their offsets)."""
    lengths = np.diff(offsets)[rows]
    new = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(new[-1]) - np.repeat(new[:-1], lengths) + np.repeat(offsets[:-1][rows], lengths), new


def write_predictions(out: Output, table: pa.Table, *, part: int = 0, parts: int = 1) -> None:
    """Write one contiguous range of the examples; the table must fit data.artifacts.PREDICTIONS."""
    name = artifacts.part_name(STEM, part, parts)
    out.write_table(name, artifacts.conform(table, artifacts.PREDICTIONS, where=f"{out.path}/{name}"))


def ranked_items_table(
    example_ids_R: np.ndarray,
    offsets: np.ndarray,
    items_E: np.ndarray,
    rank_E: np.ndarray,
    score_E: np.ndarray,
) -> pa.Table:
    """The table of a model that ranks items: one item per entry, no codes; tied items share a rank."""
    entries = len(items_E)
    return pa.table(
        {
            "example_id": pa.array(np.repeat(example_ids_R, np.diff(offsets)), pa.int64()),
            "rank": pa.array(rank_E, pa.float32()),
            "codes": pa.nulls(entries, artifacts.INT_LIST),
            "item_ids": artifacts.int_rows(items_E.reshape(-1, 1)),
            "score": pa.array(score_E, pa.float32()),
        }
    )


def read_predictions(directory: str | Path) -> tuple[Predictions, dict[str, Any]]:
    """All parts of a finished prediction directory and its manifest.

    The examples that were answered by no list (`unanswered` of its facts) come last, without entries. Raises InputError for
    a missing part, an example in two places or ranks out of order or with gaps, and NumericError for a NaN score or when one
    example is given the same item twice (a duplicate beam).
    """
    manifest = require_manifest(directory, written_by=artifacts.PREDICTIONS.written_by)
    tables = []
    for path in prediction_files(Path(directory)):
        tables.append(artifacts.conform(artifacts.read_file(path), artifacts.PREDICTIONS, where=str(path)))
    table = pa.concat_tables(tables, promote_options="default")
    facts = manifest["facts"]
    none = np.array(facts.get("unanswered", []), np.int64)
    if not table.num_rows and manifest["counts"].get("examples"):
        return _without_lists(none), manifest
    found = from_table(table, where=str(directory), gaps=bool(facts.get("duplicates_dropped")))
    return found.and_unanswered(none), manifest


def unanswered(example_ids_R: np.ndarray, table: pa.Table) -> dict[str, list[int]]:
    """{"unanswered": the examples without an entry in a prediction table} for the facts of its manifest; {} where there are none."""
    lacking = np.setdiff1d(example_ids_R, table["example_id"].to_numpy())
    return {"unanswered": lacking.tolist()} if len(lacking) else {}


def _without_lists(example_ids_R: np.ndarray) -> Predictions:
    """Examples that were all answered by no list."""
    nothing = np.zeros(0)
    first = Predictions(
        np.zeros(0, np.int64), np.zeros(1, np.int64), nothing, nothing.astype(np.float32), np.zeros(1, np.int64),
        nothing.astype(np.int32), None,
    )  # fmt: skip
    return first.and_unanswered(example_ids_R)


def prediction_files(directory: Path) -> list[Path]:
    """The part files in order; InputError naming what is missing or left over."""
    return artifacts.part_files(directory, STEM, written_by=artifacts.PREDICTIONS.written_by)


def from_table(table: pa.Table, *, where: str, gaps: bool = False) -> Predictions:
    """Flat arrays of a prediction table, checked (errors as in `read_predictions`).

    gaps: lists of semantic IDs may lack ranks, the places of answers that were repeated.
    """
    ids = table["example_id"].to_numpy()
    if not len(ids):
        raise InputError(f"{where}: no predictions at all -> run {artifacts.PREDICTIONS.written_by} again")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ids)) + 1])
    distinct, counts = np.unique(ids[starts], return_counts=True)
    if (counts > 1).any():
        again = distinct[counts > 1]
        raise InputError(
            f"{where}: {len(again)} examples occur more than once (first: {_ids(again)}) -> recommend again"
        )
    rank = table["rank"].to_numpy().astype(np.float64)
    inside = np.ones(len(ids), bool)
    inside[starts] = False
    if not rank.min() >= 1 or (np.diff(rank, prepend=rank[0])[inside] < 0).any():
        raise InputError(f"{where}: ranks must start at 1 and ascend within an example -> recommend again")
    score = table["score"].to_numpy()
    if (wrong := ~np.isfinite(score)).any():
        raise NumericError(
            f"{where}: {int(wrong.sum())} scores are not finite (first: example {ids[np.argmax(wrong)]}) "
            "-> the model's numbers are broken: predict again from a sound checkpoint"
        )
    item_offsets, items = artifacts.ragged(table["item_ids"])
    predictions = Predictions(
        ids[starts],
        np.append(starts, len(ids)),
        rank,
        score,
        item_offsets,
        items,
        _codes(table, where),
    )
    if not gaps:
        _refuse_gaps(predictions, where)
    _refuse_duplicates(predictions, where)
    return predictions


def _codes(table: pa.Table, where: str) -> np.ndarray | None:
    """codes_EL, or None where the column is absent or null throughout; a mixture is refused."""
    if "codes" not in table.column_names or table["codes"].null_count == table.num_rows:
        return None
    if table["codes"].null_count:
        raise InputError(
            f"{where}: `codes` is null in {table['codes'].null_count} rows only -> recommend again"
        )
    offsets, values = artifacts.ragged(table["codes"])
    lengths = np.diff(offsets)
    if lengths.min() != lengths.max():
        raise InputError(
            f"{where}: semantic IDs of {lengths.min()} and {lengths.max()} levels -> recommend again"
        )
    return values.reshape(len(lengths), -1)


def _refuse_gaps(predictions: Predictions, where: str) -> None:
    """A list of semantic IDs has the ranks 1, 2, 3, ...: its places count, so one that is lost would raise the others."""
    if predictions.codes_EL is None:
        return
    place_E = np.arange(len(predictions.rank_E)) - predictions.offsets[:-1][predictions.row_E] + 1
    wrong = predictions.row_E[predictions.rank_E != place_E]
    if len(wrong):
        raise InputError(
            f"{where}: the semantic IDs of example {predictions.example_ids_R[wrong[0]]} do not have the ranks 1, 2, 3, ... "
            "(one is missing or tied) -> recommend again"
        )


def _refuse_duplicates(predictions: Predictions, where: str) -> None:
    key = predictions.row_M * (int(predictions.items_M.max(initial=0)) + 1) + predictions.items_M
    key.sort()
    again = np.flatnonzero(key[1:] == key[:-1])
    if len(again):
        row, item = divmod(int(key[again[0]]), int(predictions.items_M.max()) + 1)
        example = predictions.example_ids_R[row]
        raise NumericError(
            f"{where}: example {example} is given item {item} twice ({len(again)} such) -> a decoding bug"
        )


def align(
    predictions: Predictions, expected_ids: np.ndarray, *, max_rows: int | None, where: str
) -> np.ndarray:
    """Position in `expected_ids` (int64 [R]) of every predicted example, after checking that none is missing.

    With `max_rows` a declared sample of that many of the expected examples must be there, else all of them.
    """
    order = np.argsort(expected_ids, kind="stable")
    at = np.searchsorted(expected_ids[order], predictions.example_ids_R)
    positions = order[np.minimum(at, len(order) - 1)]
    unknown = predictions.example_ids_R[expected_ids[positions] != predictions.example_ids_R]
    if len(unknown):
        raise InputError(
            f"{where}: {len(unknown)} examples are not of this data set and split (first: {_ids(unknown)}) "
            "-> pass the --data that the examples were built from"
        )
    wanted = len(expected_ids) if max_rows is None else min(max_rows, len(expected_ids))
    if len(positions) != wanted:
        missing = np.delete(expected_ids, positions)
        first = f" (first: {_ids(missing)})" if max_rows is None else ""
        raise InputError(
            f"{where}: {wanted - len(positions)} of {wanted} examples are missing{first} -> recommend again"
        )
    return positions


def made_by(directory: str | Path) -> str:
    """What makes these predictions again: many scripts run the programs that write predictions, the manifest names stage and model."""
    manifest = read_manifest(directory) or {}
    model = manifest.get("inputs", {}).get("model", {}).get("path")
    return f"what made it (stage {manifest.get('stage')}{f', model {model}' if model else ''})"


def refuse_other_sids(facts: dict[str, Any], table: SidTable, *, where: str | Path, sids: str | Path) -> None:
    """InputError when a model predicted with other semantic IDs than `table`; models of items have none."""
    made_with = facts.get("sids_sha256")
    if made_with is not None and made_with != table.sha256:
        raise InputError(
            f"{where} was predicted with other semantic IDs than {sids} "
            f"({made_with[:12]} against {table.sha256[:12]}) -> pass the --sids of that model"
        )


def _ids(ids: np.ndarray) -> str:
    return ", ".join(str(int(i)) for i in ids[:3])
