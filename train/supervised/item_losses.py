"""Losses by task, beside the loss on validation rows: questions about items that were taught or held out, and what follows
histories besides the next item.

    fit_loss/<task>         a seeded sample of train rows: how well they are learned by heart, no generalisation
    held_out_loss/<task>    rows of items that train asks nothing about (stage 07, --held_out_items)
    valid_loss/<task>       validation rows of history_to_tid and history_to_instruction, those that have an answer

SIDReasoner logs title2sid and sid2title over the whole item table at every evaluation; those are the former.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.answers import INSTRUCTION_TASK
from data.rows import sample_rows
from data.tasks import ITEM_TASKS, TASKS

HELD_OUT = "held_out"


def item_tables(
    train: pa.Table, examples_dir: str | Path, *, tasks: list[str], rows: int, seed: int
) -> dict[str, pa.Table]:
    """At most `rows` rows by name of their loss, of the tasks above that are among `tasks` ([] = all).

    InputError where there is no such row at all.
    """
    tables = {"fit_loss": (train, ITEM_TASKS)}
    if artifacts.has_split(examples_dir, HELD_OUT):
        tables["held_out_loss"] = (artifacts.read_split(examples_dir, HELD_OUT), ITEM_TASKS)
    tables["valid_loss"] = (answered(examples_dir), ("history_to_tid", INSTRUCTION_TASK))
    found = {}
    for name, (table, measured) in tables.items():
        for task in measured:
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


def answered(examples_dir: str | Path) -> pa.Table:
    """The validation rows whose answer is whole: nobody may have written an instruction for one."""
    valid = artifacts.read_split(examples_dir, "valid")
    unwritten = pc.and_(
        pc.equal(valid["task"], INSTRUCTION_TASK), pc.is_null(pc.struct_field(valid["answer"], "text"))
    )
    return valid.filter(pc.invert(unwritten))
