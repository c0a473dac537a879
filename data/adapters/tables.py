"""A user's own tables, and published data sets, as items, interactions, sequences and users.

    items          item_id, title?, description?, categories?, brand?, price?, image?, item_type?, raw_id?     + extras
    interactions   user_id, item_id, timestamp?, rating?, order?, split?
    sequences?     user_id, history, target, split, timestamp?                                                + extras
    users?         user_id, raw_id?                                                                            + extras

Each is one parquet or csv(.gz) file; a column map says what theirs are called. Nothing is dropped or de-duplicated. Ids may
be integers or text and have gaps. An item keeps its number when the ids are exactly 0..N-1, else it gets its row number;
users are numbered by first appearance in the interactions. `raw_id` keeps the source's id where no other is mapped or the
mapped one is null. `clean_text` treats titles, descriptions, categories and brands as the Amazon adapter does: entities
resolved, tags stripped, whitespace collapsed; without it they stay byte for byte.

A published split is kept word for word: shipped sequences stay as they are, in their order, whatever the length of their
histories. Windows are made only for splits that the sequences do not ship: leave-one-out sets have valid and test
rows, so their train windows come from the interactions whose split is `train`. `context` rows are history only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.adapters.contract import Loaded, RawLine, RawLines, first_of_each, shown
from data.adapters.item_text import parse_rating
from data.adapters.options import TableFile, TablesOptions
from data.adapters.table_columns import (
    ColumnSource,
    amounts,
    key_lists,
    keys,
    numbers,
    read_source,
    rows_of,
    texts,
    timestamps,
)
from data.adapters.table_items import Items, load_items, repeats
from data.artifacts import int_lists
from data.shaping.assemble import Coded, Funnel
from data.shaping.coding import Coder
from data.shaping.findings import Finding
from data.shaping.splits import SPLIT_NAMES, in_order, steps_back

UNKNOWN_SPLIT = -1


@dataclass(frozen=True)
class Tables:
    """The tables on dense ids.

    items: columns of items.parquet, row i is item i. user, item int32, rating float32 (NaN), timestamp int64, beyond int32
    (nanoseconds after it) or None, known bool (has a time), order int64 or None, split int8 or None (codes of SPLIT_NAMES,
    UNKNOWN_SPLIT = null) [interactions, file order]. sequences: columns of sequences.parquet without example_id, or None. users: columns of users.parquet.
    cleaned: items whose text `clean_text` changed; unread: {"ratings", "prices": those that are there and cannot be read, one finding
    or none}.
    """

    items: pa.Table
    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    beyond: np.ndarray | None
    known: np.ndarray
    order: np.ndarray | None
    split: np.ndarray | None
    sequences: pa.Table | None
    users: pa.Table
    cleaned: int
    unread: dict[str, Sequence[Finding]]


def files(raw: str | Path, options: TablesOptions) -> list[Path]:
    """Every table that is named; InputError naming the first that is missing."""
    specs = (options.items, options.interactions, options.sequences, options.users)
    paths = [Path(raw) / spec.file for spec in specs if spec.file]
    for path in paths:
        if not path.is_file():
            raise InputError(f"missing file: {path} -> check raw and the tables section of the config")
    return paths


def read(raw: str | Path, options: TablesOptions, funnel: Funnel) -> tuple[Loaded | None, list[Finding]]:
    """The tables as the contract wants them."""
    tables, findings = load(raw, options)
    if tables is None:
        return None, findings
    rows = Coded(
        tables.user, tables.item, tables.rating, tables.timestamp, tables.known, tables.order, tables.split,
        tables.beyond,
    )  # fmt: skip
    funnel.count("interactions read", rows)
    funnel.facts["items_with_cleaned_text"] = tables.cleaned
    for name, lost in tables.unread.items():
        funnel.facts[f"{name}_not_parsed"] = sum(one.count for one in lost)
        for one in lost:
            funnel.note(str(one))
    users = tables.users.drop_columns(["user_id"])
    items = tables.items.drop_columns(["item_id"])
    return (
        Loaded(rows, partial(_take, items), users, items.num_rows, tables.sequences, keeps_codes=True),
        findings,
    )


def _take(items: pa.Table, codes: np.ndarray) -> pa.Table:
    return items.take(pa.array(codes))


def load(raw: str | Path, options: TablesOptions) -> tuple[Tables | None, list[Finding]]:
    """(the tables, everything that is wrong with them); None where the item or interaction table cannot be used."""
    items, findings = load_items(raw, options.items, clean=options.clean_text)
    wanted = ("timestamp", "rating", "order", "split")
    source, found = read_source(raw, options.interactions, required=("user_id", "item_id"), optional=wanted)
    findings += found
    users, sequences = Coder(), None
    columns, unread, found = (
        _load_interactions(source, options.time_unit, items, users) if source else ({}, [], [])
    )
    findings += found
    if options.sequences.file:
        sequences, found = _load_sequences(raw, options, items, users)
        findings += found
    codes, values = users.finish()
    rows = source.rows if source else 0
    if source:
        named = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
        order, found = _orders(source, codes[:rows], named[codes[:rows]])
        findings += found
        times = columns["timestamp"], columns["beyond"], columns["known"] & (columns["timestamp"] >= 0)
        columns["order"], found = _settled(source, codes[:rows], order, *times, rule=options.sequence_by)
        findings += found
    if sequences is not None:
        sequences = sequences.add_column(0, "user_id", pa.array(codes[rows:], pa.int32()))
    user_table, found = _load_users(raw, options.users, values)
    findings += found
    if items is None or source is None:
        return None, findings
    loaded = Tables(
        items=items.table, user=codes[:rows], sequences=sequences, users=user_table, cleaned=items.cleaned,
        unread={"ratings": unread, "prices": items.unread}, **columns
    )  # fmt: skip
    return loaded, findings


def _load_interactions(
    source: ColumnSource, time_unit: str, items: Items | None, users: Coder
) -> tuple[dict[str, np.ndarray | None], list[Finding], list[Finding]]:
    """(item, timestamp, beyond, known, rating and split of `Tables`, ratings that cannot be read, findings).

    The users are added to the coder.
    """
    ids, findings = keys(source, "user_id")
    users.add(ids)
    item, found = _item_numbers(source, "item_id", items)
    findings += found
    timestamp, beyond, known, found = timestamps(source, time_unit)
    findings += found
    rating, unread, found = amounts(source, "rating", parse_rating, write="4 or 4.5")
    findings += found
    split, found = _splits(source, SPLIT_NAMES)
    ratings = rating.to_numpy(zero_copy_only=False).astype(np.float32)
    columns = {
        "item": item, "timestamp": timestamp, "beyond": beyond, "known": known, "rating": ratings, "split": split
    }  # fmt: skip
    return columns, unread, findings + found


def _item_numbers(source: ColumnSource, column: str, items: Items | None) -> tuple[np.ndarray, list[Finding]]:
    mentioned, findings = keys(source, column)
    if items is None:
        return np.zeros(len(mentioned), np.int32), findings
    numbers_, lost = items.numbers(mentioned)
    return numbers_, findings + source.at(column, lost, "item is not in the item table", values=mentioned)


def _splits(source: ColumnSource, allowed: Sequence[str]) -> tuple[np.ndarray | None, list[Finding]]:
    """(codes of SPLIT_NAMES int8, UNKNOWN_SPLIT where null, or None without the column; findings)."""
    values, findings = texts(source, "split", nulls=True)
    if not source.has("split"):
        return None, []
    codes = pc.index_in(values, value_set=pa.array(allowed))
    bad = pc.and_(codes.is_null(), values.is_valid()).to_numpy(zero_copy_only=False)
    findings += source.at("split", bad, "unknown split", values=values, fix=f"one of {', '.join(allowed)}")
    return codes.fill_null(UNKNOWN_SPLIT).to_numpy().astype(np.int8), findings


def _orders(
    source: ColumnSource, user: np.ndarray, named: np.ndarray
) -> tuple[np.ndarray | None, list[Finding]]:
    """(position int64 of every row in its user's sequence, or None; findings: nulls, repeats and gaps within a user).

    user: int32 [rows]; named: bool [rows], False where the user id is missing.
    """
    if not source.has("order"):
        return None, []
    values, findings = numbers(source, "order", pa.int64())
    missing = values.is_null().to_numpy(zero_copy_only=False)
    if findings:
        return None, findings
    findings = source.at("order", missing, "null order", fix="give it everywhere, or leave the column out")
    order = values.fill_null(0).to_numpy()
    rows = np.lexsort((order, user))
    rows = rows[(named & ~missing)[rows]]
    step = np.where(np.diff(user[rows]) == 0, np.diff(order[rows]), 1)
    fix = "number each user's rows without repeats and gaps, or leave the column out to go by time"
    for wrong, what in (
        (step == 0, "the user has this order twice"),
        (step > 1, "gap in the user's order before it"),
    ):
        bad = np.zeros(len(order), bool)
        bad[rows[1:][wrong]] = True
        findings += source.at("order", bad, what, values=values, fix=fix)
    return order, findings


def _settled(
    source: ColumnSource,
    user: np.ndarray,
    order: np.ndarray | None,
    timestamp: np.ndarray,
    beyond: np.ndarray | None,
    known: np.ndarray,
    *,
    rule: str,
) -> tuple[np.ndarray | None, list[Finding]]:
    """(the order that counts int64 [rows] or None, a finding where the given one contradicts the times).

    A row whose time is before that of an earlier row of its user would be history of what it follows: a target of the
    test split could stand in the history of a train window. `rule` time puts such rows by time, ties by order.
    """
    if order is None:
        return None, []
    rows = np.lexsort((order, user))
    timed = rows[known[rows]]
    back = steps_back(user[timed], timestamp[timed], None if beyond is None else beyond[timed])
    if not len(back) or rule == "order":
        return order, []
    if rule == "time":
        finer = None if beyond is None else beyond[rows]
        by_time = rows[in_order(user[rows], timestamp[rows], known[rows], finer)]
        settled = np.empty_like(order)
        settled[by_time] = np.arange(len(order))
        return settled, []
    bad = np.zeros(len(order), bool)
    bad[timed[back]] = True
    fix = "correct one of them, or set tables.sequence_by to order or time"
    what = "the order contradicts the times: the row before it in the user's order is later"
    return order, source.at("order", bad, what, values=pa.array(order), fix=fix)


def _load_sequences(
    raw: str | Path, options: TablesOptions, items: Items | None, users: Coder
) -> tuple[pa.Table | None, list[Finding]]:
    """Published sequences in file order without user_id; their users are added to the coder."""
    spec = options.sequences
    required = ("user_id", "history", "target", "split")
    source, findings = read_source(raw, spec, required=required, optional=("timestamp",))
    if source is None:
        return None, findings
    ids, found = keys(source, "user_id")
    users.add(ids)
    offsets, mentioned, more = key_lists(source, "history")
    findings += found + more
    history = np.zeros(len(mentioned), np.int32)
    if items is not None:
        history, lost = items.numbers(mentioned)
        first = _first_lost(source, offsets, mentioned, lost)
        findings += source.at(
            "history", rows_of(offsets, lost), "an item is not in the item table", values=first
        )
    target, found = _item_numbers(source, "target", items)
    split, more = _splits(source, SPLIT_NAMES[:3])
    findings += found + more
    if split is None or not source.has("history"):
        return None, findings
    null = source.cells("split").is_null().to_numpy(zero_copy_only=False)
    findings += source.at("split", null, "null split", fix=f"one of {', '.join(SPLIT_NAMES[:3])}")
    columns = {
        "history": int_lists(offsets, history),
        "target": pa.array(target, pa.int32()),
        "split": pa.array(np.array([*SPLIT_NAMES, None], object)[split], pa.string()),
    }
    if source.has("timestamp"):
        seconds, _, known, found = timestamps(source, options.time_unit)
        columns["timestamp"] = pa.array(seconds, mask=~known)
        findings += found
    columns |= {name: source.cells(name) for name in spec.extras if source.has(name) and name not in columns}
    return pa.table(columns), findings


def _first_lost(source: ColumnSource, offsets: np.ndarray, ids: pa.Array, lost: np.ndarray) -> pa.Array:
    """Per row (string, null where none) the first of its ids that is lost."""
    places = np.flatnonzero(lost)
    rows, first = np.unique(np.searchsorted(offsets, places, side="right") - 1, return_index=True)
    take = np.full(source.rows, -1)
    take[rows] = places[first]
    return ids.take(pa.array(take, mask=take < 0))


def _load_users(raw: str | Path, spec: TableFile, values: pa.Array) -> tuple[pa.Table, list[Finding]]:
    """users.parquet: one row per user in dense order; users that the table does not list keep their id as raw_id."""
    numbered = pa.array(np.arange(len(values)), pa.int32())
    plain = pa.table({"user_id": numbered, "raw_id": values})
    if not spec.file:
        return plain, []
    source, findings = read_source(raw, spec, required=("user_id",), optional=("raw_id",))
    if source is None or not source.has("user_id"):
        return plain, findings
    listed, found = keys(source, "user_id")
    findings += found + source.at("user_id", repeats(listed), "duplicate user id", values=listed)
    rows = pc.index_in(values, value_set=listed)
    raw_id, found = texts(source, "raw_id", nulls=True)
    columns = {"user_id": numbered, "raw_id": pc.coalesce(raw_id.take(rows), values)}
    columns |= {n: source.cells(n).take(rows) for n in spec.extras if source.has(n) and n not in columns}
    return pa.table(columns), findings + found


def find_lines(
    raw: str | Path, options: TablesOptions, *, user: str | None, items: Sequence[str]
) -> RawLines:
    """Rows of the tables; a raw id may be a column of its own beside the id."""
    named = ("title", "raw_id")
    item_rows = first_of_each(_rows_with(raw, options.items, ("raw_id", "item_id"), items, optional=named))
    keys_ = [] if user is None else [user]
    if keys_ and options.users.file:
        known = list(_rows_with(raw, options.users, ("raw_id", "user_id"), keys_, optional=("raw_id",)))
        keys_ = [str(row.fields["user_id"]) for row in known] or keys_
    optional = ("item_id", "timestamp", "rating", "order", "split")
    return RawLines(
        list(_rows_with(raw, options.interactions, ("user_id",), keys_, optional=optional)), item_rows
    )


def _rows_with(
    raw: str | Path,
    spec: TableFile,
    columns: Sequence[str],
    wanted: Sequence[str],
    *,
    optional: Sequence[str],
) -> Iterator[RawLine]:
    """Rows of a table in which the first of `columns` that it has is one of `wanted`."""
    source, findings = read_source(raw, spec, required=columns[-1:], optional=optional)
    column = next((name for name in columns if source is not None and source.has(name)), None)
    if source is None or column is None:
        raise InputError(f"{findings[0].where}: {findings[0].what} -> check --raw")
    cells = source.cells(column).cast(pa.string())
    matches = pc.is_in(cells, value_set=pa.array(wanted, pa.string()))
    for row in np.flatnonzero(matches.to_numpy(zero_copy_only=False)).tolist():
        fields = {name: value[0] for name, value in source.table.slice(row, 1).to_pydict().items()}
        text = ", ".join(f"{name} {value}" for name, value in fields.items())
        yield RawLine(spec.file, row, cells[row].as_py(), shown(text), fields)
