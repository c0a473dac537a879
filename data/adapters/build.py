"""A raw folder and a recipe -> the tables of a data set, in memory: what stage 01 writes and data.validate looks at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.adapters.recipe import Recipe
from data.shaping.assemble import (
    Coded,
    Funnel,
    Prepared,
    distinct,
    filter_core,
    finish,
    months,
    split_rows,
    windows,
)
from data.shaping.coding import dense_by_first_appearance
from data.shaping.findings import Finding
from data.shaping.remarks import remarks
from data.shaping.splits import SPLIT_NAMES, TRAIN, in_file_order


def build(raw: str | Path, recipe: Recipe) -> tuple[Prepared | None, list[Finding]]:
    """(the tables, everything that is wrong with the folder); no tables where there are findings."""
    funnel = Funnel()
    loaded, findings = recipe.entry.load().read(raw, recipe.options, funnel)
    if loaded is None or findings:
        return None, findings
    rows, items = loaded.rows, np.arange(loaded.num_items, dtype=np.int32)
    users = loaded.users
    if not recipe.filters.keeps_everything and rows.known.any():
        funnel.facts["months_read"] = months(rows)
    # Not held twice: what comes in is as large as what is left of it.
    loaded = dataclasses.replace(loaded, rows=rows.take(np.arange(0)))
    keeps_codes = loaded.keeps_codes and recipe.filters.keeps_everything
    if not keeps_codes:
        if loaded.keeps_codes:
            tell_unseen(loaded.num_items - distinct(rows.item), funnel)
        rows = filter_core(rows, recipe.filters, funnel)
    tell_file_order(rows, funnel)
    if keeps_codes:
        rows = rows.in_sequence()
    else:
        rows, user_codes, items = renumber(rows)
        users = users.take(pa.array(user_codes))
    published = recipe.split.kind == "published"
    split = split_of(rows, recipe, has_sequences=loaded.sequences is not None)
    if published and rows.split is None and loaded.sequences is not None:
        findings = held_out_among(rows, loaded.sequences)
        if findings:
            return None, findings
    made = windows(rows, split, recipe.split)
    sequences = published_sequences(loaded.sequences, made, funnel) if published else made
    prepared = finish(
        items=numbered(loaded.items(items), "item_id"),
        rows=rows,
        split=split,
        sequences=sequences,
        users=numbered(users, "user_id"),
        funnel=funnel,
    )
    alone = int((np.bincount(rows.user, minlength=1) == 1).sum())
    if alone:
        funnel.note(f"{alone} of {users.num_rows} users have one row: they have no window")
    for text in remarks(prepared.sequences, max_history=recipe.split.max_history):
        funnel.note(text)
    return prepared, []


def tell_unseen(count: int, funnel: Funnel) -> None:
    """Items of the source without an interaction: they stay only where nothing is filtered."""
    if count:
        funnel.facts["items_without_interactions_left_out"] = count
        funnel.note(
            f"items without an interaction among those read: {count}, left out as with any filter -> filters.user_k 0, item_k 0"
            " and no window keep them"
        )


def tell_file_order(rows: Coded, funnel: Funnel) -> None:
    """Users who keep the file's order because a time is missing, where others go by time."""
    if rows.order is not None or rows.known.all() or not rows.known.any():
        return
    kept, contradicted = in_file_order(rows.user, rows.timestamp, rows.known, rows.beyond)
    if kept:
        funnel.facts |= {"users_in_file_order": kept, "users_in_file_order_against_times": contradicted}
        funnel.note(
            f"{kept} of {distinct(rows.user)} users have interactions without a time and keep the file's order throughout, for"
            f" {contradicted} of them against times that are known -> give an order column, or drop the rows without a time"
        )


def split_of(rows: Coded, recipe: Recipe, *, has_sequences: bool) -> np.ndarray:
    """Split code int8 of every row; all train where published sequences have a split and the interactions do not say."""
    if recipe.split.kind == "published" and rows.split is None and has_sequences:
        return np.full(len(rows.user), TRAIN, np.int8)
    return split_rows(rows, recipe.split)


def held_out_among(rows: Coded, sequences: pa.Table) -> list[Finding]:
    """A finding where most targets of the shipped valid and test rows are interactions of their users.

    Interactions without a split are train then (`split_of`), and a model would learn what it is tested on. Repeats of train
    items are such targets too, but hardly most of them: whoever has such rows says which is which.
    """
    held_out = sequences.filter(pc.not_equal(sequences["split"], SPLIT_NAMES[TRAIN]))
    pairs = np.unique(rows.user.astype(np.int64) << 32 | rows.item)
    targets = held_out["user_id"].to_numpy().astype(np.int64) << 32 | held_out["target"].to_numpy()
    found = int(np.isin(targets, pairs).sum())
    if 2 * found <= len(targets):
        return []
    what = f"missing, and {found} of {len(targets)} targets of the valid and test rows are among the interactions of their users"
    fix = "a column of train, valid, test and context; all of them train if these targets are only repeats"
    return [Finding("interactions", "split", what, fix)]


def renumber(rows: Coded) -> tuple[Coded, np.ndarray, np.ndarray]:
    """Dense ids by first appearance: users in file order, items while walking the users in sequence.

    Returns (rows in sequence with dense ids, old user code of each user, old item code of each item).
    """
    user, user_codes = dense_by_first_appearance(rows.user, int(rows.user.max()) + 1)
    rows = dataclasses.replace(rows, user=user).in_sequence()
    item, item_codes = dense_by_first_appearance(rows.item, int(rows.item.max()) + 1)
    return dataclasses.replace(rows, item=item), user_codes, item_codes


def numbered(table: pa.Table, name: str) -> pa.Table:
    """The table with its row numbers as first column."""
    return table.add_column(0, name, pa.array(np.arange(table.num_rows), pa.int32()))


def published_sequences(shipped: pa.Table | None, made: pa.Table, funnel: Funnel) -> pa.Table:
    """The shipped sequences as they are, with the windows made here for every split that they do not have before them."""
    if shipped is None:
        return made
    present = set(pc.unique(shipped["split"]).to_pylist())
    absent = [name for name in SPLIT_NAMES[:3] if name not in present]
    funnel.facts["windows_made_here"] = absent
    if absent and len(absent) < 3:
        funnel.note(
            f"the published sequences have no rows of {' and '.join(absent)}: their windows are made here"
        )
    wanted = pc.is_in(made["split"], value_set=pa.array(absent, pa.string()))
    return pa.concat_tables([made.filter(wanted), shipped], promote_options="default")
