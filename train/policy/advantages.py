"""What a rollout is worth beside the others of its group: baselines, scales, and which cells take part.

| baseline | a rollout's reward is compared with |
|---|---|
| group | the mean of its group (GRPO) |
| leave_one_out | the mean of the others (REINFORCE leave-one-out) |
| siblings | level by level, the value of its code with that of its siblings under the same prefix (V-STAR) |

`scale_rewards` divides by the standard deviation of the group, of the whole step (batch), or not at all (none), as in TRL.

Legend: P prompts, G rollouts of a group, L tokens of a rollout, M = L where advantages are per level, else 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

ADVANTAGE_EPSILON = 1e-4
FLAT_TOLERANCE = 1e-6  # of the largest reward: what float32 sums of equal rewards may differ by
BASELINES = ("group", "leave_one_out", "siblings")
SCALES = ("group", "batch", "none")


@dataclass(frozen=True)
class Advantages:
    """values_PGM float32 (0 where the reward is missing), valid_PGM bool, flat_PM bool: rewards of the group are equal."""

    values_PGM: Tensor
    valid_PGM: Tensor
    flat_PM: Tensor

    def without_flat_groups(self) -> Advantages:
        """The same with every rollout of a group without signal taken out of the loss."""
        return replace(self, valid_PGM=self.valid_PGM & ~self.flat_PM[:, None])


def group_advantages(
    rewards_PGM: Tensor,
    *,
    baseline: str = "group",
    scale: str = "group",
    floor: float = 0.0,
    batch_std: Tensor | float = 1.0,
    weights_PG: Tensor | None = None,
) -> Advantages:
    """A = (r - b) / (max(std, floor) + 1e-4) with the unbiased standard deviation over the group's valid rewards.

    NaN marks a missing reward: advantage 0, not part of the baseline. Rewards (1, 0, 0, 0) have mean .25 and std .5 and
    give (1.4997, -.4999, -.4999, -.4999); with leave_one_out and scale none (1, -.3333, -.3333, -.3333). A floor keeps small
    differences small: (.03, 0, 0, 0) has std .015 and gives .0225 / .2601 = .0865 with floor .26, else 1.4901. Rewards per
    level are normalised level by level. A group is flat, with advantages 0, where its largest and smallest reward are equal
    up to rounding. weights_PG: importance of rollouts, for means and deviations under the policy (biased deviation then).
    """
    valid = ~rewards_PGM.isnan()
    weight = valid.float() if weights_PG is None else valid * weights_PG[..., None]
    total_P1M = weight.sum(1, keepdim=True)
    filled = rewards_PGM.nan_to_num(0.0)
    mean_P1M = (filled * weight).sum(1, keepdim=True) / total_P1M.clamp(min=1e-30)
    deviation = (filled - mean_P1M) * valid
    freedom_P1M = (total_P1M - 1).clamp(min=1) if weights_PG is None else total_P1M.clamp(min=1e-30)
    std_P1M = ((deviation.square() * weight).sum(1, keepdim=True) / freedom_P1M).sqrt()
    if baseline == "leave_one_out":
        count_P1M = valid.sum(1, keepdim=True)
        deviation = deviation * count_P1M / (count_P1M - 1).clamp(min=1)
    flat_PM = flat_groups(rewards_PGM)
    values = _scaled(deviation, std_P1M, scale, floor, batch_std).masked_fill(flat_PM[:, None], 0.0)
    return Advantages(values, valid, flat_PM)


def flat_groups(rewards_PGM: Tensor) -> Tensor:
    """bool [P, M]: whether the largest and the smallest reward of the group are equal up to rounding, or there is none."""
    missing = rewards_PGM.isnan()
    top_PM = rewards_PGM.masked_fill(missing, float("-inf")).amax(1)
    low_PM = rewards_PGM.masked_fill(missing, float("inf")).amin(1)
    return (top_PM - low_PM) <= FLAT_TOLERANCE * rewards_PGM.nan_to_num(0.0).abs().amax(1)


def _scaled(deviation: Tensor, std: Tensor, scale: str, floor: float, batch_std: Tensor | float) -> Tensor:
    if scale == "none":
        return deviation
    spread = std if scale == "group" else torch.as_tensor(batch_std, device=deviation.device)
    return deviation / (spread.clamp(min=floor) + ADVANTAGE_EPSILON)


def sibling_advantages(
    rewards_PGM: Tensor,
    codes_PGL: Tensor,
    *,
    scale: str = "group",
    floor: float = 0.0,
    batch_std: Tensor | float = 1.0,
) -> Advantages:
    """Per level: a code's value (the mean reward of the rollouts through it) against its siblings under the same prefix.

    Codes (1, 2), (1, 3), (4, 5) with rewards 1, 0, 0: at the first level code 1 has value .5 and code 4 value 0, mean .25,
    std .3536, so (.7069, .7069, -.7069); at the second the codes 2 and 3 under 1 have 1 and 0, so (.7070, -.7070), and 5 has
    no sibling: 0. Every sibling counts once, however many rollouts go through it.
    """
    levels = codes_PGL.shape[2]
    valid_PGL = (~rewards_PGM.isnan()).expand(-1, -1, levels)
    filled_PGL = rewards_PGM.nan_to_num(0.0).expand(-1, -1, levels)
    same_PGG = torch.ones(*codes_PGL.shape[:2], codes_PGL.shape[1], dtype=torch.bool, device=codes_PGL.device)
    found = []
    for level in range(levels):
        reward_PG, valid_PG = filled_PGL[..., level], valid_PGL[..., level].float()
        child_PGG = same_PGG & (codes_PGL[:, :, None, level] == codes_PGL[:, None, :, level])
        through_PG = (child_PGG * valid_PG[:, None]).sum(2).clamp(min=1)
        value_PG = (child_PGG * (valid_PG * reward_PG)[:, None]).sum(2) / through_PG
        once_PG = valid_PG / through_PG  # the rollouts of one sibling add up to one
        siblings_PG = (same_PGG * once_PG[:, None]).sum(2)
        mean_PG = (same_PGG * (once_PG * value_PG)[:, None]).sum(2) / siblings_PG.clamp(min=1)
        square_PGG = (value_PG[:, None] - mean_PG[..., None]).square()
        std_PG = ((same_PGG * once_PG[:, None] * square_PGG).sum(2) / (siblings_PG - 1).clamp(min=1)).sqrt()
        alone_PG = siblings_PG < 1.5
        compared_PG = _scaled(value_PG - mean_PG, std_PG, scale, floor, batch_std)
        found.append(compared_PG.masked_fill(alone_PG | (valid_PG == 0), 0.0))
        same_PGG = child_PGG
    flat_PM = flat_groups(rewards_PGM)
    values_PGL = torch.stack(found, dim=2)
    return Advantages(values_PGL.masked_fill(flat_PM[:, None], 0.0), valid_PGL, flat_PM)
