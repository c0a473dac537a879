"""Cross-entropy over a tree of semantic IDs whose gradient is made with it, block of positions by block.

With target mass m at every leaf, folded to m_n at every node, and q_n the softmax of the logits z among siblings, the loss of a
position is -sum_n m_n log q_n: at temperature 1 a target distribution over items *is* one over the children of every prefix. The
slope by z_n is m_parent q_n - m_n, so it is 0 below a node without mass: where a position's mass lies on a few items, levels behind
the first are made along their paths alone (compact_paths.py); mass on every item makes every level dense.

Legend: L levels, P positions, T targets of a position, C contested nodes of a level, M nodes, S leaves, N items, D width, J steps
back, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infer.models.retrievers import compact_evidence
from infer.models.retrievers.compact_evidence import Around, everywhere
from infer.models.retrievers.compact_network import CompactModel
from infer.models.retrievers.compact_paths import Said, asked_groups, families, path_level
from infer.models.sequential.evidence import OwnCounts

BLOCK_VALUES = 1 << 20  # leaves, or members of families, times positions held at once: 4 MiB


@dataclass(frozen=True)
class TargetMass:
    """What each position's probability mass is: `share_PT` float32 on the items `item_PT` int64, and `soft(rows)` float32 [B, N] beside it.

    soft gives the part of the block `rows` with its weight; None: there is none. All of a position sums to 1. own: what train rows
    have put into the counts themselves, at their first items.
    """

    item_PT: Tensor
    share_PT: Tensor
    soft: Callable[[slice], Tensor] | None = None
    own: OwnCounts | None = None

    def own_of(self, rows: slice) -> OwnCounts | None:
        return None if self.own is None else self.own.of(rows)

    def of_leaves(self, model: CompactModel, rows: slice) -> Tensor:
        """float32 [S, B], with `soft`."""
        leaf_TB = model.tree.leaf_N[self.item_PT[rows]].T
        return model.tree.of_items(self.soft(rows).T.contiguous()).scatter_add_(
            0, leaf_TB, self.share_PT[rows].T
        )

    def of_first_level(self, model: CompactModel, rows: slice) -> Tensor:
        """float32 [M, B] of the nodes of the first level, without `soft`."""
        node_TB = model.tree.node_LN[0][self.item_PT[rows]].T
        share_TB = self.share_PT[rows].T
        return share_TB.new_zeros(len(model.tree.levels[0].code_M), node_TB.shape[1]).scatter_add_(
            0, node_TB, share_TB
        )


def tree_cross_entropy(model: CompactModel, state_PD: Tensor, recent_PJ: Tensor, mass: TargetMass) -> Tensor:
    """Mean over P of -sum over leaves of mass times log-probability; a scalar."""
    states = [head.state(state_PD) for head in model.heads]
    asked: list[Tensor | None] = [None] * len(states)
    if mass.soft is None:
        asked[1:] = [
            asked_groups(model.tree, number, mass.item_PT, mass.share_PT) for number in range(1, len(states))
        ]
    nodes = model.nodes(asked)
    vectors, biases = [one for one, _ in nodes], [one for _, one in nodes]
    return _TreeCrossEntropy.apply(
        model, recent_PJ, mass, asked, model.alpha_LF, model.bonus_LJ, *states, *vectors, *biases
    )


class _TreeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        model: CompactModel,
        recent_PJ: Tensor,
        mass: TargetMass,
        asked: list[Tensor | None],
        alpha_LF: Tensor,
        bonus_LJ: Tensor,
        *parts: Tensor,
    ) -> Tensor:
        slopes = [torch.zeros_like(part) for part in (alpha_LF, bonus_LJ, *parts)]
        block = _Block(model, recent_PJ, mass, asked, parts, slopes)
        step, total = _rows_at_once(model, mass), parts[0].new_zeros(())
        for start in range(0, len(recent_PJ), step):
            total += block.sum(slice(start, min(start + step, len(recent_PJ))))
        ctx.save_for_backward(*(part.div_(len(recent_PJ)) for part in slopes))
        return total / len(recent_PJ)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(slope * part for part in ctx.saved_tensors)


def _rows_at_once(model: CompactModel, mass: TargetMass) -> int:
    if mass.soft is not None:
        at_once = min(BLOCK_VALUES // model.tree.leaves, compact_evidence.BLOCK_VALUES // len(model.rows_N))
        return max(1, at_once)
    largest = max(int(level.size_G.max()) if level.groups else 1 for level in model.tree.levels)
    return max(1, BLOCK_VALUES // (largest * mass.item_PT.shape[1]))


class _Block:
    """Sums of losses over blocks of positions; gradients of those sums are added to `slopes` (alphas, bonuses, then states, vectors
    and biases of every level, as in `parts`)."""

    def __init__(
        self,
        model: CompactModel,
        recent_PJ: Tensor,
        mass: TargetMass,
        asked: list[Tensor | None],
        parts: tuple[Tensor, ...],
        slopes: list[Tensor],
    ) -> None:
        self.model, self.recent_PJ, self.mass, self.asked = model, recent_PJ, mass, asked
        self.parts, self.slopes = parts, slopes[2:]
        self.alpha_LF, self.bonus_LJ, self.levels = slopes[0], slopes[1], len(model.heads)

    def sum(self, rows: slice) -> Tensor:
        model, recent = self.model, self.recent_PJ[rows]
        above = torch.ones(1, len(recent), device=recent.device)
        if self.mass.soft is None:
            around = Around(model, recent, self.mass.own_of(rows)) if model.reads_history else None
            first = None if around is None else around.first_level()
            total = self._dense(0, rows, self.mass.of_first_level(model, rows), above, first)
            return total + sum(self._along(number, rows, around) for number in range(1, self.levels))
        masses = model.tree.folded(self.mass.of_leaves(model, rows))
        evidence = everywhere(model, recent, self.mass.own_of(rows), slopes=True)
        total = 0.0
        for number in range(self.levels):
            total = total + self._dense(number, rows, masses[number], above, evidence[number])
            above = masses[number]
        return total

    def _inputs(self, number: int, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """(states, vectors, biases) of a level."""
        return (
            self.parts[number][rows],
            self.parts[self.levels + number],
            self.parts[2 * self.levels + number],
        )

    def _dense(
        self, number: int, rows: slice, mass_MP: Tensor, above_MP: Tensor, said: Said | None
    ) -> Tensor:
        """A level with every contested node."""
        state, vector_CD, bias_C = self._inputs(number, rows)
        logit_CP = self.model.level_logits(state, (vector_CD, bias_C), said)
        loss, slope_CP = _level(self.model.tree.levels[number], logit_CP, mass_MP, above_MP)
        self.slopes[number][rows] = slope_CP.T @ vector_CD
        self.slopes[self.levels + number].addmm_(slope_CP, state)
        self.slopes[2 * self.levels + number] += slope_CP.sum(1)
        if said is not None:
            self._of_history(number, *said.slopes(slope_CP, self.bonus_LJ.shape[1]))
        return loss

    def _along(self, number: int, rows: slice, around: Around | None) -> Tensor:
        """A level with the families on the paths of the targets."""
        items_PT, share_PT = self.mass.item_PT[rows], self.mass.share_PT[rows]
        found = families(self.model.tree, number, items_PT, share_PT, self.asked[number])
        said = None if around is None else around.at(number, found)
        loss, slopes = path_level(found, *self._inputs(number, rows), said, self.bonus_LJ.shape[1])
        self.slopes[number][rows] = slopes.state_PD
        self.slopes[self.levels + number] += slopes.vector_CD
        self.slopes[2 * self.levels + number] += slopes.bias_C
        self._of_history(number, slopes.alpha_F, slopes.bonus_J)
        return loss

    def _of_history(self, number: int, alpha_F: list[Tensor], bonus_J: Tensor) -> None:
        for place, slope in enumerate(alpha_F):
            self.alpha_LF[number, place] += slope
        self.bonus_LJ[number] += bonus_J


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
