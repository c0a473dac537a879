"""Prefix index over token sequences of any length: textual identifiers (TIDs), whose words are ordinary tokens.

The same arrays as `infer.search.trie`, always as sorted lists: a depth has as many codes as different tokens stand there. A
sequence may be the beginning of another one; `ends` says which nodes complete a sequence.

Legend: S sequences, T tokens of the longest, M nodes at a depth, C different tokens at a depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from configs.program import InputError
from data.sid import prefix_levels
from infer.search.trie import FORBIDDEN, SparseLevel, as_slice, sparse_level


class TokenTrie:
    """The legal continuations of every prefix of `sequences` (token ids).

    Fields: num_levels (tokens of the longest), levels, tokens (per depth, the different token ids int64 [C], ascending),
    columns (the same as a slice of the head where they ascend by 1), ends (per depth 0..T, int64 [M]: the sequence that a
    node completes, -1 = none), device. Raises InputError for no sequences, an empty one or two equal ones.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], *, device: Any = "cpu") -> None:
        import torch

        lengths_S = np.array([len(sequence) for sequence in sequences], np.int64)
        if not len(lengths_S) or not lengths_S.min():
            raise InputError("no sequences, or an empty one -> a token trie needs at least one token of each")
        tokens_ST = np.full((len(lengths_S), lengths_S.max()), -1, np.int64)
        filled_ST = np.arange(tokens_ST.shape[1]) < lengths_S[:, None]
        tokens_ST[filled_ST] = np.concatenate([np.asarray(sequence) for sequence in sequences])
        order = np.lexsort(tokens_ST.T[::-1])
        tokens_ST, filled_ST, lengths_S = tokens_ST[order], filled_ST[order], lengths_S[order]
        same = np.flatnonzero((tokens_ST[1:] == tokens_ST[:-1]).all(1))
        if len(same):
            first, second = sorted(order[same[0] : same[0] + 2].tolist())
            raise InputError(f"sequences {first} and {second} are equal -> give each identifier once")
        self.num_levels = tokens_ST.shape[1]
        codes_ST = np.zeros_like(tokens_ST)
        self.tokens, self.columns = [], []
        for depth in range(self.num_levels):
            here = filled_ST[:, depth]
            ids, codes_ST[here, depth] = np.unique(tokens_ST[here, depth], return_inverse=True)
            self.tokens.append(torch.as_tensor(ids, device=device))
            self.columns.append(as_slice(ids) or self.tokens[-1])
        self.device = self.tokens[0].device
        arrays = list(prefix_levels(codes_ST, None, 1, lengths_S))
        self.levels: list[SparseLevel] = [sparse_level(ptr, codes, device) for ptr, codes in arrays]
        self.ends = self._ends(arrays, torch.as_tensor(codes_ST, device=device), lengths_S, order)

    def _ends(self, arrays: list, codes_ST: Any, lengths_S: np.ndarray, order: np.ndarray) -> list[Any]:
        import torch

        lengths_S = torch.as_tensor(lengths_S, device=self.device)
        order_S = torch.as_tensor(order, device=self.device)
        nodes_S = torch.zeros_like(order_S)
        ends = [torch.full((1,), FORBIDDEN, device=self.device)]
        for depth, (_, codes) in enumerate(arrays):
            longer = lengths_S > depth
            nodes_S[longer] = self.child(depth, nodes_S[longer], codes_ST[longer, depth])
            end_M = torch.full((len(codes),), FORBIDDEN, device=self.device)
            complete = lengths_S == depth + 1
            end_M[nodes_S[complete]] = order_S[complete]
            ends.append(end_M)
        return ends

    @cached_property
    def prefix_free(self) -> bool:
        """Whether no sequence begins another one."""
        nodes = (self.ends[depth][: len(level.ptr) - 1] >= 0 for depth, level in enumerate(self.levels))
        return not any(
            bool((ends & (level.ptr.diff() > 0)).any())
            for ends, level in zip(nodes, self.levels, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        return sum(part.nbytes for part in (*self.levels, *self.ends, *self.tokens))

    def candidates(self, depth: int, nodes: Any) -> tuple[Any, Any]:
        """(codes int64 [..., X]: entries of `tokens[depth]`, penalties float32 [..., X], -inf = none)."""
        return self.levels[depth].candidates(nodes)

    def child(self, depth: int, nodes: Any, codes: Any) -> Any:
        """The node int64 that each code leads to, -1 where none."""
        return self.levels[depth].child(nodes, codes)

    def child_at(self, depth: int, nodes: Any, candidates: Any) -> Any:
        """The node int64 that a candidate (its place within X) leads to, -1 where none."""
        return self.levels[depth].child_at(nodes, candidates)
