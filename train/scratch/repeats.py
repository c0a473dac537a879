"""What valid rows say of repeats (infer/models/sequential/repeats.py), added to all bonuses of a trained model.

A softmax over items ranks exactly as it is measured. A tree is near one where every item has an ID of its own; where items share one, the model moves
all of them. So a run keeps the shift only where the model itself is no worse with it (`Run` in loop.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from data.rows import Rows
from infer.models.sequential import repeats
from infer.models.sequential.evidence import is_bonus


def settle(
    model: nn.Module,
    valid: Rows,
    score: Callable[[Rows], np.ndarray],
    *,
    num_items: int,
    positions: int,
    by: str,
) -> dict[str, Any]:
    """Add the shift to the bonuses of `model`; {"shift", by: {shift: mean over valid rows}} of all shifts (`repeats.shift_of`)."""
    shift, means = repeats.shift_of(valid, score, num_items=num_items, positions=positions, by=by)
    with torch.no_grad():
        for bonus in bonuses_of(model):
            bonus += shift
    return {"shift": shift, by: means}


def bonuses_of(model: nn.Module) -> list[nn.Parameter]:
    """The bonuses of items of the history."""
    return [bonus for name, bonus in model.named_parameters() if is_bonus(name)]
