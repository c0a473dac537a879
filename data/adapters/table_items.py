"""The item table of a user's own data: dense ids, text, and the lookup of ids that other tables mention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.adapters.item_text import (
    clean_parts,
    clean_text,
    description_text,
    parse_price,
    without_controls,
)
from data.adapters.options import TableFile
from data.adapters.table_columns import amounts, keys, read_source, text_lists, texts
from data.shaping.findings import Finding

CLEANERS = {
    "title": clean_text, "description": description_text, "brand": clean_text, "categories": clean_parts
}  # fmt: skip
# What no later stage can hold goes also where text is kept byte for byte.
CONTROLS = dict.fromkeys(("title", "description", "brand"), without_controls) | {
    "categories": lambda path: [without_controls(part) for part in path]
}
OPTIONAL = ("raw_id", "title", "description", "categories", "brand", "price", "image", "item_type")


@dataclass(frozen=True)
class Items:
    """The items in order of their dense ids.

    table: columns of items.parquet; keys: each item's id in the user's tables, as text; cleaned: how many items' text
    `clean_items` changed; unread: prices that are there and cannot be read, one finding or none.
    """

    table: pa.Table
    keys: pa.Array
    cleaned: int = 0
    unread: Sequence[Finding] = ()

    def numbers(self, mentioned: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(dense item int32, 0 where unknown; unknown bool, False where the id is empty) of ids as text."""
        found = pc.index_in(mentioned, value_set=self.keys)
        lost = pc.and_(found.is_null(), pc.not_equal(mentioned, "")).to_numpy(zero_copy_only=False)
        return found.fill_null(0).to_numpy().astype(np.int32), lost


def load_items(raw: str | Path, spec: TableFile, *, clean: bool) -> tuple[Items | None, list[Finding]]:
    """Read the item table; None where its ids cannot be used, so that nothing can be looked up in it."""
    source, findings = read_source(raw, spec, required=("item_id",), optional=OPTIONAL)
    if source is None or not source.has("item_id"):
        return None, findings
    ids, found = keys(source, "item_id")
    usable = not found or bool(found[0].rows)
    findings += found + source.at("item_id", repeats(ids), "duplicate item id", values=ids)
    columns: dict[str, pa.Array] = {"raw_id": ids}
    for name in ("title", "description", "brand"):
        columns[name], found = texts(source, name)
        findings += found
    columns["categories"], found = text_lists(source, "categories")
    findings += found
    unread: list[Finding] = []
    if source.has("price"):
        columns["price"], unread, found = amounts(
            source, "price", parse_price, lowest=0, write="12.50 or 1,250.00"
        )
        findings += found
    for name in ("raw_id", "image", "item_type"):
        if source.has(name):
            values, found = texts(source, name, nulls=True)
            findings += found
            columns[name] = pc.coalesce(values, ids) if name == "raw_id" else values
    columns |= {name: source.cells(name) for name in spec.extras if name in source.table.column_names}
    rows = pa.array(dense_order(ids))
    table = pa.table(columns).take(rows)
    table = table.add_column(0, "item_id", pa.array(np.arange(source.rows), pa.int32()))
    table, cleaned = clean_items(table, CLEANERS if clean else CONTROLS)
    return (Items(table, ids.take(rows), cleaned, unread) if usable else None), findings


def repeats(ids: pa.Array) -> np.ndarray:
    """bool [rows]: the id, not empty, stands in an earlier row too."""
    codes = ids.dictionary_encode().indices.to_numpy()
    later = np.ones(len(codes), bool)
    later[np.unique(codes, return_index=True)[1]] = False
    return later & pc.not_equal(ids, "").to_numpy(zero_copy_only=False)


def dense_order(ids: pa.Array) -> np.ndarray:
    """Rows in order of their dense id: by id when the ids are exactly 0..N-1, else as they stand."""
    rows = np.arange(len(ids))
    digits = pc.match_substring_regex(ids, r"^(0|[1-9]\d{0,8})$")
    if len(rows) and pc.all(digits).as_py():
        numbers_ = ids.cast(pa.int64()).to_numpy()
        if np.array_equal(np.sort(numbers_), rows):
            return np.argsort(numbers_)
    return rows


def clean_items(items: pa.Table, cleaners: dict[str, Callable[[Any], Any]]) -> tuple[pa.Table, int]:
    """(items with title, description, brand and categories as the cleaners make them, how many items changed)."""
    changed = np.zeros(items.num_rows, bool)
    for name, clean in cleaners.items():
        before = items[name].to_pylist()
        after = [clean(value) for value in before]
        changed |= np.fromiter((a != b for a, b in zip(after, before, strict=True)), bool, len(before))
        place = items.column_names.index(name)
        items = items.set_column(place, name, pa.array(after, items.schema.field(name).type))
    return items, int(changed.sum())
