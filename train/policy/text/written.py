"""What rollouts say and what it was worth, for a person who wants to see a policy learn: samples.jsonl.

The first rollouts of the first prompts of each kind of task, at every rollout of the first process. A line each:

    {"step", "task", "example_id", "rollout", "target", "answer", "reward", "rewards": {..}, "thinks", "penalty", "well_formed", "judge"}

`target` are the terms or the semantic ID of the row, `rewards` what every member of the mixture gave (null: nothing), the three behind it
how the text reads (train/rewards/structure.py), `judge` who graded, where someone did.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.answers import INSTRUCTION_TASK
from infer.engine import Engine
from train.rewards import RolloutBatch
from train.rewards.structure import read
from train.samples import FILE


class Written:
    """Appends `samples` rollouts of each kind of task to samples.jsonl below `directory`, whenever rollouts are made; 0: none."""

    def __init__(self, directory: Path, engine: Engine, *, samples: int) -> None:
        self.path, self.engine, self.samples = directory / FILE, engine, samples

    def append(
        self, trainer: Any, batch: RolloutBatch, given: dict[str, np.ndarray], total_PG: np.ndarray
    ) -> None:
        """given: [P, G, 1] of every member, total_PG their sum, NaN where there is none."""
        if not self.samples or not trainer.accelerator.is_main_process:
            return
        judge = next(
            (m.arguments["judge"].teacher for m in trainer.mixture.members if "judge" in m.arguments), None
        )
        cells = [(p, g) for p in range(total_PG.shape[0]) for g in range(total_PG.shape[1])][: self.samples]
        with open(self.path, "a", encoding="utf-8") as file:
            for p, g in cells:
                row, text = batch.rows[p], batch.answers[p][g]
                seen = read(
                    text, row.get("task", ""), sids=self.engine.renderer.vocab.format, num_levels=self.engine.sids.num_levels
                )  # fmt: skip
                told = row.get("task") == INSTRUCTION_TASK
                line = {
                    "step": trainer.state.global_step + 1, "task": row.get("task"), "example_id": row["example_id"], "rollout": g,
                    "target": self._target(row, told), "answer": text, "reward": _known(total_PG[p, g]),
                    "rewards": {name: _known(values[p, g, 0]) for name, values in given.items()},
                    "thinks": seen.thinks, "penalty": seen.penalty, "well_formed": seen.well_formed,
                }  # fmt: skip
                line |= {"judge": judge} if told and judge else {}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _target(self, row: dict[str, Any], told: bool) -> Any:
        if told:
            return row["answer"]["terms"]
        return self.engine.sids.text(row["target"][0], self.engine.renderer.vocab.format)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
