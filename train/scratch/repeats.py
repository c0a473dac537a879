"""How often an item of the history comes again, said by valid rows: one number is added to all bonuses of a trained model.

Train rows and later ones differ in it more than in anything else that a model learns: in Yelp 3.3 % of train rows' targets stand in their
history, 5.4 % of valid rows'; in Office 9.1 and 5.8 %. The full ranking of valid rows is measured with every shift of `SHIFTS`; of those
that are as good as the best but for chance (the mean difference over rows below its standard error; Breiman et al., 1984, for the size of
a tree) the one nearest to 0 is taken. The likelihood of valid rows is no judge here: it also pays for what a model is too sure of
(Office, SASRec: 7.013 -> 6.987 nats by -.85, NDCG@10 .1622 -> .1596).

Legend: R rows, N items, S shifts, H history items of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from data.rows import Rows
from infer.metrics.ranking import hr_at_k, ndcg_at_k
from infer.models.contract import block_rows, target_ranks
from infer.models.sequential.windows import newest

SHIFTS = np.arange(-8, 9) / 2.0


def settle(
    model: nn.Module,
    valid: Rows,
    score: Callable[[Rows], np.ndarray],
    *,
    num_items: int,
    positions: int,
    by: str,
) -> dict[str, Any]:
    """Add the shift to the bonuses of `model`; {"shift", by: {shift: mean over valid rows}} of all shifts.

    score: log-probabilities or logits float32 [R, N] with the bonuses as they are; positions: history items that a model reads; by: ndcg@10 ...
    A shift is added to the scores of the items themselves, once for every step back at which an item stands.
    """
    measure_SR = np.concatenate(
        [
            measured(score(block), block, positions=positions, by=by)
            for start in range(0, len(valid), block_rows(num_items))
            for block in [valid.take(np.arange(start, min(start + block_rows(num_items), len(valid))))]
        ],
        axis=1,
    )
    shift = chosen(measure_SR)
    with torch.no_grad():
        for bonus in bonuses_of(model):
            bonus += shift
    means = zip(SHIFTS.tolist(), measure_SR.mean(1).tolist(), strict=True)
    return {"shift": shift, by: {str(one): round(mean, 6) for one, mean in means}}


def measured(score_RN: np.ndarray, rows: Rows, *, positions: int, by: str) -> np.ndarray:
    """The measure float [S, R] of each row with every shift."""
    name, k = by.split("@")
    measure = {"hr": hr_at_k, "ndcg": ndcg_at_k}[name]
    read, _ = newest(rows, positions)
    place_H, found, added = (read.history_row_H, read.history_H), [], 0.0
    shifted_RN, alone_R = score_RN.astype(np.float64), np.ones(len(rows), np.int64)
    for shift in SHIFTS:
        np.add.at(shifted_RN, place_H, shift - added)
        added = shift
        found.append(measure(target_ranks(shifted_RN, rows.target_R) - 1, alone_R, int(k)))
    return np.stack(found)


def chosen(measure_SR: np.ndarray) -> float:
    """The shift nearest to 0 that is as good as the best but for chance.

    Two rows are better by 1 and 0 with the first shift, so .5 with a standard error of .5: no more than chance.

    >>> chosen(np.concatenate([np.array([[1.0, 0.0]]), np.zeros((16, 2))]))
    0.0
    >>> chosen(np.concatenate([np.array([[1.0, 1.0]]), np.zeros((16, 2))]))
    -4.0
    """
    best_R = measure_SR[measure_SR.mean(1).argmax()]
    lead_SR = best_R - measure_SR
    error_S = lead_SR.std(1, ddof=min(1, lead_SR.shape[1] - 1)) / np.sqrt(lead_SR.shape[1])
    good_S = SHIFTS[lead_SR.mean(1) <= error_S]
    return float(good_S[np.abs(good_S).argmin()])


def bonuses_of(model: nn.Module) -> list[nn.Parameter]:
    """The bonuses of items of the history, by their name (infer/models/sequential/evidence.py)."""
    return [bonus for name, bonus in model.named_parameters() if name.rsplit(".", 1)[-1].startswith("bonus_")]
