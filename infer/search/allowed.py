"""Which items a request may be given: a category, what is in stock, what was not bought yet.

Distinct sets of one call become the catalogues of one stacked trie, each with a root of its own, so that requests with
different sets share a batch. Tries are kept in a small cache under the content of their sets.

Legend: B requests, N items, S distinct semantic IDs, H history length.
"""

from __future__ import annotations

import hashlib
import numbers
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.program import InputError
from data.sid import SidTable, SidVocab
from infer.search.trie import Trie

CACHED_TRIES = 8
SETS_PER_TRIE = 64  # more distinct sets than this in one call are searched group by group


@dataclass(frozen=True)
class Group:
    """Requests that are searched with one trie. rows int64 [B]; roots int64 [B], None where the trie has one root."""

    rows: np.ndarray
    trie: Trie
    roots: np.ndarray | None


class Catalogues:
    """The tries of one SidTable and its restrictions, on one device."""

    def __init__(self, sids: SidTable, vocab: SidVocab, *, device: Any) -> None:
        self.sids, self.vocab, self.device = sids, vocab, device
        self.whole = Trie(sids, vocab, device=device)
        self._kept: OrderedDict[tuple[bytes, ...], Trie] = OrderedDict()

    def groups(self, masks: Sequence[np.ndarray | None], set_B: np.ndarray) -> Iterator[Group]:
        """Groups that cover all requests. masks: the distinct sets, bool [N], None = every item; set_B: whose is whose."""
        for start in range(0, len(masks), SETS_PER_TRIE):
            some = masks[start : start + SETS_PER_TRIE]
            rows = np.flatnonzero((set_B >= start) & (set_B < start + len(some)))
            if len(some) == 1 and some[0] is None:
                yield Group(rows, self.whole, None)
            else:
                yield Group(rows, self.stacked(some), set_B[rows] - start)

    def stacked(self, masks: Sequence[np.ndarray | None]) -> Trie:
        """The trie with one root per set, from the cache where these sets were asked for before."""
        key = tuple(_digest(mask) for mask in masks)
        if key not in self._kept:
            rows = [
                np.arange(len(self.sids.sids_SL))
                if mask is None
                else np.unique(self.sids.sid_of_item_N[mask])
                for mask in masks
            ]
            self._kept[key] = Trie(self.sids, self.vocab, catalogues=rows, device=self.device)
            while len(self._kept) > CACHED_TRIES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _digest(mask: np.ndarray | None) -> bytes:
    return b"" if mask is None else hashlib.sha256(np.packbits(mask).tobytes()).digest()


def read_allowed(
    allowed: Any, *, requests: int, num_items: int
) -> tuple[list[np.ndarray | None], np.ndarray]:
    """(distinct sets as masks bool [N] or None for every item, the set of each request int64 [B]).

    allowed: None, item ids or a mask for all requests, or a list with one of these per request. InputError for an empty
    set, unknown ids, a mask of another length, or another number of sets than requests.
    """
    if allowed is None or not _per_request(allowed):
        return [_mask(allowed, num_items, "allowed_items")], np.zeros(requests, np.int64)
    if len(allowed) != requests:
        raise InputError(f"allowed_items has {len(allowed)} sets for {requests} requests -> one per request")
    masks: dict[bytes, np.ndarray | None] = {}
    places: dict[bytes, int] = {}
    set_B = np.empty(requests, np.int64)
    for request, one in enumerate(allowed):
        mask = _mask(one, num_items, f"allowed_items of request {request}")
        digest = _digest(mask)
        masks.setdefault(digest, mask)
        set_B[request] = places.setdefault(digest, len(places))
    return list(masks.values()), set_B


def _per_request(allowed: Any) -> bool:
    return isinstance(allowed, (list, tuple)) and any(
        one is None or isinstance(one, (list, tuple, set, frozenset, np.ndarray)) for one in allowed
    )


def _mask(allowed: Any, num_items: int, name: str) -> np.ndarray | None:
    if allowed is None:
        return None
    if isinstance(allowed, np.ndarray) and allowed.dtype == bool:
        mask = allowed
        if mask.shape != (num_items,):
            raise InputError(
                f"{name}: a mask of shape {mask.shape} for {num_items} items -> one entry per item"
            )
    else:
        ids = item_ids(allowed, num_items, name)
        mask = np.zeros(num_items, bool)
        mask[ids] = True
    if not mask.any():
        raise InputError(f"{name} is empty -> allow at least one item")
    return mask


def item_ids(items: Any, num_items: int, name: str) -> np.ndarray:
    """Item ids int64 of a sequence or set; InputError naming the first ones that are no item."""
    items = items.tolist() if isinstance(items, np.ndarray) else list(items)
    bad = [
        item
        for item in items
        if isinstance(item, bool) or not isinstance(item, numbers.Integral) or not 0 <= item < num_items
    ]
    if bad:
        raise InputError(f"{name}: unknown item ids {bad[:5]} -> ids are 0..{num_items - 1}")
    return np.array(items, np.int64)


def members(sids: SidTable, sid: int, mask: np.ndarray | None, without: Sequence[int] = ()) -> np.ndarray:
    """Items int32 of one semantic ID that are allowed and not among `without`, ascending."""
    items = sids.items_of_sid(sid)
    if mask is not None:
        items = items[mask[items]]
    return items[~np.isin(items, np.asarray(without))] if len(without) else items


def exhausted(
    sids: SidTable, histories: Sequence[Sequence[int]], masks: Sequence[np.ndarray | None], set_B: np.ndarray
) -> np.ndarray:
    """Semantic IDs of which every allowed item is in the history: rows of sids_SL int64 [B, H], padded with -1."""
    found = []
    for history, place in zip(histories, set_B.tolist(), strict=True):
        seen = np.unique(sids.sid_of_item_N[np.asarray(history, np.int64)])
        found.append([sid for sid in seen.tolist() if not len(members(sids, sid, masks[place], history))])
    rows = np.full((len(found), max(map(len, found), default=0)), -1, np.int64)
    for row, gone in enumerate(found):
        rows[row, : len(gone)] = gone
    return rows
