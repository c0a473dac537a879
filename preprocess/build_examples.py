"""Stage 07: make the training and evaluation examples, once, and write them to disk.

    python -m preprocess.build_examples --config configs/toy/examples.yaml \\
        --data data/toystore --sids data/toystore/sids/rqkmeans --output_dir data/toystore/examples/rqkmeans

reads   <data>/  items.parquet, sequences.parquet      <sids>/  sids.parquet
writes  <output_dir>/  train.parquet, valid.parquet, test.parquet

train holds one history_to_sid row per train sequence and one row per item and item task; valid and test hold
history_to_sid rows only. Item tasks cover the whole catalogue, items without train rows included: a title is metadata
that a shop has before the first purchase, not an interaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import pyarrow.parquet as pq

from configs import program
from configs.program import InputError
from data import artifacts
from data.prompts import wording
from data.sid import read_sids, sid_format
from data.store.output import PARQUET, Output, open_output
from data.tasks import Example, TaskContext
from preprocess.examples import (
    SCHEMA,
    Sequences,
    check_belong,
    item_examples,
    item_rows,
    plain_titles,
    sequence_examples,
    tables,
)

STAGE, VERSION = "build_examples", 1
Task = Literal["history_to_sid", "sid_to_title", "title_to_sid"]


@dataclass(frozen=True, kw_only=True)
class MaxRows:
    """At most this many sequences of each split; null = all."""

    train: int | None = None
    """train sequences"""
    valid: int | None = None
    """valid sequences"""
    test: int | None = None
    """test sequences"""

    def __post_init__(self) -> None:
        for split in artifacts.SPLITS:
            limit = getattr(self, split)
            if limit is not None and limit < 1:
                raise InputError(f"max_rows.{split} is {limit} -> at least 1, or null for all rows")


@dataclass(frozen=True, kw_only=True)
class BuildExamplesArgs:
    """Arguments of preprocess.build_examples."""

    data: str
    """prepared data set (stage 01)"""
    sids: str
    """semantic IDs of its items (stage 04)"""
    output_dir: str
    """where the examples go"""
    tasks: list[Task] = field(default_factory=lambda: ["history_to_sid", "sid_to_title", "title_to_sid"])
    """tasks of the train split"""
    wording: str = "short"
    """named set of templates of data/prompts.py: short, bare or sentence"""
    format: Literal["letters", "navigen"] = "letters"
    """how semantic IDs are written; must be that of the model's vocabulary (stage 08)"""
    max_history: int | None = None
    """keep only this many newest items of a history; null = all"""
    max_title: int | None = None
    """items with a longer title (characters) get no item task; null = no limit"""
    max_rows: MaxRows = field(default_factory=MaxRows)
    """at most this many sequences per split, a seeded sample; item tasks are not sampled"""
    seed: int = 0
    """decides the sample of max_rows"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        wording(self.wording)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise InputError(f"tasks {self.tasks} -> name at least one task and each only once")
        for name in ("max_history", "max_title"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise InputError(f"{name} is {limit} -> at least 1, or null for no limit")


def main(args: BuildExamplesArgs) -> None:
    items, sids = artifacts.read_items(args.data), read_sids(args.sids)
    check_belong(args.data, args.sids, num_items=len(items), num_sids=sids.num_items)
    sequences = Sequences.from_table(artifacts.read_sequences(args.data, num_items=sids.num_items))
    titles = plain_titles(items["title"].to_pylist())
    context = TaskContext(sids, sid_format(args.format), wording(args.wording), titles)
    plans = {split: plan_split(split, context, sequences, args) for split in artifacts.SPLITS}
    with open_output(args, STAGE, version=VERSION, inputs={"data": args.data, "sids": args.sids}) as out:
        for split, plan in plans.items():
            write_split(out, split, plan)
            out.counts[split] = plan.total
        out.counts["tasks"] = {split: plan.by_task for split, plan in plans.items()}
        out.counts["skipped"] = {split: plan.skipped for split, plan in plans.items()}
        out.facts |= {
            "sids_sha256": sids.sha256,
            "wording": args.wording,
            "format": args.format,
            "tasks": args.tasks,
        }


@dataclass
class SplitPlan:
    """What one split will hold: its examples, made when they are asked for, and their numbers."""

    parts: list[Iterator[Example]] = field(default_factory=list)
    by_task: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.by_task.values())

    def add(self, task: str, examples: Iterator[Example], count: int, skipped: dict[str, int]) -> None:
        self.parts.append(examples)
        self.by_task[task] = count
        if skipped:
            self.skipped[task] = skipped


def plan_split(split: str, context: TaskContext, sequences: Sequences, args: BuildExamplesArgs) -> SplitPlan:
    """The examples of one split: sequences, and in train the item tasks. InputError when train would be empty."""
    plan = SplitPlan()
    for task in args.tasks if split == "train" else ["history_to_sid"]:
        if task == "history_to_sid":
            rows, empty = sequences.rows(split, max_rows=getattr(args.max_rows, split), seed=args.seed)
            examples = sequence_examples(context, sequences, rows, max_history=args.max_history)
            plan.add(task, examples, len(rows), {"empty_history": empty} if empty else {})
        else:
            chosen, skipped = item_rows(task, context.titles, context.sids, max_title=args.max_title)
            plan.add(task, item_examples(context, task, chosen), len(chosen), skipped)
    if split == "train" and not plan.total:
        raise InputError(
            f"{args.data} gives no train example of {', '.join(args.tasks)} -> choose other tasks or data"
        )
    return plan


def write_split(out: Output, split: str, plan: SplitPlan) -> None:
    """Write <split>.parquet, a row group per chunk."""
    examples = program.progress(chain(*plan.parts), label=f"{split} examples", total=plan.total)
    with (
        out.replacing(f"{split}.parquet") as temporary,
        pq.ParquetWriter(temporary, SCHEMA, **PARQUET) as writer,
    ):
        for table in tables(examples):
            writer.write_table(table)


if __name__ == "__main__":
    program.run(BuildExamplesArgs, main)
