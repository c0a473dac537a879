"""Recommenders without a model: popularity, last-item transitions, item-kNN. Scores from train rows only.

Every scorer gives a sparse matrix of positive scores; `ranked_lists` orders a row by (score, train
popularity), so that items without a score come after the others, most popular first, and equal items share
their mean rank.

Legend: T train rows, N items, B rows to recommend for, E entries of their lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from data.rows import Rows, TrainLog
from infer.metrics.ranking import mean_ranks

HISTORY = 10
TRANSITION_WEIGHTS = (1.0, 1 / 2, 1 / 3)
DIGITS = 9


@dataclass(frozen=True)
class RankedLists:
    """Items of each row, best first: the entries of row b are `offsets[b] : offsets[b + 1]`.

    item_E int32, rank_E float64 (from 1, ties share their mean), score_E float64.
    """

    offsets: np.ndarray
    item_E: np.ndarray
    rank_E: np.ndarray
    score_E: np.ndarray


def transition_matrix(train: TrainLog) -> sparse.csr_matrix:
    """How often one item came soon after another in a train sequence, float64 [N, N] (from, to).

    Distance 1, 2, 3 counts 1, 1/2, 1/3; an item can follow itself.
    """
    users, items = train.users_T, train.items_T
    sources, targets, weights = [], [], []
    for distance, weight in enumerate(TRANSITION_WEIGHTS, start=1):
        same = users[distance:] == users[:-distance]
        sources.append(items[:-distance][same])
        targets.append(items[distance:][same])
        weights.append(np.full(int(same.sum()), weight))
    positions = (np.concatenate(sources), np.concatenate(targets))
    return sparse.csr_matrix((np.concatenate(weights), positions), shape=(train.num_items, train.num_items))


def item_similarity(train: TrainLog, *, shrink: float = 0.0) -> sparse.csr_matrix:
    """Cosine of the binary user columns of two items, float64 [N, N]; an item is not its own neighbour.

    c_ij / (sqrt(c_ii c_jj) + shrink), c_ij being the users who have both.

    shrink: in users; lowers the similarity of pairs with little support (Bell and Koren 2007).
    """
    users = np.unique(train.users_T, return_inverse=True)[1]
    ones = np.ones(len(users))
    bought = sparse.csr_matrix((ones, (users, train.items_T)), shape=(users.max() + 1, train.num_items))
    bought.data[:] = 1.0
    together = (bought.T @ bought).tocoo()
    count = bought.sum(axis=0).A1
    off = together.row != together.col
    row, col, shared = together.row[off], together.col[off], together.data[off]
    cosine = shared / (np.sqrt(count[row] * count[col]) + shrink)
    return sparse.csr_matrix((cosine, (row, col)), shape=(train.num_items, train.num_items))


def history_weights(
    rows: Rows, num_items: int, *, last: int = HISTORY, decay: float = 1.0, half_life: float | None = None
) -> sparse.csr_matrix:
    """Weight of every distinct item among the `last` of a history, float64 [B, N].

    decay ** position, position 0 being the newest item; with `half_life` (days) 0.5 ** (age / half_life) where the age
    is known. An item that occurs twice counts once, at its newest position.
    """
    position_H = np.repeat(rows.offsets[1:], np.diff(rows.offsets)) - 1 - np.arange(len(rows.history_H))
    recent = np.flatnonzero(position_H < last)
    row, item, position = rows.history_row_H[recent], rows.history_H[recent], position_H[recent]
    newest_first = np.lexsort((position, item, row))
    row, item, position = row[newest_first], item[newest_first], position[newest_first]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
    values = np.power(float(decay), position[first])
    if half_life is not None and rows.age_H is not None:
        age = rows.age_H[recent][newest_first][first]
        values = np.where(np.isnan(age), values, np.exp2(-np.nan_to_num(age) / half_life))
    return sparse.csr_matrix((values, (row[first], item[first])), shape=(len(rows), num_items))


def score_popularity(rows: Rows, train: TrainLog) -> sparse.csr_matrix:
    """No scores at all: `ranked_lists` then orders by popularity alone, float64 [B, N]."""
    return sparse.csr_matrix((len(rows), train.num_items))


def score_last(rows: Rows, transitions: sparse.csr_matrix) -> sparse.csr_matrix:
    """Transitions from the newest item of the history, float64 [B, N]."""
    return history_weights(rows, transitions.shape[0], last=1) @ transitions


def score_repeat(rows: Rows, num_items: int) -> sparse.csr_matrix:
    """The history itself, newest item first: what repeating the past alone finds, float64 [B, N]."""
    return history_weights(rows, num_items, decay=0.5)


def score_itemknn(
    rows: Rows, similarity: sparse.csr_matrix, *, decay: float = 1.0, half_life: float | None = None
) -> sparse.csr_matrix:
    """Summed similarity to the last ten history items, weighted by `history_weights`, float64 [B, N]."""
    return history_weights(rows, similarity.shape[0], decay=decay, half_life=half_life) @ similarity


def ranked_lists(scores: sparse.csr_matrix, popularity_N: np.ndarray, depth: int) -> RankedLists:
    """Every item whose mean rank, counted from 0, is below `depth`.

    scores: positive float64 [B, N]; scores that differ by rounding only (9 digits) are equal. Scores 2, 1, 0,
    0 with popularity 1, 1, 7, 9 give ranks 1, 2, 4, 3; with popularity 1, 1, 9, 9 ranks 1, 2, 3.5, 3.5.
    """
    scores = sparse.csr_matrix(scores)
    scores.sum_duplicates()
    scored = scores.data > 0
    row = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))[scored]
    item, score = scores.indices[scored], np.round(scores.data[scored], DIGITS)
    more_row, more_item = _unscored(row, item, scores.shape[0], popularity_N, depth)
    row, item = np.concatenate([row, more_row]), np.concatenate([item, more_item])
    score = np.concatenate([score, np.zeros(len(more_row))])
    order = np.lexsort((item, -popularity_N[item], -score, row))
    row, item, score = row[order], item[order], score[order]
    new_row, new_tie = np.ones(len(row), bool), np.ones(len(row), bool)
    new_row[1:] = row[1:] != row[:-1]
    popularity = popularity_N[item]
    new_tie[1:] = new_row[1:] | (score[1:] != score[:-1]) | (popularity[1:] != popularity[:-1])
    rank = mean_ranks(new_row, new_tie)
    keep = rank - 1 < depth
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row[keep], minlength=scores.shape[0]))])
    return RankedLists(offsets, item[keep].astype(np.int32), rank[keep], score[keep])


def target_ranks(scores: sparse.csr_matrix, target_B: np.ndarray, popularity_N: np.ndarray) -> np.ndarray:
    """Mean rank from 1 of one item per row in the order of `ranked_lists`, float64 [B]; nothing is sorted."""
    scores = sparse.csr_matrix(scores)
    num_rows = scores.shape[0]
    row = np.repeat(np.arange(num_rows), np.diff(scores.indptr))
    item, score = scores.indices, np.round(scores.data, DIGITS)
    mine = item == target_B[row]
    target_score = np.bincount(row[mine], score[mine], minlength=num_rows)
    popularity = popularity_N[target_B]
    better = (score > target_score[row]) | (
        (score == target_score[row]) & (score > 0) & (popularity_N[item] > popularity[row])
    )
    equal = (score == target_score[row]) & (score > 0) & (popularity_N[item] == popularity[row])
    before = np.bincount(row[better], minlength=num_rows).astype(np.float64)
    ties = np.bincount(row[equal], minlength=num_rows)
    # An unscored target also has the more popular unscored items ahead and ties with the equally popular ones.
    by_count = np.sort(popularity_N)
    scored = score > 0
    more = len(by_count) - np.searchsorted(by_count, popularity, side="right")
    same = np.searchsorted(by_count, popularity, side="right") - np.searchsorted(
        by_count, popularity, side="left"
    )
    more -= np.bincount(row[scored & (popularity_N[item] > popularity[row])], minlength=num_rows)
    same -= np.bincount(row[scored & (popularity_N[item] == popularity[row])], minlength=num_rows)
    unscored = target_score == 0
    return 1 + before + np.where(unscored, more, 0) + (np.where(unscored, same, ties) - 1) / 2


def _unscored(
    row_E: np.ndarray, item_E: np.ndarray, num_rows: int, popularity_N: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """(row, item) of the popular items without a score that can reach the first `depth` places of their row.

    A row with p < depth scored items needs its first depth - p unscored ones and whole groups of equal
    popularity. A group that begins there and has its mean below `depth` ends before place 2 * depth, so among
    the 3 * depth most popular items, p of them scored, all of it is found; the last group is taken whole.
    """
    by_popularity = np.argsort(-popularity_N, kind="stable")
    size = min(3 * depth, len(by_popularity))
    size = int((popularity_N >= popularity_N[by_popularity[size - 1]]).sum())
    place_N = np.empty(len(popularity_N), np.int64)
    place_N[by_popularity] = np.arange(len(by_popularity))
    free = np.ones((num_rows, size), bool)
    free[np.bincount(row_E, minlength=num_rows) >= depth] = False
    place_E = place_N[item_E]
    popular = place_E < size
    free[row_E[popular], place_E[popular]] = False
    row, place = np.nonzero(free)
    return row, by_popularity[place]
