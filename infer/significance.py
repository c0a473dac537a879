"""Bootstrap intervals for means over rows when one user gives several rows.

Users are drawn with replacement and bring all their rows (a cluster bootstrap: Davison and Hinkley 1997,
section 3.8), because rows of one user are not independent. Every draw is a vector of user counts, so all
resamples of all metrics are products of two matrices.

Legend: R rows, U users, C columns (metrics), G groups of rows (denominators).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK_VALUES = 1 << 23


class Clusters:
    """Rows grouped by user, to be resampled. users_R: integer ids; seed: same draws for every metric."""

    def __init__(self, users_R: np.ndarray, *, resamples: int, seed: int) -> None:
        distinct, self._user_R = np.unique(users_R, return_inverse=True)
        self.num_users = len(distinct)
        self._by_user = np.argsort(self._user_R, kind="stable")
        self._starts = np.searchsorted(self._user_R[self._by_user], np.arange(self.num_users))
        self._resamples = resamples
        self._seed = seed

    def sums(self, values_RC: np.ndarray) -> np.ndarray:
        """Sum of the rows of every user, float64 [U, C].

        Rows 1, 2, 3 of users 7, 8, 7: sums 4 and 2.

        >>> Clusters(np.array([7, 8, 7]), resamples=1, seed=0).sums(np.array([[1.0], [2.0], [3.0]])).tolist()
        [[4.0], [2.0]]
        """
        return np.add.reduceat(values_RC[self._by_user], self._starts, axis=0)

    def draws(self) -> Iterator[np.ndarray]:
        """Blocks of resamples, float64 [block, U]: how often each user was drawn; every row sums to U."""
        rng = np.random.default_rng(self._seed)
        block = max(1, BLOCK_VALUES // self.num_users)
        for start in range(0, self._resamples, block):
            rows = min(block, self._resamples - start)
            drawn = rng.integers(0, self.num_users, (rows, self.num_users))
            drawn += np.arange(rows)[:, None] * self.num_users
            counts = np.bincount(drawn.reshape(-1), minlength=rows * self.num_users)
            yield counts.reshape(rows, self.num_users).astype(np.float64)

    def interval(
        self, sums_UC: np.ndarray, weights_UG: np.ndarray, group_C: np.ndarray, *, confidence: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """Percentile interval (low, high), each float64 [C], of sum(sums[:, c]) / sum(weights[:, group[c]]).

        sums_UC, weights_UG: per user, as `sums` gives them; G denominators (the rows of a group) serve C
        columns. Resamples in which a group has no rows are left out of its intervals.
        """
        ratios = []
        for draws in self.draws():
            with np.errstate(invalid="ignore", divide="ignore"):
                ratios.append((draws @ sums_UC) / (draws @ weights_UG)[:, group_C])
        tail = (1 - confidence) / 2
        low, high = np.nanquantile(np.concatenate(ratios), [tail, 1 - tail], axis=0)
        return low, high
