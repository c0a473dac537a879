"""The losses of policy optimisation by name, free of models and trainers.

| name | ratio | averaged | baseline, scale by default |
|---|---|---|---|
| grpo | of a token | over a rollout's tokens, then over rollouts | group, group |
| dapo | of a token | over all tokens of the step | group, group |
| gspo | of the rollout: exp of the mean log ratio | as grpo | group, group |
| dr_grpo | of a token | summed, over rollouts times L | group, none |
| rloo | of a token | summed over a rollout, over rollouts | leave_one_out, none |
| expected | none: exact, `expected_reward` | over prompts | none |
| sdpo | none: preferred against the others of a group, `preference_loss` | over prompts | group, none |

Per token: -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A) + beta * KL. With one update per rollout the old
policy is the present one, ratios are 1 in value and carry the gradient, and nothing is clipped. All averages are over the
whole optimizer step, over micro-batches and processes, so a step does not depend on how it is split. TRL's grpo and
dr_grpo average over a micro-batch and count rollouts that are masked whole; where none is masked both are the same.

Legend: P prompts, G rollouts of a group, L tokens of a rollout, M = L or 1, F legal items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.program import InputError
from train.policy.settings import GrpoSettings


@dataclass(frozen=True)
class LossKind:
    """What a name of the table above stands for."""

    sequence_ratio: bool
    average: str
    baseline: str
    scale: str


LOSSES = {
    "grpo": LossKind(False, "rollouts", "group", "group"),
    "dapo": LossKind(False, "tokens", "group", "group"),
    "gspo": LossKind(True, "rollouts", "group", "group"),
    "dr_grpo": LossKind(False, "length", "group", "none"),
    "rloo": LossKind(False, "sums", "leave_one_out", "none"),
    "expected": LossKind(False, "prompts", "group", "none"),
    "sdpo": LossKind(False, "prompts", "group", "none"),
}
KLS = ("k1", "k3")


@dataclass(frozen=True)
class Clip:
    """How far a ratio may move the policy: 1 - low, 1 + high (null: low); `most` bounds it for negative advantages too."""

    low: float = 0.2
    high: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Cells:
    """What takes part in the loss of a micro-batch.

    advantages_PGM float32; mask_PGL bool: the tokens that count; weights_PG float32 or None: importance of rollouts.
    """

    advantages_PGM: Tensor
    mask_PGL: Tensor
    weights_PG: Tensor | None = None

    def counts(self) -> Tensor:
        """int64 [3]: tokens, rollouts and prompts that count."""
        return torch.stack(
            [self.mask_PGL.sum(), self.mask_PGL.any(2).sum(), self.mask_PGL.any(2).any(1).sum()]
        )


@dataclass(frozen=True)
class LossParts:
    """loss scalar; kl_PGL and clipped_PGL (bool) of the tokens, detached."""

    loss: Tensor
    kl_PGL: Tensor
    clipped_PGL: Tensor


def loss_kind(name: str) -> LossKind:
    """A loss by name; InputError for an unknown one."""
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r} -> any of {', '.join(LOSSES)}")
    return LOSSES[name]


def scale_of(settings: GrpoSettings) -> str:
    """Whose standard deviation divides the advantages: as asked, else as the loss has it; InputError for a floor of none."""
    scale = settings.scale_rewards or loss_kind(settings.loss).scale
    if settings.sigma_floor and scale == "none":
        raise InputError(
            f"sigma_floor {settings.sigma_floor} bounds what divides the advantages, and nothing does -> scale_rewards group, "
            "or sigma_floor 0"
        )
    return scale


def kl_estimate(reference: Tensor, policy: Tensor, kind: str = "k3") -> Tensor:
    """Schulman's estimates of KL(policy || reference) per token, d = reference - policy: k1 = -d, k3 = exp(d) - d - 1.

    Log-probabilities -1.0 under the reference and -1.5 under the policy give k1 = -.5 and k3 = exp(.5) - .5 - 1 = .1487,
    which is never negative.
    """
    difference = reference - policy
    return -difference if kind == "k1" else difference.exp() - difference - 1


def policy_loss(
    policy_PGL: Tensor,
    cells: Cells,
    counts: Tensor,
    *,
    kind: LossKind,
    clip: Clip,
    beta: float = 0.0,
    kl: str = "k3",
    corrected: bool = True,
    old_PGL: Tensor | None = None,
    reference_PGL: Tensor | None = None,
) -> LossParts:
    """The share of a micro-batch in the loss of a step; `counts` are those of the whole step (`Cells.counts`, summed).

    What stands at tokens that do not count (-inf, where a group has fewer legal IDs than G) touches neither loss nor
    gradient. `corrected` multiplies the KL estimate by the ratio, which makes its gradient that of the reverse KL divergence
    (DeepSeek-V3.2; TRL's use_bias_correction_kl). Two tokens with log-probability -1, advantages 1 and -1, and a reference of -1 give 0 in every kind.
    """
    out_PGL = ~cells.mask_PGL
    policy_PGL = policy_PGL.masked_fill(out_PGL, 0.0)
    old_PGL = policy_PGL.detach() if old_PGL is None else old_PGL.masked_fill(out_PGL, 0.0)
    length_PG1 = cells.mask_PGL.sum(2, keepdim=True).clamp(min=1)
    log_ratio_PGL = policy_PGL - old_PGL
    if kind.sequence_ratio:
        log_ratio_PGL = (log_ratio_PGL.sum(2, keepdim=True) / length_PG1).expand_as(policy_PGL)
    ratio_PGL, high = log_ratio_PGL.exp(), clip.low if clip.high is None else clip.high
    kept_PGL = ratio_PGL.clamp(1 - clip.low, 1 + high)
    free_PGL = ratio_PGL if clip.most is None else ratio_PGL.clamp(max=clip.most)
    advantages_PGL = cells.advantages_PGM.expand_as(policy_PGL)
    cost_PGL = -torch.minimum(free_PGL * advantages_PGL, kept_PGL * advantages_PGL)
    kl_PGL = torch.zeros_like(policy_PGL)
    if reference_PGL is not None:
        kl_PGL = kl_estimate(reference_PGL.masked_fill(out_PGL, 0.0), policy_PGL, kl)
        cost_PGL = cost_PGL + beta * (kl_PGL * ratio_PGL if corrected else kl_PGL)
    if cells.weights_PG is not None:
        cost_PGL = cost_PGL * cells.weights_PG[..., None]
    cost_PGL = cost_PGL.masked_fill(out_PGL, 0.0)
    below, above = ratio_PGL < 1 - clip.low, ratio_PGL > 1 + high
    clipped_PGL = ((below & (advantages_PGL < 0)) | (above & (advantages_PGL > 0))) & cells.mask_PGL
    loss = _averaged(cost_PGL, length_PG1, counts.clamp(min=1), kind.average)
    return LossParts(loss, kl_PGL.detach(), clipped_PGL.detach())


def _averaged(cost_PGL: Tensor, length_PG1: Tensor, counts: Tensor, average: str) -> Tensor:
    tokens, rollouts, _ = counts
    if average == "tokens":
        return cost_PGL.sum() / tokens
    if average == "rollouts":
        return (cost_PGL / length_PG1).sum() / rollouts
    if average == "length":
        return cost_PGL.sum() / (rollouts * cost_PGL.shape[2])
    return cost_PGL.sum() / rollouts


def expected_reward(
    policy_PFL: Tensor,
    rewards_PF: Tensor,
    prompts: Tensor | int,
    *,
    beta: float = 0.0,
    reference_PFL: Tensor | None = None,
) -> LossParts:
    """-sum over items of p(item) * (reward - beta * log(p / p_reference)), over `prompts`: exact, nothing is drawn.

    The log-probabilities are those of score space trie, where those of all legal items sum to one. With fewer items than
    that each other one counts as the mean of those that are here: what a constant added to all rewards would do to the rest
    is nothing. NaN rewards take no part. Probabilities .6, .4 and rewards 1, 0 give -.6 with the slope (-.24, .24) by the
    log-probabilities: what a sampled REINFORCE gradient with a baseline is in expectation.
    """
    known_PF = ~rewards_PF.isnan()
    policy_PFL = policy_PFL.masked_fill(~known_PF[..., None], 0.0)
    log_PF = policy_PFL.sum(2)
    kl_PFL = torch.zeros_like(policy_PFL)
    gain_PF = rewards_PF.nan_to_num(0.0)
    if reference_PFL is not None:
        kl_PFL = policy_PFL - reference_PFL.masked_fill(~known_PF[..., None], 0.0)
        gain_PF = gain_PF - beta * kl_PFL.sum(2)
    share_PF = log_PF.exp().masked_fill(~known_PF, 0.0)
    with torch.no_grad():
        mean_P1 = (share_PF * gain_PF).sum(1, keepdim=True) / share_PF.sum(1, keepdim=True).clamp(min=1e-30)
        above_PF = (gain_PF - mean_P1).masked_fill(~known_PF, 0.0)
    loss = -((share_PF * above_PF).sum() + mean_P1.sum()) / max(int(prompts), 1)
    return LossParts(loss, kl_PFL.detach(), torch.zeros_like(kl_PFL, dtype=torch.bool))


def preference_loss(
    policy_PGL: Tensor, reference_PGL: Tensor, cells: Cells, prompts: Tensor | int, *, beta: float
) -> LossParts:
    """S-DPO's softmax of preferences (Chen et al., arXiv 2406.09215, equation 9), over `prompts`: the rollouts of a group with an
    advantage above 0 are preferred to each one below it; groups without both have no loss.

    With r = beta * (log-probability under the policy less that under the reference), of a whole rollout, a preferred one w costs
    -log sigmoid(-log sum over the others l of exp(r_l - r_w)) = log(1 + sum of exp(r_l - r_w)); several preferred ones of a group
    count as their mean. With one other it is DPO's sigmoid loss. Two others, all r equal: log 3.
    """
    out_PGL = ~cells.mask_PGL
    difference_PGL = policy_PGL.masked_fill(out_PGL, 0.0) - reference_PGL.masked_fill(out_PGL, 0.0)
    r_PG = beta * difference_PGL.sum(2)
    counts_PG, advantages_PG = cells.mask_PGL.any(2), cells.advantages_PGM.sum(2)
    better_PG, worse_PG = counts_PG & (advantages_PG > 0), counts_PG & (advantages_PG < 0)
    both_P1 = better_PG.any(1, keepdim=True) & worse_PG.any(1, keepdim=True)
    better_PG, worse_PG = better_PG & both_P1, worse_PG & both_P1
    others_P = r_PG.masked_fill(~worse_PG, -1e9).logsumexp(1)
    cost_PG = torch.nn.functional.softplus(others_P[:, None] - r_PG).masked_fill(~better_PG, 0.0)
    loss = (cost_PG.sum(1) / better_PG.sum(1).clamp(min=1)).sum() / max(int(prompts), 1)
    return LossParts(loss, difference_PGL.detach(), torch.zeros_like(out_PGL))


def target_loss(policy_PL: Tensor, weights_PL: Tensor) -> Tensor:
    """-sum of weight * log p over the codes of the targets: the likelihood term that a policy gradient lacks.

    Log-probabilities (-1, -2) with weights (.5, 0) give .5.
    """
    return -(policy_PL.masked_fill(weights_PL == 0, 0.0) * weights_PL).sum()
