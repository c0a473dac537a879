"""The training loop of quantizers with gradients: epochs, schedule, checkpoints that resume exactly, the best state.

A `Problem` says what one step's loss is and how good the codes of the whole catalogue are. All randomness of an epoch
(order of items, dropout, Gumbel noise, restarts) comes from the seed and the epoch's number, so that a run that was
interrupted and resumed ends with the same weights as one that was not. Written into the output directory:

  checkpoint-<epoch>/            model.safetensors, optimizer.safetensors, state.json, COMPLETE.json
  best_collisions.safetensors    the state with the fewest collisions of nearest codes
  best_loss.safetensors          the state with the least loss
  metrics.jsonl                  one line per measurement

Legend: B items of a batch, N of the catalogue.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs import program
from configs.program import InputError, NumericError
from data.store import checkpoints
from data.store.output import Output
from rq.stack.options import LoopOptions
from rq.stack.snapshots import read_snapshot, tensors_of, write_snapshot

BEST = {"collisions": "best_collisions.safetensors", "loss": "best_loss.safetensors"}
EPOCH_SEED = 1_000_003  # a prime: seeds of (seed, epoch) pairs do not meet for fewer epochs than this


class Problem:
    """What is trained. A subclass sets `model` and `num_items` and defines `terms` and `measure`.

    `least_batch`: fewest items that `terms` can make a loss of; batch normalisation needs two, one item has no spread.
    """

    model: nn.Module
    num_items: int
    least_batch: int = 1

    def parameter_groups(self, options: LoopOptions) -> list[dict[str, Any]]:
        """AdamW's groups; a group's own `lr` and `weight_decay` stand beside the schedule's factor."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return [{"params": parameters}] if parameters else []

    def start(self, *, seed: int) -> None:
        """Once, before the first step of a run that does not resume: k-means starts."""

    def set_progress(self, share: float) -> None:
        """Before each epoch: the share of the training that is done."""

    def terms(self, rows_B: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars of one training step; `loss` is what gradients are taken of."""
        raise NotImplementedError

    def after_step(self, *, generator: torch.Generator) -> None:
        """After each optimiser step."""

    def carried(self) -> dict[str, Any]:
        """What the next epoch needs beside the model's state, fit for JSON; saved with every checkpoint."""
        return {}

    def carry_on(self, carried: dict[str, Any]) -> None:
        """Take back what `carried` gave, in a run that resumes."""

    def measure(self) -> dict[str, float]:
        """Measures of the whole catalogue in evaluation mode; must have `collisions` and `loss`, less is better."""
        raise NotImplementedError


@dataclass
class State:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: dict[str, int] = field(default_factory=dict)
    waited: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    carried: dict[str, Any] = field(default_factory=dict)


def device_of(name: str) -> torch.device:
    """`auto`: the GPU if there is one."""
    return torch.device(
        "cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name
    )


def learning_rate_factor(step: int, *, steps_per_epoch: int, options: LoopOptions) -> float:
    """Share of the learning rate at a step (from 0)."""
    warmup, total = options.warmup_epochs * steps_per_epoch, options.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    share = (step - warmup) / max(1, total - warmup)
    return options.final_rate + (1 - options.final_rate) * 0.5 * (1 + math.cos(math.pi * share))


def train(problem: Problem, options: LoopOptions, *, out: Output, seed: int, label: str) -> dict[str, Any]:
    """Run to the end (resuming the newest complete checkpoint), load the selected state into the model, and say how it went.

    NumericError when a loss is not finite; Interrupted after the epoch in which a signal came, with a checkpoint; InputError
    when no batch can be as large as the problem needs.
    """
    require_batches(problem, options, label=label)
    groups = problem.parameter_groups(options)
    optimizer = (
        torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
        if groups
        else None
    )
    for group in optimizer.param_groups if optimizer else []:
        group["initial_lr"] = group["lr"]
    state = restore(problem, optimizer, out)
    with torch.random.fork_rng(), program.deferred_signals() as flag:
        if state.epoch == 0:
            problem.start(seed=seed)
        epochs = range(state.epoch, options.epochs)
        for epoch in program.progress(epochs, label=label, unit="epoch"):
            if stopped(state, options):
                break
            terms = run_epoch(problem, optimizer, options, epoch=epoch, seed=seed)
            state.epoch = epoch + 1
            if state.epoch % options.eval_every == 0 or state.epoch == options.epochs:
                measured(problem, state, options, out, terms)
                save_checkpoint(problem, optimizer, state, options, out)
            if flag.signum is not None:
                save_checkpoint(problem, optimizer, state, options, out)
                flag.raise_if_set()
    if options.select != "last":
        problem.model.load_state_dict(load_file(out.path / BEST[options.select]))
    problem.model.eval()
    chosen = state.best_epoch.get(options.select, state.epoch)
    return {"epochs": state.epoch, "selected_epoch": chosen, "selected_by": options.select}


def stopped(state: State, options: LoopOptions) -> bool:
    """Whether patience has run out."""
    return bool(options.patience) and state.waited >= options.patience


def require_batches(problem: Problem, options: LoopOptions, *, label: str) -> None:
    """InputError when items or batch_size are too few for one batch."""
    largest = min(problem.num_items, options.batch_size)
    if largest < problem.least_batch:
        raise InputError(
            f"{label}: batch_norm needs {problem.least_batch} items in a batch, not {largest} (items {problem.num_items}, "
            f"loop.batch_size {options.batch_size}) -> batch_norm: false, or more of them"
        )


def steps_of(order_N: Tensor, options: LoopOptions, *, least_batch: int) -> list[list[Tensor]]:
    """The batches of every step. A last batch with fewer than `least_batch` items goes with the one before it."""
    batches = list(order_N.split(options.batch_size))
    if len(batches) > 1 and len(batches[-1]) < least_batch:
        batches[-2:] = [torch.cat(batches[-2:])]
    return [
        batches[first : first + options.accumulate] for first in range(0, len(batches), options.accumulate)
    ]


def run_epoch(
    problem: Problem, optimizer: torch.optim.Optimizer | None, options: LoopOptions, *, epoch: int, seed: int
) -> dict[str, float]:
    """One pass over all items in an order of this epoch's own; mean of the loss terms."""
    torch.manual_seed(seed + EPOCH_SEED * (epoch + 1))
    generator = torch.Generator().manual_seed(seed + EPOCH_SEED * (epoch + 1))
    device = next(iter(problem.model.state_dict().values())).device
    on_device = torch.Generator(device).manual_seed(seed + EPOCH_SEED * (epoch + 1))
    order_N = torch.randperm(problem.num_items, generator=generator)
    steps = steps_of(order_N, options, least_batch=problem.least_batch)
    problem.set_progress(epoch / options.epochs)
    problem.model.train()
    sums: dict[str, float] = {}
    for number, parts in enumerate(steps):
        factor = learning_rate_factor(
            epoch * len(steps) + number, steps_per_epoch=len(steps), options=options
        )
        for group in optimizer.param_groups if optimizer else []:
            group["lr"] = group["initial_lr"] * factor
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        for part_B in parts:
            terms = problem.terms(part_B, generator=on_device)
            if not torch.isfinite(terms["loss"]):
                raise NumericError(
                    f"the loss is {float(terms['loss'].detach())} in epoch {epoch + 1} -> lower --loop.learning_rate of this "
                    "constructor, or look for outliers in the embeddings"
                )
            share = len(part_B) / sum(map(len, parts))
            if optimizer is not None:
                (share * terms["loss"]).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + share * float(value.detach()) / len(steps)
        if optimizer is not None:
            if options.clip:
                nn.utils.clip_grad_norm_(problem.model.parameters(), options.clip)
            optimizer.step()
        problem.after_step(generator=on_device)
    return sums


def measured(
    problem: Problem, state: State, options: LoopOptions, out: Output, terms: dict[str, float]
) -> None:
    """Measure the catalogue, keep the state where it is the best so far, write the line."""
    problem.model.eval()
    with torch.no_grad():
        found = problem.measure()
    for name, value in found.items():
        if not math.isfinite(value):
            raise NumericError(f"{name} is {value} after epoch {state.epoch} -> lower the learning rate")
    better = {name: found[name] <= state.best.get(name, math.inf) for name in BEST}
    strictly = options.select == "last" or found[options.select] < state.best.get(options.select, math.inf)
    state.waited = 0 if strictly else state.waited + 1
    for name in (name for name in BEST if better[name]):
        state.best[name], state.best_epoch[name] = found[name], state.epoch
        with out.replacing(BEST[name]) as temporary:
            save_file(tensors_of(problem.model), temporary)
    line = {"epoch": state.epoch} | found | {f"train_{name}": value for name, value in terms.items()}
    state.history.append(line)
    out.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in state.history))


def save_checkpoint(
    problem: Problem,
    optimizer: torch.optim.Optimizer | None,
    state: State,
    options: LoopOptions,
    out: Output,
) -> None:
    """checkpoint-<epoch>; older ones beyond `save_limit` go."""
    state.carried = problem.carried()
    write_snapshot(
        out.path,
        state.epoch,
        model=problem.model,
        optimizer=optimizer,
        state=vars(state),
        keep=options.save_limit,
    )


def restore(problem: Problem, optimizer: torch.optim.Optimizer | None, out: Output) -> State:
    """The state of the newest complete checkpoint, with model, optimiser and problem as they were; a new state without one."""
    found = checkpoints.newest_complete(out.path) if out.resuming else None
    if found is None:
        return State()
    state = State(**read_snapshot(found, model=problem.model, optimizer=optimizer))
    problem.carry_on(state.carried)
    return state
