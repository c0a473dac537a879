"""Where the target of each row stands in its predictions: the `before` and `group` that the metrics take.

Protocols:
  sids      a predicted semantic ID counts for every item that shares it (what published rows report)
  items     the list of SIDs is expanded into items; the items of one SID stand in random order
  unseen    as `items`, after the items of the row's history left the list
  merged    as `items`, after items of one label (one product, one SID) were merged
  prefixes  the first semantic ID that agrees with the target's in its first levels, or at one level

Legend: R rows, E entries, M items of all entries, N items of the catalogue, H history items, L levels, K
beams, S distinct semantic IDs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.predictions import Predictions
from data.sid import SidTable

FILTER_SHARE = 16  # slots of the filter for every key


@dataclass(frozen=True)
class Placement:
    """before_R float64 (inf: not recommended), group_R int64 (1 where not recommended)."""

    before_R: np.ndarray
    group_R: np.ndarray


def joined(parts: Sequence[Placement]) -> Placement:
    """The rows of the parts one after the other."""
    return Placement(
        np.concatenate([part.before_R for part in parts]), np.concatenate([part.group_R for part in parts])
    )


@dataclass(frozen=True)
class Found:
    """hit_R bool: the target is predicted; entry_R int64: its entry, the row's first one where it is not."""

    hit_R: np.ndarray
    entry_R: np.ndarray


def find_targets(predictions: Predictions, target_R: np.ndarray) -> Found:
    """The entry that holds the target of every row."""
    bounds = predictions.member_offsets
    mine = np.flatnonzero(predictions.items_M == np.repeat(target_R, np.diff(bounds)))
    row = np.searchsorted(bounds, mine, side="right") - 1
    hit_R, entry_R = np.zeros(len(target_R), bool), predictions.offsets[:-1].copy()
    hit_R[row] = True
    entry_R[row] = np.searchsorted(predictions.item_offsets, mine, side="right") - 1
    return Found(hit_R, entry_R)


def place_nodes(nodes_RK: np.ndarray, target_R: np.ndarray, sids: SidTable) -> Placement:
    """Item level for ranked rows of `sids.sids_SL` (int64, -1 = no semantic ID), without predictions on disk.

    As `place_items`: semantic IDs of 3 items, 1 item, 2 items with the target among them give before 4, group 2.
    """
    sizes_RK = np.where(nodes_RK >= 0, sids.group_sizes_S[nodes_RK], 0)
    before_RK = np.cumsum(sizes_RK, axis=1) - sizes_RK
    hit_RK = nodes_RK == sids.sid_of_item_N[target_R][:, None]
    found_R, at_R, rows = hit_RK.any(1), hit_RK.argmax(1), np.arange(len(target_R))
    return Placement(
        np.where(found_R, before_RK[rows, at_R], np.inf), np.where(found_R, sizes_RK[rows, at_R], 1)
    )


def place_items(predictions: Predictions, found: Found) -> Placement:
    """Item level. SIDs (3 items), (1), (2, the target among them): before 4, group 2; so do ranks 1, 2, 3, 4, 5.5, 5.5."""
    entry = found.entry_R[found.hit_R]
    before_R, group_R = np.full(len(found.hit_R), np.inf), np.ones(len(found.hit_R), np.int64)
    before_R[found.hit_R], group_R[found.hit_R] = predictions.before(entry), predictions.group_E[entry]
    return Placement(before_R, group_R)


def place_sids(
    predictions: Predictions, found: Found, target_R: np.ndarray, sid_of_item_N: np.ndarray | None
) -> Placement:
    """SID level. For predictions of SIDs the target's SID is the entry that holds it.

    A ranked list of items becomes the list of its distinct SIDs, each at its best item (`sid_of_item_N` int64
    tells them); equally good ones are a group.
    """
    if predictions.codes_EL is None:
        return place_merged(predictions, found, target_R, sid_of_item_N)
    # Its rank, not its position: what an imported list repeated keeps its place there.
    before_R = np.full(len(target_R), np.inf)
    before_R[found.hit_R] = predictions.rank_E[found.entry_R[found.hit_R]] - 1
    return Placement(before_R, np.ones(len(target_R), np.int64))


def place_merged(
    predictions: Predictions, found: Found, target_R: np.ndarray, label_N: np.ndarray
) -> Placement:
    """Item level where the items of one label (int64 [N]) are one item, which stands at the best of its places.

    A SID shows the labels that no better SID has shown, in random order. Few items share a label as a rule, so only
    these are looked at.
    """
    shared_N = np.bincount(label_N)[label_N] > 1
    shared = np.flatnonzero(shared_N[predictions.items_M])
    row = np.searchsorted(predictions.member_offsets, shared, side="right") - 1
    label = label_N[predictions.items_M[shared]]
    first = np.unique(row * (int(label_N.max()) + 1) + label, return_index=True)[1]
    again = np.ones(len(shared), bool)
    again[first] = False
    mine = first[label[first] == label_N[target_R][row[first]]]
    hit_R, entry_R = found.hit_R.copy(), found.entry_R.copy()
    hit_R[row[mine]] = True
    entry_R[row[mine]] = np.searchsorted(predictions.item_offsets, shared[mine], side="right") - 1
    return _place_without(predictions, Found(hit_R, entry_R), shared[again])[0]


