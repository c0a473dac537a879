"""Prefix index over semantic IDs: which codes may follow a prefix, as arrays.

Distinct IDs are sorted, so the children of a node are contiguous and node ids at depth l are 0..nodes_l - 1 in
lexicographic order. A beam's whole constraint state is one integer node id. Several catalogues share one index: the
number of the catalogue is one more key in front of the codes, and catalogue r starts at node r of depth 0.

A level is a dense table of children, and one of what they add to a score (0, or -inf where there is none), while all tables
together stay within `DENSE_BYTES`, else sorted code lists (CSR) that are
read with the static width of the widest node; both answer alike.

Legend: L levels, C codes of a level, M nodes at a depth, S rows, B requests, K beams, X candidates of a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.program import InputError
from data.sid import SidTable, SidVocab, prefix_levels

FORBIDDEN = -1
DENSE_BYTES = 256 * 2**20  # tables of all levels together
CELL_BYTES = 8  # a child int32 and its penalty float32
# full: the whole vocabulary; level: the codes of the level; trie: the legal codes of the prefix.
SCORE_SPACES = ("full", "level", "trie")


def without_forbidden(scores: Any, penalty: Any) -> Any:
    """Scores float32 with -inf where the penalty (same shape) is -inf, as they are where it is 0.

    Where no gradient flows, +inf there becomes NaN: adding is one vectorised pass, a fill is three. A fill keeps a gradient
    that is NaN there from spreading.
    """
    return scores.masked_fill(penalty < 0, float("-inf")) if scores.requires_grad else scores + penalty


@dataclass(frozen=True)
class DenseLevel:
    """Child nodes as a table int32 [M, C], -1 where no item continues so, and its penalties float32 [M, C]."""

    table_MC: Any
    penalty_MC: Any

    @property
    def width(self) -> int:
        return self.table_MC.shape[1]

    @property
    def nbytes(self) -> int:
        return self.table_MC.nbytes + self.penalty_MC.nbytes

    def candidates(self, nodes: Any) -> tuple[None, Any]:
        """(None: candidate x is code x, penalties float32 [..., C])."""
        if len(self.penalty_MC) == 1:  # a single root: the same row for all, a view
            return None, self.penalty_MC[0].expand(*nodes.shape, -1)
        return None, self.penalty_MC.index_select(0, nodes.flatten()).view(*nodes.shape, -1)

    def child(self, nodes: Any, codes: Any) -> Any:
        """Child nodes int64, -1 where there is none; `nodes` and `codes` are legal indices of equal shape."""
        return self.table_MC[nodes, codes].long()

    def children(self, nodes: Any) -> Any:
        """How many codes may follow each node, int64."""
        return (self.table_MC[nodes] >= 0).sum(-1)

    child_at = child


@dataclass(frozen=True)
class SparseLevel:
    """Children of node m: the codes `codes[ptr[m] : ptr[m + 1]]`, ascending; a child's node id is its own position."""

    ptr: Any
    codes: Any
    width: int

    @property
    def nbytes(self) -> int:
        return self.ptr.nbytes + self.codes.nbytes

    def candidates(self, nodes: Any) -> tuple[Any, Any]:
        """(codes int64 [..., X], penalties float32 [..., X]); beyond a node's children code 0 and penalty -inf."""
        import torch

        child = self.child_at(nodes[..., None], torch.arange(self.width, device=nodes.device))
        codes = self.codes[child.clamp(min=0)].long().masked_fill(child < 0, 0)
        return codes, torch.zeros_like(child, dtype=torch.float32).masked_fill(child < 0, float("-inf"))

    def children(self, nodes: Any) -> Any:
        """How many codes may follow each node, int64."""
        return (self.ptr[nodes + 1] - self.ptr[nodes]).long()

    def child_at(self, nodes: Any, candidates: Any) -> Any:
        """Child nodes int64 of candidates of `nodes`, -1 beyond a node's children."""
        child = self.ptr[nodes].long() + candidates
        return child.masked_fill(child >= self.ptr[nodes + 1], FORBIDDEN)

    def child(self, nodes: Any, codes: Any) -> Any:
        """Child nodes int64, -1 where there is none, by a binary search of fixed depth."""
        low, end = self.ptr[nodes].long(), self.ptr[nodes + 1].long()
        high, top = end, len(self.codes) - 1
        for _ in range(self.width.bit_length()):
            middle = (low + high) // 2
            right = (self.codes[middle.clamp(max=top)] < codes) & (middle < high)
            low, high = low.where(~right, middle + 1), high.where(right, middle)
        found = (low < end) & (self.codes[low.clamp(max=top)] == codes)
        return low.masked_fill(~found, FORBIDDEN)


