"""What the items of a history say of the nodes of a tree: what they say of the items below (sequential/evidence.py), folded up.

With the features f_i of an item, log(1 + 20 s) of every kernel, a level's alphas, and b_i the sum of its bonuses for the steps back at which
the item stands in the history, the logit of a node n grows by

    log( sum_i r_i exp(alpha . f_i + b_i) / sum_i r_i ),    over the items i below n, r_i being their train rows

so that a node is as likely as its items together are: where nodes begin with their share of their parent's train rows as a bias and
all levels have the same alphas and bonuses, a path has the probability that a softmax over items would give its items. Evidence that is
summed up below a node feature by feature, or a bonus for the whole node (as this model had them before), are not. So a node can lose
its items of the history and keep their neighbours, where nobody takes an item twice. train/README.md has what each is worth.

`everywhere` is dense, every contested node for every position. `Around` holds the items of a history and those that any kernel knows of
them, and gives the same at the members of families (compact_paths.py): its work grows with what is near a history and not with the
catalogue.

Legend: P positions, J steps back, N items, M nodes of a level, C contested nodes, K items that a kernel knows of an item, H entries of all
kernels and the history, A items of histories, B those of them whose nodes are asked for, U pairs of a position and an item, T those of them
that are below families, E members of families, F features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infer.models.retrievers.compact_paths import Families, Repeats, Said
from infer.models.retrievers.compact_tree import BOUND, TreeLevel
from infer.models.sequential.evidence import DECAY, STEEPNESS, OwnCounts, sums_by_item

BLOCK_VALUES = 1 << 24  # items times positions held at once: 64 MiB a feature


def everywhere(
    model: Any, recent_PJ: Tensor, own: OwnCounts | None = None, *, slopes: bool = False
) -> list[Said | None]:
    """For every level the contested nodes of all positions; None where a history says nothing. own: of train rows that are learned.

    slopes: what gradients need too, of all positions at once.
    """
    if not model.reads_history:
        return [None] * len(model.heads)
    if slopes:
        return _block(model, recent_PJ, own, slopes=True)
    step = max(1, BLOCK_VALUES // len(model.rows_N))
    blocks = [slice(start, start + step) for start in range(0, max(len(recent_PJ), 1), step)]
    parts = [
        _block(model, recent_PJ[rows], None if own is None else own.of(rows), slopes=False) for rows in blocks
    ]
    return [Said(torch.cat([part.logit for part in level], 1)) for level in zip(*parts, strict=True)]


def _block(model: Any, recent_PJ: Tensor, own: OwnCounts | None, *, slopes: bool) -> list[Said]:
    kernels = model.kernels()
    own_at = len(kernels) - 1 if model.companions is not None else None
    features = [
        sums_NP.log1p_()
        for place, pair in enumerate(kernels)
        for sums_NP in sums_by_item(recent_PJ, *pair, own=own if place == own_at else None)
    ]
    positions = len(recent_PJ)
    position_A, back_A = torch.nonzero(recent_PJ >= 0, as_tuple=True)
    item_A = recent_PJ[position_A, back_A]
    said = []
    for number, alpha_F in enumerate(model.alpha_LF.detach()):
        level, node_N = model.tree.levels[number], model.tree.node_LN[number]
        logit_NP = model.rows_N.new_zeros(len(model.rows_N), positions)
        if model.copies:
            bonus_A = model.bonus_LJ.detach()[number].index_select(0, back_A)
            logit_NP.view(-1).index_add_(0, item_A * positions + position_A, bonus_A)
        counts_NP = weighed(logit_NP, alpha_F, features).exp_().mul_(model.rows_N[:, None])

        def below(value_NP: Tensor, level: TreeLevel = level, node_N: Tensor = node_N) -> Tensor:
            sums_MP = value_NP.new_zeros(len(level.code_M), value_NP.shape[1])
            return sums_MP.index_add_(0, node_N, value_NP).index_select(0, level.contested_C)

        total_CP = below(counts_NP)
        by_alpha, repeats = [], None
        if slopes:
            by_alpha = [below(counts_NP * feature_NP).div_(total_CP) for feature_NP in features]
        if slopes and model.copies:
            place_A = level.place_M[node_N[item_A]]
            (there_B,) = torch.nonzero(place_A < len(level.contested_C), as_tuple=True)
            entry_B = place_A[there_B] * positions + position_A[there_B]
            count_B = counts_NP[item_A[there_B], position_A[there_B]]
            repeats = Repeats(entry_B, back_A[there_B], count_B / total_CP.view(-1)[entry_B])
        rows_C1 = model.rows_below(number)[level.contested_C][:, None]
        said.append(Said(total_CP.div_(rows_C1).log_(), by_alpha, repeats))
    return said


def weighed(total: Tensor, alpha_F: Tensor, features: list[Tensor]) -> Tensor:
    """`total` and the sum of features by their alphas, held within what exponentials of it may be; in its place."""
    for alpha, feature in zip(alpha_F, features, strict=True):
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
    """The items around the histories of some positions, theirs too: position_U, item_U int64, one float32 [U] per feature; place_A, back_A:
    which of them the items of histories are, and how many steps back."""

    def __init__(self, model: Any, recent_PJ: Tensor, own: OwnCounts | None) -> None:
        self.model, self.positions, size = model, len(recent_PJ), len(model.rows_N)
        position_A, self.back_A = torch.nonzero(recent_PJ >= 0, as_tuple=True)
        item_A = recent_PJ[position_A, self.back_A]
        decay_A, newest_A = STEEPNESS * DECAY**self.back_A, STEEPNESS * (self.back_A == 0)
        keys, values = [position_A * size + item_A], []
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
        self.place_A = place_H[: len(item_A)]
        sums, start = [], len(item_A)
        for pair in values:
            place = place_H[start : start + len(pair[0])]
            start += len(place)
            sums += [value_H.new_zeros(len(key_U)).index_add_(0, place, value_H) for value_H in pair]
        if own is not None and model.companions is not None:
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
        node_U = self.model.tree.node_LN[0].index_select(0, self.item_U)
        place_U = node_U * positions + self.position_U

        def below(value_U: Tensor) -> Tensor:
            sums = value_U.new_zeros(nodes * positions).index_add_(0, place_U, value_U)
            return sums.view(nodes, positions).index_select(0, level.contested_C)

        place_of_U = level.place_M.index_select(0, node_U)  # a node without siblings has none
        contested_U = place_of_U < len(level.contested_C)
        entry_U = torch.where(contested_U, place_of_U * positions + self.position_U, -1)
        rows_C1 = self.model.rows_below(0)[level.contested_C][:, None]
        return self._said(0, below, rows_C1, None, entry_U)

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
        (at_T,) = torch.nonzero(family_U >= 0, as_tuple=True)
        family_T, place_T = family_U[at_T], level.place_M[tree.node_LN[number][self.item_U[at_T]]]
        entry_T = found.first_Q[family_T] + place_T - level.first_G[found.group_Q[family_T]]
        within_E = torch.arange(len(found.family_E), device=entry_T.device) - found.first_Q[found.family_E]
        node_E = level.contested_C[level.first_G[found.group_Q[found.family_E]] + within_E]

        def below(value_T: Tensor) -> Tensor:
            return value_T.new_zeros(len(found.family_E)).index_add_(0, entry_T, value_T)

        entry_U = torch.full_like(family_U, -1).index_copy_(0, at_T, entry_T)
        return self._said(number, below, self.model.rows_below(number)[node_E], at_T, entry_U)

    def _said(self, number: int, below: Any, rows: Tensor, at_T: Tensor | None, entry_U: Tensor) -> Said:
        """below: sums of what is said of the items at_T (None: of all), at each node; rows: train rows of the nodes; entry_U: places of the
        nodes of items, -1 for those that are not asked for."""

        def chosen(value_U: Tensor) -> Tensor:
            return value_U if at_T is None else value_U.index_select(0, at_T)

        total_U, alpha_F = torch.zeros_like(self.rows_U), self.model.alpha_LF[number].detach()
        if self.model.copies:
            bonus_A = self.model.bonus_LJ[number].detach().index_select(0, self.back_A)
            total_U.index_add_(0, self.place_A, bonus_A)
        features, rows_T = [chosen(feature_U) for feature_U in self.features], chosen(self.rows_U)
        counts_T = rows_T * weighed(chosen(total_U), alpha_F, features).exp_()
        # Items that are not around count their train rows; a difference of sums, which rounding may take below 0.
        total = below(counts_T) + (rows - below(rows_T)).clamp_(min=0)
        by_alpha = [below(counts_T * feature_T).div_(total) for feature_T in features]
        said = Said((total / rows).log_(), by_alpha)
        if not self.model.copies:
            return said
        entry_A = entry_U.index_select(0, self.place_A)
        (there_B,) = torch.nonzero(entry_A >= 0, as_tuple=True)
        entry_B, place_B = entry_A[there_B], self.place_A[there_B]
        if at_T is not None:
            place_B = torch.empty_like(entry_U).index_copy_(
                0, at_T, torch.arange(len(at_T), device=at_T.device)
            )[place_B]
        return said._replace(
            repeats=Repeats(entry_B, self.back_A[there_B], counts_T[place_B] / total.view(-1)[entry_B])
        )
