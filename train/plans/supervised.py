"""The plan of a supervised training: the batches of a sample of its rows, laid out as they would be, without the model.

`args` is train.sft.SftArgs.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from data import artifacts
from data.prompts import wording
from data.renderer import Renderer
from data.sid import read_sids, read_vocab
from data.store.checkpoints import require_model
from data.store.models import load_tokenizer
from infer.engine import DecodeSettings
from infer.loading import examples_facts
from train.scale.planning import Load, Machine, memory_plan, shape_of, told
from train.supervised.batches import IGNORED
from train.supervised.rows import chosen_rows, make_batches, units_of
from train.supervised.tokens import render

SAMPLE = 4096  # rows that are rendered, or four steps of them
LAID_OUT = 16  # batches whose size is looked at


def plan(args: Any) -> list[str]:
    """The lines that train.sft prints with --plan. Nothing is written."""
    from trl import SFTConfig

    import train.supervised.trainer  # noqa: F401  what the training process holds besides the model
    from train.arguments import trainer_arguments
    from train.safety import selection

    machine, model = Machine.of(args.plan), require_model(args.model)
    shape, sids = shape_of(model), read_sids(args.sids)
    facts = examples_facts(args.examples, sids, args.sids)
    with tempfile.TemporaryDirectory() as place:
        config = trainer_arguments(
            SFTConfig, args.trainer, output_dir=place, seed=args.seed, max_length=args.max_length,
            **selection(args.trainer, args.select_by),
        )  # fmt: skip
    renderer = Renderer(
        load_tokenizer(model),
        read_vocab(model),
        max_prompt=args.max_prompt,
        json_sids=wording(facts["wording"]).json_sids,
    )
    table = artifacts.read_split(args.examples, "train")
    chosen, parts = chosen_rows(table, args), machine.processes * config.gradient_accumulation_steps
    windows = config.per_device_train_batch_size * parts
    sample = table.take(chosen[: max(SAMPLE, 4 * windows)])
    layout = {"end_id": renderer.terminator_ids()[-1], "step_windows": windows}
    units = units_of(args, sample, render(sample, renderer), **layout)
    batches = make_batches(args, sample, units, step_windows=windows, seed=args.seed, parts=parts)
    made = [batches[index] for index in range(min(len(batches), LAID_OUT))]
    labels = float(np.mean([int((batch["labels"] != IGNORED).sum()) for batch in made]))
    steps = -(-len(chosen) // windows)
    decode = DecodeSettings(beams=args.valid_beams)
    longest = int(np.mean(units.rows.prompts_N)) + args.valid_beams * (sids.num_levels - 1)
    load = Load(
        steps=config.max_steps if config.max_steps > 0 else round(steps * config.num_train_epochs),
        tokens=float(np.mean([int(batch["real_tokens"]) for batch in made])) * parts,
        labels=labels * parts,
        slots=max(batch["input_ids"].numel() for batch in made),
        validation_tokens=decode.batch_size * longest,
    )
    plan = memory_plan(config, train_what=args.train_what)
    return told(machine, shape, load, plan, train_what=args.train_what, eval_share=args.eval_share)
