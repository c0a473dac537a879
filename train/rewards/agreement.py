"""How far a rollout agrees with the target's semantic ID, and where a reward has nothing to say.

Legend: P prompts, G rollouts, L levels.
"""

from __future__ import annotations

import numpy as np

from configs.program import InputError
from data.sid import SidTable
from train.rewards import RolloutBatch


def matches(batch: RolloutBatch, sids: SidTable) -> np.ndarray:
    """bool [P, G, L]: each code against the target's at its level, whatever stands before it."""
    targets_PL = sids.codes_NL[[row["target"][0] for row in batch.rows]]
    return np.asarray(batch.codes_PGL) == targets_PL[:, None]


def prefix_matches(batch: RolloutBatch, sids: SidTable) -> np.ndarray:
    """bool [P, G, L]: all codes up to and with this level are the target's.

    Codes (1, 5, 3) against (1, 2, 3) agree in (yes, no, yes) and have the prefixes (yes, no, no).
    """
    return np.logical_and.accumulate(matches(batch, sids), axis=2)


def spoken(values: np.ndarray, batch: RolloutBatch) -> list:
    """Rewards [P, G] or [P, G, L] as lists, None for a rollout beyond the legal ones and for NaN."""
    return [
        [_cell(cell) if items else None for cell, items in zip(group, item_ids, strict=True)]
        for group, item_ids in zip(np.asarray(values, float), batch.item_ids, strict=True)
    ]


def _cell(cell: np.ndarray) -> float | list[float | None] | None:
    if cell.ndim:
        return [_cell(part) for part in cell]
    return None if np.isnan(cell) else float(cell)


def per_level(name: str, values: list[float] | None, levels: int, default: list[float]) -> np.ndarray:
    """A parameter with a value for every level; InputError for another number of them."""
    chosen = default if values is None else values
    if len(chosen) != levels:
        raise InputError(
            f"reward {name}: {len(chosen)} values {chosen} for semantic IDs of {levels} levels -> params: {{values: [...]}} "
            "with one per level"
        )
    return np.array(chosen, float)
