"""What the first k places of every list show: novelty, popularity and diversity per row, exposure per item.

Legend: R rows, N items of the catalogue, K places, D code prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.predictions import Predictions
from data.rows import Rows
from data.sid import SidTable
from infer.metrics.ranking import exposure_at_k, self_information

DIVERSITY_LEVELS = 2


@dataclass(frozen=True)
class ShownPlaces:
    """float64 all. exposure_N: what every item holds of the rows' first k places, the rest per row.

    shown_R: places that hold something; novelty_R, popularity_R: sums over them of self-information (bits) and of train
    rows; history_R: mean train rows of the history's items; places_R: entries within the first k; distinct_RD: how many
    of them differ in their first code, and in the first two (None without semantic IDs).
    """

    exposure_N: np.ndarray
    shown_R: np.ndarray
    novelty_R: np.ndarray
    popularity_R: np.ndarray
    history_R: np.ndarray
    places_R: np.ndarray
    distinct_RD: np.ndarray | None


def show(
    predictions: Predictions, rows: Rows, popularity_N: np.ndarray, sids: SidTable | None, k: int
) -> ShownPlaces:
    """The first k places of predictions whose example r is row r of `rows`."""

    def per_row(row: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.bincount(row, weights, minlength=len(rows))

    # Ties of a ranking can reach beyond its first k entries, a list of SIDs shows no more than k of them.
    if predictions.codes_EL is None:
        shown_E = np.flatnonzero(predictions.before(np.arange(len(predictions.rank_E))) < k)
    else:
        shown_E = predictions.first_entries(k)
    sizes = predictions.sizes_E[shown_E]
    first = np.cumsum(sizes) - sizes
    members = np.arange(int(sizes.sum())) + np.repeat(predictions.item_offsets[shown_E] - first, sizes)
    row, items = np.repeat(predictions.row_E[shown_E], sizes), predictions.items_M[members]
    exposure = np.repeat(exposure_at_k(predictions.before(shown_E), predictions.group_E[shown_E], k), sizes)
    lengths = np.maximum(np.diff(rows.offsets), 1)
    return ShownPlaces(
        exposure_N=np.bincount(items, exposure, minlength=len(popularity_N)),
        shown_R=per_row(row, exposure),
        novelty_R=per_row(row, exposure * self_information(popularity_N)[items]),
        popularity_R=per_row(row, exposure * popularity_N[items]),
        history_R=per_row(rows.history_row_H, popularity_N[rows.history_H]) / lengths,
        places_R=np.minimum(np.diff(predictions.offsets), k).astype(np.float64),
        distinct_RD=distinct_prefixes(predictions, sids, k),
    )


def distinct_prefixes(predictions: Predictions, sids: SidTable | None, k: int) -> np.ndarray | None:
    """Different first codes, and different first two, among the first k entries, float64 [R, D].

    None where neither the predictions nor a table tells the codes.
    """
    if predictions.codes_EL is None and sids is None:
        return None
    known = sids.codes_NL if predictions.codes_EL is None else predictions.codes_EL
    if not len(predictions.rank_E):
        return np.zeros((len(predictions.example_ids_R), min(DIVERSITY_LEVELS, known.shape[1])))
    lengths = np.minimum(np.diff(predictions.offsets), k)
    place_K1 = np.arange(k)[:, None]
    # Places that a shorter list does not have repeat its first entry; every repeat is taken off below.
    entry_KR = predictions.offsets[:-1] + np.where(place_K1 < lengths, place_K1, 0)
    entry_KR = np.minimum(
        entry_KR, len(predictions.rank_E) - 1
    )  # a list of nothing at the end has no first entry
    ranked = predictions.codes_EL is None
    codes = known[predictions.items_M[predictions.item_offsets[entry_KR]] if ranked else entry_KR]
    key_KR, distinct = np.zeros(entry_KR.shape, np.int64), []
    for level in range(min(DIVERSITY_LEVELS, codes.shape[2])):
        key_KR = key_KR * (int(codes[:, :, level].max()) + 1) + codes[:, :, level]
        fresh = [(key_KR[:at] != key_KR[at]).all(axis=0) for at in range(k)]
        distinct.append(np.where(lengths > 0, np.sum(fresh, axis=0), 0.0))
    return np.stack(distinct, axis=1)


def joined(parts: Sequence[ShownPlaces]) -> ShownPlaces:
    """The rows of the parts one after the other; exposures add up."""
    per_row = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("shown_R", "novelty_R", "popularity_R", "history_R", "places_R")
    }
    distinct = [part.distinct_RD for part in parts]
    return ShownPlaces(
        exposure_N=np.sum([part.exposure_N for part in parts], axis=0),
        distinct_RD=None if distinct[0] is None else np.concatenate(distinct),
        **per_row,
    )
