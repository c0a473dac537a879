"""Rewards that look at what the items of a rollout are: their text, their popularity, their variety.

Legend: P prompts, G rollouts, N items, d dimensions.
"""

from __future__ import annotations

import numpy as np

from infer.metrics.ranking import self_information
from train.rewards import Rewards, RolloutBatch
from train.rewards.agreement import spoken


def semantic(batch: RolloutBatch, *, embeddings: np.ndarray) -> Rewards:
    """Cosine of the embeddings of target and rollout, the mean over the items of its semantic ID (MiniOneRec).

    Embeddings (1, 0), (0, 2), (3, 3), the target first: the rollouts 0, 1, 2 and an ID of both 0 and 1 give
    1, 0, .7071 and .5. An embedding of zeros has cosine 0.
    """
    values_PG = np.full(batch.codes_PGL.shape[:2], np.nan)
    for p, (row, group) in enumerate(zip(batch.rows, batch.item_ids, strict=True)):
        target_d = _unit(embeddings[row["target"][0]])
        for g, items in enumerate(group):
            if items:
                values_PG[p, g] = (_unit(embeddings[list(items)]) @ target_d).mean()
    return spoken(values_PG, batch)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length == 0, 1, length)


def novelty(batch: RolloutBatch, *, popularity: np.ndarray) -> Rewards:
    """Against the drift to popular items: bits of surprise over those of the rarest item, the mean over an ID's items.

    Train counts 3, 0: surprises .3219 and 2.3219 bits give .1386 and 1.
    """
    information_N = self_information(popularity)
    information_N = information_N / information_N.max()
    return [
        [float(information_N[list(items)].mean()) if items else None for items in group]
        for group in batch.item_ids
    ]


def diversity(batch: RolloutBatch) -> Rewards:
    """The share of the group's other rollouts that begin with another code.

    First codes 4, 4, 7 give .5, .5, 1; a group of one gives 0.
    """
    rewards: Rewards = []
    for codes_GL, group in zip(np.asarray(batch.codes_PGL), batch.item_ids, strict=True):
        first = [int(code) for code, items in zip(codes_GL[:, 0], group, strict=True) if items]
        others = max(len(first) - 1, 1)
        rewards.append(
            [
                (len(first) - first.count(int(code))) / others if items else None
                for code, items in zip(codes_GL[:, 0], group, strict=True)
            ]
        )
    return rewards
