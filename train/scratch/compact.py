"""Training of compact generators: what they learn from, the loss of a batch, validation by the full ranking of valid rows.

A train row's target distribution is (1 - share) on the item that came and `share` of the teacher's; a made history
(train/scratch/augment.py) has the teacher's alone.

Legend: P rows of a batch, B rows of a block, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.rows import Rows
from infer.models.contract import KnownRows
from infer.models.retrievers.compact import CompactScorer
from infer.models.retrievers.compact_network import CompactModel
from infer.models.retrievers.compact_softmax import TargetMass, tree_cross_entropy
from infer.models.sequential.evidence import OwnCounts
from infer.models.sequential.model import recent_items
from infer.models.sequential.softmax import soft_cross_entropy
from infer.models.sequential.windows import PaddedBatch, RowWindows, batches, cut_windows, joined, padded
from train.scratch import repeats
from train.scratch.drawn import DrawnRows
from train.scratch.loop import Task
from train.scratch.sequential import by_ranking
from train.soft_targets import TaughtRows


@dataclass(frozen=True)
class CompactRows:
    """What is learned: windows of train rows; with `reach` they are chains, cut anew in every epoch into windows of so many items; and of them

    users: (examples int64, users) of every example, where the model has user tokens
    taught: the teacher of the train rows; made: windows of made histories, their teacher, the share of them that an epoch sees
    """

    windows: RowWindows
    reach: int | None = None
    users: tuple[np.ndarray, np.ndarray] | None = None
    taught: TaughtRows | DrawnRows | None = None
    share: float = 0.0
    made: tuple[RowWindows, TaughtRows | DrawnRows, float] | None = None

    def of_epoch(self, rng: np.random.Generator) -> RowWindows:
        windows = self.windows if self.reach is None else cut_windows(self.windows, self.reach, rng)
        if self.made is None:
            return windows
        made, _, ratio = self.made
        drawn = rng.permutation(len(made))[: round(ratio * len(made))]
        return joined(windows, made.take(np.sort(drawn)))


class CompactTask(Task):
    """A model, its train and valid rows."""

    def __init__(self, model: CompactModel, train: CompactRows, valid: Rows, *, rows: int) -> None:
        self.model, self.train, self.valid, self.rows = model, train, valid, rows
        self.positions, self.device = model.shape.model.positions, model.codes_NL.device
        self.first_made = None if train.made is None else int(train.made[0].example_I[0])
        self.known = None if train.users is None else KnownRows(train.users[0])
        self.current, self.epoch = train.windows, 0

    def batches(self, epoch: int, rng: np.random.Generator) -> Sequence[np.ndarray]:
        self.epoch = epoch
        self.current = self.train.of_epoch(rng)
        return batches(self.current, rows=self.rows, rng=rng)

    def example_ids(self, batch: np.ndarray) -> list[int]:
        return padded(self.current, batch).example_P.tolist()

    def loss(self, batch: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, int]:
        made, model = padded(self.current, batch), self.model
        history_BT, gap_BT, at_P, target_P = (
            self._on_device(part) for part in (made.history_BT, made.gap_BT, made.at_P, made.target_P)
        )
        user_B = self._users(made.at_P, made.history_BT.shape, made.example_P)
        state_PD = model.states(history_BT, at_P, user_B, gap_BT)
        recent_PJ, mass = recent_items(history_BT, at_P), self._mass(target_P, made.example_P)
        if model.companions is not None:
            mass = replace(mass, own=self._own(recent_PJ, target_P, made))
        loss = tree_cross_entropy(model, state_PD, recent_PJ, mass)
        if model.shape.model.item_path:
            loss = loss + self._item_loss(state_PD, recent_PJ, mass)
        return loss, len(at_P)

    def _users(self, at_P: np.ndarray, shape: tuple[int, int], example_P: np.ndarray) -> Tensor | None:
        """Users [B] of the histories."""
        if self.known is None:
            return None
        place_P = self.known.places(
            example_P, where="the training", lack="no user of", remedy="rows of one data set"
        )
        user_B = np.zeros(shape[0], np.int64)
        user_B[at_P // shape[1]] = self.train.users[1][place_P]
        return self._on_device(user_B)

    def _mass(self, target_P: Tensor, example_P: np.ndarray) -> TargetMass:
        train, hard_P, target_P1 = self.train, np.ones(len(example_P), np.float32), target_P[:, None]
        if train.taught is None:
            return TargetMass(target_P1, self._on_device(hard_P)[:, None])
        is_made_P = self._is_made(example_P)
        hard_P[:] = np.where(is_made_P, 0.0, 1 - train.share)
        if isinstance(train.taught, DrawnRows):
            item_PM = self._drawn(example_P, is_made_P)
            soft_P1 = ((1 - hard_P) / item_PM.shape[1])[:, None]
            share_PT = np.concatenate([hard_P[:, None], soft_P1.repeat(item_PM.shape[1], 1)], 1)
            return TargetMass(torch.cat([target_P1, self._on_device(item_PM)], 1), self._on_device(share_PT))

        def soft(rows: slice) -> Tensor:
            made_B, example_B = is_made_P[rows], example_P[rows]
            chance_BN = np.empty((len(example_B), model_items), np.float32)
            for taught, asked_B, share in _teachers(train, made_B):
                chance_BN[asked_B] = share * taught.dense(example_B[asked_B])
            return self._on_device(chance_BN)

        model_items = self.model.shape.num_items
        return TargetMass(target_P1, self._on_device(hard_P)[:, None], soft)

    def _drawn(self, example_P: np.ndarray, is_made_P: np.ndarray) -> np.ndarray:
        """The teacher's answers of this epoch, int64 [P, M]."""
        parts = [
            (asked_P, taught.answers(example_P[asked_P], self.epoch))
            for taught, asked_P, _ in _teachers(self.train, is_made_P)
        ]
        item_PM = np.empty((len(example_P), parts[0][1].shape[1]), np.int64)
        for asked_P, items in parts:
            item_PM[asked_P] = items
        return item_PM

    def _own(self, recent_PJ: Tensor, target_P: Tensor, batch: PaddedBatch) -> OwnCounts:
        """What train rows have put into the counts themselves. A made history is no row and has no target: nothing is taken off for it,
        the counts of the rows that it was made of stay in, though its teacher answers it without them."""
        counted_PC = None if batch.counted_PC is None else self._on_device(batch.counted_PC)
        own = self.model.companions.own_counts(recent_PJ, target_P, counted_PC)
        return OwnCounts(target_P, own.sum_2P * self._on_device(~self._is_made(batch.example_P)))

    def _is_made(self, example_P: np.ndarray) -> np.ndarray:
        return np.zeros(len(example_P), bool) if self.first_made is None else example_P >= self.first_made

    def _item_loss(self, state_PD: Tensor, recent_PJ: Tensor, mass: TargetMass) -> Tensor:
        """The second path's cross-entropy against the same distribution."""
        path, items_PM, share_PM = self.model.items, mass.item_PT, mass.share_PT
        if mass.soft is not None:
            soft_PN = mass.soft(slice(0, len(items_PM)))
            share_PM = soft_PN.scatter_add(1, items_PM, share_PM)
            items_PM = torch.arange(soft_PN.shape[1], device=self.device).expand(len(soft_PN), -1)
        return soft_cross_entropy(
            state_PD, path.item_ND, path.bias_N, path.evidence, recent_PJ, items_PM, share_PM, mass.own
        )

    def validate(self) -> dict[str, float]:
        return by_ranking(self._scores(), self.valid, self.model.shape.num_items)

    def settle(self, by: str) -> dict[str, Any]:
        size = self.model.shape.num_items
        return repeats.settle(
            self.model, self.valid, self._scores(), num_items=size, positions=self.positions, by=by
        )

    def _scores(self) -> Callable[[Rows], np.ndarray]:
        scorer = CompactScorer(self.model)
        return lambda rows: scorer.logs(rows).cpu().numpy()

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _teachers(
    train: CompactRows, made_B: np.ndarray
) -> list[tuple[TaughtRows | DrawnRows, np.ndarray, float]]:
    """(who teaches, which rows bool [B], with what share) of a block."""
    found = [(train.taught, ~made_B, train.share)]
    if train.made is not None:
        found.append((train.made[1], made_B, 1.0))
    return [one for one in found if one[1].any()]
