"""Losses on questions about items, beside the loss on validation rows: of those that were taught, and of those held out.

    fit_loss/<task>         a seeded sample of train rows: how well they are learned by heart, no generalisation
    held_out_loss/<task>    rows of items that train asks nothing about (stage 07, --held_out_items)

SIDReasoner logs title2sid and sid2title over the whole item table at every evaluation; those are the former.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.rows import sample_rows
from data.tasks import ITEM_TASKS, TASKS

HELD_OUT = "held_out.parquet"


def item_tables(
    train: pa.Table, examples_dir: str | Path, *, tasks: list[str], rows: int, seed: int
) -> dict[str, pa.Table]:
    """At most `rows` rows by name of their loss, of the item tasks in `train` and in held_out.parquet (`tasks`, [] = all).

    InputError where there is no such row at all.
    """
    tables = {"fit_loss": train}
    if (Path(examples_dir) / HELD_OUT).exists():
        tables["held_out_loss"] = artifacts.read(examples_dir, artifacts.EXAMPLES, file=HELD_OUT)
    found = {}
    for name, table in tables.items():
        for task in ITEM_TASKS:
            if tasks and task not in tasks:
                continue
            of_task = table.filter(pc.equal(table["task"], task))
            if of_task.num_rows:
                chosen = sample_rows(of_task.num_rows, rows, [seed, TASKS.index(task)])
                found[f"{name}/{task}"] = of_task.take(chosen)
    if not found:
        raise InputError(
            f"item_loss_rows measures item tasks ({', '.join(ITEM_TASKS)}), of which there is no row -> 0, or other tasks"
        )
    return found
