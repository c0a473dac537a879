"""What the items of a history say of the next one by themselves: that they come again, that similar texts come, what came with them before.

Added to the logits of all items, with weights that are learned:

    bonus_j                       to the item that stands j steps back
    alpha_0 log(1 + 20 s_0)       s_0: what the last item says of the item
    alpha_1 log(1 + 20 sum_j .7^j s_j)    the same over the history, older items counting less

once with squared text cosines for s (the kernel of texts), once with five times the cosine of what came near one another in train rows (the
kernel of companions, `infer.models.sequential.companions`). A train row is itself part of those counts; so that it does not recognise itself, what it
has put there is taken off again while it is learned (`own_counts`), so that a target is as near as it would be had its row never been counted. What else a row
has counted stays: numbers of train rows, the order's weight, and its user's later rows. Rows whose history is not what came before them
in the log (published ones with context) are taken off what they would have counted.

Legend: P positions (prefixes of histories), J steps back, N items, K similar items or companions, F features.
"""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.rows import TrainLog
from infer.models.sequential import companions as near
from infer.models.sequential.companions import Companions

DECAY, STEEPNESS = 0.7, 20.0
COMPANION_WORTH = 5.0  # of a cosine of companions beside a squared one of texts
START = 0.1  # of all alphas


def weighs_evidence(name: str) -> bool:
    """Whether a parameter of a model, by its name, is one of the numbers that evidence is weighed with: alphas and bonuses.

    >>> [weighs_evidence(name) for name in ("evidence.alpha_F", "bonus_LJ", "bias_N")]
    [True, True, False]
    """
    return is_bonus(name) or name.rsplit(".", 1)[-1].startswith("alpha_")


def is_bonus(name: str) -> bool:
    """Whether a parameter of a model, by its name, holds bonuses of items of the history.

    >>> [is_bonus(name) for name in ("evidence.bonus_J", "bonus_LJ", "alpha_LF")]
    [True, True, False]
    """
    return name.rsplit(".", 1)[-1].startswith("bonus_")


class OwnCounts(NamedTuple):
    """What rows have themselves put into a kernel: at the target target_P (int64), to be taken off the sums float32 [2, P] of the newest
    item and of the history."""

    target_P: Tensor
    sum_2P: Tensor

    def of(self, rows: slice) -> OwnCounts:
        return OwnCounts(self.target_P[rows], self.sum_2P[:, rows])


class CompanionKernel(nn.Module):
    """`infer.models.sequential.companions.Companions` of a model: item_NK and value_NK are saved with it, root_N is for training."""

    def __init__(self, num_items: int, most: int) -> None:
        super().__init__()
        self.register_buffer("item_NK", torch.zeros(num_items, most, dtype=torch.int32))
        self.register_buffer("value_NK", torch.zeros(num_items, most))
        self.root_N: Tensor | None = None

    def learn_of(self, found: Companions) -> None:
        self.item_NK.copy_(torch.from_numpy(found.item_NK))
        self.value_NK.copy_(COMPANION_WORTH * torch.from_numpy(found.cosine_NK))
        self.root_N = torch.from_numpy(found.root_N).to(self.value_NK.device)

    def recounted(self, train: TrainLog) -> CompanionKernel:
        """As many companions of other train rows."""
        other = CompanionKernel(*self.item_NK.shape)
        other.learn_of(near.companions(train, most=self.item_NK.shape[1]))
        return other.to(self.item_NK.device)

    def own_counts(self, recent_PJ: Tensor, target_P: Tensor, counted_PC: Tensor | None = None) -> OwnCounts:
        """What the rows of a batch have put into the counts: near.DECAY ** j for the item j < near.REACH steps back, over what a pair is
        divided by.

        counted_PC: the newest items of the rows where a window shows fewer of them (`PaddedBatch`). An item that stands in the history twice
        has been counted twice with the target; where it stands again in front of all that is known of a longer history, that count stays in.
        Pairs that the kernel does not keep are not in its sums.
        """
        item_PJ, there_PJ = recent_PJ.clamp(min=0), recent_PJ >= 0
        back_J = torch.arange(recent_PJ.shape[1], device=recent_PJ.device)
        counted_PC = (recent_PJ if counted_PC is None else counted_PC)[:, : near.REACH]
        same_PJC = (item_PJ[:, :, None] == counted_PC[:, None]) & there_PJ[:, :, None]
        count_PJ = (same_PJC * near.DECAY ** torch.arange(counted_PC.shape[1], device=counted_PC.device)).sum(
            2
        )
        stored_PJK = (self.item_NK[item_PJ] == target_P[:, None, None]) & (self.value_NK[item_PJ] > 0)
        if self.root_N.device != recent_PJ.device:
            self.root_N = self.root_N.to(recent_PJ.device)
        divisor_PJ = self.root_N[item_PJ] * self.root_N[target_P][:, None] + near.SHRINK
        value_PJ = COMPANION_WORTH * count_PJ / divisor_PJ
        own_PJ = torch.where(there_PJ & stored_PJK.any(2), value_PJ, 0.0) * STEEPNESS
        return OwnCounts(target_P, torch.stack([own_PJ[:, 0], (own_PJ * DECAY**back_J).sum(1)]))


