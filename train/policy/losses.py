"""The arithmetic of group-relative policy optimisation, free of models and trainers.

Legend: P prompts, G rollouts of a group, L tokens of a rollout, M = L where rewards are per level, else 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.program import InputError

ADVANTAGE_EPSILON = 1e-4
FLAT_TOLERANCE = 1e-6  # of the largest reward: what float32 sums of equal rewards may differ by


@dataclass(frozen=True)
class Advantages:
    """values_PGM float32 (0 where the reward is missing), valid_PGM bool, flat_PM bool: rewards of the group are equal."""

    values_PGM: Tensor
    valid_PGM: Tensor
    flat_PM: Tensor

    def without_flat_groups(self) -> Advantages:
        """The same with every rollout of a group without signal taken out of the loss."""
        return replace(self, valid_PGM=self.valid_PGM & ~self.flat_PM[:, None])

    def cells(self, levels: int) -> Tensor:
        """How many of the P * G * `levels` tokens count in the loss, int64 scalar."""
        return self.valid_PGM.sum() * (levels // self.valid_PGM.shape[2])


def group_advantages(rewards_PGM: Tensor) -> Advantages:
    """A = (r - mean_g) / (std_g + 1e-4) with the unbiased standard deviation over the group's valid rewards.

    NaN marks a missing reward: advantage 0, not part of the baseline. Rewards (1, 0, 0, 0) have mean .25 and std .5 and
    give (1.4997, -.4999, -.4999, -.4999). Rewards per level are normalised level by level. A group is flat, with
    advantages 0, where its largest and smallest reward are equal up to rounding.
    """
    valid = ~rewards_PGM.isnan()
    count_P1M = valid.sum(1, keepdim=True)
    filled = rewards_PGM.nan_to_num(0.0)
    mean_P1M = filled.sum(1, keepdim=True) / count_P1M.clamp(min=1)
    deviation = (filled - mean_P1M) * valid
    std_P1M = (deviation.square().sum(1, keepdim=True) / (count_P1M - 1).clamp(min=1)).sqrt()
    top_PM = rewards_PGM.masked_fill(~valid, float("-inf")).amax(1)
    low_PM = rewards_PGM.masked_fill(~valid, float("inf")).amin(1)
    flat_PM = (top_PM - low_PM) <= FLAT_TOLERANCE * filled.abs().amax(1)
    values = (deviation / (std_P1M + ADVANTAGE_EPSILON)).masked_fill(flat_PM[:, None], 0.0)
    return Advantages(values, valid, flat_PM)


def k3(reference_PGL: Tensor, policy_PGL: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - d - 1 with d = reference - policy.

    Log-probabilities -1.0 under the reference and -1.5 under the policy give exp(.5) - .5 - 1 = .1487; never negative.
    """
    difference = reference_PGL - policy_PGL
    return difference.exp() - difference - 1


def grpo(
    policy_PGL: Tensor,
    reference_PGL: Tensor | None,
    advantages: Advantages,
    *,
    beta: float,
    cells: Tensor | int,
) -> tuple[Tensor, Tensor]:
    """(loss to minimise, KL) of one on-policy update: -sum_{valid tokens} [ratio * A - beta * k3] / cells, and sum k3.

    `cells` is the number of valid tokens of the whole optimizer step, over micro-batches and ranks: the gradient does not
    depend on how the batch is split. ratio = exp(logp - sg(logp)) is 1 in value and carries the policy gradient; one
    update per rollout needs no clipping (GRPO with the published systems' aligned steps). Without a reference the KL term
    is 0. What stands at rollouts that are not valid (-inf, where a group has fewer legal IDs than G) touches neither loss
    nor gradient.
    """
    invalid_PGL = ~advantages.valid_PGM.expand_as(policy_PGL)
    policy_PGL = policy_PGL.masked_fill(invalid_PGL, 0.0)
    ratio_PGL = (policy_PGL - policy_PGL.detach()).exp()
    objective_PGL = ratio_PGL * advantages.values_PGM
    kl_PGL = torch.zeros_like(policy_PGL)
    if reference_PGL is not None:
        kl_PGL = k3(reference_PGL.masked_fill(invalid_PGL, 0.0), policy_PGL)
    total = (objective_PGL - beta * kl_PGL).masked_fill(invalid_PGL, 0.0).sum()
    return -total / max(int(cells), 1), kl_PGL.detach().sum()


Loss = Callable[..., tuple[Tensor, Tensor]]
LOSSES: dict[str, Loss] = {"grpo": grpo}


def loss_function(name: str) -> Loss:
    """A loss by name, `loss(policy_PGL, reference_PGL, advantages, beta=, cells=)`; InputError for an unknown one."""
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r} -> any of {', '.join(LOSSES)}")
    return LOSSES[name]
