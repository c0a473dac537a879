"""What a run of train.grpo works on: its prompts, by task, and what it would do with them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.answers import INSTRUCTION_TASK
from data.rows import sample_rows
from train.soft_targets import data_of
from train.windows import newest_rows


def prompt_rows(args: Any) -> list[dict[str, Any]]:
    """The train rows whose prompts are rolled out. Validation and test rows are never read here."""
    table = artifacts.read_split(args.examples, "train")
    chosen = table.filter(pc.is_in(table["task"], value_set=artifacts.text_array(args.tasks)))
    if not chosen.num_rows:
        raise InputError(
            f"examples {args.examples} have no task {', '.join(args.tasks)} -> build them in stage 07"
        )
    for task, most in args.task_rows.items():
        own = np.flatnonzero(pc.equal(chosen["task"], task).to_numpy())
        dropped = np.setdiff1d(own, own[sample_rows(len(own), most, args.seed)])
        chosen = chosen.take(np.setdiff1d(np.arange(chosen.num_rows), dropped))
    if args.newest_share is not None:
        chosen = chosen.filter(
            newest_rows(chosen, data_of(args.data, args.examples), share=args.newest_share)
        )
    return chosen.take(sample_rows(chosen.num_rows, args.max_rows, args.seed)).to_pylist()


def by_task(rows: list[dict[str, Any]]) -> Counter[str]:
    """How many prompts each task has."""
    return Counter(row["task"] for row in rows)


def described(args: Any, rows: list[dict[str, Any]]) -> list[str]:
    """What a run would do, in lines, without a model: prompts by task, how they make steps, questions to the judge."""
    trainer, group = args.trainer, args.rollout.num_generations
    batch = int(trainer.get("per_device_train_batch_size", 8)) * int(
        trainer.get("gradient_accumulation_steps", 1)
    )
    epochs, steps = float(trainer.get("num_train_epochs", 3)), int(trainer.get("max_steps", -1))
    steps = steps if steps > 0 else math.ceil(len(rows) / batch * epochs)
    lines = [f"{task}: {count:,} prompts" for task, count in sorted(by_task(rows).items())]
    lines.append(
        f"{steps:,} steps of {batch} prompts x {group} rollouts = {batch * group:,} completions on one process "
        "(NUM_GPUS of them divide the steps)"
    )
    if args.judge.asked:
        told = by_task(rows)[INSTRUCTION_TASK] / len(rows) * steps * batch * group
        lines.append(
            f"judge: at most {math.ceil(told):,} instructions in {math.ceil(told / args.judge.batch):,} calls; equal ones once"
        )
    return lines
