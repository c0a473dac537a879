"""Leaving in time: what a run does between a scheduler's notice (SIGTERM, SIGUSR1) and its kill.

A signal is remembered and ends the step: a checkpoint is written there. Where one process trains, searches and text generation
look for it too (`configs.program.poll`), for a validation or the rollouts of a step may take longer than the grace time:

  in a validation   the checkpoint of that step is written and owes its validation, which the resumed run makes first
  inside a step     the checkpoint is that of the step before: its weights, and the random numbers as they were then

Either way the resumed run ends like one that was never interrupted. Several processes agree at the end of every step whether
any of them was told to stop; within a step they cannot leave, so their grace time must hold the longest step or validation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from configs.program import Interrupted, StopFlag
from data.store.checkpoints import MARK

OWED = "validation_owed"  # in a checkpoint: the validation of its step was not made


@dataclass(frozen=True)
class Randomness:
    """The states of all generators that training draws from."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    devices: list[torch.Tensor]

    @classmethod
    def now(cls) -> Randomness:
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), devices)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.devices:
            torch.cuda.set_rng_state_all(self.devices)


class LeavesInTime:
    """Mixin, placed before a Trainer class. Overrides `get_batch_samples` and `_run_epoch` of transformers 5.17."""

    whole_steps: int = 1  # checkpoints stand at multiples of so many steps only
    saves_inside_a_step: bool = True  # whether all that a checkpoint holds is then as it was before the step
    owes: bool = False
    _before: tuple[int, Randomness, torch.Tensor] | None = (
        None  # step, random numbers, loss summed since the last log
    )
    _measured_from: Randomness | None = None

    def get_batch_samples(self, *args: Any) -> tuple[list, Any]:
        self._before = self.state.global_step, Randomness.now(), self._tr_loss.clone()
        return super().get_batch_samples(*args)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Around a validation."""
        self._measured_from = Randomness.now()
        yield
        self._measured_from = None

    def _run_epoch(self, **kwargs: Any) -> None:
        try:
            super()._run_epoch(**kwargs)
        except Interrupted:
            self._leave()
            raise

    def _leave(self) -> None:
        """The checkpoint of the last whole step, where there is none yet."""
        step = self.state.global_step
        if self._measured_from is not None:
            self._measured_from.restore()
            self.owes = True
        else:
            if (
                step == 0
                or step % self.whole_steps
                or not self.saves_inside_a_step
                or self._before[0] != step
            ):
                return
            if Path(self.args.output_dir, f"checkpoint-{step}", MARK).exists():
                return
            self._before[1].restore()
            self._tr_loss.copy_(self._before[2])
            self.control.should_log, self.control.should_evaluate, self.control.should_save = (
                True,
                False,
                False,
            )
            self._maybe_log_save_evaluate(self._tr_loss, None, self.model, None, self.state.epoch, None, None)
        self._save_checkpoint(self.model, None)

    def pay(self, checkpoint: Path) -> None:
        """Make the validation that a checkpoint owes, and write the checkpoint as it would have been."""
        self._load_rng_state(str(checkpoint))
        metrics = self._evaluate(None, None)
        self._determine_best_metric(metrics=metrics, trial=None)
        (checkpoint / MARK).unlink()  # until it is whole again an older one counts
        (checkpoint / OWED).unlink()
        self._save_checkpoint(self.model, None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)


class PayWhatIsOwed(TrainerCallback):
    """The first thing of a resumed run; added last, so that every other callback has begun."""

    def __init__(self, trainer: LeavesInTime, checkpoint: Path) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.pay(self.checkpoint)


class StopOnSignal(TrainerCallback):
    """Turns a remembered signal, of any process, into a checkpoint and the end of training at the next step boundary.

    The stock loop ends an epoch wherever it stops. At the true end of an epoch its evaluation and checkpoint are due, and
    a checkpoint before them would be resumed without them; in its middle they are not, for the resumed run has none there.
    Steps between multiples of `every` are finished first.
    """

    def __init__(self, flag: StopFlag, *, every: int = 1) -> None:
        self.flag, self.every, self.stopping = flag, every, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.agree()
        if self.flag.signum is not None and state.global_step % self.every == 0:
            self.stopping = True
            control.should_save = not self._epoch_ends(args, state)
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopping and not self._epoch_ends(args, state):
            control.should_log = control.should_evaluate = control.should_save = False

    def agree(self) -> None:
        """One process that was told to stop stops all of them, at the same step."""
        dist = torch.distributed
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        device = "cuda" if "nccl" in dist.get_backend() else "cpu"
        signum = torch.tensor(self.flag.signum or 0, device=device)
        dist.all_reduce(signum, op=dist.ReduceOp.MAX)
        self.flag.signum = int(signum) or None

    @staticmethod
    def _epoch_ends(args: Any, state: Any) -> bool:
        ends = state.global_step >= state.max_steps or float(state.epoch).is_integer()
        return args.save_strategy == SaveStrategy.EPOCH and ends
