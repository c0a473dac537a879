"""Floors as good as valid rows make them: what of item-kNN is chosen there, and what an item of the history counts.

The opponents of a model whose own numbers are chosen on valid (infer/models/sequential/repeats.py) have theirs chosen there too. All points of a grid are
measured by NDCG@10 on a seeded sample of valid rows; the first of equal ones is taken.

Legend: R rows, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from configs import program
from configs.program import InputError
from data.rows import Rows, TrainLog
from infer.metrics.ranking import ndcg_at_k
from infer.models.counting import history_weights, item_similarity, target_places, with_own

TUNE_K = 10


@dataclass
class TuneArgs:
    """What is tried on valid rows."""

    decays: list[float] = field(default_factory=lambda: [1.0, 0.8, 0.7, 0.6, 0.5])
    """weight of the next older history item relative to the newer one; of itemknn_tuned and itemknn_text"""
    shrinks: list[float] = field(default_factory=lambda: [0.0, 5.0, 20.0, 50.0])
    """users added to the denominator of the cosine; of both"""
    half_lives: list[float] = field(default_factory=lambda: [30.0, 90.0, 365.0])
    """days in which a history item loses half its weight, tried with the best shrinkage where the data has times; items
    without a time keep the decay by position; [] = by position only; of both"""
    text_weights: list[float] = field(default_factory=lambda: [0.0, 0.3, 1.0, 3.0])
    """weight of a squared text cosine beside the cosine of users; of itemknn_text"""
    repeats: list[float | None] = field(default_factory=lambda: [0.0, None, 0.03, 0.1, 0.3, 1.0])
    """what an item of the history has in common with itself; null: the history comes last of all; of last, recent and both item-kNN"""
    max_rows: int = 5000
    """valid rows that are scored, a seeded sample"""

    def __post_init__(self) -> None:
        if (
            not self.decays
            or not self.shrinks
            or not self.repeats
            or min(self.decays) <= 0
            or min(self.shrinks) < 0
            or min(self.half_lives, default=1.0) <= 0
            or min(self.text_weights, default=-1.0) < 0
            or min((own for own in self.repeats if own is not None), default=0.0) < 0
            or self.max_rows < 1
        ):
            raise InputError(
                f"tune {self}: decays, half_lives and max_rows must be positive, shrinks, text_weights and repeats not negative, "
                "all but half_lives not empty"
            )


class TunedPoint(NamedTuple):
    """A point of the grid: its NDCG@10 and what a `CountingModel` is given."""

    ndcg: float
    shrink: float
    text_weight: float
    decay: float
    half_life: float | None
    own: float | None

    @property
    def weights(self) -> dict[str, float | None]:
        return {"decay": self.decay, "half_life": self.half_life, "own": self.own}


def ndcg_of(scores: sparse.csr_matrix, rows: Rows, popularity_N: np.ndarray) -> float:
    """NDCG@10 of scores [R, N] as `CountingModel.counts` gives them."""
    placed = target_places(scores, rows.target_R, popularity_N)
    return float(ndcg_at_k(placed.before_R, placed.group_R, TUNE_K).mean())


def best_own(
    rows: Rows, matrix: Any, popularity_N: np.ndarray, grid: TuneArgs, *, last: int
) -> tuple[float | None, float]:
    """(what an item of the history counts, NDCG@10 on `rows`) for one matrix [N, N] behind the `last` items of a history."""
    weights = history_weights(rows, len(popularity_N), last=last)
    scores = weights @ matrix
    points = [
        (own, ndcg_of(with_own(scores, weights, rows, own), rows, popularity_N)) for own in grid.repeats
    ]
    return max(points, key=lambda point: point[1])


def tune_itemknn(rows: Rows, train: TrainLog, grid: TuneArgs) -> TunedPoint:
    """The best point: shrinkage, decay by position and repeats together, then half-lives and repeats at the best of them, where any
    age is known."""
    points = []
    for shrink in program.progress(grid.shrinks, label="tune item-kNN", unit="shrink"):
        matrix = item_similarity(train, shrink=shrink)
        for decay in grid.decays:
            points += points_of(rows, matrix, None, train.popularity_N, grid, shrink=shrink, decay=decay)
    best = max(points, key=lambda point: point.ndcg)
    matrix = item_similarity(train, shrink=best.shrink)
    for half_life in _half_lives(rows, grid):
        points += points_of(
            rows,
            matrix,
            None,
            train.popularity_N,
            grid,
            shrink=best.shrink,
            decay=best.decay,
            half_life=half_life,
        )
    return max(points, key=lambda point: point.ndcg)


def tune_text(rows: Rows, train: TrainLog, similar: Any, grid: TuneArgs, start: TunedPoint) -> TunedPoint:
    """The best point of text weight, decay, half-life and repeats together, with the shrinkage of `start`.

    similar: text cosines [N, N].
    """
    matrix, text = item_similarity(train, shrink=start.shrink), similar.power(2)
    weighings = [(decay, None) for decay in grid.decays] + [
        (start.decay, half_life) for half_life in _half_lives(rows, grid)
    ]
    points = []
    for decay, half_life in program.progress(weighings, label="tune item-kNN with text", unit="weighing"):
        points += points_of(
            rows,
            matrix,
            text,
            train.popularity_N,
            grid,
            shrink=start.shrink,
            decay=decay,
            half_life=half_life,
        )
    return max(points, key=lambda point: point.ndcg)


def points_of(
    rows: Rows, matrix: Any, text: Any, popularity_N: np.ndarray, grid: TuneArgs, *, shrink: float, decay: float,
    half_life: float | None = None,
) -> Iterator[TunedPoint]:  # fmt: skip
    """The points of one weighing of the history: every repeat, and with `text` [N, N] every text weight."""
    weights = history_weights(rows, len(popularity_N), decay=decay, half_life=half_life)
    by_users = weights @ matrix
    by_text = None if text is None else weights @ text
    for text_weight in [0.0] if by_text is None else grid.text_weights:
        scores = by_users if by_text is None else by_users + text_weight * by_text
        for own in grid.repeats:
            ndcg = ndcg_of(with_own(scores, weights, rows, own), rows, popularity_N)
            yield TunedPoint(ndcg, shrink, text_weight, decay, half_life, own)


def _half_lives(rows: Rows, grid: TuneArgs) -> list[float]:
    known = rows.age_H is not None and not np.isnan(rows.age_H).all()
    return grid.half_lives if known else []
