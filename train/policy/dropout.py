"""Dropout that a model's own configuration brings, switched off: policy, rollouts and reference are one distribution."""

from __future__ import annotations

from typing import Any

from torch import nn

NAMES = ("dropout", "drop_rate", "pdrop", "dropout_prob", "dropout_p")


def without_dropout(model: nn.Module) -> int:
    """Set every dropout probability inside `model` to 0, in training mode too; how many were above 0.

    Modules and the numbers that attention layers keep (`attention_dropout`); config.json stays as it is.
    """
    changed = 0
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            changed += module.p > 0
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if _is_probability(name, value):
                setattr(module, name, 0.0)
                changed += 1
    return changed


def _is_probability(name: str, value: Any) -> bool:
    return isinstance(value, float) and value > 0 and name.endswith(NAMES)
