"""Prefix index over semantic IDs: which codes may follow a prefix, as arrays.

Distinct IDs are sorted, so the children of a node are contiguous and node ids at depth l are 0..nodes_l - 1 in
lexicographic order. A beam's whole constraint state is one integer node id; node 0 at depth 0 is the root, and the node
ids at depth L are the rows of `SidTable.sids_SL`.

Legend: L levels, C codes of a level, M nodes at a depth, B rows, K beams.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from configs.program import InputError
from data.sid import SidTable, SidVocab

FORBIDDEN = -1
# full: the whole vocabulary; level: the codes of the level; trie: the legal codes of the prefix.
SCORE_SPACES = ("full", "level", "trie")


class Trie:
    """The legal continuations of every prefix, with the token id of every code.

    child_table(l): int32 [M_l, C_l]; the node id at depth l + 1 that code c leads to, or -1 where no item continues so.
    """

    def __init__(self, sids: SidTable, vocab: SidVocab, *, device: Any = "cpu") -> None:
        import torch

        if vocab.sizes != sids.sizes:
            raise InputError(
                f"the vocabulary has levels of {vocab.sizes} codes, the semantic IDs of {sids.sizes}"
            )
        if not sids.num_items:
            raise InputError("no items -> a trie needs at least one semantic ID")
        self.num_levels = sids.num_levels
        self.sizes = sids.sizes
        self.num_nodes = [1]
        self.tables = []
        self.tokens = [torch.as_tensor(level.token_ids, device=device) for level in vocab.levels]
        # A level whose token ids are one ascending block is a slice of the head: a view, no copy.
        self.columns = [
            _as_slice(level.token_ids) or ids for level, ids in zip(vocab.levels, self.tokens, strict=True)
        ]
        for table in _child_tables(sids.sids_SL, sids.sizes):
            self.tables.append(torch.as_tensor(table, device=device))
            self.num_nodes.append(int(table.max()) + 1)
        self.device = self.tables[0].device

    def child_table(self, level: int) -> Any:
        """int32 [M_level, C_level] on the trie's device."""
        return self.tables[level]


def _as_slice(ids: np.ndarray) -> slice | None:
    return slice(int(ids[0]), int(ids[-1]) + 1) if (np.diff(ids) == 1).all() else None


def _child_tables(sids_SL: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Child tables of sorted, distinct semantic IDs int32 [S, L]."""
    tables = []
    node_S = np.zeros(len(sids_SL), np.int64)  # the node of each ID's prefix at this depth
    parents = 1
    for level, size in enumerate(sizes):
        edges, inverse = np.unique(node_S * size + sids_SL[:, level], return_inverse=True)
        table = np.full((parents, size), FORBIDDEN, np.int32)
        table[edges // size, edges % size] = np.arange(len(edges))
        tables.append(table)
        node_S, parents = inverse.reshape(-1), len(edges)
    return tables
