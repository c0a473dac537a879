"""Recipes of papers on a small store, as a user runs them: LC-Rec's tasks in one SFT, S-DPO behind it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import yaml

from configs.program import ROOT
from tests import handmade
from tests.test_grpo_program import SHORT
from tests.test_trainers import log, series

TRAINER = [
    "--trainer.max_steps", 2, "--trainer.eval_steps", 2, "--trainer.logging_steps", 1, "--trainer.per_device_train_batch_size", 8,
    "--trainer.learning_rate", "1e-3", "--trainer.gradient_checkpointing", "false", "--valid_rows", 8, "--valid_beams", 10,
]  # fmt: skip


def recipe(name: str) -> Path:
    return ROOT / "configs" / name


def test_lc_recs_tasks_are_built_and_trained_together(chain, tmp_path):
    examples, run = tmp_path / "examples", tmp_path / "sft"
    config = recipe("lcrec/examples.yaml")
    handmade.call(
        "preprocess.build_examples",
        "--config",
        config,
        "--data",
        chain.data,
        "--sids",
        chain.sids,
        "--output_dir",
        examples,
    )
    tasks = yaml.safe_load(config.read_text())["tasks"]
    assert set(pq.read_table(examples / "train.parquet")["task"].to_pylist()) == set(tasks)
    handmade.call(
        "train.sft",
        "--config",
        recipe("lcrec/sft_lcrec.yaml"),
        *chain.flags(examples=examples),
        *TRAINER,
        "--output_dir",
        run,
    )
    assert (run / "final/model.safetensors").exists() and series(run, "loss")[-1] > 0


def test_s_dpo_prefers_the_target_to_the_other_rollouts(chain, tmp_path):
    run = tmp_path / "sdpo"
    given = [
        (name, value)
        for name, value in zip(SHORT[::2], SHORT[1::2], strict=True)
        if "generations" not in name
    ]
    flags = [part for pair in given for part in pair]
    handmade.call(
        "train.grpo", "--config", recipe("sdpo/grpo_sdpo.yaml"), *chain.flags(), *flags, "--output_dir", run
    )
    # The target is one of four; at the start policy and reference agree: log(1 + 3).
    assert abs(series(run, "loss")[0] - 1.3863) < 0.05
    assert any(line.get("given_share", 0) > 0 for line in log(run))
