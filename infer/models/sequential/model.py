"""A sequential recommender: item vectors, a trunk, what histories say by themselves, logits of all items.

Legend: B histories, T positions, P positions that are asked for, N items, D width of an item vector, E width of a state,
J steps back, X dimensions of a text vector.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from infer.models.sequential.companions import Companions
from infer.models.sequential.evidence import HistoryEvidence
from infer.models.sequential.options import SequentialShape
from infer.models.sequential.trunks import make_trunk

SPREAD, SPREAD_BESIDE_TEXT = 0.05, 0.02  # standard deviation of first item vectors


class SequentialModel(nn.Module):
    """Weights drawn from torch's generator; `learn_of` gives it what is known of the items before training."""

    def __init__(self, shape: SequentialShape) -> None:
        super().__init__()
        self.shape, size, hidden = shape, shape.num_items, shape.scorer.hidden
        self.item_ND = nn.Parameter(
            torch.randn(size, hidden) * (SPREAD_BESIDE_TEXT if shape.text_dim else SPREAD)
        )
        if shape.text_dim:
            self.register_buffer("text_NX", torch.zeros(size, shape.text_dim))
            self.read_text = nn.Sequential(
                nn.Linear(shape.text_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden)
            )
        self.trunk = make_trunk(shape)
        width = self.trunk.width
        self.project = nn.Linear(width, hidden) if shape.scorer.tied and width != hidden else nn.Identity()
        if not shape.scorer.tied:
            self.out_NE = nn.Parameter(torch.randn(size, width) * width**-0.5)
        self.bias_N = nn.Parameter(torch.zeros(size))
        self.evidence = HistoryEvidence(
            size,
            shape.scorer.positions,
            similar=shape.similar,
            copy=shape.scorer.copy,
            companions=shape.companions,
        )

    @torch.no_grad()
    def learn_of(
        self,
        *,
        popularity_N: np.ndarray,
        text_NX: np.ndarray | None = None,
        similar: tuple[np.ndarray, np.ndarray] | None = None,
        companions: Companions | None = None,
    ) -> None:
        """popularity_N: train rows of every item; text_NX float32; similar: `text.similar_items`; companions: of the train rows."""
        if self.shape.scorer.bias == "popularity":
            share_N = (popularity_N + 1.0) / (popularity_N + 1.0).sum()
            self.bias_N.copy_(torch.from_numpy(np.log(share_N)))
        if self.shape.text_table == "add":
            self.text_NX.copy_(torch.from_numpy(text_NX))
        elif self.shape.text_table == "init" and text_NX.any():
            width = min(text_NX.shape[1], self.item_ND.shape[1])
            self.item_ND[:, :width] = torch.from_numpy(text_NX[:, :width]) * SPREAD
        if self.shape.similar:
            items_NK, cosine_NK = (torch.from_numpy(part[:, : self.shape.similar]) for part in similar)
            self.evidence.similar_NK.copy_(items_NK)
            self.evidence.square_NK.copy_(cosine_NK.square())
        if self.evidence.companions is not None:
            self.evidence.companions.learn_of(companions)

    def item_vectors(self) -> Tensor:
        """What goes in: the vector of every item, [N, D]."""
        return self.item_ND + self.read_text(self.text_NX) if self.shape.text_dim else self.item_ND

    def scoring_table(self, items_ND: Tensor) -> Tensor:
        """What scores: [N, E]; `items_ND` is `item_vectors()`."""
        return items_ND if self.shape.scorer.tied else self.out_NE

    def states(self, items_ND: Tensor, history_BT: Tensor, at_P: Tensor) -> Tensor:
        """States [P, E] after the positions `at_P` (b * T + t) of padded histories; padding is any item."""
        state_BTE = self.trunk(functional.embedding(history_BT, items_ND))
        return self.project(state_BTE.flatten(0, 1)[at_P])

    def logits(self, history_BT: Tensor, at_P: Tensor, items_ND: Tensor) -> Tensor:
        """Logits [P, N] of all items as the next one after each position; `items_ND` is `item_vectors()`, the same for all blocks of
        rows. For scoring: no gradient passes the evidence."""
        state_PE = self.states(items_ND, history_BT, at_P)
        logits_PN = torch.addmm(self.bias_N, state_PE, self.scoring_table(items_ND).T)
        if self.evidence:
            recent_PJ = recent_items(history_BT, at_P)
            with torch.no_grad():
                self.evidence.add_to(logits_PN, recent_PJ, self.evidence.features(recent_PJ))
        return logits_PN

    def logits_of(self, state_PE: Tensor, items_ND: Tensor, item_PC: Tensor) -> Tensor:
        """Logits [P, C] of some items only; without evidence."""
        table_NE = self.scoring_table(items_ND)
        chosen_PCE = functional.embedding(item_PC, table_NE)
        return (chosen_PCE @ state_PE[:, :, None]).squeeze(2) + self.bias_N[item_PC]


def recent_items(history_BT: Tensor, at_P: Tensor) -> Tensor:
    """The history up to each position, newest first, -1 where it has no more items: int64 [P, T].

    >>> recent_items(torch.tensor([[4, 7, 5]]), torch.tensor([1, 2])).tolist()
    [[7, 4, -1], [5, 7, 4]]
    """
    length = history_BT.shape[1]
    back_T = torch.arange(length, device=at_P.device)
    place_PT = (at_P % length)[:, None] - back_T
    flat_PT = (at_P[:, None] - back_T).clamp(min=0)
    return torch.where(place_PT >= 0, history_BT.reshape(-1)[flat_PT], -1)
