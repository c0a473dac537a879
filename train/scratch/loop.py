"""The training loop of models from scratch: steps, validation, the best state, checkpoints, early stopping.

A `Task` says what the batches of an epoch are, what the loss of one is, and what validation finds. Everything that is
random in an epoch or a step follows from the seed and its number, so a run that was killed at any moment and started again
ends with the same weights, metrics and choice as one that was not. Written into the output directory:

  checkpoint-<step>/   model, optimizer and state, every SAVE_SECONDS and after a signal
  best.safetensors     the weights with the best validation so far; at the end `settle` may add what valid rows say of repeats
  metrics.jsonl        a line per validation
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs.program import Clock, NumericError, StopFlag, deferred_signals, note, quiet, say
from data.store import checkpoints
from data.store.output import Output
from infer.models.sequential.evidence import weighs_evidence
from rq.stack.snapshots import read_snapshot, tensors_of, write_snapshot
from train.pace import EVERY_SECONDS, METRICS_FILE, duration
from train.scratch import average
from train.scratch.options import EpochOptions

BEST = "best.safetensors"
SAVE_SECONDS = 20.0
KEEP = 2


class Task:
    """What is trained. A subclass sets `model` and defines the rest."""

    model: nn.Module

    def batches(self, epoch: int, rng: np.random.Generator) -> Sequence[Any]:
        """The batches of an epoch, in order."""
        raise NotImplementedError

    def loss(self, batch: Any, rng: np.random.Generator) -> tuple[Tensor, int]:
        """(mean loss, rows that it is the mean of)."""
        raise NotImplementedError

    def example_ids(self, batch: Any) -> list[int]:
        """The rows of a batch, for a message about it."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """{"ndcg@10": ...}, the model being in evaluation mode; more is better."""
        raise NotImplementedError

    def settle(self, by: str) -> dict[str, Any]:
        """What valid rows decide about the best state by a measure of `validate`, put into the model, which is in evaluation mode; facts about
        it."""
        raise NotImplementedError


@dataclass
class RunState:
    """Where a run stands: `step` steps are done, `batch` of them in epoch `epoch` (from 0)."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    best_step: int = 0
    best_epoch: int = 0
    waited: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One training in an output directory."""

    def __init__(self, task: Task, options: EpochOptions, *, out: Output, seed: int) -> None:
        self.task, self.options, self.out, self.seed = task, options, out, seed
        self.optimizer = make_optimizer(task.model, options)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.state = RunState()
        self.saved = self.said = 0.0
        self.seconds = 0.0  # spent in steps, by this process
        self.rows_here = 0
        self.batches = 1  # of this epoch

    def to_the_end(self) -> dict[str, Any]:
        """Train (resuming where there is a checkpoint), put the best weights into the model, and say how it went.

        NumericError for a loss or gradient that is not finite, Interrupted after a signal and its checkpoint.
        """
        self._resume()
        self.clock = Clock()
        self.first_step = self.state.step
        with torch.random.fork_rng(), deferred_signals() as flag:
            while self.state.epoch < self.options.epochs and not self.stopped:
                self._epoch(flag)
        state = self.state
        self.task.model.load_state_dict(load_file(self.out.path / BEST))
        self.task.model.eval()
        settled = self._settle()
        # Checkpoints first: one that is left without its best state could not be resumed.
        for _, directory in checkpoints.checkpoints(self.out.path):
            shutil.rmtree(directory)
        (self.out.path / BEST).unlink()
        self.out.counts["steps"] = state.step
        return {
            "epochs": state.epoch, "best_epoch": state.best_epoch, "best_step": state.best_step, "selected_on": "valid",
            f"best_{self.options.select_by}": state.best,
            "rows_per_second": round(self.rows_here / self.seconds, 1) if self.seconds else None,
        } | settled  # fmt: skip

    def _settle(self) -> dict[str, Any]:
        """What valid rows say of repeats, where they are asked, and what validation finds then; taken back where that is worse."""
        if self.options.repeats == "train":
            return {}
        by, task = self.options.select_by, self.task
        facts, value = task.settle(by), self.state.best
        if facts["shift"]:
            with torch.no_grad():
                value = task.validate()[by]
        if value < self.state.best:
            task.model.load_state_dict(load_file(self.out.path / BEST))
            facts |= {"taken_back": facts["shift"], "shift": 0.0}
            value = self.state.best
        return {"repeats": facts, f"settled_{by}": value, "tuned_on": "valid"}

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return bool(self.options.patience) and self.state.waited >= self.options.patience

    def _resume(self) -> None:
        found = checkpoints.newest_complete(self.out.path) if self.out.resuming else None
        checkpoints.discard_after(self.out.path, found)
        if found is not None:
            self.state = RunState(**read_snapshot(found, model=self.task.model, optimizer=self.optimizer))
            say(f"resuming from {found}")
        self._write_lines()

    def _epoch(self, flag: StopFlag) -> None:
        state = self.state
        batches = self.task.batches(state.epoch, np.random.default_rng([self.seed, 0, state.epoch]))
        self.task.model.train()
        self.batches = len(batches)
        for batch in batches[state.batch :]:
            clock = Clock()
            self.step_on(batch)
            state.batch += 1
            self.seconds += clock.seconds
            if flag.signum is not None:
                self._save()
                flag.raise_if_set()
            self._pause(len(batches))
        state.epoch, state.batch = state.epoch + 1, 0
        if state.epoch % self.options.eval_every == 0 or state.epoch == self.options.epochs:
            self._validate(len(batches))
        if flag.signum is not None:
            self._save()
            flag.raise_if_set()

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        state, options = self.state, self.options
        rate = options.learning_rate * min(1.0, (state.step + 1) / max(options.warmup_steps, 1))
        if options.schedule == "constant":
            return rate
        done = (state.epoch + state.batch / self.batches) / options.epochs
        return rate * 0.5 * (1 + math.cos(math.pi * done))

    def step_on(self, batch: Any) -> None:
        state, options = self.state, self.options
        rng = np.random.default_rng([self.seed, 1, state.step])
        torch.manual_seed(int(rng.integers(1 << 62)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        loss, rows = self.task.loss(batch, rng)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._stop_non_finite("loss", value, batch)
        loss.backward()
        if options.clip:
            norm = float(nn.utils.clip_grad_norm_(self.parameters, options.clip))
            if not math.isfinite(norm):
                self._stop_non_finite("gradient norm", norm, batch)
        self.optimizer.step()
        state.step += 1
        if options.average:
            average.update(self.optimizer, step=state.step, decay=options.average)
        state.loss_sum += value * rows
        state.loss_rows += rows
        self.rows_here += rows

    def _validate(self, batches: int) -> None:
        state, model = self.state, self.task.model
        model.eval()
        with torch.no_grad(), average.in_place(self.optimizer):
            found = self.task.validate()
            value = found[self.options.select_by]
            if value > state.best:
                state.best, state.best_step, state.best_epoch, state.waited = (
                    value,
                    state.step,
                    state.epoch,
                    0,
                )
                with self.out.replacing(BEST) as temporary:
                    save_file(tensors_of(model), temporary)
            else:
                state.waited += 1
        line = {"step": state.step, "epoch": state.epoch, "loss": state.loss_sum / max(state.loss_rows, 1)}
        state.lines.append(line | {f"eval_{name}": number for name, number in found.items()})
        state.loss_sum, state.loss_rows = 0.0, 0
        self._write_lines()
        self._pause(batches)

    def _pause(self, batches: int) -> None:
        """A checkpoint and a line where it is time for them."""
        if self.clock.seconds - self.saved >= SAVE_SECONDS:
            self._save()
        if self.clock.seconds - self.said >= EVERY_SECONDS:
            self.said = self.clock.seconds
            (say if quiet() else note)(self.line(batches))

    def line(self, batches: int) -> str:
        """`epoch 3/40, step 120, 6,100 rows/s, at most 4 min left, ndcg@10 0.0812 (best 0.0830 of epoch 2)`."""
        state, done = self.state, self.state.step - self.first_step
        left = self.clock.seconds / max(done, 1) * (self.options.epochs * batches - state.step)
        text = f"epoch {state.epoch}/{self.options.epochs}, step {state.step}, {self.rows_here / max(self.seconds, 1e-9):,.0f} rows/s"
        text += f", at most {duration(left)} left"
        if state.lines:
            by = self.options.select_by
            text += f", {by} {state.lines[-1][f'eval_{by}']:.4f} (best {state.best:.4f} of epoch {state.best_epoch})"
        return text

    def _save(self) -> None:
        write_snapshot(
            self.out.path,
            self.state.step,
            model=self.task.model,
            optimizer=self.optimizer,
            state=vars(self.state),
            keep=KEEP,
        )
        self.saved = self.clock.seconds

    def _write_lines(self) -> None:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in self.state.lines)
        self.out.write_text(METRICS_FILE, text)

    def _stop_non_finite(self, what: str, value: float, batch: Any) -> None:
        step, ids = self.state.step + 1, self.task.example_ids(batch)
        report = {
            "step": step,
            what: str(value),
            "learning_rate": self.options.learning_rate,
            "example_ids": ids,
        }
        path = Path(self.out.path, "nan_step.json")
        path.write_text(json.dumps(report) + "\n")
        raise NumericError(
            f"{what} is {value} at step {step} in {self.out.path} -> lower loop.learning_rate, or look at the {len(ids)} "
            f"examples that {path.name} names"
        )


def make_optimizer(model: nn.Module, options: EpochOptions) -> torch.optim.Optimizer:
    """Adam with weight decay in the gradient, as published, or AdamW that spares vectors; `factor` of a group: of the learning rate."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]
    evidence = [p for name, p in named if weighs_evidence(name)]
    others = [p for name, p in named if not weighs_evidence(name)]
    decayed, spared = options.weight_decay, 0.0 if options.optimizer == "adamw" else options.weight_decay
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": decayed, "factor": 1.0},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": spared, "factor": 1.0},
        {"params": evidence, "weight_decay": spared, "factor": options.evidence_rate},
    ]
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=(0.9, options.beta2),
        fused=True,
    )
