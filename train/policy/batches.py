"""A micro-batch of prompts from its rollouts to its loss: what is kept of it between the two.

Legend: P prompts, G rollouts, L levels, M = L where rewards are per level, else 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.sid import SidTable
from infer.search.tree import Beams
from infer.search.trie import Trie
from train.policy.advantages import Advantages, group_advantages, sibling_advantages
from train.policy.logprobs import BranchScores
from train.policy.losses import (
    Cells,
    Clip,
    LossParts,
    expected_reward,
    loss_kind,
    policy_loss,
    preference_loss,
    scale_of,
    target_loss,
)
from train.policy.rollouts import Rollouts, target_codes, with_branch
from train.policy.settings import GrpoSettings
from train.rewards import RolloutBatch

Scorer = Callable[[Any, Sequence[Sequence[int]], Beams], BranchScores]


@dataclass(frozen=True)
class Batch:
    """rows: positions of the prompts; targets_P: rows of `sids_SL`; rewards_PGM float32, NaN where there is none.

    cells, target_weights_PL, reference_PGL and old_PGL are filled in by and by.
    """

    rows: list[int]
    prompts: list[Sequence[int]]
    targets_P: np.ndarray
    rollouts: Rollouts
    rewards_PGM: Tensor
    cells: Cells | None = None
    hinted_PL: Tensor | None = None
    reference_PGL: Tensor | None = None
    old_PGL: Tensor | None = None

    def take(self, rows: Sequence[int]) -> Batch:
        """Those of some of the prompts."""
        at = torch.as_tensor(rows, device=self.rewards_PGM.device)

        def part(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[at]

        cells = self.cells
        if cells is not None:
            cells = Cells(cells.advantages_PGM[at], cells.mask_PGL[at], part(cells.weights_PG))
        return Batch(
            [self.rows[row] for row in rows],
            [self.prompts[row] for row in rows],
            self.targets_P[list(rows)],
            self.rollouts.take(rows),
            self.rewards_PGM[at],
            cells,
            part(self.hinted_PL),
            part(self.reference_PGL),
            part(self.old_PGL),
        )


def rollout_batch(rows: Sequence[dict[str, Any]], beams: Beams, sids: SidTable) -> RolloutBatch:
    """Beams as rewards see them; a beam beyond the legal ones has no items."""
    items = [
        [tuple(sids.items_of_sid(node).tolist()) if rank < count else () for rank, node in enumerate(nodes)]
        for nodes, count in zip(beams.nodes_BK.tolist(), beams.counts_B.tolist(), strict=True)
    ]
    return RolloutBatch(rows, beams.codes_BKL.cpu().numpy(), items, beams.scores_BK.cpu().numpy())


def with_cells(batch: Batch, trie: Trie, settings: GrpoSettings, batch_std: Tensor | float = 1.0) -> Batch:
    """The batch with its advantages and the tokens that count.

    Out of the loss: rollouts without a reward, with `drop_zero_variance` groups without signal, codes of the hint, and
    (but for `forced_tokens`) codes that no other could have stood for.
    """
    advantages = _advantages(batch, settings, batch_std)
    if settings.drop_zero_variance:
        advantages = advantages.without_flat_groups()
    beams, hint_P1 = batch.rollouts.beams, batch.rollouts.hint_P[:, None]
    level_L = torch.arange(trie.num_levels, device=trie.device)
    mask_PGL = advantages.valid_PGM & (level_L >= hint_P1)[:, None]
    if not settings.forced_tokens:
        mask_PGL = mask_PGL & free_codes(trie, beams.prefixes_BKL)
    cells = Cells(advantages.values_PGM, mask_PGL, batch.rollouts.weights_PG)
    hinted_PL = level_L < hint_P1 if settings.hint_loss or settings.target_loss else None
    return replace(batch, cells=cells, hinted_PL=hinted_PL)


def _advantages(batch: Batch, settings: GrpoSettings, batch_std: Tensor | float) -> Advantages:
    kind = loss_kind(settings.loss)
    how = {
        "scale": scale_of(settings),
        "floor": settings.sigma_floor,
        "batch_std": batch_std,
    }
    baseline = settings.baseline or kind.baseline
    if baseline == "siblings":
        return sibling_advantages(batch.rewards_PGM, batch.rollouts.beams.codes_BKL, **how)
    return group_advantages(batch.rewards_PGM, baseline=baseline, weights_PG=batch.rollouts.weights_PG, **how)


def free_codes(trie: Trie, prefixes_PGL: Tensor) -> Tensor:
    """bool [P, G, L]: whether another code could have followed the prefix. `prefixes_PGL`: of legal IDs."""
    levels = [
        trie.children(level, prefixes_PGL[..., level].clamp(min=0)) > 1 for level in range(trie.num_levels)
    ]
    return torch.stack(levels, dim=2)


def counts(batch: Batch, trie: Trie, settings: GrpoSettings) -> Tensor:
    """int64 [5]: tokens, rollouts, prompts that count (losses.Cells), codes of targets and of hints with a likelihood term."""
    extra = [0, 0]
    if batch.hinted_PL is not None:
        weights = _target_cells(batch, trie)
        extra = [int(weights.sum()), int((batch.hinted_PL & weights).sum())]
    return torch.cat([batch.cells.counts(), torch.tensor(extra, device=batch.cells.mask_PGL.device)])


def _target_cells(batch: Batch, trie: Trie) -> Tensor:
    """bool [P, L]: codes of the targets that no trie forces."""
    codes_P1L = target_codes(trie, torch.as_tensor(batch.targets_P))[:, None]
    return free_codes(trie, trie.prefixes(codes_P1L))[:, 0]


def batch_loss(
    model: Any, batch: Batch, totals: Tensor, trie: Trie, settings: GrpoSettings, score: Scorer
) -> tuple[Tensor, BranchScores, LossParts]:
    """The share of a micro-batch in the loss of a step whose `counts` add up to `totals`, and what it is made of."""
    beams, likelihood = batch.rollouts.beams, batch.hinted_PL is not None
    if likelihood:  # the target is one more branch of the same forward
        beams = with_branch(beams, trie, target_codes(trie, torch.as_tensor(batch.targets_P)))
    scored = score(model, batch.prompts, beams)
    own = scored.of(slice(1, None)) if likelihood else scored
    if settings.loss == "expected":
        counted_P1 = batch.cells.mask_PGL.any(2).any(1, keepdim=True)  # those that `totals` counts
        parts = expected_reward(
            own.logps_PGL,
            batch.rewards_PGM[..., 0].masked_fill(~counted_P1, torch.nan),
            totals[2],
            beta=settings.beta,
            reference_PFL=batch.reference_PGL,
        )
    elif settings.loss == "sdpo":
        parts = preference_loss(
            own.logps_PGL, batch.reference_PGL, batch.cells, totals[2], beta=settings.beta
        )
    else:
        parts = policy_loss(
            own.logps_PGL,
            batch.cells,
            totals[:3],
            kind=loss_kind(settings.loss),
            clip=Clip(settings.epsilon, settings.epsilon_high, settings.delta),
            beta=settings.beta,
            kl=settings.kl,
            corrected=settings.use_bias_correction_kl,
            old_PGL=batch.old_PGL,
            reference_PGL=batch.reference_PGL,
        )
    loss = parts.loss
    if likelihood:
        free_PL, (_, _, _, targets, hints) = _target_cells(batch, trie), totals.clamp(min=1)
        weights_PL = free_PL * (settings.target_loss / targets)
        weights_PL = weights_PL + (free_PL & batch.hinted_PL) * (settings.hint_loss / hints)
        loss = loss + target_loss(scored.logps_PGL[:, 0], weights_PL)
    return loss, own, parts


def parts_of(widths: Sequence[int], *, bound: int) -> list[list[int]]:
    """Rows in parts, the widest first, so that rows times the widest of a part meet the bound where there is more than one.

    >>> parts_of([4, 10, 5, 5], bound=10)
    [[1], [2, 3], [0]]
    """
    order = sorted(range(len(widths)), key=lambda row: -widths[row])
    parts, start = [], 0
    while start < len(order):
        stop = start + max(1, bound // widths[order[start]])
        parts.append(order[start:stop])
        start = stop
    return parts
