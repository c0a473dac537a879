"""Training of encoder-decoders over semantic IDs: batches of histories of one length, the loss of the answer's levels.

Rows are (history, target) pairs, each prefix of a user's history one of them (sliding windows). Histories of equal lengths
share a batch, so hardly anything is padding, and the output layer is computed for the codes of a level alone.

Legend: R train rows, B rows of a batch, T tokens of its longest history, L levels, X codes that may follow, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infer.engine import Engine
from infer.models.retrievers.tiger import answer_states, paths
from infer.search.scoring import LevelScorer, of_candidates
from train.scratch.loop import Task


@dataclass(frozen=True)
class HistoryRows:
    """Row r is the history `token_H[starts_R[r] : starts_R[r] + lengths_R[r]]` and the semantic ID `codes_RL[r]`.

    Integers; weight_R float32: how much a row counts; example_R: its example.
    """

    token_H: np.ndarray
    starts_R: np.ndarray
    lengths_R: np.ndarray
    codes_RL: np.ndarray
    weight_R: np.ndarray
    example_R: np.ndarray

    def __len__(self) -> int:
        return len(self.starts_R)

    def padded(self, rows: np.ndarray) -> np.ndarray:
        """Token ids int64 [B, T] of some rows, padded on the right with 0."""
        lengths_B = self.lengths_R[rows]
        slots_T = np.arange(lengths_B.max())
        filled_BT = slots_T < lengths_B[:, None]
        at_BT = np.where(filled_BT, self.starts_R[rows][:, None] + slots_T, 0)
        return np.where(filled_BT, self.token_H[at_BT], 0).astype(np.int64)


def batches(lengths_R: np.ndarray, *, rows: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of each batch: `rows` histories of similar lengths, batches in random order."""
    order = np.argsort(lengths_R + rng.random(len(lengths_R)), kind="stable")
    parts = np.split(order, np.arange(rows, len(order), rows))
    return [parts[number] for number in rng.permutation(len(parts))]


class EncoderDecoderTask(Task):
    """The model of `engine`, its train rows, and what validates it.

    smoothing: share of a code's probability that is spread evenly over the codes that may follow; bf16: whether forward and
    backward compute in bfloat16 (the weights stay float32).
    """

    def __init__(
        self,
        engine: Engine,
        train: HistoryRows,
        validator: Callable[[], dict[str, float]],
        *,
        rows: int,
        smoothing: float = 0.0,
        bf16: bool = False,
    ) -> None:
        self.engine, self.model, self.train, self.validator = engine, engine.model, train, validator
        self.rows, self.smoothing, self.bf16 = rows, smoothing, bf16
        self.device = next(engine.model.parameters()).device

    def batches(self, epoch: int, rng: np.random.Generator) -> Sequence[np.ndarray]:
        return batches(self.train.lengths_R, rows=self.rows, rng=rng)

    def example_ids(self, batch: np.ndarray) -> list[int]:
        return self.train.example_R[batch].tolist()

    def loss(self, batch: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, int]:
        loss_B = self.row_losses(batch)
        weight_B = self._on_device(self.train.weight_R[batch])
        return (loss_B * weight_B).sum() / weight_B.sum(), len(batch)

    def row_losses(self, batch: np.ndarray) -> Tensor:
        """Cross-entropy of the semantic ID, summed over its levels, float32 [B]."""
        ids_BT = self._on_device(self.train.padded(batch))
        lengths_B = self._on_device(self.train.lengths_R[batch].astype(np.int64))
        codes_BL = self._on_device(self.train.codes_RL[batch].astype(np.int64))
        nodes_BL, tokens_BL = paths(self.engine.trie, codes_BL)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden_BLD = answer_states(self.model, ids_BT, lengths_B, tokens_BL)
            scorer = LevelScorer(self.model, self.engine.trie, self.engine.settings.score_space)
            losses = [
                self._level(scorer, hidden_BLD, level, nodes_BL, codes_BL)
                for level in range(codes_BL.shape[1])
            ]
        return torch.stack(losses).sum(0)

    def _level(
        self, scorer: LevelScorer, hidden_BLD: Tensor, level: int, nodes_BL: Tensor, codes_BL: Tensor
    ) -> Tensor:
        here = slice(level, level + 1)
        score_B1X, at_B1X = scorer(hidden_BLD[:, here], level, nodes_BL[:, here])
        loss_B1 = -of_candidates(score_B1X, at_B1X, codes_BL[:, here])
        if self.smoothing:
            legal_B1X = score_B1X.isfinite()
            spread_B1 = -score_B1X.masked_fill(~legal_B1X, 0).sum(-1) / legal_B1X.sum(-1)
            loss_B1 = (1 - self.smoothing) * loss_B1 + self.smoothing * spread_B1
        return loss_B1.squeeze(1)

    def validate(self) -> dict[str, float]:
        return self.validator()

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
