"""Is a prepared data set what later stages rely on? Findings about its four tables, schema first, then values.

A table that misses a column, or has it in a type that cannot become ours, is checked no further.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.adapters.table_columns import whole
from data.adapters.times import not_of_unit
from data.artifacts import INTERACTIONS, ITEMS, SEQUENCES, USERS, Schema, ragged
from data.shaping.findings import Finding, in_rows
from data.shaping.splits import SPLIT_NAMES, positions
from data.store.parquet import UNREADABLE, read_table

DENSE = "ids are the row numbers 0..N-1: run data.prepare again"


def check_prepared(directory: str | Path) -> tuple[dict[str, int], list[Finding]]:
    """({table: rows}, everything that is wrong) of a directory that data.prepare has written."""
    tables, findings = {}, []
    for schema in (ITEMS, USERS, INTERACTIONS, SEQUENCES):
        table, found = _read(Path(directory) / schema.file, schema)
        findings += found
        if table is not None:
            tables[schema.file] = table
    sizes = {
        "item": tables[ITEMS.file].num_rows if ITEMS.file in tables else None,
        "user": tables[USERS.file].num_rows if USERS.file in tables else None,
    }
    for check in (_items, _users, _interactions, _sequences):
        findings += check(tables, sizes)
    return {file: table.num_rows for file, table in tables.items()}, findings


def _read(path: Path, schema: Schema) -> tuple[pa.Table | None, list[Finding]]:
    """The table when all its columns are there with their types and without forbidden nulls."""
    if not path.is_file():
        return None, [Finding(path.name, "", "missing file", f"{schema.written_by} writes it")]
    try:
        table = read_table(path)
    except UNREADABLE as error:
        why = " ".join(str(error).split())[:120]
        return None, [Finding(path.name, "", f"no readable parquet file ({why})", "run data.prepare again")]
    findings = []
    for name, kind in (schema.required | schema.optional).items():
        if name not in table.column_names:
            if name in schema.required:
                fix = f"it has {', '.join(table.column_names)}"
                findings.append(Finding(path.name, name, "missing column", fix))
            continue
        column, found = _as_read(path.name, name, table[name], kind)
        findings += found
        if not found and name not in schema.nullable:
            findings += in_rows(path.name, name, column.is_null().to_numpy(zero_copy_only=False), "null")
        table = table.set_column(table.column_names.index(name), name, column)
    return (None if findings else table), findings


def _as_read(
    file: str, name: str, values: pa.ChunkedArray, kind: pa.DataType
) -> tuple[pa.Array, list[Finding]]:
    """(the column as later stages read it, or as it is when that cannot be; findings)."""
    column = whole(values)
    try:
        return column.cast(kind), []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return column, [Finding(file, name, f"wrong type: {column.type}", f"{kind} is expected")]


def _items(tables: dict[str, pa.Table], sizes: dict[str, int | None]) -> Iterator[Finding]:
    if ITEMS.file in tables:
        yield from _dense(ITEMS.file, tables[ITEMS.file], "item_id")


def _users(tables: dict[str, pa.Table], sizes: dict[str, int | None]) -> Iterator[Finding]:
    if USERS.file in tables:
        yield from _dense(USERS.file, tables[USERS.file], "user_id")


def _dense(file: str, table: pa.Table, column: str) -> list[Finding]:
    ids = table[column].to_numpy()
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    kind = column.removesuffix("_id")
    values = whole(table[column])
    twice = in_rows(file, column, repeated, f"duplicate {kind} id", values=values, fix=DENSE)
    return twice or in_rows(
        file, column, ids != np.arange(len(ids)), "not the row's number", values=values, fix=DENSE
    )


def _interactions(tables: dict[str, pa.Table], sizes: dict[str, int | None]) -> Iterator[Finding]:
    if INTERACTIONS.file not in tables:
        return
    file, table = INTERACTIONS.file, tables[INTERACTIONS.file]
    yield from _references(file, table, {"user_id": sizes["user"], "item_id": sizes["item"]})
    if "split" in table.column_names:
        yield from _split(file, table, SPLIT_NAMES)
    yield from _time(file, table)
    user, order = table["user_id"].to_numpy(), table["order"].to_numpy()
    fix = "rows are grouped by user, in order, numbered from 0: run data.prepare again"
    apart = np.zeros(len(user), bool)
    apart[1:] = np.diff(user) < 0
    if apart.any():
        yield from in_rows(file, "user_id", apart, "rows of a user are not together", fix=fix)
        return
    wrong = order != positions(user)
    yield from in_rows(
        file, "order", wrong, "gap or repeat in the user's order", values=whole(table["order"]), fix=fix
    )


def _sequences(tables: dict[str, pa.Table], sizes: dict[str, int | None]) -> Iterator[Finding]:
    if SEQUENCES.file not in tables:
        return
    file, table = SEQUENCES.file, tables[SEQUENCES.file]
    yield from _references(file, table, {"user_id": sizes["user"], "target": sizes["item"]})
    yield from _split(file, table, SPLIT_NAMES[:3])
    yield from _time(file, table)
    ids = table["example_id"].to_numpy()
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    yield from in_rows(
        file, "example_id", repeated, "duplicate example id", values=whole(table["example_id"])
    )
    offsets, history = ragged(table["history"])
    lengths = np.diff(offsets)
    yield from in_rows(file, "history", lengths == 0, "empty history")
    if sizes["item"] is not None and len(history):
        outside = (history < 0) | (history >= sizes["item"])
        rows = np.zeros(len(lengths), bool)
        rows[np.repeat(np.arange(len(lengths)), lengths)[outside]] = True
        yield from in_rows(
            file, "history", rows, "an item is not in items.parquet", values=whole(table["history"])
        )


def _references(file: str, table: pa.Table, limits: dict[str, int | None]) -> Iterator[Finding]:
    """Ids outside 0..limit-1; a limit of None is not known."""
    for column, limit in limits.items():
        if limit is None:
            continue
        ids = table[column].to_numpy()
        owner = "users.parquet" if column == "user_id" else "items.parquet"
        outside = (ids < 0) | (ids >= limit)
        yield from in_rows(file, column, outside, f"id is not in {owner}", values=whole(table[column]))


def _split(file: str, table: pa.Table, allowed: tuple[str, ...]) -> list[Finding]:
    values = whole(table["split"])
    known = pc.is_in(values, value_set=pa.array(allowed))
    bad = pc.and_not(values.is_valid(), known).to_numpy(zero_copy_only=False)
    return in_rows(file, "split", bad, "unknown split", values=values, fix=f"one of {', '.join(allowed)}")


def _time(file: str, table: pa.Table) -> Iterator[Finding]:
    if "timestamp" not in table.column_names:
        return
    values = whole(table["timestamp"])
    seconds, known = values.fill_null(0).to_numpy(), values.is_valid().to_numpy(zero_copy_only=False)
    yield from in_rows(file, "timestamp", seconds < 0, "negative time", values=values)
    late, what, _ = not_of_unit(seconds, known, unit="s", option="")
    yield from in_rows(file, "timestamp", late, what, values=values, fix="milliseconds?")
