"""What the items of a history say of the next one by themselves: that they come again, and that similar texts come.

Added to the logits of all items, with weights that are learned:

    bonus_j                       to the item that stands j steps back
    alpha_0 log(1 + 20 s_0)       s_0: squared text cosine of the item to the last one
    alpha_1 log(1 + 20 sum_j .7^j s_j)    the same over the history, older items counting less

Nothing here is counted on train rows, so a train row cannot recognise itself.

Legend: P positions (prefixes of histories), J steps back, N items, K similar items, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY, STEEPNESS = 0.7, 20.0
START = 0.1  # of both alphas


class HistoryEvidence(nn.Module):
    """`recent_PJ` (int64, newest first, -1 where a history has no more items) is all that it looks at.

    similar: K of the buffers, 0 = no kernel; copy: whether there is a bonus.
    """

    def __init__(self, num_items: int, positions: int, *, similar: int, copy: bool) -> None:
        super().__init__()
        self.similar, self.copy, self.num_items = similar, copy, num_items
        self.alpha_F = nn.Parameter(torch.full((2 if similar else 0,), START))
        self.bonus_J = nn.Parameter(torch.zeros(positions if copy else 0))
        self.register_buffer("similar_NK", torch.zeros(num_items, similar, dtype=torch.int32))
        self.square_NK: Tensor
        self.register_buffer("square_NK", torch.zeros(num_items, similar))

    def __bool__(self) -> bool:
        return bool(self.similar or self.copy)

    def features(self, recent_PJ: Tensor) -> list[Tensor]:
        """What the alphas weigh, dense [P, N] each; [] without a kernel."""
        if not self.similar:
            return []
        newest_PN = torch.zeros(len(recent_PJ), self.num_items, device=recent_PJ.device)
        (has,) = torch.nonzero(recent_PJ[:, 0] >= 0, as_tuple=True)
        item = recent_PJ[has, 0]
        newest_PN[has[:, None], self.similar_NK[item].long()] = torch.log1p(STEEPNESS * self.square_NK[item])
        history_PN = similar_sums(recent_PJ, self.similar_NK, self.square_NK)
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


def similar_sums(
    recent_PJ: Tensor,
    similar_NK: Tensor,
    square_NK: Tensor,
    *,
    items_first: bool = False,
    onto: tuple[Tensor, int] | None = None,
) -> Tensor:
    """STEEPNESS * sum_j DECAY^j s_j of every item, float32 [P, N] or, with `items_first`, [N, P].

    onto: (which sum each item counts in, int64 [N], how many sums there are) instead of one of its own.
    """
    count, num_items = len(recent_PJ), len(similar_NK) if onto is None else onto[1]
    of_item, of_position = (count, 1) if items_first else (1, num_items)
    shape = (num_items, count) if items_first else (count, num_items)
    sums = torch.zeros(shape, device=recent_PJ.device)
    for back in range(recent_PJ.shape[1]):
        (has,) = torch.nonzero(recent_PJ[:, back] >= 0, as_tuple=True)
        item = recent_PJ[has, back]
        place = similar_NK[item].long() if onto is None else onto[0][similar_NK[item].long()]
        flat = has[:, None] * of_position + place * of_item
        sums.view(-1).index_add_(0, flat.view(-1), (DECAY**back * STEEPNESS * square_NK[item]).view(-1))
    return sums