def with_parts(module: nn.Module, **parts: nn.Module) -> Any:
    """A module that shares everything with `module` but these modules of it, which it has in their place."""
    other = copy(module)
    other._modules = module._modules | parts
    return other


class HistoryEvidence(nn.Module):
    """`recent_PJ` (int64, newest first, -1 where a history has no more items) is all that it looks at.

    similar, companions: K of the kernels, 0 = no kernel; copy: whether there is a bonus.
    """

    def __init__(
        self, num_items: int, positions: int, *, similar: int, copy: bool, companions: int = 0
    ) -> None:
        super().__init__()
        self.similar, self.copy, self.num_items = similar, copy, num_items
        self.companions = CompanionKernel(num_items, companions) if companions else None
        self.alpha_F = nn.Parameter(torch.full((2 * (bool(similar) + bool(companions)),), START))
        self.bonus_J = nn.Parameter(torch.zeros(positions if copy else 0))
        self.register_buffer("similar_NK", torch.zeros(num_items, similar, dtype=torch.int32))
        self.square_NK: Tensor
        self.register_buffer("square_NK", torch.zeros(num_items, similar))

    def __bool__(self) -> bool:
        return bool(self.similar or self.copy or self.companions)

    def recounted(self, train: TrainLog) -> HistoryEvidence:
        """The same weights of companions of other train rows; itself where it has none."""
        return (
            self if self.companions is None else with_parts(self, companions=self.companions.recounted(train))
        )

    def own_counts(
        self, recent_PJ: Tensor, target_P: Tensor, counted_PC: Tensor | None = None
    ) -> OwnCounts | None:
        """`CompanionKernel.own_counts` where there is that kernel."""
        if self.companions is None:
            return None
        return self.companions.own_counts(recent_PJ, target_P, counted_PC)

    def features(self, recent_PJ: Tensor, own: OwnCounts | None = None) -> list[Tensor]:
        """What the alphas weigh, dense [P, N] each; [] without a kernel. own: of train rows that are learned."""
        found = []
        if self.similar:
            found += self._features(recent_PJ, self.similar_NK, self.square_NK, None)
        if self.companions is not None:
            found += self._features(recent_PJ, self.companions.item_NK, self.companions.value_NK, own)
        return found

    def _features(
        self, recent_PJ: Tensor, item_NK: Tensor, value_NK: Tensor, own: OwnCounts | None
    ) -> list[Tensor]:
        newest_PN = torch.zeros(len(recent_PJ), self.num_items, device=recent_PJ.device)
        (has,) = torch.nonzero(recent_PJ[:, 0] >= 0, as_tuple=True)
        item = recent_PJ[has, 0]
        # Items stand once in a row of item_NK; places of value 0 may all name item 0, so values are added.
        newest_PN.view(-1).index_add_(
            0,
            (has[:, None] * self.num_items + item_NK[item]).view(-1),
            torch.log1p(STEEPNESS * value_NK[item]).view(-1),
        )
        history_PN = similar_sums(recent_PJ, item_NK, value_NK)
        if own is not None:
            place_P1 = own.target_P[:, None]
            left_P1 = newest_PN.gather(1, place_P1).expm1_() - own.sum_2P[0][:, None]
            newest_PN.scatter_(1, place_P1, left_P1.clamp_(min=0).log1p_())
            left_P1 = history_PN.gather(1, place_P1) - own.sum_2P[1][:, None]
            history_PN.scatter_(1, place_P1, left_P1.clamp_(min=0))
        return [newest_PN, history_PN.log1p_()]

    def add_to(self, logits_PN: Tensor, recent_PJ: Tensor, features: list[Tensor]) -> None:
        """Add everything to the logits, in place."""
        for alpha, feature_PN in zip(self.alpha_F, features, strict=True):
            logits_PN.addcmul_(feature_PN, alpha)
        if self.copy:
            steps = recent_PJ.shape[1]
            bonus_PJ = torch.where(recent_PJ >= 0, self.bonus_J[:steps], 0.0)
            logits_PN.scatter_add_(1, recent_PJ.clamp(min=0), bonus_PJ)

    def gradients(self, slope_PN: Tensor, recent_PJ: Tensor, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Gradients of (alpha_F, bonus_J) from the slope of the loss by each logit."""
        alpha_F = torch.zeros_like(self.alpha_F)
        for number, feature_PN in enumerate(features):
            alpha_F[number] = torch.dot(slope_PN.reshape(-1), feature_PN.view(-1))
        bonus_J = torch.zeros_like(self.bonus_J)
        if self.copy:
            slope_PJ = slope_PN.gather(1, recent_PJ.clamp(min=0))
            bonus_J[: recent_PJ.shape[1]] = torch.where(recent_PJ >= 0, slope_PJ, 0.0).sum(0)
        return alpha_F, bonus_J


def sums_by_item(
    recent_PJ: Tensor,
    item_NK: Tensor,
    value_NK: Tensor,
    *,
    own: OwnCounts | None,
) -> list[Tensor]:
    """`similar_sums` [N, P] of the newest item and of the history, what is the rows' own taken off."""
    found = [
        similar_sums(steps, item_NK, value_NK, items_first=True) for steps in (recent_PJ[:, :1], recent_PJ)
    ]
    if own is not None:
        place_1P = own.target_P[None]
        for sums_NP, sum_P in zip(found, own.sum_2P, strict=True):
            left_1P = sums_NP.gather(0, place_1P) - sum_P
            sums_NP.scatter_(0, place_1P, left_1P.clamp_(min=0))  # below 0 by rounding
    return found


def similar_sums(
    recent_PJ: Tensor,
    similar_NK: Tensor,
    square_NK: Tensor,
    *,
    items_first: bool = False,
) -> Tensor:
    """STEEPNESS * sum_j DECAY^j s_j of every item, float32 [P, N] or, with `items_first`, [N, P]."""
    count, num_items = len(recent_PJ), len(similar_NK)
    of_item, of_position = (count, 1) if items_first else (1, num_items)
    shape = (num_items, count) if items_first else (count, num_items)
    sums = torch.zeros(shape, device=recent_PJ.device)
    for back in range(recent_PJ.shape[1]):
        (has,) = torch.nonzero(recent_PJ[:, back] >= 0, as_tuple=True)
        item = recent_PJ[has, back]
        place = similar_NK[item].long()
        flat = has[:, None] * of_position + place * of_item
        sums.view(-1).index_add_(0, flat.view(-1), (DECAY**back * STEEPNESS * square_NK[item]).view(-1))
    return sums
