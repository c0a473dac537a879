"""Floors as good as valid rows make them: what of item-kNN is chosen there, and what an item of the history counts.

The opponents of a model whose own numbers are chosen on valid (infer/models/sequential/repeats.py) have theirs chosen there too. All points of a grid are
measured by NDCG@10 on a seeded sample of valid rows; the first of equal ones is taken, and then, by the rule of a trained model, what a history
item counts is the least that is as good but for chance (`good_ones`): nothing of its own, a small weight, a large one, none at all.

Legend: R rows, N items, S choices, U items of histories, each once a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from configs import program
from configs.program import InputError
from data.rows import Rows, TrainLog
from infer.metrics.ranking import ndcg_at_k
from infer.models.counting import DIGITS, history_weights, item_similarity, target_places, with_own
from infer.models.sequential.repeats import good_ones, in_history

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
    repeats: list[float | None] = field(default_factory=lambda: [0.0, 0.03, 0.1, 0.3, 1.0, None])
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


def ndcgs_of(scores: sparse.csr_matrix, rows: Rows, popularity_N: np.ndarray) -> np.ndarray:
    """NDCG@10 of every row, float64 [R], of scores [R, N] as `CountingModel.counts` gives them."""
    placed = target_places(scores, rows.target_R, popularity_N)
    return ndcg_at_k(placed.before_R, placed.group_R, TUNE_K)


def own_ndcgs(
    scores: sparse.csr_matrix,
    weights: sparse.csr_matrix,
    rows: Rows,
    popularity_N: np.ndarray,
    owns: list[float | None],
) -> np.ndarray:
    """NDCG@10 of every row with each of `owns` (`with_own`), float64 [S, R], without placing anew what does not move.

    Where the target is no item of the history only the history's own items change places with it; the other rows are placed as they are.
    """
    plain = with_own(scores, weights, rows, 0.0)
    row_U, item_U, _ = in_history(rows, len(popularity_N))
    own_target_R = np.zeros(len(rows), bool)
    own_target_R[row_U[item_U == rows.target_R[row_U]]] = True
    kept = ~own_target_R[row_U]
    row_U, item_U = row_U[kept], item_U[kept]
    score_U, weight_U = (np.asarray(part[row_U, item_U]).ravel() for part in (plain, weights))
    target_U = np.asarray(plain[np.arange(len(rows)), rows.target_R]).ravel()[row_U]
    more_U = popularity_N[item_U] - popularity_N[rows.target_R][row_U]
    moved, placed = np.flatnonzero(own_target_R), target_places(plain, rows.target_R, popularity_N)
    few, ndcg_SR = rows.take(moved), np.empty((len(owns), len(rows)))

    def ahead(own: float | None) -> np.ndarray:
        """Items of the history before the target, and those equal to it, [2, R]."""
        if own is None:
            return np.zeros((2, len(rows)))
        gap_U = np.round(score_U + own * weight_U, DIGITS) - target_U
        before_U, equal_U = (gap_U > 0) | ((gap_U == 0) & (more_U > 0)), (gap_U == 0) & (more_U == 0)
        return np.stack([np.bincount(row_U, one, minlength=len(rows)) for one in (before_U, equal_U)])

    at_first_2R = ahead(0.0)
    for number, own in enumerate(owns):
        before_R, group_R = np.stack([placed.before_R, placed.group_R]) - at_first_2R + ahead(own)
        ndcg_SR[number] = ndcg_at_k(before_R, group_R, TUNE_K)
        if len(moved):
            scored = with_own(scores[moved], weights[moved], few, own)
            ndcg_SR[number, moved] = ndcgs_of(scored, few, popularity_N)
    return ndcg_SR


def least_own(
    scores: sparse.csr_matrix,
    weights: sparse.csr_matrix,
    rows: Rows,
    popularity_N: np.ndarray,
    grid: TuneArgs,
) -> tuple[float | None, float]:
    """(what a history item counts, NDCG@10): the least of `grid.repeats` that is as good as the best but for chance, null being the most.

    scores: of the neighbours [R, N]; weights: of the history [R, N].
    """
    owns = sorted(set(grid.repeats), key=lambda own: math.inf if own is None else own)
    ndcg_SR = own_ndcgs(scores, weights, rows, popularity_N, owns)
    first = int(good_ones(ndcg_SR)[0])
    return owns[first], float(ndcg_SR[first].mean())


def tune_own(
    rows: Rows, matrix: Any, popularity_N: np.ndarray, grid: TuneArgs, *, last: int
) -> tuple[float | None, float]:
    """`least_own` of one matrix [N, N] behind the `last` items of a history."""
    weights = history_weights(rows, len(popularity_N), last=last)
    return least_own(weights @ matrix, weights, rows, popularity_N, grid)


@dataclass(frozen=True)
class Search:
    """Points of item-kNN on some valid rows; text_NN: squared text cosines, None: without."""

    rows: Rows
    train: TrainLog
    grid: TuneArgs
    text_NN: Any = None

    def points(
        self, matrix: Any, *, shrink: float, decay: float, half_life: float | None = None
    ) -> Iterator[TunedPoint]:
        """Those of one weighing of the history: every text weight with every repeat."""
        popularity_N = self.train.popularity_N
        weights = history_weights(self.rows, len(popularity_N), decay=decay, half_life=half_life)
        for text_weight, scores in self._scores(matrix, weights):
            ndcg_S = own_ndcgs(scores, weights, self.rows, popularity_N, self.grid.repeats).mean(1)
            for own, ndcg in zip(self.grid.repeats, ndcg_S.tolist(), strict=True):
                yield TunedPoint(ndcg, shrink, text_weight, decay, half_life, own)

    def settled(self, points: list[TunedPoint]) -> TunedPoint:
        """The best point, with `least_own` of all that it shares the rest with."""
        best = max(points, key=lambda point: point.ndcg)
        size, matrix = self.train.num_items, item_similarity(self.train, shrink=best.shrink)
        weights = history_weights(self.rows, size, decay=best.decay, half_life=best.half_life)
        scores = dict(self._scores(matrix, weights))[best.text_weight]
        own, ndcg = least_own(scores, weights, self.rows, self.train.popularity_N, self.grid)
        return best._replace(own=own, ndcg=ndcg)

    def half_lives(self) -> list[float]:
        """Those of the grid where any age is known."""
        known = self.rows.age_H is not None and not np.isnan(self.rows.age_H).all()
        return self.grid.half_lives if known else []

    def _scores(self, matrix: Any, weights: Any) -> Iterator[tuple[float, Any]]:
        by_users = weights @ matrix
        if self.text_NN is None:
            yield 0.0, by_users
            return
        by_text = weights @ self.text_NN
        for text_weight in self.grid.text_weights:
            yield text_weight, by_users + text_weight * by_text


def tune_itemknn(rows: Rows, train: TrainLog, grid: TuneArgs) -> TunedPoint:
    """The best point: shrinkage, decay by position and repeats together, then half-lives and repeats at the best of them."""
    search, points = Search(rows, train, grid), []
    for shrink in program.progress(grid.shrinks, label="tune item-kNN", unit="shrink"):
        matrix = item_similarity(train, shrink=shrink)
        for decay in grid.decays:
            points += search.points(matrix, shrink=shrink, decay=decay)
    best = max(points, key=lambda point: point.ndcg)
    matrix = item_similarity(train, shrink=best.shrink)
    for half_life in search.half_lives():
        points += search.points(matrix, shrink=best.shrink, decay=best.decay, half_life=half_life)
    return search.settled(points)


def tune_text(rows: Rows, train: TrainLog, similar: Any, grid: TuneArgs, start: TunedPoint) -> TunedPoint:
    """The best point of text weight, decay, half-life and repeats together, with the shrinkage of `start`.

    similar: text cosines [N, N].
    """
    search, matrix = Search(rows, train, grid, similar.power(2)), item_similarity(train, shrink=start.shrink)
    weighings = [(decay, None) for decay in grid.decays]
    weighings += [(start.decay, half_life) for half_life in search.half_lives()]
    points = []
    for decay, half_life in program.progress(weighings, label="tune item-kNN with text", unit="weighing"):
        points += search.points(matrix, shrink=start.shrink, decay=decay, half_life=half_life)
    return search.settled(points)
