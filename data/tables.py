"""A user's own tables, and published data sets, as items, interactions, sequences and users.

    items          item_id, title?, description?, categories?, brand?, price?, image?, item_type?, raw_id?     + extras
    interactions   user_id, item_id, timestamp?, rating?, order?, split?
    sequences?     user_id, history, target, split, timestamp?                                                + extras
    users?         user_id, raw_id?                                                                            + extras

Each is one parquet or csv(.gz) file; a column map says what theirs are called. Nothing is dropped or de-duplicated. Ids may
be integers or text and have gaps. An item keeps its number when the ids are exactly 0..N-1, else it gets its row number;
users are numbered by first appearance in the interactions. `raw_id` keeps the source's id.

A published split is kept word for word: shipped sequences stay as they are, in their order, whatever the length of their
histories. Windows are made only for splits that the sequences do not ship: leave-one-out sets have valid and test
rows, so their train windows come from the interactions whose split is `train`. `context` rows are history only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.artifacts import int_lists
from data.coding import Coder
from data.splits import SPLIT_NAMES
from data.table_columns import (
    LATEST_SECOND,
    Finding,
    Source,
    TableFile,
    finding,
    key_lists,
    keys,
    numbers,
    read_source,
    text_lists,
    texts,
    whole,
)

ITEM_COLUMNS = ("raw_id", "title", "description", "categories", "brand", "price", "image", "item_type")
UNKNOWN_SPLIT = -1


@dataclass(frozen=True)
class TablesOptions:
    """The user's files and how to read them.

    Attributes:
        items: item table
        interactions: interaction table
        sequences: published sequences; without a file all windows are made here
        users: user table; without a file raw ids come from the interactions
        time_unit: unit of integer timestamps, s or ms
    """

    items: TableFile = field(default_factory=lambda: TableFile("items.parquet"))
    interactions: TableFile = field(default_factory=lambda: TableFile("interactions.parquet"))
    sequences: TableFile = field(default_factory=TableFile)
    users: TableFile = field(default_factory=TableFile)
    time_unit: str = "s"

    def __post_init__(self) -> None:
        if self.time_unit not in ("s", "ms"):
            raise InputError(f"tables.time_unit is {self.time_unit!r} -> s or ms")
        if self.interactions.extras:
            raise InputError(
                "tables.interactions.extras is not supported -> list extras of items, sequences or users"
            )

    def files(self, raw: str | Path) -> list[Path]:
        """Every file that is read."""
        specs = (self.items, self.interactions, self.sequences, self.users)
        return [Path(raw) / spec.file for spec in specs if spec.file]


@dataclass(frozen=True)
class Tables:
    """The tables on dense ids.

    items: columns of items.parquet, row i is item i. user, item int32, rating float32 (NaN), timestamp int64, known bool
    (has a time), order int64 or None, split int8 or None (codes of SPLIT_NAMES, UNKNOWN_SPLIT = null) [interactions, file
    order]. sequences: columns of sequences.parquet without example_id, or None. users: columns of users.parquet.
    """

    items: pa.Table
    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    known: np.ndarray
    order: np.ndarray | None
    split: np.ndarray | None
    sequences: pa.Table | None
    users: pa.Table


def load(raw: str | Path, options: TablesOptions) -> tuple[Tables, list[Finding]]:
    """Read everything. InputError where a file or column is missing; everything else that is wrong is in the findings."""
    items, item_keys, findings = _load_items(raw, options.items)
    source = read_source(
        raw,
        options.interactions,
        required=("user_id", "item_id"),
        optional=("timestamp", "rating", "order", "split"),
    )
    users = Coder()
    user_keys, found = keys(source, "user_id")
    users.add(user_keys)
    item, more = _item_numbers(source, "item_id", item_keys)
    findings += found + more
    if not source.table.num_rows:
        findings.append(Finding(source.name, "", "has no rows"))
    timestamp, known, found = _timestamps(source, options.time_unit)
    rating, more = _optional_numbers(source, "rating", pa.float32())
    split, split_found = _splits(source)
    findings += found + more + split_found
    sequences = None
    if options.sequences.file:
        sequences, found = _load_sequences(raw, options, item_keys, users)
        findings += found
    codes, values = users.finish()
    rows = source.table.num_rows
    user, sequence_user = codes[:rows], codes[rows:]
    order, found = _orders(source, user)
    findings += found
    if sequences is not None:
        sequences = sequences.add_column(0, "user_id", pa.array(sequence_user, pa.int32()))
    user_table, found = _load_users(raw, options.users, values)
    tables = Tables(items, user, item, rating, timestamp, known, order, split, sequences, user_table)
    return tables, findings + found


def stop_at_first(findings: Sequence[Finding]) -> None:
    """InputError of the first finding, with the number of the others."""
    if findings:
        others = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise InputError(f"{findings[0]}{others} -> see all with `python -m data.validate`")


def _load_items(raw: str | Path, spec: TableFile) -> tuple[pa.Table, pa.Array, list[Finding]]:
    """(items in dense order, their keys in that order, findings)."""
    source = read_source(raw, spec, required=("item_id",), optional=ITEM_COLUMNS)
    item_keys, findings = keys(source, "item_id")
    codes = item_keys.dictionary_encode().indices.to_numpy()
    repeated = np.ones(len(codes), bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    findings += finding(source.name, source.label("item_id"), repeated, "duplicate item id")
    if not len(item_keys):
        findings.append(Finding(source.name, "", "has no rows"))
    categories, found = text_lists(source, "categories")
    price, more = numbers(source, "price", pa.float32()) if source.has("price") else (None, [])
    raw_ids, raw_found = keys(source, "raw_id") if source.has("raw_id") else (item_keys, [])
    columns = {
        "item_id": pa.array(np.arange(len(item_keys)), pa.int32()),
        "raw_id": raw_ids,
        "title": texts(source, "title"),
        "description": texts(source, "description"),
        "categories": categories,
        "brand": texts(source, "brand"),
    }
    if price is not None:
        columns["price"] = price
    for name in ("image", "item_type"):
        if source.has(name):
            columns[name] = whole(source.table[name]).cast(pa.string())
    columns |= {name: plain_strings(whole(source.table[name])) for name in spec.extras if name not in columns}
    rows = pa.array(_dense_order(source, item_keys))
    table = pa.table(columns)
    table = pa.table({"item_id": table["item_id"]} | {n: table[n].take(rows) for n in table.column_names[1:]})
    return table, item_keys.take(rows), findings + found + more + raw_found


def _dense_order(source: Source, item_keys: pa.Array) -> np.ndarray:
    """Rows in order of their dense id: by id when the ids are exactly 0..N-1, else as they stand."""
    rows = np.arange(len(item_keys))
    digits = pc.match_substring_regex(item_keys, r"^(0|[1-9]\d{0,8})$")
    if len(rows) and pc.all(digits).as_py():
        ids = item_keys.cast(pa.int64()).to_numpy()
        if np.array_equal(np.sort(ids), rows):
            return np.argsort(ids)
    return rows


def plain_strings(values: pa.Array) -> pa.Array:
    """large_string as string, so that extras have the types of everything else."""
    return values.cast(pa.string()) if pa.types.is_large_string(values.type) else values


def _item_numbers(source: Source, column: str, item_keys: pa.Array) -> tuple[np.ndarray, list[Finding]]:
    mentioned, findings = keys(source, column)
    numbers_, unknown = _lookup(mentioned, item_keys)
    return numbers_, findings + finding(
        source.name, source.label(column), unknown, _unknown(mentioned, unknown)
    )


def _lookup(mentioned: pa.Array, item_keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(dense item int32, 0 where unknown; unknown bool)."""
    found = pc.index_in(mentioned, value_set=item_keys)
    unknown = found.is_null().to_numpy(zero_copy_only=False) & ~pc.equal(mentioned, "").to_numpy(
        zero_copy_only=False
    )
    return found.fill_null(0).to_numpy().astype(np.int32), unknown


