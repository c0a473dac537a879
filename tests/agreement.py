"""Rankings that were computed in other batches, by other threads or on another processor are equal up to rounding.

disagreement([("a", -1.0), ("b", -2.0)], [("b", -2.0), ("a", -1.0)])     "a, b: ..."
disagreement([("a", -1.0), ("b", -1.00001)], [("b", -1.0), ("a", -1.0)])     ""
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

GAP = 1e-4  # scores that differ by more than this are no ties: their order must agree

Ranking = Sequence[tuple[Hashable, float]]


def disagreement(found: Ranking, expected: Ranking, *, atol: float = GAP, gap: float = GAP) -> str:
    """What differs between two rankings of (key, score), best first; empty where they agree.

    Scores agree within `atol`, rank by rank and key by key; two keys stand in the same order wherever their scores differ
    by more than `gap`; a key may be missing only where it ties with the last place.
    """
    if len(found) != len(expected):
        return f"{len(found)} places for {len(expected)}"
    scores = np.array([score for _, score in expected])
    by_rank = np.abs(np.array([score for _, score in found]) - scores)
    if len(scores) and not by_rank.max() <= atol:
        return f"rank {1 + int(by_rank.argmax())}: scores {by_rank.max():g} apart"
    place = {key: rank for rank, (key, _) in enumerate(found)}
    if len(place) != len(found):
        return "a key comes twice"
    for key, score in expected:
        if key not in place and score > scores[-1] + gap:
            return f"{key} is missing"
        if key in place and not abs(found[place[key]][1] - score) <= atol:
            return f"{key}: scores {found[place[key]][1]:g} and {score:g}"
    places = np.array([place.get(key, len(found)) for key, _ in expected], int)
    apart = scores[:, None] - scores[None, :] > gap
    swapped = np.argwhere(apart & (places[:, None] > places[None, :]))
    if len(swapped):
        better, worse = (expected[row][0] for row in swapped[0])
        return (
            f"{better}, {worse}: the other way round, {scores[swapped[0][0]] - scores[swapped[0][1]]:g} apart"
        )
    return ""


def ranking(keys: np.ndarray, scores: np.ndarray) -> list[tuple[Hashable, float]]:
    """A row of nodes [K] or of codes [K, L] with its scores [K]."""
    return [
        (tuple(key) if isinstance(key, list) else key, score)
        for key, score in zip(keys.tolist(), scores.tolist(), strict=True)
    ]


def recommended(found: Sequence) -> list[tuple[Hashable, float]]:
    """The ranking of one request of `Engine.recommend`."""
    return [((one.codes, one.item_ids), one.score) for one in found]


def requests_disagree(found: Sequence, expected: Sequence, *, atol: float = GAP) -> list[str]:
    """What differs, request by request, between two results of `Engine.recommend`."""
    pairs = zip(found, expected, strict=True)
    return [
        words
        for one, other in pairs
        if (words := disagreement(recommended(one), recommended(other), atol=atol))
    ]
