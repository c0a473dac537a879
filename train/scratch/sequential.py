"""Training of sequential models: what they learn from, the loss of a batch, validation by the full ranking of valid rows.

Legend: P rows of a batch, N items, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.rows import Rows
from infer.metrics.placement import joined
from infer.metrics.ranking import by_name
from infer.models.contract import block_rows, target_places
from infer.models.sequential.model import SequentialModel, recent_items
from infer.models.sequential.scoring import SequentialScorer
from infer.models.sequential.softmax import soft_cross_entropy
from infer.models.sequential.windows import (
    NONE,
    PaddedBatch,
    RowWindows,
    batches,
    cut_windows,
    padded,
    row_chains,
    row_windows,
)
from train.scratch import losses, repeats
from train.scratch.loop import Task
from train.scratch.options import ItemLoss

KS = (10, 20)


@dataclass(frozen=True)
class TrainRows:
    """What is learned: the rows as windows; with `reach` they are chains, cut anew in every epoch into windows of so many items."""

    windows: RowWindows
    reach: int | None = None

    @classmethod
    def of_rows(cls, rows: Rows) -> TrainRows:
        return cls(row_windows(rows))

    @classmethod
    def of_chains(cls, rows: Rows) -> TrainRows:
        return cls(*row_chains(rows))

    def of_epoch(self, rng: np.random.Generator) -> RowWindows:
        return self.windows if self.reach is None else cut_windows(self.windows, self.reach, rng)


class SequentialTask(Task):
    """A model, its train and valid rows, its loss. similar: (items int [N, >= K], cosines) for `loss.neighbour_share`."""

    def __init__(
        self,
        model: SequentialModel,
        train: TrainRows,
        valid: Rows,
        *,
        loss: ItemLoss,
        rows: int,
        similar: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.model, self.train, self.valid, self.chosen, self.rows = model, train, valid, loss, rows
        self.num_items, self.positions = model.shape.num_items, model.shape.scorer.positions
        self.device = model.bias_N.device
        self.current = train.windows
        self.neighbour_NK = self.weight_NK = None
        if loss.neighbour_share:
            items_NK, cosine_NK = (part[:, : loss.neighbours] for part in similar)
            square_NK = np.square(cosine_NK)
            weight_NK = square_NK / np.maximum(square_NK.sum(1, keepdims=True), 1e-9)
            self.neighbour_NK, self.weight_NK = (
                self._on_device(items_NK.astype(np.int64)),
                self._on_device(weight_NK),
            )
        if loss.dro_alpha:
            targets = train.windows.target_I[train.windows.target_I != NONE]
            counts_N = np.bincount(targets, minlength=self.num_items)
            self.propensity_N = self._on_device(losses.propensity(counts_N))

    def batches(self, epoch: int, rng: np.random.Generator) -> Sequence[np.ndarray]:
        self.current = self.train.of_epoch(rng)
        return batches(self.current, rows=self.rows, rng=rng)

    def example_ids(self, batch: np.ndarray) -> list[int]:
        return padded(self.current, batch).example_P.tolist()

    def loss(self, batch: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, int]:
        made = padded(self.current, batch)
        return self.batch_loss(made, rng), len(made.at_P)

    def batch_loss(self, batch: PaddedBatch, rng: np.random.Generator) -> Tensor:
        """Mean loss over the rows of a batch; `rng` draws the negatives."""
        chosen, model = self.chosen, self.model
        history_BT, at_P, target_P = (
            self._on_device(part) for part in (batch.history_BT, batch.at_P, batch.target_P)
        )
        items_ND = model.item_vectors()
        state_PE, table_NE = model.states(items_ND, history_BT, at_P), model.scoring_table(items_ND)
        if chosen.kind == "ce" and not chosen.dro_alpha:
            recent_PJ = recent_items(history_BT, at_P) if model.evidence else at_P[:, None][:, :0]
            targets = losses.soft_targets(
                target_P, self.neighbour_NK, self.weight_NK, share=chosen.neighbour_share
            )
            counted_PC = None if batch.counted_PC is None else self._on_device(batch.counted_PC)
            own = model.evidence.own_counts(recent_PJ, target_P, counted_PC)
            return soft_cross_entropy(
                state_PE, table_NE, model.bias_N, model.evidence, recent_PJ, *targets, own
            )
        drawn_PC = losses.drawn_negatives(batch.target_P, self.num_items, chosen.negatives, rng)
        asked_PC = torch.cat([target_P[:, None], self._on_device(drawn_PC)], dim=1)
        if not chosen.dro_alpha:
            return losses.binary_cross_entropy(model.logits_of(state_PE, items_ND, asked_PC))
        logit_PN = torch.addmm(model.bias_N, state_PE, table_NE.T)
        robust = losses.dro_term(logit_PN, target_P, self.propensity_N, beta=chosen.dro_beta)
        if chosen.kind == "ce":
            return torch.nn.functional.cross_entropy(logit_PN, target_P) + chosen.dro_alpha * robust
        return losses.binary_cross_entropy(logit_PN.gather(1, asked_PC)) + chosen.dro_alpha * robust

    def validate(self) -> dict[str, float]:
        return by_ranking(self._scores(), self.valid, self.num_items)

    def settle(self, by: str) -> dict[str, Any]:
        return repeats.settle(
            self.model,
            self.valid,
            self._scores(),
            num_items=self.num_items,
            positions=self.positions,
            by=by,
        )

    def _scores(self) -> Callable[[Rows], np.ndarray]:
        scorer = SequentialScorer(self.model)
        return lambda rows: scorer.logits(rows).cpu().numpy()

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def by_ranking(score: Callable[[Rows], np.ndarray], valid: Rows, num_items: int) -> dict[str, float]:
    """{"hr@10": ..., "ndcg@20": ...} of the full ranking of rows by `score` [R, N], ties in random order."""
    step, parts = block_rows(num_items), []
    for start in range(0, len(valid), step):
        block = valid.take(np.arange(start, min(start + step, len(valid))))
        parts.append(target_places(score(block), block.target_R))
    placed = joined(parts)
    names = [f"{name}@{k}" for name in ("hr", "ndcg") for k in KS]
    return {name: float(by_name(name, placed.before_R, placed.group_R).mean()) for name in names}
