"""Validation inside a trainer: constrained recommendation with the live weights on a fixed sample of valid rows.

Legend: N rows, K beams, S distinct semantic IDs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from configs.program import InputError
from data import artifacts
from data.sid import SidTable
from infer.engine import Engine
from infer.metrics.ranking import hr_at_k, ndcg_at_k
from infer.work.decoding import predict, select_rows

KS = (1, 5, 10)


class Validator:
    """Called by a trainer: {"hr@10": .., "ndcg@10": .., ...} at item level on `rows` seeded validation rows.

    Reads valid.parquet only; nothing of it reaches a loss or a reward.
    """

    def __init__(self, engine: Engine, examples_dir: str, *, rows: int | None, seed: int) -> None:
        if rows is not None and rows < 1:
            raise InputError(f"valid_rows {rows} must be at least 1 -> the checkpoint is chosen on them")
        if engine.settings.beams < max(KS):
            raise InputError(f"valid_beams {engine.settings.beams} must be at least {max(KS)}")
        table = artifacts.read(examples_dir, artifacts.EXAMPLES, file="valid.parquet")
        self.engine = engine
        self.examples = select_rows(table, max_rows=rows, seed=seed)
        self.targets_N = np.array([target[0] for target in self.examples["target"].to_pylist()])

    def __call__(self) -> dict[str, float]:
        self.engine.model.eval()
        nodes_NK, _, _ = predict(self.engine, self.examples)
        before_N, group_N = place(nodes_NK, self.targets_N, self.engine.sids)
        measures = {"hr": hr_at_k, "ndcg": ndcg_at_k}
        return {
            f"{name}@{k}": float(fn(before_N, group_N, k).mean()) for name, fn in measures.items() for k in KS
        }

    def facts(self) -> dict[str, Any]:
        """How the checkpoint was chosen, for the manifest."""
        return {
            "selected_on": "valid",
            "valid_rows": len(self.targets_N),
            "valid_beams": self.engine.settings.beams,
        }


def place(nodes_NK: np.ndarray, targets_N: np.ndarray, sids: SidTable) -> tuple[np.ndarray, np.ndarray]:
    """(items ranked ahead of the target float64 [N], inf where it was not found; items sharing its SID int64 [N])."""
    sizes_NK = np.where(nodes_NK >= 0, sids.group_sizes_S[nodes_NK], 0)
    before_NK = np.cumsum(sizes_NK, axis=1) - sizes_NK
    hit_NK = nodes_NK == sids.sid_of_item_N[targets_N][:, None]
    found_N, rank_N = hit_NK.any(1), hit_NK.argmax(1)
    rows = np.arange(len(targets_N))
    return np.where(found_N, before_NK[rows, rank_N], np.inf), np.where(found_N, sizes_NK[rows, rank_N], 1)
