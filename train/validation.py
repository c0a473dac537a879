"""Validation inside a trainer: constrained recommendation with the live weights on a fixed sample of valid rows.

Legend: R rows, K beams.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from configs.program import InputError
from data import artifacts
from infer.engine import Engine
from infer.metrics.placement import place_nodes
from infer.metrics.ranking import hr_at_k, ndcg_at_k
from infer.work.decoding import prompts_of, select_rows

KS = (1, 5, 10)


class Validator:
    """Called by a trainer: {"hr@10": .., "ndcg@10": .., ...} at item level on `rows` seeded validation rows.

    Reads valid.parquet only; nothing of it reaches a loss or a reward. `best` are the (nodes, scores) [R, K] of the last call.
    """

    best: tuple[np.ndarray, np.ndarray]

    def __init__(self, engine: Engine, examples_dir: str, *, rows: int | None, seed: int) -> None:
        if rows is not None and rows < 1:
            raise InputError(f"valid_rows {rows} must be at least 1 -> the checkpoint is chosen on them")
        if engine.settings.beams < max(KS):
            raise InputError(f"valid_beams {engine.settings.beams} must be at least {max(KS)}")
        table = artifacts.read(examples_dir, artifacts.EXAMPLES, file="valid.parquet")
        self.engine = engine
        self.examples = select_rows(table, max_rows=rows, seed=seed, where=f"{examples_dir}/valid.parquet")
        self.targets_R = np.array([target[0] for target in self.examples["target"].to_pylist()])

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of every row, rendered once for all validations."""
        return prompts_of(self.engine, self.examples)

    def __call__(self) -> dict[str, float]:
        self.engine.model.eval()
        nodes_RK, scores_RK = self.engine.rank(self.prompts, keys=self.examples["example_id"].to_pylist())
        self.best = (nodes_RK, scores_RK)
        placed = place_nodes(nodes_RK, self.targets_R, self.engine.sids)
        measures = {"hr": hr_at_k, "ndcg": ndcg_at_k}
        return {
            f"{name}@{k}": float(fn(placed.before_R, placed.group_R, k).mean())
            for name, fn in measures.items()
            for k in KS
        }

    def facts(self) -> dict[str, Any]:
        """How the checkpoint was chosen, for the manifest."""
        return {
            "selected_on": "valid",
            "valid_rows": len(self.targets_R),
            "valid_beams": self.engine.settings.beams,
        }
