"""What the items of a history say of the nodes of a tree: what they say of the items below (sequential/evidence.py), folded up.

With the features f_i of an item, log(1 + 20 s) of every kernel, and a level's alphas, the logit of a node n grows by

    log( sum_i r_i exp(alpha . f_i) / sum_i r_i ),    over the items i below n, r_i being their train rows

so that a node is as likely as its items together are: where nodes begin with their share of their parent's train rows as a bias and
all levels have the same alphas, a path has the probability that a softmax over items would give its items. Evidence that is summed up
below a node feature by feature (as this model had it before) is not; train/README.md has what that costs.

`everywhere` is dense, every contested node for every position. `Around` holds the items that any kernel knows of a history's
items, and gives the same at the members of families (compact_paths.py): its work grows with what is near a history and not with the
catalogue.

Legend: P positions, J steps back, N items, M nodes of a level, C contested nodes, K items that a kernel knows of an item, H entries of all
kernels, U pairs of a position and an item, E members of families, F features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infer.models.retrievers.compact_paths import Families, Said
from infer.models.retrievers.compact_tree import BOUND, TreeLevel
from infer.models.sequential.evidence import DECAY, STEEPNESS, OwnCounts, sums_by_item

BLOCK_VALUES = 1 << 24  # items times positions held at once: 64 MiB a feature


def everywhere(
    model: Any, recent_PJ: Tensor, own: OwnCounts | None = None, *, slopes: bool = False
) -> list[Said | None]:
    """For every level the contested nodes of all positions; None without a kernel. own: of train rows that are learned."""
    if not model.kernels():
        return [None] * len(model.heads)
    step = max(1, BLOCK_VALUES // len(model.rows_N))
    blocks = [slice(start, start + step) for start in range(0, max(len(recent_PJ), 1), step)]
    parts = [
        _block(model, recent_PJ[rows], None if own is None else own.of(rows), slopes=slopes)
        for rows in blocks
    ]
    return parts[0] if len(parts) == 1 else [_side_by_side(level) for level in zip(*parts, strict=True)]


def _block(model: Any, recent_PJ: Tensor, own: OwnCounts | None, *, slopes: bool) -> list[Said]:
    kernels = model.kernels()
    owns = [None] * (len(kernels) - 1) + [own if model.companions is not None else None]
    features = [
        sums_NP.log1p_()
        for pair, one in zip(kernels, owns, strict=True)
        for sums_NP in sums_by_item(recent_PJ, *pair, own=one)
    ]
    said = []
    for number, alpha_F in enumerate(model.alpha_LF.detach()):
        level, node_N = model.tree.levels[number], model.tree.node_LN[number]
        counts_NP = weighed(alpha_F, features).exp_().mul_(model.rows_N[:, None])

        def below(value_NP: Tensor, level: TreeLevel = level, node_N: Tensor = node_N) -> Tensor:
            sums_MP = value_NP.new_zeros(len(level.code_M), value_NP.shape[1])
            return sums_MP.index_add_(0, node_N, value_NP).index_select(0, level.contested_C)

        total_CP = below(counts_NP)
        by_alpha = [
            below(counts_NP * feature_NP).div_(total_CP) for feature_NP in (features if slopes else [])
        ]
        rows_C1 = model.rows_below(number)[level.contested_C][:, None]
        said.append(Said(total_CP.div_(rows_C1).log_(), by_alpha))
    return said


def _side_by_side(parts: tuple[Said, ...]) -> Said:
    slopes = zip(*(part.by_alpha for part in parts), strict=True)
    return Said(torch.cat([part.logit for part in parts], 1), [torch.cat(one, 1) for one in slopes])


def weighed(alpha_F: Tensor, features: list[Tensor]) -> Tensor:
    """Sum of features by their alphas, held within what exponentials of it may be."""
    total = features[0] * alpha_F[0]
    for alpha, feature in zip(alpha_F[1:], features[1:], strict=True):
        total.addcmul_(feature, alpha)
    return total.clamp_(-BOUND, BOUND)


def distinct(key_H: Tensor, below: int) -> tuple[Tensor, Tensor]:
    """`torch.unique` of numbers of 0 .. below - 1 with the inverse, by one sort of as few bits as they need: three times as fast.

    >>> [part.tolist() for part in distinct(torch.tensor([7, 3, 7]), 8)]
    [[3, 7], [1, 0, 1]]
    """
    sorted_H, order_H = (key_H.int() if below < 1 << 31 else key_H).sort()
    first_H = torch.ones(len(key_H), dtype=torch.bool, device=key_H.device)
    torch.ne(sorted_H[1:], sorted_H[:-1], out=first_H[1:])
    place_H = torch.empty_like(order_H).scatter_(0, order_H, first_H.cumsum(0) - 1)
    return sorted_H[first_H].long(), place_H


class Around:
    """The items around the histories of some positions: position_U, item_U int64, one float32 [U] per feature."""

    def __init__(self, model: Any, recent_PJ: Tensor, own: OwnCounts | None) -> None:
        self.model, self.positions, size = model, len(recent_PJ), len(model.rows_N)
        position_A, back_A = torch.nonzero(recent_PJ >= 0, as_tuple=True)
        item_A = recent_PJ[position_A, back_A]
        decay_A, newest_A = STEEPNESS * DECAY**back_A, STEEPNESS * (back_A == 0)
        keys, values = [], []
        for item_NK, value_NK in model.kernels():
            value_AK = value_NK.index_select(0, item_A)
            key_AK = item_NK.index_select(0, item_A) + (position_A * size)[:, None]
            (known_H,) = torch.nonzero(value_AK.flatten() > 0, as_tuple=True)
            keys.append(key_AK.flatten().index_select(0, known_H))
            values.append(
                [
                    (value_AK * weight_A[:, None]).flatten().index_select(0, known_H)
                    for weight_A in (newest_A, decay_A)
                ]
            )
        key_U, place_H = distinct(torch.cat(keys), self.positions * size)
        self.position_U, self.item_U = key_U // size, key_U % size
        sums, start = [], 0
        for pair in values:
            place = place_H[start : start + len(pair[0])]
            start += len(place)
            sums += [value_H.new_zeros(len(key_U)).index_add_(0, place, value_H) for value_H in pair]
        if own is not None:
            (at_T,) = torch.nonzero(self.item_U == own.target_P[self.position_U], as_tuple=True)
            for sum_U, own_P in zip(sums[-2:], own.sum_2P, strict=True):
                left_T = sum_U[at_T] - own_P[self.position_U[at_T]]
                sum_U[at_T] = left_T.clamp_(min=0)  # below 0 by rounding
        self.features = [sum_U.log1p_() for sum_U in sums]
        self.rows_U = model.rows_N.index_select(0, self.item_U)

    def first_level(self) -> Said:
        """[C, P] of the contested nodes of the first level."""
        level = self.model.tree.levels[0]
        nodes, positions = len(level.code_M), self.positions
        place_U = self.model.tree.node_LN[0].index_select(0, self.item_U) * positions + self.position_U

        def below(value_U: Tensor) -> Tensor:
            sums = value_U.new_zeros(nodes * positions).index_add_(0, place_U, value_U)
            return sums.view(nodes, positions).index_select(0, level.contested_C)

        return self._said(
            0, below, self.model.rows_below(0)[level.contested_C][:, None], self.features, self.rows_U
        )

    def at(self, number: int, found: Families) -> Said:
        """[E] of the members of families of a level behind the first."""
        tree = self.model.tree
        level = tree.levels[number]
        # The families as a table of positions and groups, of which `asked_G` are some.
        asked_G, index_Q = torch.unique(found.group_Q, return_inverse=True)
        column_G = asked_G.new_full((level.groups + 1,), len(asked_G))  # the last: a parent of one child
        column_G[asked_G] = torch.arange(len(asked_G), device=asked_G.device)
        columns = len(asked_G) + 1
        family_PG = asked_G.new_full((self.positions * columns,), -1)
        family_PG[found.position_Q * columns + index_Q] = torch.arange(len(index_Q), device=asked_G.device)
        group_U = level.group_N.index_select(0, tree.node_LN[number - 1].index_select(0, self.item_U))
        column_U = column_G.index_select(0, group_U % len(column_G))  # -1, no group, is the last
        family_U = family_PG.index_select(0, self.position_U * columns + column_U)
        asked_U = family_U >= 0
        (at_T,) = torch.nonzero(asked_U, as_tuple=True)
        family_T, place_T = family_U[at_T], level.place_M[tree.node_LN[number][self.item_U[at_T]]]
        entry_T = found.first_Q[family_T] + place_T - level.first_G[found.group_Q[family_T]]
        within_E = torch.arange(len(found.family_E), device=entry_T.device) - found.first_Q[found.family_E]
        node_E = level.contested_C[level.first_G[found.group_Q[found.family_E]] + within_E]

        def below(value_T: Tensor) -> Tensor:
            return value_T.new_zeros(len(found.family_E)).index_add_(0, entry_T, value_T)

        features = [feature_U.index_select(0, at_T) for feature_U in self.features]
        rows_T = self.rows_U.index_select(0, at_T)
        return self._said(number, below, self.model.rows_below(number)[node_E], features, rows_T)

    def _said(self, number: int, below: Any, rows: Tensor, features: list[Tensor], rows_T: Tensor) -> Said:
        counts_T = rows_T * weighed(self.model.alpha_LF[number].detach(), features).exp_()
        # Items that no kernel knows count their train rows; a difference of sums, which rounding may take below 0.
        total = below(counts_T) + (rows - below(rows_T)).clamp_(min=0)
        return Said(
            (total / rows).log_(), [below(counts_T * feature_T).div_(total) for feature_T in features]
        )
