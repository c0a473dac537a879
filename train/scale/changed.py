"""A training that goes on from its checkpoint with other settings than it began with, because --allow_change names them.

An optimizer's state on disk holds its settings too, and a schedule's its rates: loaded as they are, a learning rate that was
changed would be read by nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.program import InputError
from train.scale.gathering import shards_weights

RATES = {"learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}
OF_THE_OPTIMIZER = {"embedding_rate", *(f"trainer.{name}" for name in RATES)}


@contextmanager
def settings_kept(trainer: Any, allowed: Collection[str]) -> Iterator[None]:
    """Around the loading of optimizer and schedule: moments and steps are the checkpoint's, settings and rates those of now.

    Nothing happens where none of the keys in `allowed` is a setting of the optimizer. InputError where the weights lie in parts,
    or for a schedule that is no function of the step.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if "trainer.optim" in allowed:
        raise InputError(
            "the moments on disk are those of another optimizer -> the trainer.optim it began with, or begin anew"
        )
    if not OF_THE_OPTIMIZER & set(allowed):
        yield
        return
    optimizer, schedule = trainer.optimizer, trainer.lr_scheduler
    if trainer.is_deepspeed_enabled or shards_weights(trainer.accelerator):
        raise InputError(
            "allow_change of trainer settings needs whole weights -> ACCELERATE_CONFIG=configs/accelerate/ddp.yaml"
        )
    if not isinstance(schedule, LambdaLR):
        raise InputError(
            f"a {type(schedule).__name__} is no function of the step: its rates cannot be changed on the way -> begin anew"
        )
    own = [
        {key: group[key] for key in group if key not in ("params", "lr")} for group in optimizer.param_groups
    ]
    yield
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
    schedule.base_lrs = [settings["initial_lr"] for settings in own]
    parts = zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, rate, share in parts:
        group["lr"] = rate * share(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]  # what the next log line tells


def load_states(trainer: Any, checkpoint: str) -> None:
    """Optimizer and schedule of a checkpoint, onto the processor.

    Several processes without a GPU are cpu:0, cpu:1 ... to accelerate, and torch restores nothing to a numbered processor.
    """
    import torch

    for part, file in ((trainer.optimizer, "optimizer.pt"), (trainer.lr_scheduler, "scheduler.pt")):
        part.load_state_dict(torch.load(Path(checkpoint, file), map_location="cpu", weights_only=True))
