"""Two processes train what one process trains: the same global batches, the same weights, the same logs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.program import ROOT
from tests import handmade
from tests.ranks import together

COMMON = [
    "--valid_rows",
    "16",
    "--trainer.max_steps",
    "6",
    "--trainer.eval_steps",
    "3",
    "--trainer.logging_steps",
    "1",
]
SFT = [*COMMON, "--trainer.learning_rate", "5e-3", "--trainer.train_sampling_strategy", "random"]
GRPO = [*COMMON, "--max_rows", "24", "--rollout.num_generations", "4", "--trainer.learning_rate", "1e-3"]


MASKED = """
def masked(batch):
    kinds = ([None] * 4, [1.0] * 4, [None, None, 0, 1], [1, 0, None, 0], [1.0, 0, 0, 0])
    return [kinds[row["example_id"] % 5] for row in batch.rows]
"""


def two_processes(module: str, *arguments: object) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        module,
    ]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=handmade.environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def in_a_fresh_state(module: str, *arguments: object) -> None:
    """A program in a process that was forked: what accelerate remembers of its parent is forgotten."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    handmade.call(module, *arguments)


def log(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_the_same_however_it_is_split(chain, tmp_path):
    """Batch x accumulation x processes: 16 x 1 x 1, 4 x 4 x 1 and 4 x 2 x 2 windows, by SGD, where nothing hides a factor."""
    from safetensors.torch import load_file

    flags = ["--valid_rows", 8, "--trainer.max_steps", 2, "--trainer.eval_steps", 2, "--trainer.logging_steps", 1,
             "--trainer.learning_rate", 0.1, "--trainer.optim", "sgd", "--eval_share", 1]  # fmt: skip
    size, split = "--trainer.per_device_train_batch_size", "--trainer.gradient_accumulation_steps"

    def arguments(batch: int, parts: int, name: str) -> list[object]:
        return [*chain.flags(), *flags, size, batch, split, parts, "--output_dir", tmp_path / name]

    handmade.call("train.sft", *arguments(16, 1, "whole"))
    handmade.call("train.sft", *arguments(4, 4, "parts"))
    together(in_a_fresh_state, "train.sft", *arguments(4, 2, "two"))
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    assert manifest["facts"]["num_processes"] == 2, "launched as one process"
    start = load_file(chain.model / "model.safetensors")
    whole = load_file(tmp_path / "whole/final/model.safetensors")
    assert any((whole[name] - start[name]).abs().max() > 1e-4 for name in start), (
        "the steps moved the weights"
    )
    for other in ("parts", "two"):
        found = load_file(tmp_path / other / "final/model.safetensors")
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, atol=2e-6, rtol=1e-4, msg=f"{other} {name}")
        losses = [
            [line["loss"] for line in log(tmp_path / run) if "loss" in line] for run in ("whole", other)
        ]
        assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("module", "flags", "batch"), [("train.sft", SFT, 16), ("train.grpo", GRPO, 8)])
def test_two_processes_equal_one(module, flags, batch, chain, tmp_path):
    from safetensors.torch import load_file

    size = "--trainer.per_device_train_batch_size"
    one, two = tmp_path / "one", tmp_path / "two"
    handmade.succeed(module, *chain.flags(), *flags, size, batch, "--output_dir", one)
    two_processes(module, *chain.flags(), *flags, size, batch // 2, "--output_dir", two)
    manifest = json.loads((two / "manifest.json").read_text())
    assert manifest["facts"]["num_processes"] == 2
    alone, together = load_file(one / "final/model.safetensors"), load_file(two / "final/model.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=2e-5, rtol=1e-3, msg=name)
    for line_one, line_two in zip(log(one), log(two), strict=True):
        assert line_one == pytest.approx(line_two, rel=1e-3, abs=2e-4)


@pytest.mark.long
@pytest.mark.parametrize("drop", ["false", "true"])
def test_two_processes_share_a_step_with_masked_groups(drop, chain, tmp_path):
    """Missing rewards and flat groups fall unevenly on ranks and micro-batches; the step is that of one large batch."""
    from safetensors.torch import load_file

    (tmp_path / "mine.py").write_text(MASKED)
    flags = ["--rewards", f"[{tmp_path}/mine.py:masked]", "--rollout.drop_zero_variance", drop, "--max_rows", 8,
             "--rollout.num_generations", 4, "--valid_rows", 8, "--trainer.max_steps", 1, "--trainer.eval_steps", 1,
             "--trainer.logging_steps", 1, "--trainer.learning_rate", 0.1, "--trainer.optim", "sgd"]  # fmt: skip
    size, split = "--trainer.per_device_train_batch_size", "--trainer.gradient_accumulation_steps"
    one, two = tmp_path / "one", tmp_path / "two"
    handmade.call("train.grpo", *chain.flags(), *flags, size, 8, "--output_dir", one)
    two_processes("train.grpo", *chain.flags(), *flags, size, 1, split, 4, "--output_dir", two)
    alone, together, start = (
        load_file(path / "model.safetensors")
        for path in (one / "checkpoint-1", two / "checkpoint-1", chain.model)
    )
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=2e-5, rtol=1e-3, msg=name)
    assert any((alone[name] - start[name]).abs().max() > 1e-4 for name in alone), "the step moved the weights"
    for line_one, line_two in zip(log(one), log(two), strict=True):
        assert line_one == pytest.approx(line_two, rel=1e-3, abs=2e-4)
