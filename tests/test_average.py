"""The running mean of the weights: by hand, in a run, and across a checkpoint (test_train_sequential kills runs that keep one)."""

from __future__ import annotations

import pytest
import torch

from configs.program import InputError
from train.scratch import average
from train.scratch.options import EpochOptions


def test_means_by_hand_and_steps_that_go_on_from_the_weights():
    """The first mean is the weight; d is 3/12 at step 2 and .3 from step 3 on (4/13 is above it)."""
    weight, idle = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight, idle])
    means = []
    for step, value in enumerate((1.0, 2.0, 4.0, 8.0), start=1):
        weight.grad = torch.ones(1)
        optimizer.step()
        with torch.no_grad():
            weight.fill_(value)
        average.update(optimizer, step=step, decay=0.3)
        with average.in_place(optimizer):
            means.append(weight.item())
        assert weight.item() == value and idle.item() == 1.0
    first = 1.0
    second = 0.25 * first + 0.75 * 2
    third = 0.3 * second + 0.7 * 4
    assert means == pytest.approx([first, second, third, 0.3 * third + 0.7 * 8])
    assert "average" not in optimizer.state[idle], (
        "what has not moved needs no mean, and Adam's state of it stays empty"
    )
    again = torch.optim.Adam([weight, idle])
    again.load_state_dict(optimizer.state_dict())
    with average.in_place(again):
        assert weight.item() == pytest.approx(means[-1])


def test_without_means_nothing_is_exchanged():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(1)
    optimizer.step()
    value = weight.item()
    with average.in_place(optimizer):
        assert weight.item() == value
    with pytest.raises(ZeroDivisionError), average.in_place(optimizer):
        _ = 1 / 0
    assert weight.item() == value


@pytest.mark.parametrize("bad", [-0.1, 1.0])
def test_a_mean_that_never_moves_is_refused(bad):
    with pytest.raises(InputError, match="loop.average"):
        EpochOptions(average=bad)
