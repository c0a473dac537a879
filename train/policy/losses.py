"""The arithmetic of group-relative policy optimisation, free of models and trainers.

Legend: P prompts, G rollouts of a group, L tokens of a rollout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

ADVANTAGE_EPSILON = 1e-4


@dataclass(frozen=True)
class Advantages:
    """values_PG float32 (0 where the reward is missing), valid_PG bool, flat_P bool: groups whose rewards are all equal."""

    values_PG: Tensor
    valid_PG: Tensor
    flat_P: Tensor

    def without_flat_groups(self) -> Advantages:
        """The same with every rollout of a group without signal taken out of the loss."""
        return replace(self, valid_PG=self.valid_PG & ~self.flat_P[:, None])


def group_advantages(rewards_PG: Tensor) -> Advantages:
    """A = (r - mean_g) / (std_g + 1e-4) with the unbiased standard deviation over the group's valid rewards.

    NaN marks a missing reward: advantage 0, not part of the baseline. Rewards (1, 0, 0, 0) have mean .25 and std .5 and
    give (1.4997, -.4999, -.4999, -.4999).
    """
    valid_PG = ~rewards_PG.isnan()
    count_P1 = valid_PG.sum(1, keepdim=True)
    filled_PG = rewards_PG.nan_to_num(0.0)
    mean_P1 = filled_PG.sum(1, keepdim=True) / count_P1.clamp(min=1)
    deviation_PG = (filled_PG - mean_P1) * valid_PG
    std_P1 = (deviation_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    return Advantages(deviation_PG / (std_P1 + ADVANTAGE_EPSILON), valid_PG, std_P1.squeeze(1) < 1e-8)


def k3(reference_PGL: Tensor, policy_PGL: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - d - 1 with d = reference - policy.

    Log-probabilities -1.0 under the reference and -1.5 under the policy give exp(.5) - .5 - 1 = .1487; never negative.
    """
    difference = reference_PGL - policy_PGL
    return difference.exp() - difference - 1


def policy_loss(
    policy_PGL: Tensor, reference_PGL: Tensor | None, advantages: Advantages, *, beta: float
) -> tuple[Tensor, Tensor]:
    """(loss to minimise, mean KL) of one on-policy update: -mean_{valid rollouts} mean_L [ratio * A - beta * k3].

    ratio = exp(logp - sg(logp)) is 1 in value and carries the policy gradient; one update per rollout needs no clipping
    (GRPO with the published systems' aligned steps). Without a reference the KL term is 0. What stands at rollouts that are
    not valid (-inf, where a group has fewer legal IDs than G) touches neither loss nor gradient.
    """
    invalid_PG1 = ~advantages.valid_PG[..., None]
    policy_PGL = policy_PGL.masked_fill(invalid_PG1, 0.0)
    reference_PGL = None if reference_PGL is None else reference_PGL.masked_fill(invalid_PG1, 0.0)
    ratio_PGL = (policy_PGL - policy_PGL.detach()).exp()
    objective_PGL = ratio_PGL * advantages.values_PG[..., None]
    kl_PGL = torch.zeros_like(policy_PGL) if reference_PGL is None else k3(reference_PGL, policy_PGL)
    weight_PG1 = advantages.valid_PG[..., None].float()
    tokens = (weight_PG1.sum() * policy_PGL.shape[2]).clamp(min=1)
    loss = -((objective_PGL - beta * kl_PGL) * weight_PG1).sum() / tokens
    return loss, (kl_PGL.detach() * weight_PG1).sum() / tokens
