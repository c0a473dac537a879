"""Ranking metrics as pure functions of arrays. One relevant item per row.

The place of a target is a pair: `before`, how many candidates are ranked ahead of it, and `group`, how many
candidates stand in random order at its place, itself included. A model that scores items gives (items of a higher
score, items of the same score); a semantic ID that g items share gives (items of the better SIDs, g). A target that
was not recommended has before = inf, group = 1.

With group = 1 these are the usual formulas with the rank counted from 0 (Järvelin and Kekäläinen 2002):

    HR@K = 1[before < K]    NDCG@K = 1[before < K] / log2(before + 2)    RR@K = 1[before < K] / (before + 1)

With a group they are the mean over its g! orders, be it of items that share a semantic ID or of a tie.

Legend: R rows, E entries (a list of ranked candidates per row), N items.
"""

from __future__ import annotations

import numpy as np


def hr_at_k(before_R: np.ndarray, group_R: np.ndarray, k: int) -> np.ndarray:
    """Probability that the target is among the first k, float64 [R].

    >>> hr_at_k(np.array([0.0, 9.0, 10.0, 8.0]), np.array([1, 1, 1, 4]), 10)
    array([1. , 1. , 0. , 0.5])
    """
    share = np.clip((k - before_R) / group_R, 0.0, 1.0)
    return np.where(group_R == 1, before_R < k, share).astype(np.float64)


def ndcg_at_k(before_R: np.ndarray, group_R: np.ndarray, k: int) -> np.ndarray:
    """Expected discounted gain of the target within the first k, float64 [R]; the ideal gain is 1.

    Target third: 1 / log2(4). In a group of two at places 1 and 2: (1 / log2(2) + 1 / log2(3)) / 2.

    >>> ndcg_at_k(np.array([2.0, 0.0, np.inf]), np.array([1, 2, 1]), 10).round(4)
    array([0.5   , 0.8155, 0.    ])
    """
    gains = 1.0 / np.log2(np.arange(k) + 2.0)
    single = np.where(before_R < k, 1.0 / np.log2(np.minimum(before_R, k) + 2.0), 0.0)
    return np.where(group_R == 1, single, _mean_over_group(gains, before_R, group_R))


def rr_at_k(before_R: np.ndarray, group_R: np.ndarray, k: int) -> np.ndarray:
    """Expected reciprocal rank of the target, 0 beyond the first k, float64 [R]; its mean is MRR@k.

    In a group of two at places 2 and 3: (1/2 + 1/3) / 2.

    >>> rr_at_k(np.array([3.0, 1.0]), np.array([1, 2]), 10).round(4)
    array([0.25  , 0.4167])
    """
    gains = 1.0 / np.arange(1.0, k + 1)
    single = np.where(before_R < k, 1.0 / (np.minimum(before_R, k) + 1.0), 0.0)
    return np.where(group_R == 1, single, _mean_over_group(gains, before_R, group_R))


def by_name(metric: str, before_R: np.ndarray, group_R: np.ndarray) -> np.ndarray:
    """A metric of every row by its name, float64 [R]: `hr@10`, `ndcg@10` or `mrr@50` (reciprocal rank, 0 beyond the cut).

    >>> by_name("mrr@2", np.array([1.0, 2.0]), np.array([1, 1])).tolist()
    [0.5, 0.0]
    """
    name, _, k = metric.partition("@")
    return {"hr": hr_at_k, "ndcg": ndcg_at_k, "mrr": rr_at_k}[name](before_R, group_R, int(k))


def _mean_over_group(gains_K: np.ndarray, before_R: np.ndarray, group_R: np.ndarray) -> np.ndarray:
    """Mean over a group's places of the gain of each place; places beyond K gain nothing."""
    total = np.concatenate([[0.0], np.cumsum(gains_K)])
    first = np.minimum(before_R, len(gains_K)).astype(np.int64)
    last = np.minimum(before_R + group_R, len(gains_K)).astype(np.int64)
    return (total[last] - total[first]) / group_R


def mean_ranks(new_row_E: np.ndarray, new_tie_E: np.ndarray) -> np.ndarray:
    """Ranks from 1 of sorted candidates, tied ones sharing their mean rank, float64 [E].

    new_row_E, new_tie_E bool: the candidate starts a row; it starts a row or differs from the one before it.
    Scores 9, 7, 7 | 5:

    >>> mean_ranks(np.array([True, False, False, True]), np.array([True, True, False, True]))
    array([1. , 2.5, 2.5, 1. ])
    """
    position = np.arange(len(new_row_E))
    row_start = np.maximum.accumulate(np.where(new_row_E, position, 0))
    starts = np.flatnonzero(new_tie_E)
    lengths = np.diff(np.append(starts, len(position)))
    mean_position = np.repeat(starts + (lengths - 1) / 2, lengths)
    return mean_position - row_start + 1.0


def exposure_at_k(before_E: np.ndarray, size_E: np.ndarray, k: int) -> np.ndarray:
    """How much of the first k places each item of an entry holds in expectation, float64 [E].

    It is the item's HR@k, were it the target. A SID of 4 items behind 8 others, k = 10: half a place each.

    >>> exposure_at_k(np.array([8.0]), np.array([4]), 10)
    array([0.5])
    """
    return hr_at_k(before_E, size_E, k)


def coverage(exposure_N: np.ndarray) -> float:
    """Share of the catalogue that is recommended to somebody: items with any exposure / N.

    >>> coverage(np.array([2.0, 0.0, 1.0, 1.0]))
    0.75
    """
    return float((exposure_N > 0).mean())


def gini(exposure_N: np.ndarray) -> float:
    """Gini index of what the items hold, sum_ij |x_i - x_j| / (2 N sum x): 0 even, near 1 concentrated.

    One of four items holds everything: 6 pairs * 1 / (2 * 4 * 1).

    >>> gini(np.array([0.0, 0.0, 0.0, 1.0])), gini(np.ones(5))
    (0.75, 0.0)
    """
    x, total = np.sort(exposure_N.astype(np.float64)), float(exposure_N.sum())
    if total == 0:
        return 0.0
    n = len(x)
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * total))


def self_information(popularity_N: np.ndarray) -> np.ndarray:
    """Bits of surprise of every item, float64 [N]: -log2 of its share of the train rows, counts plus one.

    Counts 3, 0: shares 4/5 and 1/5.

    >>> self_information(np.array([3, 0])).round(4)
    array([0.3219, 2.3219])
    """
    counts = popularity_N + 1.0
    return -np.log2(counts / counts.sum())
