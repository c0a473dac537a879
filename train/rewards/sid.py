"""Rewards that look at the semantic ID alone."""

from __future__ import annotations

from train.rewards import Rewards, RolloutBatch


def exact_match(batch: RolloutBatch) -> Rewards:
    """1 where the rollout is the target item, else 0 (MiniOneRec and MIMIGenRec call it the rule reward).

    A target of 7 and a group of beams for the items (3), (7), (9) gives [0.0, 1.0, 0.0].
    """
    return [[None if hit is None else float(hit) for hit in group] for group in batch.hits]
