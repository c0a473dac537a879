"""What shares a prefix: for every step of a semantic ID how many codes may follow and how many items lie below it.

For people: the path that a page or a trace shows beside a semantic ID. The leaves of the trie are sorted, so a prefix is a
range of them, found by one binary search per level. Node ids are those of `infer.search.trie`: the rank of the prefix among all
prefixes of its length.

Legend: L levels, N items, S distinct semantic IDs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from configs.program import InputError
from data.sid import LETTERS, SidTable


@dataclass(frozen=True)
class Step:
    """One level of a path: the code, the node it leads to, the codes that were legal there, the items below the node."""

    level: str
    code: int
    node: int
    choices: int
    items: int


class Prefixes:
    """The prefixes of a SidTable."""

    def __init__(self, sids: SidTable) -> None:
        self.sids = sids
        self._columns_LS = np.ascontiguousarray(sids.sids_SL.T)
        changed_LS = np.ones_like(self._columns_LS, bool)
        changed_LS[:, 1:] = self._columns_LS[:, 1:] != self._columns_LS[:, :-1]
        # node of every leaf's prefix: how many prefixes of that length begin before it or with it, less one
        self._node_LS = np.logical_or.accumulate(changed_LS, axis=0).cumsum(1) - 1
        self._items_before = np.concatenate([[0], np.cumsum(sids.group_sizes_S)])

    def path(self, codes: Sequence[int]) -> list[Step]:
        """The way along `codes` (1 to L of them), level by level; InputError where no item has this prefix.

        >>> Prefixes(SidTable(np.array([[0, 1], [2, 0], [2, 3], [2, 3]], np.int32), (3, 4))).path((2, 3))[1]
        Step(level='b', code=3, node=2, choices=2, items=2)
        """
        steps, low, high = [], 0, self._columns_LS.shape[1]
        for depth, code in enumerate(codes):
            column, nodes = self._columns_LS[depth], self._node_LS[depth]
            choices = int(nodes[high - 1] - nodes[low]) + 1
            first, last = np.searchsorted(column[low:high], [code, code + 1]).tolist()
            if first == last:
                raise InputError(f"no item has codes that begin with {tuple(codes[: depth + 1])}")
            low, high = low + first, low + last
            items = int(self._items_before[high] - self._items_before[low])
            steps.append(Step(LETTERS[depth], int(code), int(nodes[low]), choices, items))
        return steps

    @cached_property
    def tables(self) -> list[SidTable]:
        """tables[d - 1]: every item's prefix of length d; the rows of its `sids_SL` are the nodes of that depth."""
        depths = range(1, self.sids.num_levels)
        return [SidTable(self.sids.codes_NL[:, :d], self.sids.sizes[:d]) for d in depths] + [self.sids]
