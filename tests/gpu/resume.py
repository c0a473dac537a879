"""A training that is killed and started again has the losses of one that was not: `train.sft` as a user runs it.

python -m tests.gpu.resume        # one JSON line; on CUDA where it is, else on the CPU

On a GPU sums may be added in another order from run to run: the largest difference of a logged loss is told, and whether the
weights are the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from configs.program import ROOT
from tests import handmade
from tests.chain import build_chain

STEPS = {
    "max_steps": 24,
    "eval_steps": 4,
    "logging_steps": 1,
    "per_device_train_batch_size": 16,
    "learning_rate": "5e-3",
}
WAIT_SECONDS = 120.0


def losses(directory: Path) -> dict[int, float]:
    """{step: loss} of a run."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / "final/model.safetensors").read_bytes()).hexdigest()


def killed_after(command: list[str], mark: Path) -> None:
    """Run `command` and kill it as soon as `mark` exists."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=handmade.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + WAIT_SECONDS
    while not mark.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if not mark.exists():
        raise SystemExit(f"no checkpoint came: {errors[-400:]}")


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        chain = build_chain(root / "chain")
        flags = [part for key, value in STEPS.items() for part in (f"--trainer.{key}", str(value))]
        command = [
            sys.executable,
            "-m",
            "train.sft",
            *chain.flags(),
            *flags,
            "--valid_rows",
            "20",
            "--output_dir",
        ]
        whole, cut = root / "whole", root / "cut"
        handmade.call(command[2], *command[3:], whole)
        killed_after([*command, str(cut)], cut / "checkpoint-8/COMPLETE.json")
        kept = len(losses(cut))
        handmade.call(command[2], *command[3:], cut)
        first, second = losses(whole), losses(cut)
        difference = max(abs(first[step] - second.get(step, float("inf"))) for step in first)
        told = {"steps": len(first), "steps_before_the_kill": kept, "largest_difference": difference}
        print(json.dumps(told | {"same_bytes": digest(whole) == digest(cut)}))


if __name__ == "__main__":
    main()
