"""What a person sees of a training run: step, total, rate, time left and the last validation.

A line every half minute and one after each validation, on stdout and in the output's log.txt; on a terminal the bar of the
Trainer takes the place of the former. Said once: a warm-up longer than the run, and a forecast of more than an hour.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from configs.program import Clock, note, quiet, say, warn
from train.pace import EVERY_SECONDS, METRICS_FILE, duration

LONG_SECONDS = 3600
FORECAST_STEPS = 3  # the first one also warms caches up
SHOWN = "eval_ndcg@10"


class Progress(TrainerCallback):
    """Says how far a run is. `clock` measures from the first step of this process."""

    def __init__(self) -> None:
        self.clock, self.said, self.first = Clock(), 0.0, 0
        self.validated = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock, self.said, self.first = Clock(), 0.0, state.global_step
        warm = args.get_warmup_steps(state.max_steps)
        if state.is_world_process_zero and warm >= state.max_steps > 0:
            warn(
                f"the warm-up of {warm} steps is not shorter than the run of {state.max_steps}: the learning rate never "
                "reaches its value -> smaller trainer.warmup_steps or a longer run"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.first:  # a validation before the first step does not count
            self.clock, self.said = Clock(), 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        seconds, done = self.clock.seconds, state.global_step - self.first
        if done == FORECAST_STEPS:
            left = self._left(state)
            if left > LONG_SECONDS:
                warn(f"this run of {state.max_steps} steps will take about {duration(seconds + left)}")
        if seconds - self.said >= EVERY_SECONDS:
            self.said = seconds
            (say if quiet() else note)(self.line(state))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and SHOWN in (logs or {}):
            self.validated = f", NDCG@10 {logs[SHOWN]:.4f} at step {state.global_step}"
            self.said = self.clock.seconds
            say(self.line(state))

    def line(self, state: Any) -> str:
        """`step 40/300, 1.3 steps/s, 3 min left, NDCG@10 0.0812 at step 20`."""
        text = f"step {state.global_step}/{state.max_steps}"
        done = state.global_step - self.first
        if done:
            rate = done / self.clock.seconds
            text += f", {rate:.1f} steps/s" if rate >= 1 else f", {1 / rate:.1f} s/step"
            text += f", {duration(self._left(state))} left"
        return text + self.validated

    def _left(self, state: Any) -> float:
        done = max(state.global_step - self.first, 1)
        return self.clock.seconds / done * (state.max_steps - state.global_step)


class Timing(TrainerCallback):
    """Appends the clock values of every log to timing.jsonl as {"step", ..._seconds, ...}: metrics.jsonl has none."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "timing.jsonl"

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = {
            "step_seconds" if name == "step_time" else name: value for name, value in (logs or {}).items()
        }
        found = {name: value for name, value in logs.items() if name.endswith(("_seconds", "_per_second"))}
        if found and "train_runtime" not in logs and state.is_world_process_zero:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": state.global_step} | found) + "\n")


def without_signal(directory: Path) -> bool:
    """Whether every group of every logged step of a GRPO run had equal rewards."""
    lines = [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]
    shares = [line["zero_variance_share"] for line in lines if "zero_variance_share" in line]
    return bool(shares) and min(shares) == 1