class Trie:
    """The legal continuations of every prefix, with the token id of every code.

    `catalogues`: row numbers of `sids.sids_SL` that each root allows; without it there is one root with every item.
    Fields: num_levels, sizes, num_roots, num_nodes (per depth, L + 1), tokens (per level, int64 [C]), columns (the same
    as a slice of the head where the level is one ascending block, else the ids), suffix_ids, device.
    Raises InputError for an empty catalogue, rows outside the table, or a vocabulary of other sizes.
    """

    def __init__(
        self,
        sids: SidTable,
        vocab: SidVocab,
        *,
        catalogues: Sequence[np.ndarray] | None = None,
        device: Any = "cpu",
    ) -> None:
        import torch

        if vocab.sizes != sids.sizes:
            raise InputError(
                f"the vocabulary has levels of {vocab.sizes} codes, the semantic IDs of {sids.sizes}"
            )
        if not sids.num_items:
            raise InputError("no items -> a trie needs at least one semantic ID")
        self.sids, self.vocab = sids, vocab
        self.num_levels, self.sizes, self.suffix_ids = sids.num_levels, sids.sizes, tuple(vocab.suffix_ids)
        self.tokens = [torch.as_tensor(level.token_ids, device=device) for level in vocab.levels]
        # A level whose token ids are one ascending block is a slice of the head: a view, no copy.
        self.columns = [
            as_slice(level.token_ids) or ids for level, ids in zip(vocab.levels, self.tokens, strict=True)
        ]
        self.device = self.tokens[0].device
        rows_S, roots_S = _stacked(catalogues, len(sids.sids_SL))
        self.num_roots = 1 if catalogues is None else len(catalogues)
        self.sid_of_leaf = None if rows_S is None else torch.as_tensor(rows_S, device=device)
        codes_SL = sids.sids_SL if rows_S is None else sids.sids_SL[rows_S]
        self.levels: list[DenseLevel | SparseLevel] = []
        self.num_nodes = [self.num_roots]
        budget = DENSE_BYTES
        for size, (ptr, codes) in zip(
            self.sizes, prefix_levels(codes_SL, roots_S, self.num_roots), strict=True
        ):
            dense = (len(ptr) - 1) * size * CELL_BYTES <= budget
            level = _dense(ptr, codes, size, device) if dense else sparse_level(ptr, codes, device)
            budget -= level.nbytes if dense else 0
            self.levels.append(level)
            self.num_nodes.append(len(codes))

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        leaves = 0 if self.sid_of_leaf is None else self.sid_of_leaf.nbytes
        return leaves + sum(level.nbytes for level in self.levels)

    def candidates(self, level: int, nodes: Any) -> tuple[Any, Any]:
        """(codes int64 [..., X] or None where candidate x is code x, penalties float32 [..., X]: 0, or -inf = forbidden)."""
        return self.levels[level].candidates(nodes)

    def child(self, level: int, nodes: Any, codes: Any) -> Any:
        """The node int64 that each code leads to, -1 where none; `nodes` int64 at this depth, same shape as `codes`."""
        return self.levels[level].child(nodes, codes)

    def child_at(self, level: int, nodes: Any, candidates: Any) -> Any:
        """The node int64 that a candidate (its place within X) leads to, -1 where it is forbidden."""
        return self.levels[level].child_at(nodes, candidates)

    def children(self, level: int, nodes: Any) -> Any:
        """How many codes may follow each node of this depth, int64: where it is 1, the trie forces the code."""
        return self.levels[level].children(nodes)

    def prefixes(self, codes_BKL: Any) -> Any:
        """The nodes int64 [B, K, L] before each level of legal codes, from the first root on."""
        import torch

        nodes = [torch.zeros_like(codes_BKL[..., 0])]
        for level in range(self.num_levels - 1):
            nodes.append(self.child(level, nodes[-1], codes_BKL[..., level]))
        return torch.stack(nodes, dim=-1)

    def sid_rows(self, leaves: Any) -> Any:
        """Rows of SidTable.sids_SL int64 of nodes at depth L; -1 stays -1."""
        if self.sid_of_leaf is None:
            return leaves.long()
        return self.sid_of_leaf[leaves.clamp(min=0).long()].where(leaves >= 0, FORBIDDEN)

    def legal(self, codes_BL: Any, root: int = 0) -> Any:
        """Whether each row of codes int64 [B, L] is a semantic ID of the catalogue of `root`, bool [B], any B."""
        import torch

        codes_BL = torch.as_tensor(codes_BL, device=self.device).long()
        nodes_B = torch.full_like(codes_BL[:, 0], root)
        legal_B = torch.ones_like(nodes_B, dtype=torch.bool)
        for level, size in enumerate(self.sizes):
            codes_B = codes_BL[:, level]
            legal_B &= (codes_B >= 0) & (codes_B < size)
            nodes_B = self.child(level, nodes_B, codes_B.clamp(0, size - 1))
            legal_B &= nodes_B >= 0
            nodes_B = nodes_B.clamp(min=0)
        return legal_B


def as_slice(ids: np.ndarray) -> slice | None:
    """The slice that equals `ids` where they ascend by 1, else None."""
    return slice(int(ids[0]), int(ids[-1]) + 1) if (np.diff(ids) == 1).all() else None


def _stacked(
    catalogues: Sequence[np.ndarray] | None, num_sids: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(rows int64 [S] of all catalogues one after another, each sorted and distinct; their roots int64 [S])."""
    if catalogues is None:
        return None, None
    if not len(catalogues):
        raise InputError("no catalogues -> give at least one, or None for every item")
    rows = [np.unique(np.asarray(catalogue, np.int64)) for catalogue in catalogues]
    for root, sorted_rows in enumerate(rows):
        if not len(sorted_rows):
            raise InputError(f"catalogue {root} allows no item -> a search needs at least one")
        if sorted_rows[0] < 0 or sorted_rows[-1] >= num_sids:
            raise InputError(f"catalogue {root} has rows outside 0..{num_sids - 1} of the semantic IDs")
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(part) for part in rows])


def sparse_level(ptr: np.ndarray, codes: np.ndarray, device: Any) -> SparseLevel:
    import torch

    width = int(np.diff(ptr).max())
    return SparseLevel(torch.as_tensor(ptr, device=device), torch.as_tensor(codes, device=device), width)


def _dense(ptr: np.ndarray, codes: np.ndarray, size: int, device: Any) -> DenseLevel:
    import torch

    nodes = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    table = np.full((len(ptr) - 1, size), FORBIDDEN, np.int32)
    table[nodes, codes] = np.arange(len(codes))
    penalty = np.full(table.shape, -np.inf, np.float32)
    penalty[nodes, codes] = 0
    return DenseLevel(torch.as_tensor(table, device=device), torch.as_tensor(penalty, device=device))