def place_prefixes(predictions: Predictions, codes_RL: np.ndarray) -> dict[str, Placement]:
    """{"prefix=2": ..., "position=2": ...}: the first entry whose first 2 codes, or whose second code, is the target's.

    codes_RL int32: the target's codes of every row.
    """
    lengths, found = np.diff(predictions.offsets), {}
    so_far = np.arange(len(predictions.codes_EL))
    for level in range(codes_RL.shape[1]):
        equal_E = predictions.codes_EL[:, level] == np.repeat(codes_RL[:, level], lengths)
        equal = np.flatnonzero(equal_E)
        so_far = so_far[equal_E[so_far]] if level else equal
        found[f"prefix={level + 1}"] = _first(predictions, so_far)
        found[f"position={level + 1}"] = _first(predictions, equal)
    return found


def _first(predictions: Predictions, entries: np.ndarray) -> Placement:
    """The first of these entries (ascending) of every row."""
    row = np.searchsorted(predictions.offsets, entries, side="right") - 1
    first = np.diff(row, prepend=-1) != 0
    before_R = np.full(len(predictions.example_ids_R), np.inf)
    before_R[row[first]] = predictions.rank_E[entries[first]] - 1
    return Placement(before_R, np.ones(len(before_R), np.int64))


def place_unseen(
    predictions: Predictions,
    found: Found,
    target_R: np.ndarray,
    history_row_H: np.ndarray,
    history_H: np.ndarray,
    num_items: int,
) -> tuple[Placement, np.ndarray, int]:
    """Item level without the history: (placement, rows that count bool [R], items in the shortest list left).

    A row whose target is in its own history has nothing left to find and does not count.
    """
    seen = np.sort(history_row_H * num_items + history_H)
    first_R, lengths = np.arange(len(target_R)) * num_items, np.diff(predictions.member_offsets)
    removed_M = _member(first_R, lengths, predictions.items_M, seen)
    unseen, removed_R = _place_without(predictions, found, removed_M)
    left_R = (lengths - removed_R)[lengths > 0]
    counts_R = np.ones(len(target_R), bool)
    counts_R[_member(first_R, np.ones_like(lengths), target_R, seen)] = False
    # A seen target can be its group's only item; its row is dropped, so any valid group size will do.
    unseen = Placement(unseen.before_R, np.maximum(unseen.group_R, 1))
    return unseen, counts_R, int(left_R.min(initial=len(predictions.items_M)))


def _place_without(
    predictions: Predictions, found: Found, removed: np.ndarray
) -> tuple[Placement, np.ndarray]:
    """Item level after the items at the positions `removed` left the lists, and how many left each row int64 [R]."""
    entry = np.searchsorted(predictions.item_offsets, removed, side="right") - 1
    row = np.searchsorted(predictions.offsets, entry, side="right") - 1
    rows, placed = len(found.hit_R), place_items(predictions, found)
    # Entries ahead of the target lose items, its own entry and those that tie with it make a smaller group.
    rank, target_rank = predictions.rank_E[entry], predictions.rank_E[found.entry_R[row]]
    ahead_R = np.bincount(row, (rank < target_rank) & found.hit_R[row], minlength=rows)
    tied_R = np.bincount(row, (rank == target_rank) & found.hit_R[row], minlength=rows)
    without = Placement(placed.before_R - ahead_R, (placed.group_R - tied_R).astype(np.int64))
    return without, np.bincount(row, minlength=rows)


def _member(
    first_R: np.ndarray, lengths_R: np.ndarray, items_M: np.ndarray, sorted_keys: np.ndarray
) -> np.ndarray:
    """Positions (ascending) of the items of rows whose key, the row's first key + the item, is among the keys.

    Most are not, and a small table of the keys' low bits tells so without a search and in half the memory.
    """
    if not len(sorted_keys):
        return np.zeros(0, np.int64)
    mask = (1 << min((FILTER_SHARE * len(sorted_keys)).bit_length(), 24)) - 1
    possible = np.zeros(mask + 1, bool)
    possible[sorted_keys & mask] = True
    low_M = np.repeat((first_R & mask).astype(np.int32), lengths_R)
    low_M += (items_M & mask).astype(np.int32)
    low_M &= mask
    maybe = np.flatnonzero(possible.take(low_M))
    row = np.searchsorted(np.cumsum(lengths_R), maybe, side="right")
    keys = first_R[row] + items_M[maybe]
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return maybe[sorted_keys[at] == keys]
