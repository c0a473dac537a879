"""Rewards that look at a thought, for rollouts that have one."""

from __future__ import annotations

import numpy as np

from configs.program import InputError
from train.rewards import Rewards, RolloutBatch
from train.rewards.structure import thinks


def thought_length(batch: RolloutBatch, *, most: int, soft: int, least: int = 0) -> Rewards:
    """0 for a thought of least to `most` - `soft` tokens, falling evenly to -1 at `most` tokens, and from `least` to -1 at 0 tokens.

    The soft punishment of DAPO (arXiv 2503.14476, equation 13) against thoughts that run into their limit; `least` is against the
    opposite, a policy that learns to think nothing. most 100, soft 20: 80 tokens give 0, 90 give -.5, 100 or more -1. least 10: 5
    tokens give -.5.
    """
    if not 0 < soft <= most or not 0 <= least <= most - soft:
        raise InputError(
            f"reward thought_length: most {most}, soft {soft}, least {least} -> 0 < soft <= most, 0 <= least <= most - soft"
        )
    if batch.thought_PG is None:
        raise InputError(
            "reward thought_length: these rollouts have no thoughts -> thought.max_tokens above 0"
        )
    over = np.clip((most - soft - batch.thought_PG) / soft, -1, 0)
    under = np.clip(batch.thought_PG / least - 1, -1, 0) if least else 0.0
    return (over + under + 0.0).tolist()


def thought_present(batch: RolloutBatch, *, least: int = 10) -> Rewards:
    """1 for a thought with more than `least` characters other than blanks, else 0: NaviGen's think reward by itself.

    "they like lamps" has 13 and gives 1, an empty thought 0.
    """
    if batch.answers is None:
        raise InputError(
            "reward thought_present: these rollouts have no thoughts -> thought.max_tokens above 0"
        )
    return [[thinks(text, least=least) for text in group] for group in batch.answers]
