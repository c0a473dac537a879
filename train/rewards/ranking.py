"""Rewards that look at where in the beam a rollout stands."""

from __future__ import annotations

import math

from train.rewards import Rewards, RolloutBatch


def rank_aware(batch: RolloutBatch) -> Rewards:
    """In a group that contains the target, a miss at rank i is punished by its discounted share; else all 0.

    r_i = -w_i, w_i = (1 / log2(i + 2)) / sum_{j < G} 1 / log2(j + 2), i from 0; the hit gets 0 (MIMIGenRec, MiniOneRec).
    For G = 16 the weights start .1638, .1033, .0819 and sum to 1: the better a miss is ranked, the more it costs.
    """
    rewards: Rewards = []
    for group in batch.hits:
        size = sum(hit is not None for hit in group)
        total = sum(1 / math.log2(rank + 2) for rank in range(size))
        if not any(group):
            rewards.append([None if hit is None else 0.0 for hit in group])
            continue
        weights = [1 / math.log2(rank + 2) / total for rank in range(size)] + [0.0] * (len(group) - size)
        rewards.append(
            [None if hit is None else (0.0 if hit else -w) for hit, w in zip(group, weights, strict=True)]
        )
    return rewards


def rank_discount(batch: RolloutBatch) -> Rewards:
    """1 / log2(rank + 1) for the beam that is the target, rank from 1; 0 for the others.

    The best beam-rank reward that independent users of SIDReasoner report. A hit on rank 1, 2 or 3 gives 1, .6309 or .5.
    """
    return [
        [None if hit is None else (1 / math.log2(rank + 2) if hit else 0.0) for rank, hit in enumerate(group)]
        for group in batch.hits
    ]
