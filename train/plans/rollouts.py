"""The plan of policy optimisation: prompts of a sample of its rows, branches and passes counted, without the model.

`args` is train.grpo.GrpoArgs.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data import artifacts
from data.prompts import wording
from data.renderer import Renderer
from data.sid import read_sids, read_vocab
from data.store.checkpoints import require_model
from data.store.models import load_tokenizer
from data.tasks import Answer, from_row
from infer.engine import DecodeSettings
from infer.loading import examples_facts
from train.scale.planning import Load, Machine, memory_plan, shape_of, told

SAMPLE = 1024  # prompts that are rendered


def plan(args: Any, prompts: int) -> list[str]:
    """The lines that train.grpo prints with --plan for so many prompts. Nothing is written; no estimate with thoughts."""
    from transformers import TrainingArguments

    import train.policy.sid_trainer  # noqa: F401  what the training process holds besides the model
    from train.arguments import trainer_arguments
    from train.safety import selection

    if args.thinks:
        return ["memory and time: not estimated where rollouts think"]
    machine, model, settings = Machine.of(args.plan), require_model(args.model), args.rollout
    shape, sids = shape_of(model), read_sids(args.sids)
    facts = examples_facts(args.examples, sids, args.sids)
    with tempfile.TemporaryDirectory() as place:
        config = trainer_arguments(
            TrainingArguments, args.trainer, output_dir=place, seed=args.seed, **selection(args.trainer)
        )
    renderer = Renderer(
        load_tokenizer(model),
        read_vocab(model),
        max_prompt=args.max_prompt,
        json_sids=wording(facts["wording"]).json_sids,
    )
    table = artifacts.read_split(args.examples, "train")
    table = table.filter(pc.is_in(table["task"], value_set=artifacts.text_array(args.tasks))).slice(0, SAMPLE)
    rows = [replace(from_row(row), answer=Answer()) for row in table.to_pylist()]
    lengths = np.array([len(ids) for ids in renderer.prompts(rows)])
    group, branches = settings.num_generations, sids.num_levels - 1
    parts = machine.processes * config.gradient_accumulation_steps
    per_forward = config.per_device_train_batch_size
    # sorted, the longest prompts of the sample stand beside each other: the most that a forward can hold
    widest = int(np.sort(lengths)[-per_forward:].max()) + group * branches
    every = per_forward * parts
    steps = -(-prompts // every) * settings.updates
    states = (1 + group * branches) * (settings.logprob_space == "full")
    # forward and backward are three passes, rollouts, reference and old policy one each (train.grpo.thinned)
    passes = (3 + (1 + (settings.beta > 0) + (settings.updates > 1)) / settings.updates) / 3
    load = Load(
        steps=config.max_steps if config.max_steps > 0 else round(steps * config.num_train_epochs),
        tokens=float(every * (lengths.mean() + group * branches)),
        labels=float(every * states),
        slots=min(per_forward * widest, max(settings.tokens_per_forward, widest)),
        validation_tokens=DecodeSettings().batch_size * int(lengths.mean() + args.valid_beams * branches),
        passes=passes,
    )
    apart = settings.beta > 0 and args.train_what != "lora"
    plan = memory_plan(config, train_what=args.train_what, reference=apart)
    return told(machine, shape, load, plan, train_what=args.train_what, eval_share=args.eval_share)
