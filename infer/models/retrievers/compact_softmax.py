"""Cross-entropy over a tree of semantic IDs whose gradient is made with it, block of positions by block.

With target mass m at every leaf, folded to m_n at every node, and q_n the softmax of the logits z among siblings, the loss of a
position is -sum_n m_n log q_n: at temperature 1 a target distribution over items *is* one over the children of every prefix, so
one pass is dense at all levels. The slope by z_n is m_parent q_n - m_n.

Legend: L levels, P positions, C contested nodes of a level, M nodes, S leaves, N items, D width, J steps back, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infer.models.retrievers.compact_network import CompactModel

BLOCK_VALUES = 1 << 20  # leaves times positions held at once: 4 MiB


@dataclass(frozen=True)
class TargetMass:
    """What each position's probability mass is: `hard_P` on the item `target_P`, and `soft(rows)` float32 [B, N] beside it.

    soft gives the part of the block `rows` with its weight; None: there is none. Hard and soft of a position sum to 1.
    """

    target_P: Tensor
    hard_P: Tensor
    soft: Callable[[slice], Tensor] | None = None

    def of_leaves(self, model: CompactModel, rows: slice) -> Tensor:
        """float32 [S, B]."""
        tree, target_B = model.tree, self.target_P[rows]
        if self.soft is None:
            mass_SB = torch.zeros(tree.leaves, len(target_B), device=target_B.device)
        else:
            mass_SB = tree.of_items(self.soft(rows).T.contiguous())
        column_B = torch.arange(len(target_B), device=target_B.device)
        mass_SB[tree.leaf_N[target_B], column_B] += self.hard_P[rows]
        return mass_SB


def tree_cross_entropy(model: CompactModel, state_PD: Tensor, recent_PJ: Tensor, mass: TargetMass) -> Tensor:
    """Mean over P of -sum over leaves of mass times log-probability; a scalar."""
    states = [head.state(state_PD) for head in model.heads]
    nodes = model.nodes()
    vectors, biases = [one for one, _ in nodes], [one for _, one in nodes]
    return _TreeCrossEntropy.apply(
        model, recent_PJ, mass, model.alpha_LF, model.bonus_LJ, *states, *vectors, *biases
    )


class _TreeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        model: CompactModel,
        recent_PJ: Tensor,
        mass: TargetMass,
        alpha_LF: Tensor,
        bonus_LJ: Tensor,
        *parts: Tensor,
    ) -> Tensor:
        levels, count = len(model.heads), len(recent_PJ)
        states, vectors, biases = (parts[start : start + levels] for start in range(0, 3 * levels, levels))
        slopes = [torch.zeros_like(part) for part in (alpha_LF, bonus_LJ, *parts)]
        total = states[0].new_zeros(())
        step = max(1, BLOCK_VALUES // model.tree.leaves)
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            recent = recent_PJ[rows]
            masses, features = model.tree.folded(mass.of_leaves(model, rows)), model.features(recent)
            above = torch.ones(1, rows.stop - rows.start, device=recent.device)
            for number, level in enumerate(model.tree.levels):
                state, vector_CD = states[number][rows], vectors[number]
                logit_CP = model.level_logits(
                    number, state, (vector_CD, biases[number]), recent, features[number]
                )
                loss, slope_CP = _level(level, logit_CP, masses[number], above)
                total += loss
                slope_CP.div_(count)
                slopes[2 + number][rows] = slope_CP.T @ vector_CD
                slopes[2 + levels + number].addmm_(slope_CP, state)
                slopes[2 + 2 * levels + number] += slope_CP.sum(1)
                _evidence_slopes(model, number, slope_CP, recent, features[number], slopes)
                above = masses[number]
        ctx.save_for_backward(*slopes)
        return total / count

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(slope * part for part in ctx.saved_tensors)


def _level(level: Any, logit_CP: Tensor, mass_MP: Tensor, above_MP: Tensor) -> tuple[Tensor, Tensor]:
    """(sum over positions of the level's loss, its slope by the logits [C, P]); the logits are overwritten."""
    mass_CP = mass_MP.index_select(0, level.contested_C)
    total = -(mass_CP * logit_CP).sum()
    chance_CP = logit_CP.exp_()
    sum_GP = level.sums(chance_CP)
    above_GP = above_MP.index_select(0, level.group_parent_G)
    total = total + (above_GP * sum_GP.log()).sum()
    slope_CP = chance_CP.mul_((above_GP / sum_GP).index_select(0, level.group_C)).sub_(mass_CP)
    return total, slope_CP


def _evidence_slopes(
    model: CompactModel,
    number: int,
    slope_CP: Tensor,
    recent_PJ: Tensor,
    features: list[Tensor],
    slopes: list[Tensor],
) -> None:
    """Add the gradients of a level's alphas and bonuses to `slopes`, the first two."""
    for place, feature_CP in enumerate(features):
        slopes[0][number, place] += torch.dot(slope_CP.view(-1), feature_CP.view(-1))
    if slopes[1].shape[1] and len(slope_CP):
        place_PJ, there_PJ = model.copied(number, recent_PJ)
        slope_PJ = slope_CP.gather(0, place_PJ.T).T
        slopes[1][number, : recent_PJ.shape[1]] += torch.where(there_PJ, slope_PJ, 0.0).sum(0)
