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
from infer.metrics.ranking import by_name
from infer.work.decoding import prompts_of, select_rows

KS = (1, 3, 5, 10, 20, 50)
LEAST_BEAMS = 10


class Validator:
    """Called by a trainer: {"hr@10": .., "ndcg@10": .., ...} at item level on `rows` seeded validation rows, for every K of KS
    that the beams allow. `group`: rollouts of a prompt; pass@group is then the share of rows whose target is among as many beams.

    An engine in mode think thinks first, as its settings say. Reads validation rows only; nothing of it reaches a loss or a reward. `best` are the (nodes, scores) [R, K] of the last call.
    """

    best: tuple[np.ndarray, np.ndarray]

    def __init__(
        self, engine: Engine, examples_dir: str, *, rows: int | None, seed: int, group: int | None = None
    ) -> None:
        if rows is not None and rows < 1:
            raise InputError(f"valid_rows {rows} must be at least 1 -> the checkpoint is chosen on them")
        if engine.settings.beams < LEAST_BEAMS:
            raise InputError(f"valid_beams {engine.settings.beams} must be at least {LEAST_BEAMS}")
        table = artifacts.read_split(examples_dir, "valid")
        self.engine, self.group = engine, group
        if engine.mode == "think":
            _ = engine.writer  # a tokenizer that can't end a thought is refused before training
        self.examples = select_rows(table, max_rows=rows, seed=seed, where=f"valid of {examples_dir}")
        self.targets_R = np.array([target[0] for target in self.examples["target"].to_pylist()])

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of every row, rendered once for all validations."""
        return prompts_of(self.engine, self.examples)

    def __call__(self) -> dict[str, float]:
        self.engine.model.eval()
        keys = self.examples["example_id"].to_pylist()
        if self.engine.mode == "think":
            thoughts = self.engine.writer.write(self.prompts, keys)
            nodes_RK, scores_RK = self.engine.rank_thoughts(self.prompts, thoughts, keys=keys)
        else:
            nodes_RK, scores_RK = self.engine.rank(self.prompts, keys=keys)
        self.best = (nodes_RK, scores_RK)
        placed = place_nodes(nodes_RK, self.targets_R, self.engine.sids)
        width = max(nodes_RK.shape[1], LEAST_BEAMS)
        found = {
            f"{name}@{k}": float(by_name(f"{name}@{k}", placed.before_R, placed.group_R).mean())
            for name in ("hr", "ndcg")
            for k in KS
            if k <= width
        }
        if self.group is not None and self.group <= width:
            hit_R = (
                nodes_RK[:, : self.group] == self.engine.sids.sid_of_item_N[self.targets_R][:, None]
            ).any(1)
            found[f"pass@{self.group}"] = float(hit_R.mean())
        return found

    def facts(self) -> dict[str, Any]:
        """How the checkpoint was chosen, for the manifest."""
        return {
            "selected_on": "valid",
            "valid_mode": self.engine.mode,
            "valid_rows": len(self.targets_R),
            "valid_beams": self.engine.settings.beams,
        }
