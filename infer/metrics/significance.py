"""Uncertainty of means over rows when one user gives several rows: bootstrap intervals and paired tests.

Users are drawn with replacement and bring all their rows (a cluster bootstrap: Davison and Hinkley 1997,
section 3.8), because rows of one user are not independent. Every draw is a vector of user counts, so all
resamples of all metrics are products of two matrices.

Legend: R rows, U users, C columns (metrics), G groups of rows (denominators).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.program import InputError

BLOCK_VALUES = 1 << 23


@dataclass(frozen=True)
class Ratios:
    """C ratios of sums: numerators per user, only of the A users that have any, and G denominators that serve them.

    users_A int64, numerators_AC, weights_UG float64, group_C int64: the denominator of every ratio.
    """

    users_A: np.ndarray
    numerators_AC: np.ndarray
    weights_UG: np.ndarray
    group_C: np.ndarray


class Clusters:
    """Rows grouped by user, to be resampled. users_R: integer ids; seed: same draws for every metric."""

    def __init__(self, users_R: np.ndarray, *, resamples: int, seed: int) -> None:
        distinct, self._user_R = np.unique(users_R, return_inverse=True)
        self.num_users = len(distinct)
        self.resamples = resamples
        self._seed = seed

    def users_with_weight(self, weight_R: np.ndarray) -> int:
        """How many users have a row whose weight is above 0."""
        return len(np.unique(self._user_R[weight_R > 0]))

    def collect(
        self,
        numerators_HC: np.ndarray,
        weights_RG: np.ndarray,
        group_C: np.ndarray,
        *,
        rows_H: np.ndarray | None = None,
    ) -> Ratios:
        """sum(numerators[:, c]) / sum(weights[:, group[c]]), ready to be resampled; rows_H: the rows of the numerators.

        Rows 1, 2, 3 of users 7, 8, 7: numerators 4 and 2.

        >>> clusters = Clusters(np.array([7, 8, 7]), resamples=1, seed=0)
        >>> found = clusters.collect(np.array([[1.0], [2.0], [3.0]]), np.ones((3, 1)), np.array([0]))
        >>> found.numerators_AC.tolist(), found.weights_UG.tolist()
        ([[4.0], [2.0]], [[2.0], [1.0]])
        """
        user_H = self._user_R if rows_H is None else self._user_R[rows_H]
        by_user = np.argsort(user_H, kind="stable")
        user_H = user_H[by_user]
        starts = np.flatnonzero(np.diff(user_H, prepend=-1))
        numerators_AC = (
            np.add.reduceat(numerators_HC[by_user], starts, axis=0) if len(starts) else numerators_HC[:0]
        )
        weights_GU = [np.bincount(self._user_R, column, self.num_users) for column in weights_RG.T]
        return Ratios(user_H[starts], numerators_AC, np.stack(weights_GU).T, group_C)

    def draws(self) -> Iterator[np.ndarray]:
        """Blocks of resamples, float64 [block, U]: how often each user was drawn; every row sums to U."""
        rng = np.random.default_rng(self._seed)
        users = self.num_users
        block = max(1, BLOCK_VALUES // users)
        for start in range(0, self.resamples, block):
            counts = np.empty((min(block, self.resamples - start), users))
            for row in counts:
                row[:] = np.bincount(rng.integers(0, users, users), minlength=users)
            yield counts

    def resampled(self, parts: Sequence[Ratios], *, dtype: type = np.float64) -> np.ndarray:
        """Every ratio of the parts, one after the other, in every resample: dtype [resamples, C of all parts].

        NaN where a resample has none of the rows that a ratio is about. Half the precision takes half the time.
        """
        parts = [
            (part.users_A, part.numerators_AC.astype(dtype), part.weights_UG.astype(dtype), part.group_C)
            for part in parts
        ]
        blocks = []
        for draws in self.draws():
            draws, values = draws.astype(dtype), []
            for users_A, numerators_AC, weights_UG, group_C in parts:
                with np.errstate(invalid="ignore", divide="ignore"):
                    # take is several times as quick as indexing here
                    sums = np.take(draws, users_A, axis=1) @ numerators_AC
                    values.append(sums / (draws @ weights_UG)[:, group_C])
            blocks.append(np.concatenate(values, axis=1))
        return np.concatenate(blocks)

    def interval(self, parts: Sequence[Ratios], *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Percentile interval (low, high), each float64 [C of all parts].

        Resamples in which a group has no rows are left out of its intervals.
        """
        ratios = self.resampled(parts, dtype=np.float32)
        tail = (1 - confidence) / 2
        quantile = np.nanquantile if np.isnan(ratios).any() else np.quantile
        low, high = quantile(ratios, [tail, 1 - tail], axis=0)
        return low, high


@dataclass(frozen=True)
class PairedDifference:
    """A paired difference of means: its value, 95 % interval, and the p-value of "there is none"."""

    value: float
    low: float
    high: float
    p_value: float


def paired_differences(
    ours_RC: np.ndarray, theirs_RC: np.ndarray, weight_R: np.ndarray, clusters: Clusters
) -> list[PairedDifference]:
    """Ours minus theirs on the same rows, for each of C metrics; rows are weighted with `weight_R`.

    Two-sided bootstrap test of Efron and Tibshirani (1993, section 16.4): the resampled differences are moved to
    have mean 0, and p is the share of them that is at least as far from 0 as the one observed, the observed one
    counted among them. It never is 0: 1 / (resamples + 1) is the least it can be. Resamples in which no row has weight
    are left out. InputError where fewer than two users have a row with weight: nothing can be resampled then.
    """
    if clusters.users_with_weight(weight_R) < 2:
        raise InputError("fewer than two users have rows that count here -> no paired test is possible")
    weights_R1 = weight_R[:, None]
    difference_RC = (ours_RC - theirs_RC) * weights_R1
    observed_C = difference_RC.sum(0) / weight_R.sum()
    ratios = clusters.collect(difference_RC, weights_R1, np.zeros(difference_RC.shape[1], np.int64))
    drawn = clusters.resampled([ratios])
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    low_C, high_C = np.quantile(drawn, [0.025, 0.975], axis=0)
    # Sums in another order differ by rounding; that is no difference.
    reached = np.abs(drawn - observed_C) >= np.abs(observed_C) - 1e-12
    p_C = (1 + reached.sum(axis=0)) / (1 + len(drawn))
    return [
        PairedDifference(*map(float, values)) for values in zip(observed_C, low_C, high_C, p_C, strict=True)
    ]