def _unknown(mentioned: pa.Array, unknown: np.ndarray) -> str:
    rows = np.flatnonzero(unknown)
    return f"item {mentioned[int(rows[0])].as_py()!r} is not in the item table" if len(rows) else ""


def _timestamps(source: Source, unit: str) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    """(UTC seconds int64, 0 where there is none; known bool; findings)."""
    if not source.has("timestamp"):
        rows = source.table.num_rows
        return np.zeros(rows, np.int64), np.zeros(rows, bool), []
    values, findings = numbers(source, "timestamp", pa.int64())
    known = ~values.is_null().to_numpy(zero_copy_only=False)
    seconds = values.fill_null(0).to_numpy() // (1000 if unit == "ms" else 1)
    label = source.label("timestamp")
    findings += finding(source.name, label, seconds < 0, "negative time")
    late = seconds >= LATEST_SECOND
    findings += finding(
        source.name, label, late, "later than the year 2286: milliseconds? -> tables.time_unit ms"
    )
    return seconds, known, findings


def _optional_numbers(source: Source, column: str, kind: pa.DataType) -> tuple[np.ndarray, list[Finding]]:
    if not source.has(column):
        return np.full(source.table.num_rows, np.nan, np.float32), []
    values, findings = numbers(source, column, kind)
    return values.to_numpy(zero_copy_only=False), findings


