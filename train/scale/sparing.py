"""Checkpoints that nobody needs are left out where they take more than their share of the time.

A checkpoint at a validation may become the best one, and the last one is the end: these are always written. Those between
only shorten what a crash costs. They are left out while validations and checkpoints together have taken more than `share` of
the run so far, once checkpoints have taken FREE_SECONDS. By the clock, so what is left out differs between runs; weights,
logs and the choice of the best checkpoint do not.
"""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

FREE_SECONDS = 60.0


class SpareCheckpoints(TrainerCallback):
    """`spent` are the seconds of validations and checkpoints, `saving` those of checkpoints; the trainer adds them up."""

    def __init__(self, share: float) -> None:
        self.share, self.spent, self.saving, self.left_out = share, 0.0, 0.0, 0
        self.start = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        needed = control.should_evaluate or state.global_step >= state.max_steps
        if control.should_save and not needed and together(self.too_many()):
            self.left_out += 1
            control.should_save = False
            control.should_log = True  # as if it had been written: logs do not depend on the clock

    on_epoch_end = on_step_end

    def too_many(self) -> bool:
        """Whether this process's clock says that the share is used up."""
        elapsed = time.perf_counter() - self.start
        return self.saving > FREE_SECONDS and self.spent > self.share * elapsed


def together(here: bool) -> bool:
    """What the first process decided: writing a checkpoint takes all of them."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([here])[0]
