"""Rewards that look at where in the beam a rollout stands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from configs.program import InputError
from data.sid import SidTable
from train.rewards import Rewards, RolloutBatch
from train.rewards.agreement import prefix_matches, spoken


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


def rank_discount(
    batch: RolloutBatch, *, sids: SidTable | None = None, fallback: Sequence[float] = ()
) -> Rewards:
    """1 / log2(rank + 1) for the beam that is the target, rank from 1; 0 for the others.

    The best beam-rank reward that independent users of SIDReasoner report. A hit on rank 1, 2 or 3 gives 1, .6309 or .5.
    fallback: in a group without the target a beam whose first n codes are the target's gets `fallback[n - 1]`, one value for
    every level but the last; theirs is [.05, .2]. The target (1, 2, 3) and beams (1, 2, 4), (1, 5, 3), (6, 2, 3) then give
    [.2, .05, 0]: where each rollout is a thought with beams of its own, a thought that leads near the target beats one that does not.
    """
    rewards = [
        [None if hit is None else (1 / math.log2(rank + 2) if hit else 0.0) for rank, hit in enumerate(group)]
        for group in batch.hits
    ]
    if not fallback:
        return rewards
    if sids is None or len(fallback) != sids.num_levels - 1:
        raise InputError(
            f"reward rank_discount: {len(fallback)} values in fallback -> one per level but the last"
        )
    depth_PG = prefix_matches(batch, sids).sum(2)
    near = spoken(np.array([0.0, *fallback, 0.0])[depth_PG], batch)
    return [own if any(group) else other for own, other, group in zip(rewards, near, batch.hits, strict=True)]


def rank_margin(batch: RolloutBatch, *, scale: float = 0.1) -> Rewards:
    """rank_discount; in a group without the target every beam gets `scale` * exp(log p(target) - log p(last beam)), below `scale`.

    The log-probability margin of an independent retraining of SIDReasoner, of which no formula is known: the nearer the target is to
    the list, the better. scale .2, a last beam of -5 and a target of -6 give .2 * exp(-1) = .0736. Needs thought.score_target.
    """
    if not 0 < scale < 1:
        raise InputError(f"reward rank_margin: scale {scale} -> above 0 and below 1")
    if batch.target_P is None:
        raise InputError("reward rank_margin: the target was not scored -> thought.score_target true")
    rewards = rank_discount(batch)
    for p, group in enumerate(batch.hits):
        if not any(group):
            last = min(
                score
                for score, hit in zip(batch.scores_PG[p].tolist(), group, strict=True)
                if hit is not None
            )
            near = scale * math.exp(min(float(batch.target_P[p]) - last, 0.0))
            rewards[p] = [None if hit is None else near for hit in group]
    return rewards
