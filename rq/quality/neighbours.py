"""Measures of semantic IDs on neighbours, lists and targets: do near items share prefixes, and do lists spread over them?

Legend: N items, L levels, P pairs, R lists, K items of a list, E edges, Q items that are looked up, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.rows import sample_rows
from data.sid import SidTable
from rq.quality.measures import DEPTHS, prefix_ids

# Every item against every item takes the square of their number; a rate is a mean over items, and of so many its standard error is
# at most .5 / sqrt(20,000) = .0035.
QUERIES, SEED = 20_000, 0


def affected_targets(table: SidTable, targets_R: np.ndarray) -> dict[str, Any]:
    """Targets whose semantic ID another item has too: at SID level a hit on any of the group counts as a hit."""
    shared_R = table.group_sizes_S[table.sid_of_item_N[targets_R]] > 1
    share = float(shared_R.mean()) if len(targets_R) else None
    return {"rows": len(targets_R), "affected": int(shared_R.sum()), "share": share}


def pair_neighbours(pairs_P2: np.ndarray, *, num_items: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(item [E], neighbour [E]): of every item in a pair the `most` items that it is paired with most often.

    Pairs count in both directions, an item with itself does not; of equally frequent ones the lower id comes first.
    """
    both = np.concatenate([pairs_P2, pairs_P2[:, ::-1]]).astype(np.int64)
    both = both[both[:, 0] != both[:, 1]]
    keys, counts = np.unique(both[:, 0] * num_items + both[:, 1], return_counts=True)
    return strongest(keys // num_items, keys % num_items, counts, most=most)


def strongest(
    item_E: np.ndarray, other_E: np.ndarray, weight_E: np.ndarray, *, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `most` heaviest edges of every item, in descending weight (ties: the lower other item first)."""
    order = np.lexsort((other_E, -weight_E, item_E))
    item, other = item_E[order], other_E[order]
    first = np.searchsorted(item, item)
    kept = np.arange(len(item)) - first < most
    return item[kept], other[kept]


def embedding_neighbours(
    x_ND: np.ndarray, *, most: int, queries: int = QUERIES
) -> tuple[np.ndarray, np.ndarray]:
    """(item [E], neighbour [E]): the `most` nearest other items of every item that has a vector, by distance.

    Of more than `queries` such items a seeded sample is looked up, the same one for all IDs of a data set; neighbours are all items.
    """
    import faiss

    known = np.flatnonzero(x_ND.any(axis=1))
    if len(known) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    vectors = np.array(x_ND[known], np.float32)
    vectors -= vectors.mean(0, dtype=np.float64).astype(np.float32)  # as in vq.nearest_codes
    asked = sample_rows(len(known), queries, SEED)
    asked_QD = vectors if len(asked) == len(known) else vectors[asked]
    _, near = faiss.knn(asked_QD, vectors, min(most + 1, len(known)))
    item, other = np.repeat(asked, near.shape[1]), near.reshape(-1)
    # Of several items at one point faiss may list others before the item itself: drop it wherever it stands.
    apart = item != other
    item, other = item[apart], other[apart]
    kept = np.arange(len(item)) - np.searchsorted(item, item) < most
    return known[item[kept]], known[other[kept]]


def neighbour_hits(codes_NL: np.ndarray, edges: tuple[np.ndarray, np.ndarray]) -> dict[str, Any] | None:
    """Share of an item's neighbours that share its prefix, mean over items, beside the share of all other items that do.

    None without neighbours. Two prefixes are compared at depths 1 and 2.
    """
    item_E, other_E = edges
    if not len(item_E):
        return None
    items = np.unique(item_E)
    out: dict[str, Any] = {"items": len(items), "neighbours": len(item_E) / len(items)}
    for depth in DEPTHS[: codes_NL.shape[1]]:
        ids_N = prefix_ids(codes_NL, depth)
        hits = np.bincount(item_E, weights=ids_N[item_E] == ids_N[other_E], minlength=len(ids_N))
        rate = float((hits[items] / np.bincount(item_E, minlength=len(ids_N))[items]).mean())
        chance = float((np.bincount(ids_N)[ids_N[items]] - 1).mean() / (len(ids_N) - 1))
        out[f"depth_{depth}"] = {"rate": rate, "chance": chance, "lift": rate / chance if chance else None}
    return out


def embedding_hits(
    codes_NL: np.ndarray, x_ND: np.ndarray, *, most: int, queries: int = QUERIES
) -> dict[str, Any] | None:
    """`neighbour_hits` of the nearest items by their vectors; where a sample was looked up, how many these `queries` were, `of` how many."""
    found = neighbour_hits(codes_NL, embedding_neighbours(x_ND, most=most, queries=queries))
    known = int(x_ND.any(axis=1).sum())
    if found is not None and known > queries:
        found |= {"queries": queries, "of": known}
    return found


def list_spread(codes_NL: np.ndarray, lists: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """Distinct prefixes among the items of a list, mean over lists, and over the length of the list. None without lists."""
    lists = [items for items in lists if len(items)]
    if not lists:
        return None
    list_M, item_M = np.repeat(np.arange(len(lists)), list(map(len, lists))), np.concatenate(lists)
    out: dict[str, Any] = {"lists": len(lists), "length": len(item_M) / len(lists)}
    for depth in DEPTHS[: codes_NL.shape[1]]:
        ids_N = prefix_ids(codes_NL, depth)
        distinct = len(np.unique(np.stack([list_M, ids_N[item_M]]), axis=1).T)
        out[f"depth_{depth}"] = {"distinct": distinct / len(lists), "share": distinct / len(item_M)}
    return out


def as_lists(edges: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """The neighbours of every item that has some, as one list each."""
    item_E, other_E = edges
    return np.split(other_E, np.flatnonzero(np.diff(item_E)) + 1) if len(item_E) else []
