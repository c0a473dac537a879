"""The tree of semantic IDs as arrays: sums over what lies below a node, log-probabilities among siblings.

Nodes of depth l + 1 are "nodes of level l"; their numbers are those of `infer.search.trie` (lexicographic), leaves are rows of
`SidTable.sids_SL`. A node without siblings follows from its parent with probability 1, so logits exist only for the others,
the *contested* ones: on a real catalogue half of the leaves are not. Values stand as [nodes, positions]: the children of a
node are rows side by side, which sums over them read fastest.

Legend: L levels, M nodes of a level, C contested nodes of a level, G groups of siblings among them, S leaves (distinct
semantic IDs), N items, P positions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from data.sid import SidTable, prefix_levels

BOUND = 60.0  # logits are held within it: exponentials and their sums stay within float32 without a maximum per group


class TreeLevel(nn.Module):
    """Nodes of one level: parent_M, code_M; contested_C (node numbers), group_C (0..groups-1), place_M (place among the
    contested, C where a node is not); group_parent_G (the parent's node, one level up), group_N of every parent (-1: its child has
    no siblings), prefix_GL (the codes that lead to it); siblings g are the contested nodes first_G[g] .. first_G[g] + size_G[g]."""

    def __init__(self, ptr: np.ndarray, codes: np.ndarray, prefix_PL: np.ndarray) -> None:
        super().__init__()
        children = np.diff(ptr)
        parent_M = np.repeat(np.arange(len(children)), children)
        contested_C = np.flatnonzero(children[parent_M] > 1)
        place_M = np.full(len(codes), len(contested_C))
        place_M[contested_C] = np.arange(len(contested_C))
        group_parent_G, group_C = np.unique(parent_M[contested_C], return_inverse=True)
        self.groups, self.parents = len(group_parent_G), len(children)
        group_N, size_G = np.full(len(children), -1), children[group_parent_G]
        group_N[group_parent_G] = np.arange(self.groups)
        arrays = {
            "parent_M": parent_M, "code_M": codes, "contested_C": contested_C, "group_C": group_C, "place_M": place_M,
            "group_parent_G": group_parent_G, "group_N": group_N, "first_G": np.cumsum(size_G) - size_G, "size_G": size_G,
            "prefix_GL": prefix_PL[group_parent_G],
        }  # fmt: skip
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array.astype(np.int64)), persistent=False)

    def members(self, asked_G: Tensor | None) -> tuple[Tensor, Tensor]:
        """(contested nodes, which of the groups each is of) of some groups (ascending), of all where None."""
        if asked_G is None:
            return torch.arange(len(self.contested_C), device=self.contested_C.device), self.group_C
        owner_C, within_C = ragged(self.size_G[asked_G])
        return self.first_G[asked_G][owner_C] + within_C, owner_C

    def up(self, value_MP: Tensor) -> Tensor:
        """Sums over the children of every parent, [nodes of the level above, P]."""
        return value_MP.new_zeros(self.parents, value_MP.shape[1]).index_add_(0, self.parent_M, value_MP)

    def sums(self, value_CP: Tensor) -> Tensor:
        """Sums over siblings, [G, P]."""
        return value_CP.new_zeros(self.groups, value_CP.shape[1]).index_add_(0, self.group_C, value_CP)

    def log_softmax(self, logit_CP: Tensor) -> Tensor:
        """Log-probabilities among siblings, [C, P]."""
        log_GP = self.sums(logit_CP.exp()).log_()
        return logit_CP - log_GP.index_select(0, self.group_C)


def ragged(size_A: Tensor) -> tuple[Tensor, Tensor]:
    """(owner, place in it) of every entry of parts of these sizes.

    >>> [part.tolist() for part in ragged(torch.tensor([2, 0, 1]))]
    [[0, 0, 2], [0, 1, 0]]
    """
    owner = torch.repeat_interleave(torch.arange(len(size_A), device=size_A.device), size_A)
    first_A = size_A.cumsum(0) - size_A
    return owner, torch.arange(len(owner), device=size_A.device) - first_A[owner]


class SidTree(nn.Module):
    """levels; leaf_N: the leaf of every item; share_N: log of its part of the leaf (items that share a semantic ID)."""

    def __init__(self, codes_NL: np.ndarray, sizes: tuple[int, ...]) -> None:
        super().__init__()
        sids = SidTable(codes_NL, sizes)
        self.levels = nn.ModuleList(
            TreeLevel(ptr, codes, np.unique(sids.sids_SL[:, :number], axis=0))
            for number, (ptr, codes) in enumerate(prefix_levels(sids.sids_SL, None, 1))
        )
        self.leaves, self.distinct = len(sids.sids_SL), len(sids.sids_SL) == sids.num_items
        leaf_N = sids.sid_of_item_N
        self.register_buffer("leaf_N", torch.from_numpy(leaf_N), persistent=False)
        self.register_buffer("item_S", torch.from_numpy(np.argsort(leaf_N, kind="stable")), persistent=False)
        share_N = -np.log(sids.group_sizes_S[leaf_N]).astype(np.float32)
        self.register_buffer("share_N", torch.from_numpy(share_N), persistent=False)
        nodes_LS = [np.arange(self.leaves)]
        for level in reversed(self.levels[1:]):
            nodes_LS.insert(0, level.parent_M.numpy()[nodes_LS[0]])
        # node_LS, node_LN: the node of every leaf, and of every item, at every level
        self.register_buffer("node_LS", torch.from_numpy(np.stack(nodes_LS)), persistent=False)
        self.register_buffer("node_LN", torch.from_numpy(np.stack(nodes_LS)[:, leaf_N]), persistent=False)

    def of_items(self, value_NP: Tensor) -> Tensor:
        """Sums over the items of every leaf, [S, P]."""
        if self.distinct:
            return value_NP.index_select(0, self.item_S)
        return value_NP.new_zeros(self.leaves, value_NP.shape[1]).index_add_(0, self.leaf_N, value_NP)

    def folded(self, leaf_SP: Tensor) -> list[Tensor]:
        """Sums of leaves at the nodes of every level, [M, P] each, the first level first."""
        values = [leaf_SP]
        for level in reversed(self.levels[1:]):
            values.insert(0, level.up(values[0]))
        return values

    def item_scores(self, log_LCP: list[Tensor]) -> Tensor:
        """Log-probabilities of items [N, P] from those among siblings of every level's contested nodes."""
        total = None
        for level, log_CP, node_N in zip(self.levels, log_LCP, self.node_LN, strict=True):
            one_NP = nn.functional.pad(log_CP, (0, 0, 0, 1)).index_select(0, level.place_M[node_N])
            total = one_NP if total is None else total.add_(one_NP)
        return total.add_(self.share_N[:, None])
