"""How often a run validates, so that validation stays within its share of the work; decided by counts, not by the clock."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from configs.program import InputError


def validation_stride(train_work: float, valid_work: float, *, share: float) -> int:
    """Validate at every n-th planned point only: the least n with valid <= share * (n * train + valid).

    Work is anything proportional to time, between two planned points and of one validation.

    >>> validation_stride(100.0, 40.0, share=0.15)   # 40 / (2 * 100 + 40) = .17, 40 / (3 * 100 + 40) = .12
    3
    """
    if not 0 < share <= 1:
        raise InputError(f"eval_share {share} must lie in (0, 1]")
    return max(1, math.ceil(valid_work * (1 - share) / (share * train_work)))


def forward_work(model: Any, *, tokens: int, states: int) -> float:
    """Multiplications of a forward over `tokens` whose output layer is computed on `states` of them."""
    head = model.get_output_embeddings().weight
    rows = {
        id(head): head.numel(),
        id(model.get_input_embeddings().weight): model.get_input_embeddings().weight.numel(),
    }
    trunk = sum(parameter.numel() for parameter in model.parameters()) - sum(rows.values())
    return float(tokens) * trunk + float(states) * head.numel()


def planned_interval(config: Any, *, steps: int) -> int:
    """Optimizer steps between two planned evaluations of TrainingArguments: a number of steps, a share below 1 of the whole run as
    transformers rounds it, or an epoch of `steps`. A run of 3 epochs of 40 steps with eval_steps .05: 6.
    """
    interval = config.eval_steps or steps
    if interval < 1:
        interval *= config.max_steps if config.max_steps > 0 else math.ceil(steps * config.num_train_epochs)
    return max(1, math.ceil(interval))


class EveryNth(TrainerCallback):
    """Keeps every `stride`-th of the planned evaluations and the last; `interval` steps lie between planned ones.

    Checkpoints are written at all of them: a run that is cut off loses no more than it would.
    """

    def __init__(self, stride: int, interval: int) -> None:
        self.stride, self.interval = stride, interval

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy != IntervalStrategy.STEPS:
            return
        last = state.global_step >= state.max_steps
        due = control.should_evaluate and state.global_step // self.interval % self.stride == 0
        control.should_evaluate = due or last
        control.should_save |= last

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy != IntervalStrategy.EPOCH:
            return
        last = state.global_step >= state.max_steps
        due = round(state.global_step / self.interval) % self.stride == 0
        control.should_evaluate = due or last


class Patience(TrainerCallback):
    """Stops training after `validations` in a row without a better one; what it knows it reads from the log, as a resumed run does."""

    def __init__(self, validations: int) -> None:
        self.validations = validations

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        name, better = args.metric_for_best_model, max if args.greater_is_better else min
        values = [line[name] for line in state.log_history if name in line]
        if values and len(values) - 1 - values.index(better(values)) >= self.validations:
            control.should_training_stop = True

    on_train_begin = on_evaluate  # the run may have been cut off between that and its end


class Enough(TrainerCallback):
    """Stops training at the first validation whose number reaches `least`: what a later stage is to raise must have room."""

    def __init__(self, least: float) -> None:
        self.least = least

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        name = args.metric_for_best_model
        if any(line.get(name, 0.0) >= self.least for line in state.log_history):
            control.should_training_stop = True

    on_train_begin = on_evaluate
