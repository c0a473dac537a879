"""Rewards from the scores of an item model (`--teacher`): what people with such a history tend to choose.

A prompt without a history - a question about an item - gets None from `collaborative` and is not gated in `cgrf_h`.

Legend: P prompts, G rollouts, N items, S semantic IDs.
"""

from __future__ import annotations

import numpy as np

from configs.program import InputError
from data.sid import SidTable
from infer.models.contract import ItemModel
from train.rewards import Rewards, RolloutBatch
from train.rewards.agreement import per_level, prefix_matches, spoken

SCALES = ("logit", "percentile")


def collaborative(batch: RolloutBatch, *, teacher: ItemModel, scale: str = "logit") -> Rewards:
    """The teacher's score of the rollout's items: log mean probability (logit), or its percentile among all items.

    An ID of items with probabilities .3 and .1 has log((.3 + .1) / 2) = -1.6094. A logit and its log-probability differ by
    a constant of the prompt, which the group's baseline removes. Percentile: the share of items that the teacher puts below
    the ID, ties by half: third of five different scores gives (2 + .5) / 5 = .5.
    """
    if scale not in SCALES:
        raise InputError(f"reward collaborative: scale {scale!r} -> one of {', '.join(SCALES)}")
    values_PG = np.full(batch.codes_PGL.shape[:2], np.nan)
    asked_P, score_PN = teacher_scores(batch, teacher)
    for p, score_N in zip(asked_P, score_PN, strict=True):
        ordered_N = np.sort(score_N)
        for g, items in enumerate(batch.item_ids[p]):
            if items:
                value = sid_score(score_N, items)
                if scale == "percentile":
                    below = np.searchsorted(ordered_N, value, side="left")
                    upto = np.searchsorted(ordered_N, value, side="right")
                    value = (below + upto) / (2 * len(ordered_N))
                values_PG[p, g] = value
    return spoken(values_PG, batch)


def cgrf_h(
    batch: RolloutBatch, *, teacher: ItemModel, sids: SidTable, values: list[float] | None = None
) -> Rewards:
    """CGRF-H without its exact and rank parts: g C + (1 - g) H, a teacher's order gated by how well it ranks the target.

    H = 0, .2, .5, 1 for 0 to 3 leading codes; C = 1 - pos / (G - 1), pos from 0 by descending teacher score. The gate: S is
    the target and the other distinct rollouts, n = |S|, t the target's rank in S, m = 1 / log2(n + 1) and
    g = (1 / log2(t + 1) - m) / (1 - m) within 0..1. Published: `[exact_match, rank_aware, {name: cgrf_h, weight: .1}]`;
    use it with rollout.sigma_floor, since in groups without a hit the z-score cancels the weight.
    Target first of four: g = 1, and rollouts in the teacher's order get 1, .667, .333, 0. Target second of three: n = 3,
    m = .5, g = (.6309 - .5) / .5 = .262.
    """
    chosen_L = per_level("cgrf_h", values, sids.num_levels, [0.2, 0.5, 1.0])
    depth_PG = prefix_matches(batch, sids).sum(2)
    values_PG = np.concatenate([[0.0], chosen_L])[depth_PG]
    asked_P, score_PN = teacher_scores(batch, teacher)
    for p, score_N in zip(asked_P, score_PN, strict=True):
        known = [g for g, items in enumerate(batch.item_ids[p]) if items]
        score_G = np.array([sid_score(score_N, batch.item_ids[p][g]) for g in known])
        target = sids.items_of_sid(int(sids.sid_of_item_N[batch.rows[p]["target"][0]]))
        gate = _gate(batch, p, known, score_G, sid_score(score_N, target))
        place_G = np.argsort(np.argsort(-score_G, kind="stable"))
        order_G = 1 - place_G / max(len(known) - 1, 1)
        values_PG[p, known] = gate * order_G + (1 - gate) * values_PG[p, known]
    return spoken(values_PG, batch)


def _gate(batch: RolloutBatch, p: int, known: list[int], score_G: np.ndarray, target_score: float) -> float:
    hits = batch.hits[p]
    others = {batch.item_ids[p][g]: score for g, score in zip(known, score_G, strict=True) if not hits[g]}
    n, rank = 1 + len(others), 1 + sum(score > target_score for score in others.values())
    if n == 1:
        return 1.0
    least = 1 / np.log2(n + 1)
    return float(np.clip((1 / np.log2(rank + 1) - least) / (1 - least), 0, 1))


def teacher_scores(batch: RolloutBatch, teacher: ItemModel) -> tuple[np.ndarray, np.ndarray]:
    """(the prompts with a history int64 [P'], the teacher's scores of all items float32 [P', N])."""
    asked_P = np.flatnonzero([len(row["history"]) > 0 for row in batch.rows])
    if not len(asked_P):
        return asked_P, np.empty((0, teacher.num_items), np.float32)
    return asked_P, teacher.score(batch.histories.take(asked_P))


def sid_score(score_N: np.ndarray, items: np.ndarray | tuple[int, ...]) -> float:
    """logsumexp of the items' scores less the log of their number."""
    scores = score_N[np.asarray(items, np.int64)].astype(np.float64)
    top = scores.max()
    return float(top + np.log(np.exp(scores - top).mean())) if np.isfinite(top) else float(top)
