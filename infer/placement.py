"""Where the target of each row stands in its predictions: the `before` and `group` that the metrics take.

Three protocols:
  sids      a predicted semantic ID counts for every item that shares it (what published rows report)
  items     the list of SIDs is expanded into items; the items of one SID stand in random order
  unseen    as `items`, after the items of the row's history left the list

Legend: R rows, E entries, M items of all entries, N items of the catalogue, H history items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infer.metrics import mean_ranks
from infer.predictions import Predictions


@dataclass(frozen=True)
class Placement:
    """before_R float64 (inf: not recommended), group_R int64 (1 where not recommended)."""

    before_R: np.ndarray
    group_R: np.ndarray


def place_items(predictions: Predictions, target_R: np.ndarray) -> Placement:
    """Item level. SIDs (3 items), (1), (2, the target among them): before 4, group 2."""
    hit_R, entry_R = find_targets(predictions, target_R)
    return _placement(hit_R, entry_R, entries_before(predictions), predictions.sizes_E)


def place_sids(predictions: Predictions, target_R: np.ndarray, sid_of_item_N: np.ndarray | None) -> Placement:
    """SID level. For predictions of SIDs the target's SID is the entry that holds it.

    A ranked list of items becomes the list of its distinct SIDs, each at its best item (`sid_of_item_N` int64
    tells them); equally good ones share their mean rank.
    """
    if predictions.codes_EL is not None:
        hit_R, entry_R = find_targets(predictions, target_R)
        position_E = (np.arange(len(predictions.row_E)) - predictions.entry_rows).astype(np.float64)
        return _placement(hit_R, entry_R, position_E, np.ones(len(position_E), np.int64))
    sid_E = sid_of_item_N[predictions.items_M]
    row_E, rank_E = predictions.row_E, predictions.rank_E
    by_sid = np.lexsort((rank_E, sid_E, row_E))
    row, sid = row_E[by_sid], sid_E[by_sid]
    best = by_sid[_starts(row, sid)]
    best = best[np.lexsort((rank_E[best], row_E[best]))]
    row, rank = row_E[best], rank_E[best]
    before = mean_ranks(_starts(row), _starts(row, rank)) - 1
    mine = np.flatnonzero(sid_E[best] == sid_of_item_N[target_R][row])
    before_R = np.full(len(target_R), np.inf)
    before_R[row[mine]] = before[mine]
    return Placement(before_R, np.ones(len(target_R), np.int64))


def place_unseen(
    predictions: Predictions,
    target_R: np.ndarray,
    history_row_H: np.ndarray,
    history_H: np.ndarray,
    num_items: int,
) -> tuple[Placement, np.ndarray, int]:
    """Item level without the history: (placement, rows that count bool [R], items in the shortest list left).

    A row whose target is in its own history has nothing left to find and does not count.
    """
    seen = np.unique(history_row_H * num_items + history_H)
    removed_M = _member(predictions.row_M * num_items + predictions.items_M, seen)
    removed_E = np.bincount(predictions.entry_M[removed_M], minlength=len(predictions.row_E))
    hit_R, entry_R = find_targets(predictions, target_R)
    placed = _placement(hit_R, entry_R, entries_before(predictions), predictions.sizes_E)
    rows = len(target_R)
    # Entries ahead of the target lose their seen items; of those that share its mean rank half stood ahead.
    target_rank_E = np.where(hit_R, predictions.rank_E[entry_R], -1.0)[predictions.row_E]
    ahead = np.bincount(predictions.row_E, removed_E * (predictions.rank_E < target_rank_E), minlength=rows)
    tied = np.bincount(predictions.row_E, removed_E * (predictions.rank_E == target_rank_E), minlength=rows)
    if predictions.codes_EL is None:
        unseen = Placement(placed.before_R - ahead - tied / 2, placed.group_R)
    else:
        unseen = Placement(
            placed.before_R - ahead, np.where(hit_R, placed.group_R - tied, 1).astype(np.int64)
        )
    counts_R = ~_member(np.arange(rows) * num_items + target_R, seen)
    # A seen target can be its group's only item; its row is dropped, so any valid group size will do.
    unseen = Placement(unseen.before_R, np.maximum(unseen.group_R, 1))
    left = np.bincount(predictions.row_E, predictions.sizes_E - removed_E, minlength=rows)
    return unseen, counts_R, int(left.min(initial=len(predictions.items_M)))


def find_targets(predictions: Predictions, target_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(target is predicted bool [R], its entry int64 [R]; 0 where it is not)."""
    mine = np.flatnonzero(predictions.items_M == target_R[predictions.row_M])
    hit_R, entry_R = np.zeros(len(target_R), bool), np.zeros(len(target_R), np.int64)
    hit_R[predictions.row_M[mine]] = True
    entry_R[predictions.row_M[mine]] = predictions.entry_M[mine]
    return hit_R, entry_R


def entries_before(predictions: Predictions) -> np.ndarray:
    """Items ranked ahead of every entry, float64 [E]: rank - 1, or all items of the better SIDs."""
    if predictions.codes_EL is None:
        return predictions.rank_E - 1
    total = np.concatenate([[0], np.cumsum(predictions.sizes_E)])
    return (total[:-1] - total[predictions.entry_rows]).astype(np.float64)


def _placement(hit_R: np.ndarray, entry_R: np.ndarray, before_E: np.ndarray, size_E: np.ndarray) -> Placement:
    return Placement(np.where(hit_R, before_E[entry_R], np.inf), np.where(hit_R, size_E[entry_R], 1))


def _starts(*keys: np.ndarray) -> np.ndarray:
    """True where any of the sorted keys differs from the element before."""
    changed = np.zeros(len(keys[0]), bool)
    changed[:1] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return changed


def _member(queries: np.ndarray, sorted_keys: np.ndarray) -> np.ndarray:
    if not len(sorted_keys):
        return np.zeros(len(queries), bool)
    at = np.minimum(np.searchsorted(sorted_keys, queries), len(sorted_keys) - 1)
    return sorted_keys[at] == queries
