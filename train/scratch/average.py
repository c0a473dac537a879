"""A running mean of the weights: what is validated and handed on instead of the weights of the last step.

After every step, mean <- d mean + (1 - d) weights, with d = min(average, (1 + step) / (10 + step)), so that the first steps are soon
forgotten (Polyak and Juditsky 1992; the warm-up is TensorFlow's). Steps go on from the weights, never from the mean.

The means lie in the optimizer's state, so a checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

KEY = "average"


def decay_at(step: int, decay: float) -> float:
    """d of a step, from 1.

    >>> round(decay_at(1, 0.99), 4), decay_at(10_000, 0.99)
    (0.1818, 0.99)
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer, *, step: int, decay: float) -> None:
    """Take in the weights after step `step`. A parameter that no gradient has reached has no state and has not moved."""
    for parameter, state in _moved(optimizer):
        if KEY not in state:
            state[KEY] = parameter.detach().clone()
        else:
            state[KEY].lerp_(parameter, 1 - decay_at(step, decay))


@contextmanager
def in_place(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The model has the means for its weights inside, and its weights again behind it; without means nothing changes."""
    _swap(optimizer)
    try:
        yield
    finally:
        _swap(optimizer)


@torch.no_grad()
def _swap(optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in _moved(optimizer):
        if KEY in state:
            kept = parameter.clone()
            parameter.copy_(state[KEY])
            state[KEY].copy_(kept)


def _moved(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, dict]]:
    return [(parameter, state) for parameter, state in optimizer.state.items() if state]
