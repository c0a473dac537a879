"""A level's cross-entropy along the paths of a few items of each position, and its gradient.

Where no target of a position runs through a node, the children of that node have no say in its loss: their slopes are 0. So a level
behind the first needs, for each position, the families (children of one node) on the paths of its targets, and no more. The work of a
position grows with those families and not with the catalogue; values and gradients are those of the dense form (compact_softmax.py).

Logits of the members are entries of a sparse [P, C] matrix: sampled products of states and vectors forward, the matrix and its
transpose times vectors and states backward.

Legend: P positions, M targets of a position, Q families, E members of all families, C contested nodes of a level, J steps back, A items of histories, D
width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from infer.models.retrievers.compact_tree import BOUND, SidTree, ragged


class Repeats(NamedTuple):
    """Nodes that are above an item of the history: their entries int64 among the logits, how many steps back the item stands, what part of its
    node's train rows, as the evidence weighs them, it is: the slope of the logit by the bonus."""

    entry_A: Tensor
    back_A: Tensor
    share_A: Tensor


class Said(NamedTuple):
    """What a history says (compact_evidence.py): what is added to logits, [C, P] or [E], and where somebody learns its slope by each of the
    level's alphas and by the bonuses."""

    logit: Tensor
    by_alpha: Sequence[Tensor] = ()
    repeats: Repeats | None = None

    def slopes(self, slope: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
        """(of the alphas, of the bonuses [J]) of a sum that has this slope by the logits."""
        flat = slope.reshape(-1)
        bonus_J = flat.new_zeros(steps)
        if self.repeats is not None:
            entry_A, back_A, share_A = self.repeats
            bonus_J.index_add_(0, back_A, flat[entry_A] * share_A)
        return [torch.dot(flat, one.view(-1)) for one in self.by_alpha], bonus_J


@dataclass(frozen=True)
class Families:
    """position_Q (ascending), group_Q: whose children each family is; weight_Q: the mass that runs through it; its members are the
    entries from first_Q on. family_E, place_E (among the contested nodes that are scored, ascending in a position), mass_E."""

    position_Q: Tensor
    group_Q: Tensor
    weight_Q: Tensor
    first_Q: Tensor
    family_E: Tensor
    place_E: Tensor
    mass_E: Tensor

    @property
    def position_E(self) -> Tensor:
        return self.position_Q[self.family_E]


def asked_groups(tree: SidTree, number: int, items_PM: Tensor, share_PM: Tensor) -> Tensor:
    """The groups of siblings of level `number` (from 1) on the paths of items with a share above 0, ascending."""
    group_A = tree.levels[number].group_N[tree.node_LN[number - 1][items_PM[share_PM > 0]]]
    return torch.unique(group_A[group_A >= 0])


def families(
    tree: SidTree, number: int, items_PM: Tensor, share_PM: Tensor, asked_G: Tensor | None = None
) -> Families:
    """The families of level `number` (from 1) on the paths of items with a share above 0.

    asked_G: where `place_E` counts among the members of these groups alone (`TreeLevel.members`).
    """
    level, groups = tree.levels[number], tree.levels[number].groups
    group_PM = level.group_N[tree.node_LN[number - 1][items_PM]]
    chosen = (group_PM >= 0) & (share_PM > 0)
    row_A = torch.nonzero(chosen)[:, 0]
    key_Q, family_A = torch.unique(row_A * groups + group_PM[chosen], return_inverse=True)
    group_Q, share_A = key_Q % max(groups, 1), share_PM[chosen]
    size_Q = level.size_G[group_Q]
    first_Q = size_Q.cumsum(0) - size_Q
    family_E, within_E = ragged(size_Q)
    begin_Q = level.first_G[group_Q]
    if asked_G is not None:
        size_A = level.size_G[asked_G]
        begin_Q = (size_A.cumsum(0) - size_A)[torch.searchsorted(asked_G, group_Q)]
    place_A = level.place_M[tree.node_LN[number][items_PM[chosen]]]
    entry_A = first_Q[family_A] + place_A - level.first_G[group_Q][family_A]
    return Families(
        position_Q=key_Q // max(groups, 1),
        group_Q=group_Q,
        weight_Q=share_A.new_zeros(len(key_Q)).index_add_(0, family_A, share_A),
        first_Q=first_Q,
        family_E=family_E,
        place_E=begin_Q[family_E] + within_E,
        mass_E=share_A.new_zeros(len(family_E)).index_add_(0, entry_A, share_A),
    )


@dataclass(frozen=True)
class LevelSlopes:
    """Gradients of a level's sum over positions: by each alpha, bonus_J, state_PD, vector_CD, bias_C."""

    alpha_F: list[Tensor]
    bonus_J: Tensor
    state_PD: Tensor
    vector_CD: Tensor
    bias_C: Tensor


def path_level(
    found: Families,
    state_PD: Tensor,
    vector_CD: Tensor,
    bias_C: Tensor,
    said: Said | None,
    steps: int,
) -> tuple[Tensor, LevelSlopes]:
    """(sum over positions of the level's loss, its gradients) of the members that `found` has; steps: how many bonuses there are."""
    count, nodes, position_E = len(state_PD), len(vector_CD), found.position_E
    asked = _matrix(position_E, found.place_E, torch.zeros_like(found.mass_E), (count, nodes))
    logit_E = torch.sparse.sampled_addmm(asked, state_PD, vector_CD.T, beta=0.0).values()
    logit_E = logit_E + bias_C[found.place_E]
    if said is not None:
        logit_E += said.logit
    logit_E.clamp_(-BOUND, BOUND)
    total = -torch.dot(found.mass_E, logit_E)
    chance_E = logit_E.exp_()
    sum_Q = torch.zeros_like(found.weight_Q).index_add_(0, found.family_E, chance_E)
    total = total + torch.dot(found.weight_Q, sum_Q.log())
    slope_E = chance_E.mul_((found.weight_Q / sum_Q)[found.family_E]).sub_(found.mass_E)
    order_E = torch.argsort(found.place_E, stable=True)
    turned = _matrix(found.place_E[order_E], position_E[order_E], slope_E[order_E], (nodes, count))
    alpha_F, bonus_J = ([], slope_E.new_zeros(steps)) if said is None else said.slopes(slope_E, steps)
    return total, LevelSlopes(
        alpha_F=alpha_F,
        bonus_J=bonus_J,
        state_PD=_matrix(position_E, found.place_E, slope_E, (count, nodes)) @ vector_CD,
        vector_CD=turned @ state_PD,
        bias_C=torch.zeros_like(bias_C).index_add_(0, found.place_E, slope_E),
    )


def _matrix(row_E: Tensor, column_E: Tensor, value_E: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix of entries that stand in the order of its rows."""
    ends = torch.bincount(row_E, minlength=shape[0]).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that sparse matrices are in beta
        return torch.sparse_csr_tensor(offsets, column_E, value_E, size=shape, check_invariants=False)