def _splits(source: Source, allowed: Sequence[str] = SPLIT_NAMES) -> tuple[np.ndarray | None, list[Finding]]:
    if not source.has("split"):
        return None, []
    values = whole(source.table["split"])
    missing = values.is_null().to_numpy(zero_copy_only=False)
    codes = pc.index_in(values.cast(pa.string()), value_set=pa.array(allowed))
    bad = codes.is_null().to_numpy(zero_copy_only=False) & ~missing
    first = values[int(np.flatnonzero(bad)[0])].as_py() if bad.any() else ""
    found = finding(
        source.name, source.label("split"), bad, f"split {first!r} -> one of {', '.join(allowed)}"
    )
    return codes.fill_null(UNKNOWN_SPLIT).to_numpy().astype(np.int8), found


def _orders(source: Source, user: np.ndarray) -> tuple[np.ndarray | None, list[Finding]]:
    if not source.has("order"):
        return None, []
    values, findings = numbers(source, "order", pa.int64())
    label = source.label("order")
    missing = values.is_null().to_numpy(zero_copy_only=False)
    findings += finding(source.name, label, missing, "null order: give it everywhere or nowhere")
    order = values.fill_null(0).to_numpy()
    rows = np.lexsort((order, user))
    twice = np.zeros(len(order), bool)
    same = (np.diff(user[rows]) == 0) & (np.diff(order[rows]) == 0)
    twice[rows[1:][same]] = True
    return order, findings + finding(source.name, label, twice & ~missing, "the user has this order twice")


def _load_sequences(
    raw: str | Path, options: TablesOptions, item_keys: pa.Array, users: Coder
) -> tuple[pa.Table, list[Finding]]:
    """Published sequences in file order without user_id; their users are added to the coder."""
    spec = options.sequences
    source = read_source(
        raw, spec, required=("user_id", "history", "target", "split"), optional=("timestamp",)
    )
    user_keys, findings = keys(source, "user_id")
    users.add(user_keys)
    offsets, mentioned, found = key_lists(source, "history")
    history, unknown = _lookup(mentioned, item_keys)
    in_row = np.zeros(len(offsets) - 1, bool)
    in_row[np.searchsorted(offsets, np.flatnonzero(unknown), side="right") - 1] = True
    findings += found + finding(source.name, source.label("history"), in_row, _unknown(mentioned, unknown))
    target, found = _item_numbers(source, "target", item_keys)
    split, more = _splits(source, SPLIT_NAMES[:3])
    missing = split == UNKNOWN_SPLIT
    findings += found + more
    if not more:
        findings += finding(source.name, source.label("split"), missing, "null split")
    columns = {
        "history": int_lists(offsets, history),
        "target": pa.array(target, pa.int32()),
        "split": pa.array(np.array([*SPLIT_NAMES, None], object)[split], pa.string()),
    }
    if source.has("timestamp"):
        seconds, known, found = _timestamps(source, options.time_unit)
        columns["timestamp"] = pa.array(seconds, mask=~known)
        findings += found
    columns |= {name: plain_strings(whole(source.table[name])) for name in spec.extras if name not in columns}
    return pa.table(columns), findings


def _load_users(raw: str | Path, spec: TableFile, values: pa.Array) -> tuple[pa.Table, list[Finding]]:
    """users.parquet: one row per user in dense order; users that the table does not list keep their id as raw_id."""
    numbered = pa.array(np.arange(len(values)), pa.int32())
    if not spec.file:
        return pa.table({"user_id": numbered, "raw_id": values}), []
    source = read_source(raw, spec, required=("user_id",), optional=("raw_id",))
    listed, findings = keys(source, "user_id")
    codes = listed.dictionary_encode().indices.to_numpy()
    repeated = np.ones(len(codes), bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    findings += finding(source.name, source.label("user_id"), repeated, "duplicate user id")
    rows = pc.index_in(values, value_set=listed)
    names = [name for name in ("raw_id", *spec.extras) if source.has(name)]
    columns = {name: plain_strings(whole(source.table[name])).take(rows) for name in names}
    raw_id = columns.pop("raw_id", None)
    columns["raw_id"] = values if raw_id is None else pc.coalesce(raw_id.cast(pa.string()), values)
    return pa.table({"user_id": numbered, "raw_id": columns.pop("raw_id")} | columns), findings
