"""Rewards of rollouts, by name.

A reward is a plain function `fn(batch: RolloutBatch, **params) -> list[list[float | None]]` of shape [P][G]. None means
"not applicable": the rollout gets advantage 0 and is left out of its group's baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import numpy as np

from configs.program import InputError

Rewards = list[list[float | None]]


@dataclass(frozen=True)
class RolloutBatch:
    """P prompts with G rollouts each, best beam first.

    rows: the example columns of each prompt (history, target, task, ...); codes_PGL int [P, G, L]; item_ids[p][g]: the
    items of that semantic ID, empty where a group has fewer than G legal beams; scores_PG float; text and token_ids are
    filled by trainers that generate text.
    """

    rows: Sequence[dict[str, Any]]
    codes_PGL: np.ndarray
    item_ids: list[list[tuple[int, ...]]]
    scores_PG: np.ndarray
    text: list[list[str]] | None = None
    token_ids: list[list[list[int]]] | None = None


RewardFunction = Callable[..., Rewards]


def registry() -> dict[str, RewardFunction]:
    """All rewards by name."""
    from train.rewards import ranking, sid

    return {"exact_match": sid.exact_match, "rank_aware": ranking.rank_aware}


def reward_functions(specs: Sequence[str]) -> list[RewardFunction]:
    """Reward functions by name; InputError for an unknown one. They are summed with weight 1."""
    known = registry()
    unknown = [name for name in specs if name not in known]
    if unknown or not specs:
        raise InputError(f"unknown rewards {unknown or 'none given'} -> any of {', '.join(known)}")
    return [update_wrapper(partial(known[name]), known[name]) for name in specs]


def hits(batch: RolloutBatch) -> list[list[bool | None]]:
    """[P][G]: whether a rollout's semantic ID is the target's; None where the group has no such beam."""
    return [
        [bool(set(items) & set(row["target"])) if items else None for items in group]
        for row, group in zip(batch.rows, batch.item_ids, strict=True)
    ]
