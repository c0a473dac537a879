"""Which predictions are not of the catalogue: the decoder is wrong then, and no other number can be trusted.

Legend: E entries, M items of all entries, N items of the catalogue, L levels.
"""

from __future__ import annotations

import numpy as np

from data.predictions import Predictions
from data.sid import SidTable


def invalid_entries(
    predictions: Predictions, sids: SidTable | None, *, num_items: int, restricted: bool = False
) -> np.ndarray:
    """Entries without items, with unknown items, or with codes that are not those of just these items; bool [E].

    restricted: only some of the items that share a semantic ID may be recommended, so an entry may hold a part of them.
    """
    sizes_E, items_M = predictions.sizes_E, predictions.items_M
    bad = sizes_E == 0
    if items_M.min(initial=0) < 0 or items_M.max(initial=0) >= num_items:
        unknown = np.flatnonzero((items_M < 0) | (items_M >= num_items))
        bad[predictions.entry_M[unknown]] = True
        items_M = items_M.copy()
        items_M[unknown] = 0
    if sids is None or predictions.codes_EL is None or not len(items_M):
        return bad
    if predictions.codes_EL.shape[1] != sids.num_levels:
        return np.ones(len(bad), bool)
    # The items of an entry differ (a double is refused before): all those of one SID, and no other, is its group.
    first_E = items_M[np.minimum(predictions.item_offsets[:-1], len(items_M) - 1)]
    bad |= _other_codes(predictions.codes_EL, sids, first_E)
    sid_N = sids.sid_of_item_N
    if not restricted:
        bad |= sizes_E != sids.group_sizes_S[sid_N].take(first_E)
    several = np.flatnonzero(sizes_E > 1)
    entry = np.repeat(several, sizes_E[several])
    first = np.cumsum(sizes_E[several]) - sizes_E[several]
    members = np.arange(len(entry)) + np.repeat(predictions.item_offsets[several] - first, sizes_E[several])
    bad[entry[sid_N[items_M[members]] != sid_N[first_E[entry]]]] = True
    return bad


def _other_codes(codes_EL: np.ndarray, sids: SidTable, item_E: np.ndarray) -> np.ndarray:
    """Entries whose codes are not those of the item, bool [E]."""
    sizes = np.array(sids.sizes)
    inside = codes_EL.min(initial=0) >= 0
    inside &= codes_EL.max(initial=0) < sizes.min() or (codes_EL.max(axis=0, initial=0) < sizes).all()
    if not inside or sizes.astype(float).prod() >= 2**31:
        return (sids.codes_NL[item_E] != codes_EL).any(axis=1)

    def key(codes: np.ndarray) -> np.ndarray:  # one number per row: a third of the memory traffic
        packed = codes[:, 0].astype(np.int32)
        for level in range(1, len(sizes)):
            packed *= np.int32(sizes[level])
            packed += codes[:, level]
        return packed

    return key(sids.codes_NL).take(item_E) != key(codes_EL)
