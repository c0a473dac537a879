"""Several item models as one: the product, the mixture or the pooled lists of their distributions.

    fused = FusionModel([contract.load(first), contract.load(second)], np.array([0.5, 0.5]), how="product")

  product   log p = sum_m w_m log p_m, less what makes a row sum to 1: equal weights are the recipe's log-fusion. Weights
            are used as they stand: what they sum to is how peaked the result is; they, or one factor of them all, can be
            fitted to the likelihood of rows (infer/models/exponents.py)
  mixture   p = sum_m w_m p_m; weights that sum to 1, equal, given, or fitted by EM to the likelihood of rows
  pool      the product among the items that are on one of the members' lists of `pool_k`, all others have probability 0
            (score -inf); weight 1 for one member and 0 for the rest is that member's order of everybody's candidates. A row
            for which nobody lists anything, as more than `pool_k` items are equal, has no such limit

A member is any item model, score caches and predictions (infer/models/listed.py) among them; one of weight 0 says nothing but
what is in a pool. Weights are never searched on a ranking metric. Rows are taken in blocks; a block holds one matrix
[rows, items] of float64 and one member's of float32, however many members there are; where weights are fitted, one of each
member of smaller blocks.

Legend: R rows, B rows of a block, N items, M members, C candidates of a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.program import InputError, NumericError
from data.rows import Rows, TrainLog
from data.store.output import Output
from infer.models.contract import (
    ItemModel,
    Recountable,
    block_rows,
    ranked_lists,
    read_settings,
    save_settings,
)
from infer.models.members import FusionMember
from infer.models.mixture import em_weights

HOW = ("product", "mixture", "pool")


@dataclass(frozen=True)
class FusionModel:
    """An item model (infer/models/contract.py) of members with the weights float64 [M]; pool_k counts in a pool only."""

    members: Sequence[ItemModel]
    weights_M: np.ndarray
    how: str
    pool_k: int = 50

    @property
    def num_items(self) -> int:
        return self.members[0].num_items

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities float32 [R, N] or [R, C].

        NumericError where the members of a product leave no item of a row a probability above 0.
        """
        width = self.num_items if items_RC is None else items_RC.shape[1]
        result = np.empty((len(rows), width), np.float32)
        for block, chosen in self._blocks(rows):
            asked_BC = None if items_RC is None else items_RC[block]
            if self.how == "mixture":
                result[block] = self._sum(chosen, asked_BC)
                continue
            score_BN = self._product(chosen)
            result[block] = score_BN if asked_BC is None else np.take_along_axis(score_BN, asked_BC, axis=1)
        return result

    def recounted(self, train: TrainLog) -> FusionModel:
        """The same weights of members that have the counts of other train rows; members that count nothing, or say nothing, stay."""
        members = [
            one.recounted(train) if isinstance(one, Recountable) and (weight or self.how == "pool") else one
            for one, weight in zip(self.members, self.weights_M, strict=True)
        ]
        return replace(self, members=members)

    def pool_counts(self, rows: Rows) -> tuple[list[int], int, int]:
        """(rows whose target is on the list of each member, those whose target is in the pool, items of all pools)."""
        found_M, found, size = np.zeros(len(self.members), int), 0, 0
        for _, chosen in self._blocks(rows):
            pool_BN = np.zeros((len(chosen), self.num_items), bool)
            each = np.arange(len(chosen)), chosen.target_R
            for number, member in enumerate(self.members):
                listed_BN = on_list(member.score(chosen), self.pool_k)
                found_M[number] += int(listed_BN[each].sum())
                pool_BN |= listed_BN
            found, size = found + int(pool_BN[each].sum()), size + int(pool_BN.sum())
        return found_M.tolist(), found, size

    def _blocks(self, rows: Rows, matrices: int = 1) -> Iterator[tuple[slice, Rows]]:
        step = max(1, block_rows(self.num_items) // matrices)
        for start in range(0, len(rows), step):
            block = slice(start, min(start + step, len(rows)))
            yield block, rows.take(np.arange(block.start, block.stop))

    def unscaled(self, rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(weighted sum of the members' log-probabilities float64 [B, N], targets [B]) of every block of a product."""
        for _, chosen in self._blocks(rows, 2):
            yield self._weighted(chosen), chosen.target_R

    def apart(self, rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(the members' log-probabilities float64 [M, B, N], targets [B]) of every block, which is smaller for more members."""
        for _, chosen in self._blocks(rows, 2 * len(self.members)):
            yield (
                np.stack([member.score(chosen).astype(np.float64) for member in self.members]),
                chosen.target_R,
            )

    def _sum(self, rows: Rows, items_BC: np.ndarray | None) -> np.ndarray:
        total = 0.0
        for member, weight in zip(self.members, self.weights_M, strict=True):
            if weight > 0:
                total = total + weight * np.exp(member.score(rows, items_BC).astype(np.float64))
        with np.errstate(divide="ignore"):
            return np.log(total)

    def _product(self, rows: Rows) -> np.ndarray:
        return normalised(self._weighted(rows))

    def _weighted(self, rows: Rows) -> np.ndarray:
        """Sum of the members' weighted log-probabilities, -inf outside a pool."""
        total_BN = np.zeros((len(rows), self.num_items))
        pool_BN = np.zeros(total_BN.shape, bool) if self.how == "pool" else None
        for member, weight in zip(self.members, self.weights_M, strict=True):
            if weight == 0 and pool_BN is None:
                continue
            score_BN = member.score(rows)
            if pool_BN is not None:
                pool_BN |= on_list(score_BN, self.pool_k)
            if weight > 0:
                total_BN += weight * score_BN.astype(np.float64)
        if pool_BN is not None:
            pool_BN[~pool_BN.any(1)] = True
            total_BN[~pool_BN] = -np.inf
        return total_BN


def on_list(score_BN: np.ndarray, k: int) -> np.ndarray:
    """Which items are on a list of k, bool [B, N]: equal ones all or, where their mean rank is beyond k, none of them."""
    lists, listed_BN = ranked_lists(score_BN, k), np.zeros(score_BN.shape, bool)
    row_E, near_E = np.repeat(np.arange(len(score_BN)), np.diff(lists.offsets)), lists.rank_E - 1 < k
    listed_BN[row_E[near_E], lists.item_E[near_E]] = True
    return listed_BN


def normalised(score_BN: np.ndarray) -> np.ndarray:
    """Scores less the logarithm of what their exponentials sum to.

    >>> np.exp(normalised(np.log(np.array([[0.1, 0.3]])))).round(2)
    array([[0.25, 0.75]])
    """
    most_B1 = score_BN.max(1, keepdims=True)
    if not np.isfinite(most_B1).all():
        raise NumericError(
            "a row has no item that every member of the fusion thinks possible -> fuse them as a mixture"
        )
    return score_BN - most_B1 - np.log(np.exp(score_BN - most_B1).sum(1, keepdims=True))


def target_probabilities(members: Sequence[ItemModel], rows: Rows) -> np.ndarray:
    """What each member gives to each row's target, float64 [R, M]."""
    target_R1 = rows.target_R[:, None].astype(np.int64)
    return np.stack([np.exp(one.score(rows, target_R1)[:, 0].astype(np.float64)) for one in members], axis=1)


def fitted_weights(members: Sequence[ItemModel], rows: Rows) -> tuple[np.ndarray, dict[str, float]]:
    """(weights of a mixture by EM on the likelihood of `rows`, mean negative log-likelihood with equal and with those weights).

    Rows that no member gives any probability do not count.
    """
    chance_RM = target_probabilities(members, rows)
    weight_M = em_weights(chance_RM)
    explained_RM = chance_RM[chance_RM.sum(1) > 0]
    if not len(explained_RM):
        raise InputError("no member gives any row's target a probability -> EM has nothing to fit")
    equal_M = np.full(len(members), 1 / len(members))
    nll = {
        name: float(-np.log(explained_RM @ one).mean())
        for name, one in (("equal", equal_M), ("em", weight_M))
    }
    return weight_M, nll


def save(
    out: Output,
    members: Sequence[FusionMember],
    weights_M: np.ndarray,
    *,
    how: str,
    pool_k: int,
    num_items: int,
) -> None:
    """Into an output directory, for `load`: members by their place relative to it and by their content."""
    here = os.path.realpath(out.path)
    stored = [
        {
            "directories": [os.path.relpath(os.path.realpath(one), here) for one in member.directories],
            "splits": member.splits,
            "sha256": member.sha256,
            "weight": float(weight),
        }
        for member, weight in zip(members, weights_M, strict=True)
    ]
    save_settings(out, "fusion", how=how, pool_k=pool_k, num_items=num_items, members=stored)


def load(directory: Path) -> FusionModel:
    """The model that `save` wrote; InputError where a member has moved or is another now."""
    settings = read_settings(directory)
    opened, weights = [], []
    for stored in settings["members"]:
        # Shown from where the user stands; the parts of `place` that go up are those of the real directory.
        places = tuple(
            Path(os.path.relpath(os.path.realpath(directory / place))) for place in stored["directories"]
        )
        member = FusionMember(str(places[0]), places, stored["splits"] and tuple(stored["splits"]))
        if member.sha256 != stored["sha256"]:
            raise InputError(
                f"{member.name} is not what {directory} was made of (its content is another) -> fuse again"
            )
        opened.append(member.open(settings["num_items"]))
        weights.append(stored["weight"])
    return FusionModel(opened, np.array(weights), settings["how"], settings["pool_k"])
