"""Item vectors from behaviour: which items stand near each other in the users' *train* sequences.

Sliding windows repeat every pair of a user once per window that holds both. Here windows that continue one another are
first put back together into the user's chain, so that a pair of interactions counts once. Windows of a stride overlap, but none
continues another: where a data set has such, the chains are the train rows of interactions.parquet.

Legend: N items, R rows, T interactions in all chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.artifacts import ragged, read_sequences
from data.rows import goes_on, has_stride, read_train_log
from rq.vectors.embeddings import truncated_svd, unit_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass
class Cooccurrence:
    """How train sequences become item-item associations."""

    window: int = 5
    """Items up to this many steps apart count as a pair, with weight 1 / steps."""
    context_power: float = 0.75
    """Exponent of the context item's frequency in the association: below 1 it damps rare pairs."""

    def __post_init__(self) -> None:
        if self.window < 1 or not 0 < self.context_power <= 1:
            raise InputError(
                f"cooccurrence: window {self.window} must be >= 1 and context_power {self.context_power} in (0, 1]"
            )


def read_chains(data: str | Path, *, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [chains + 1], items int32 [T]): what every user did in train, in order, each interaction once."""
    if not has_stride(data):
        return train_chains(read_sequences(data, num_items=num_items))
    log = read_train_log(data, num_items=num_items)
    starts = np.flatnonzero(np.diff(log.users_T)) + 1
    return np.concatenate([[0], starts, [len(log.items_T)]]).astype(np.int64), log.items_T


def train_chains(sequences: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [chains + 1], items int32 [T]) of the train rows of sequences.parquet.

    A row continues the row before it of the same user (file order) when its history is the end of that row's history
    plus target; then only its target is new. Any other row starts a chain of its own.
    """
    train = sequences.filter(pc.equal(sequences["split"], "train"))
    user_R = train["user_id"].to_numpy()
    order = np.argsort(user_R, kind="stable")
    train, user_R = train.take(pa.array(order)), user_R[order]
    offsets, history = ragged(train["history"])
    target_R = train["target"].to_numpy()
    continues = goes_on(user_R, offsets, history, target_R)
    # What is new in a row: its target where it continues the row before, else its history too.
    new_R = np.where(continues, 0, np.diff(offsets)) + 1
    items = np.empty(int(new_R.sum()), np.int32)
    is_target = np.zeros(len(items), bool)
    is_target[np.cumsum(new_R) - 1] = True
    items[is_target], items[~is_target] = target_R, history[np.repeat(~continues, np.diff(offsets))]
    ends = np.append(np.cumsum(new_R) - new_R, len(items))
    return ends[np.append(~continues, True)].astype(np.int64), items


def steps_apart(offsets: np.ndarray, items: np.ndarray, *, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(earlier item [P], later item [P]) of all pairs that stand so many steps apart in a chain."""
    chain = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    inside = chain[steps:] == chain[:-steps]
    return items[:-steps][inside], items[steps:][inside]


def pair_weights(offsets: np.ndarray, items: np.ndarray, *, num_items: int, window: int) -> csr_matrix:
    """Symmetric weights [N, N]: 1 / steps for each pair up to `window` steps apart, and 1 for an item with itself.

    The diagonal makes vectors of items that occur *together* alike, not only those that occur beside the same third
    item (measured on Amazon Industrial: with window 1, the share of valid targets among the last item's 10 nearest
    rises from .040 to .086).
    """
    from scipy.sparse import csr_matrix

    total = csr_matrix((np.ones(len(items)), (items, items)), shape=(num_items, num_items))
    for steps in range(1, window + 1):
        first, second = steps_apart(offsets, items, steps=steps)
        weight = np.full(len(first), 1 / steps)
        pairs = csr_matrix((weight, (first, second)), shape=(num_items, num_items))
        total = total + pairs + pairs.T
    return total.tocsr()


def positive_pmi(weights: csr_matrix, *, context_power: float) -> csr_matrix:
    """max(0, log(w_ij * sum_k r_k^p / (r_i * r_j^p))) with r the row sums, for w_ij > 0.

    Source: Levy, Goldberg, Dagan 2015 (PPMI with context distribution smoothing).
    """
    from scipy.sparse import csr_matrix

    row_sum = np.asarray(weights.sum(1)).ravel()
    context = row_sum**context_power
    cells = weights.tocoo()
    value = np.log(cells.data * context.sum() / (row_sum[cells.row] * context[cells.col]))
    positive = value > 0
    return csr_matrix((value[positive], (cells.row[positive], cells.col[positive])), shape=weights.shape)


def cooccurrence_svd(
    chains: tuple[np.ndarray, np.ndarray], *, num_items: int, dim: int, config: Cooccurrence, seed: int
) -> np.ndarray:
    """U sqrt(S) of the positive PMI of train chains (`read_chains`), rows of length 1, float32 [N, dim].

    An item without train rows has a zero row. InputError when there are no train rows at all.
    """
    offsets, items = chains
    if not len(items):
        raise InputError(
            "sequences.parquet has no train rows -> co-occurrence needs them; embed the text only"
        )
    weights = pair_weights(offsets, items, num_items=num_items, window=config.window)
    association = positive_pmi(weights, context_power=config.context_power)
    return unit_rows(truncated_svd(association, dim=dim, power=0.5, seed=seed)[0])
