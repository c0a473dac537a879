"""Is there room on the disk for the checkpoints of a training? Asked before its first step, not when hours are done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from configs.program import EnvironmentFault
from data.store.checkpoints import checkpoints

MIB = 1 << 20
STATE_BYTES = {"8bit": 2, "sgd": 0, "adafactor": 0}  # per parameter that trains; Adam in float32 keeps 8


def checkpoint_bytes(model: Any, optimizer: str) -> tuple[int, int]:
    """(bytes of the weights, bytes of the optimizer's state) of a checkpoint of `model`; what it shares counts once.

    A model whose base is frozen saves no more than what trains. Not counted: the files beside them, kilobytes.
    """
    parameters = list(model.parameters())
    training = [one for one in parameters if one.requires_grad]
    saved = training if len(training) < len(parameters) else parameters
    state = next((size for name, size in STATE_BYTES.items() if name in optimizer), 8)
    return sum(one.numel() * one.element_size() for one in saved), state * sum(
        one.numel() for one in training
    )


def require_room(trainer: Any, directory: Path) -> None:
    """EnvironmentFault where `directory` cannot hold `keep_checkpoints`, the best one, the one that is being written, and final/.

    Those that are there already count as room: they are replaced.
    """
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    weights, state = checkpoint_bytes(trainer.model, optimizer)
    number = trainer.keep_checkpoints + 2
    there = [file for _, one in checkpoints(directory) for file in one.rglob("*") if file.is_file()]
    free = shutil.disk_usage(directory).free + sum(file.stat().st_size for file in there)
    needed = number * (weights + state) + weights
    if needed > free:
        raise EnvironmentFault(
            f"disk too small for {directory}: {number} checkpoints of {(weights + state) / MIB:,.1f} MiB and final/ take "
            f"{needed / MIB:,.1f} MiB, {free / MIB:,.1f} MiB are free -> free space, choose another output_dir, or lower "
            f"keep_checkpoints ({trainer.keep_checkpoints})"
        )
