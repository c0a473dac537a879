"""Which items stand near which in train sequences, and in which order: what the kernel of companions knows (sequential/evidence.py).

Legend: N items, K companions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from data.rows import TrainLog
from infer.models.counting import transition_matrix, without_self

REACH, DECAY, SHRINK = 10, 0.8, 10.0
SAME = 1e-9  # of sums of squares: what rounding leaves of 0
BLOCK = 4096  # items whose companions are sorted at once


class Companions(NamedTuple):
    """Which items are near each item in train sequences: item_NK int32 and cosine_NK float32, nearest first, cosines of 0 where there are
    no more. root_N float32: square root of an item's train rows; reversed: what a pair counts that stood the other way round."""

    item_NK: np.ndarray
    cosine_NK: np.ndarray
    root_N: np.ndarray
    reversed: float


def companions(train: TrainLog, *, most: int) -> Companions:
    """The `most` items that are nearest to an item, itself apart: of the largest shrunk cosine of what came near it.

    c_ij = f_ij + r f_ji, where f_ij counts DECAY ** (d - 1) for every j that came d <= REACH places behind i, and r is
    `reversal`. The cosine is c_ij / (sqrt(n_i n_j) + SHRINK), n_i being the train rows of an item; pairs of few rows say little, as in
    `item_similarity`.
    """
    follows = without_self(transition_matrix(train, reach=REACH, decay=DECAY))
    back = reversal(follows, squares(train))
    near = sparse.csr_matrix(follows + back * follows.T)
    near.eliminate_zeros()
    size, most = train.num_items, min(most, train.num_items - 1)
    root_N = np.sqrt(train.popularity_N)
    item_NK, cosine_NK = np.zeros((size, most), np.int32), np.zeros((size, most), np.float32)
    for start in range(0, size, BLOCK):
        block = near[start : start + BLOCK]
        row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        cosine = block.data / (root_N[start + row] * root_N[block.indices] + SHRINK)
        order = np.lexsort((block.indices, -cosine, row))
        rank = np.arange(len(order)) - block.indptr[row]
        kept = order[rank < most]
        place = start + row[kept], rank[rank < most]
        item_NK[place], cosine_NK[place] = block.indices[kept], cosine[kept]
    return Companions(item_NK, cosine_NK, root_N.astype(np.float32), back)


def squares(train: TrainLog) -> float:
    """Sum over all pairs of different items that stand d <= REACH places apart of the square of their weight, DECAY ** (2 (d - 1)).

    Items 0 1 0 of one user: two pairs at distance one, at distance two none of different items.

    >>> squares(TrainLog(np.zeros(3, np.int32), np.array([0, 1, 0], np.int32), 2))
    2.0
    """
    users, items, total = train.users_T, train.items_T, 0.0
    for distance in range(1, REACH + 1):
        pair = (users[distance:] == users[:-distance]) & (items[distance:] != items[:-distance])
        total += DECAY ** (2 * (distance - 1)) * int(pair.sum())
    return total


def reversal(follows: sparse.csr_matrix, singles: float) -> float:
    """How much rarer two items come near one another in the other order than in the same one again: 1 where their order says nothing, 0
    where they never come the other way round.

    follows: weights of pairs by their order [N, N], no item behind itself; singles: sum of the squares of single weights. Two meetings of a
    pair in one order add 2 w w' to f_ij^2, in both orders to 2 f_ij f_ji, so that r = sum f_ij f_ji / (sum f_ij^2 - singles), at most 1;
    1 where no pair met twice. Item 1 came behind 0 three times and before it once, each with weight 1: 2 * 3 / (9 + 1 - 4).

    >>> reversal(sparse.csr_matrix([[0.0, 3], [1, 0]]), 4.0)
    1.0
    >>> reversal(sparse.csr_matrix([[0.0, 5], [1, 0]]), 6.0)
    0.5
    """
    again = float(follows.multiply(follows).sum() - singles)
    if again <= SAME * singles:
        return 1.0
    return min(1.0, float(follows.multiply(follows.T).sum()) / again)
