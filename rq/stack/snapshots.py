"""A training run on disk: weights, optimizer and a small state, in one checkpoint directory that is complete or not there.

checkpoint-<number>/   model.safetensors, optimizer.safetensors, state.json, COMPLETE.json
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs.program import InputError
from data.store import checkpoints


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A state dict fit for safetensors: on the CPU, contiguous, no shared storage."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def write_snapshot(
    place: Path,
    number: int,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
    keep: int,
) -> None:
    """checkpoint-<number> below `place`; of the older ones the newest `keep` - 1 stay."""
    directory = place / f"checkpoint-{number}"
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    save_file(tensors_of(model), directory / "model.safetensors")
    if optimizer is not None:
        flat = {
            f"{parameter}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
            for parameter, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        save_file(flat, directory / "optimizer.safetensors")
    (directory / "state.json").write_text(json.dumps(state))
    checkpoints.mark_complete(directory, step=number)
    checkpoints.rotate(place, keep=keep)


def read_snapshot(
    directory: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """The state of a checkpoint; model and optimizer become as they were. InputError where it is not one of theirs."""
    try:
        model.load_state_dict(load_file(directory / "model.safetensors"))
    except RuntimeError as error:
        raise _another(directory, str(error)) from None
    if optimizer is not None:
        stored = _optimizer_state(optimizer, directory / "optimizer.safetensors")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, values in stored["state"].items():
            shapes = {tuple(value.shape) for value in values.values() if value.ndim}
            if number >= len(parameters) or shapes - {tuple(parameters[number].shape)}:
                raise _another(directory, f"moments of parameter {number} have the shapes {sorted(shapes)}")
        optimizer.load_state_dict(stored)
    return json.loads((directory / "state.json").read_text())


def _another(directory: Path, what: str) -> InputError:
    said = " ".join(what.split())[:200]
    return InputError(f"{directory} is no checkpoint of this model ({said}) -> --overwrite begins anew")


def _optimizer_state(optimizer: torch.optim.Optimizer, path: Path) -> dict[str, Any]:
    values: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        number, key = name.split(".", 1)
        values.setdefault(int(number), {})[key] = value
    return optimizer.state_dict() | {"state": values}
