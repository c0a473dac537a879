"""How often an item of the history comes again, said by valid rows: one shift of the scores of history items.

Train rows and later ones can differ in it by half: in Yelp 3.3 % of train rows' targets stand in their history, 5.4 % of valid rows'; in
Office 9.1 and 5.8 %. The full ranking of valid rows is measured with every shift of `SHIFTS`; of those
that are as good as the best but for chance (the mean difference over rows below its standard error; Breiman et al., 1984, for the size of
a tree) the one nearest to 0 is taken. The likelihood of valid rows is no judge here: it also pays for what a model is too sure of
(Office, SASRec: 7.013 -> 6.987 nats by -.85, NDCG@10 .1622 -> .1596).

Legend: R rows, N items, S shifts, U items of histories, each once a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.rows import Rows
from infer.metrics.ranking import by_name
from infer.models.contract import block_rows
from infer.models.sequential.windows import newest

SHIFTS = np.arange(-8, 9) / 2.0


def shift_of(
    valid: Rows, score: Callable[[Rows], np.ndarray], *, num_items: int, positions: int | None = None, by: str
) -> tuple[float, dict[str, float]]:
    """(the shift, {shift: mean of `by` over valid rows} of all shifts).

    score: log-probabilities or logits float32 [R, N] with the bonuses as they are; positions: history items that a model reads, None: all;
    by: ndcg@10 ... A shift is added to the scores of the items themselves, once for every step back at which an item stands.
    """
    step, parts = block_rows(num_items), []
    for start in range(0, len(valid), step):
        block = valid.take(np.arange(start, min(start + step, len(valid))))
        parts.append(measured(score(block), block, positions=positions, by=by))
    measure_SR = np.concatenate(parts, axis=1)
    means = zip(SHIFTS.tolist(), measure_SR.mean(1).tolist(), strict=True)
    return chosen(measure_SR), {str(one): round(mean, 6) for one, mean in means}


def in_history(rows: Rows, num_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, item, how often it stands there) of the items of every row's history, int64 [U] each."""
    key_U, times_U = np.unique(
        rows.history_row_H.astype(np.int64) * num_items + rows.history_H, return_counts=True
    )
    return key_U // num_items, key_U % num_items, times_U


def measured(score_RN: np.ndarray, rows: Rows, *, positions: int | None, by: str) -> np.ndarray:
    """The measure float [S, R] of each row with every shift."""
    before_SR, group_SR = places(score_RN, rows, positions)
    return np.stack([by_name(by, *place) for place in zip(before_SR, group_SR, strict=True)])


def places(score_RN: np.ndarray, rows: Rows, positions: int | None) -> tuple[np.ndarray, np.ndarray]:
    """How many items stand before the target with every shift, and how many are equal to it, itself included: int64 [S, R] each.

    Items outside of the history are counted once, and again at every shift for the targets that are moved themselves.
    """
    read = rows if positions is None else newest(rows, positions)[0]
    row_U, item_U, times_U = in_history(read, score_RN.shape[1])
    own_U = score_RN[row_U, item_U].astype(np.float64)
    target_R = score_RN[np.arange(len(rows)), rows.target_R].astype(np.float64)
    times_R = np.zeros(len(rows))
    is_target_U = item_U == rows.target_R[row_U]
    times_R[row_U[is_target_U]] = times_U[is_target_U]
    moved_R, found = np.flatnonzero(times_R), np.empty((len(SHIFTS), 2, len(rows)), np.int64)

    def of_histories(score_U: np.ndarray, limit_R: np.ndarray) -> np.ndarray:
        limit_U = limit_R[row_U]
        return np.stack(
            [
                np.bincount(row_U[is_U], minlength=len(rows))
                for is_U in (score_U > limit_U, score_U == limit_U)
            ]
        )

    def among_all(chosen_R: np.ndarray, limit_R: np.ndarray) -> np.ndarray:
        limit_R1 = limit_R[chosen_R, None]
        return np.stack([(score_RN[chosen_R] > limit_R1).sum(1), (score_RN[chosen_R] == limit_R1).sum(1)])

    # [better ones, equal ones]: of the items outside of the history, then of all
    others_2R = among_all(np.arange(len(rows)), target_R) - of_histories(own_U, target_R)
    for number, shift in enumerate(SHIFTS):
        limit_R = target_R + shift * times_R
        if len(moved_R):
            others_2R[:, moved_R] = among_all(moved_R, limit_R) - of_histories(own_U, limit_R)[:, moved_R]
        found[number] = others_2R + of_histories(own_U + shift * times_U, limit_R)
    return found[:, 0], found[:, 1]


def chosen(measure_SR: np.ndarray) -> float:
    """The shift nearest to 0 that is as good as the best but for chance; of two that are as near the better one.

    Two rows are better by 1 and 0 with the first shift, so .5 with a standard error of .5: no more than chance.

    >>> chosen(np.concatenate([np.array([[1.0, 0.0]]), np.zeros((16, 2))]))
    0.0
    >>> chosen(np.concatenate([np.array([[1.0, 1.0]]), np.zeros((16, 2))]))
    -4.0
    """
    good_S, mean_S = good_ones(measure_SR), measure_SR.mean(1)
    if measure_SR.shape[1] < 2:
        return 0.0
    return float(SHIFTS[min(good_S, key=lambda number: (abs(SHIFTS[number]), -mean_S[number]))])


def good_ones(measure_SR: np.ndarray) -> np.ndarray:
    """Which of S choices are as good as the best but for chance, int64: their mean over rows R is less by no more than its standard error."""
    lead_SR = measure_SR[measure_SR.mean(1).argmax()] - measure_SR
    rows = measure_SR.shape[1]
    error_S = lead_SR.std(1, ddof=1) / np.sqrt(rows) if rows > 1 else np.zeros(len(lead_SR))
    return np.flatnonzero(lead_SR.mean(1) <= error_S * (1 + 1e-9))  # equal where one row differs
