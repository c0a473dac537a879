"""Balanced residual k-means: every code of a level is used by nearly the same number of items, exactly within bounds.

One level, n points, K codes, sizes in [low, high] (rq/constructors/capacity.py):
  1. k-means without bounds gives first centres.
  2. Lloyd steps under prices: P = softmax((g - D) / eps) over codes, g += eps (log n/K - log sum_i P_i); each point takes
     argmin D - g. eps falls from step to step, g is carried over: the dual of entropic transport, annealed.
  3. The last codes are rounded into the bounds and exchanged to the optimal assignment for their centres.
The level's prices are the optimum's potentials, so "cheapest priced code" gives the training items exactly the codes that
the assignment gave them (unless equal vectors had to be told apart), and any new item a code by the same rule.

`separate`: items that share all codes before the last level differ by vectors d; of the last level's residuals r let S_d and
S_r be the second moments. The level's lens holds the directions v with the largest v'S_d v / v'S_r v: the codebook then
spends its codes on what tells such items apart, not on what all residuals have in common.

Large sets do most steps on a sample. Needs n x K numbers of 4 bytes for a step on all points, 8 for the last ones.

Legend: N points, K codes, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from configs import program
from configs.program import InputError
from data.store.output import Output
from rq.constructors import capacity
from rq.ids.collisions import groups
from rq.stack.options import Source, require_sizes
from rq.stack.residual import ResidualQuantizer, through
from rq.stack.vq import BLOCK, SAMPLE_PER_CODE, distinct_rows, kmeans, squared_distances

TRAINED_CODES = "trained_codes.npy"
LENS_RIDGE = (
    0.1  # of the mean variance per dimension: directions without residual are not taken for telling ones
)


@dataclass
class Balanced:
    """Options of balanced residual k-means."""

    sizes: list[int] = field(default_factory=lambda: [256, 256, 256])
    """Codes per level, coarse to fine."""
    iterations: int = 12
    """Lloyd steps per level."""
    polish: int = 2
    """Further steps, on sizes within the bounds."""
    slack: list[float] = field(default_factory=lambda: [0.0])
    """Per level (or one for all): sizes lie in [n//K - 1, n//K + 1] widened by this share of n//K."""
    separate: int = 0
    """The last level compares residuals only along this many directions, those along which items with the same codes so far
    differ most beside all items (rq/constructors/balanced.py); fewer collisions, more distortion. 0: along all."""
    exchanges: int = 20_000
    """Most exchanges per assignment; with fewer than it needs the assignment is within bounds but not optimal."""

    def __post_init__(self) -> None:
        require_sizes(self.sizes, constructor="balanced")
        if self.iterations < 1 or self.polish < 0 or self.exchanges < 0:
            raise InputError(
                f"balanced: iterations {self.iterations} must be >= 1, polish {self.polish} and exchanges "
                f"{self.exchanges} >= 0"
            )
        if self.separate < 0 or (self.separate and len(self.sizes) < 2):
            raise InputError(
                f"balanced: separate {self.separate} needs levels before the last one ({len(self.sizes)} levels) -> 0"
            )
        if len(self.slack) not in (1, len(self.sizes)) or min(self.slack, default=-1) < 0:
            raise InputError(
                f"balanced: slack {self.slack} must be one share >= 0 for all levels, or one per level ({len(self.sizes)})"
            )

    def slack_of(self, level: int) -> float:
        return self.slack[level if len(self.slack) > 1 else 0]


@dataclass(frozen=True, eq=False)
class BalancedLevel:
    """One level's outcome."""

    codebook_KD: np.ndarray
    codes_N: np.ndarray
    price_K: np.ndarray
    optimal: bool


def fit_balanced(source: Source, options: Balanced, *, seed: int, out: Output) -> ResidualQuantizer:
    """Train, and leave the items' exactly balanced codes in `trained_codes.npy` (int32 [N, L])."""
    quantizer, codes_NL = train_balanced(source.x_ND, options, seed=seed)
    out.write_array(TRAINED_CODES, codes_NL)
    sizes = [np.bincount(codes_NL[:, level], minlength=size) for level, size in enumerate(quantizer.sizes)]
    out.facts |= {
        "smallest_codes": [int(count.min()) for count in sizes],
        "largest_codes": [int(count.max()) for count in sizes],
        "items_encoded_as_trained": float((quantizer.encode(source.x_ND) == codes_NL).all(1).mean()),
    }
    return quantizer


def train_balanced(x_ND: np.ndarray, options: Balanced, *, seed: int) -> tuple[ResidualQuantizer, np.ndarray]:
    """(quantizer with prices, codes int32 [N, L] whose sizes are within the bounds at every level)."""
    residual_ND, levels, lenses = np.array(x_ND, np.float32), [], {}
    for number, size in enumerate(
        program.progress(options.sizes, label="balanced residual k-means", unit="level")
    ):
        low, high = capacity.bounds(len(residual_ND), size, slack=options.slack_of(number))
        seen = residual_ND
        if options.separate and number == len(options.sizes) - 1:
            lens = separating_lens(
                residual_ND, np.stack([level.codes_N for level in levels], 1), options.separate
            )
            if lens is not None:
                lenses[number], seen = lens, through(residual_ND, lens).astype(np.float32)
        level = balanced_kmeans(
            seen,
            size,
            low=low,
            high=high,
            iterations=options.iterations,
            polish=options.polish,
            exchanges=options.exchanges,
            seed=seed,
        )
        if number in lenses:
            level = whole_codebook(
                residual_ND, level, lenses[number], low=low, high=high, limit=options.exchanges
            )
        levels.append(level)
        residual_ND -= level.codebook_KD[level.codes_N]
    codes_NL = np.stack([level.codes_N for level in levels], 1).astype(np.int32)
    books, prices = tuple(level.codebook_KD for level in levels), tuple(level.price_K for level in levels)
    return ResidualQuantizer(books, prices, lenses=lenses), codes_NL


def separating_lens(residual_ND: np.ndarray, codes_NL: np.ndarray, directions: int) -> np.ndarray | None:
    """Lens float32 [D, M] of the module docstring, M <= D; None when no items share their codes so far."""
    from scipy.linalg import eigh

    shared = [residual_ND[members].astype(np.float64) for members in groups(codes_NL)]
    if not shared:
        return None
    apart_MD = np.concatenate([members - members.mean(0) for members in shared])
    between_DD = apart_MD.T @ apart_MD / len(apart_MD)
    overall_DD = residual_ND.T.astype(np.float64) @ residual_ND / len(residual_ND)
    ridge = LENS_RIDGE * np.trace(overall_DD) / len(overall_DD)
    if not between_DD.any():
        return None
    _, vectors_DD = eigh(between_DD, overall_DD + ridge * np.eye(len(overall_DD)))
    return vectors_DD[:, ::-1][:, :directions].astype(np.float32)


def whole_codebook(
    residual_ND: np.ndarray, level: BalancedLevel, lens: np.ndarray, *, low: int, high: int, limit: int
) -> BalancedLevel:
    """A level found through a lens with codewords of all dimensions: the mean residuals of its codes.

    Seen through the lens they are its centres, so the assignment is made optimal again for them, with their prices.
    """
    from rq.constructors import priced_lloyd

    empty_KD = np.zeros((len(level.codebook_KD), residual_ND.shape[1]), np.float32)
    book_KD = priced_lloyd.centres(residual_ND, level.codes_N.astype(np.int64), empty_KD)
    cost_NK = blocked_distances(through(residual_ND, lens), through(book_KD, lens))
    codes_N, optimal, graph = capacity.exchange(cost_NK, level.codes_N, low=low, high=high, limit=limit)
    return BalancedLevel(book_KD, codes_N.astype(np.int32), capacity.prices(graph), optimal)


def balanced_kmeans(
    x_ND: np.ndarray,
    num_codes: int,
    *,
    low: int,
    high: int,
    iterations: int = 12,
    polish: int = 2,
    exchanges: int = 20_000,
    seed: int,
) -> BalancedLevel:
    """k-means of float32 [N, D] with low <= size <= high for every code; equal for equal seed and thread count.

    With fewer distinct points than codes the centres are those points, repeated. InputError on values that are not
    finite, on no points, and on bounds that cannot be met.
    """
    if not len(x_ND) or not np.isfinite(x_ND).all():
        raise InputError(
            f"balanced k-means of {len(x_ND)} points, or of values that are not finite -> clean the vectors"
        )
    from rq.constructors import priced_lloyd

    capacity.require_feasible(len(x_ND), num_codes, low, high)
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    codebook_KD, few = first_centres(x_ND, num_codes, seed=seed)
    price_K = np.zeros(num_codes)
    if not few:
        codebook_KD, price_K = priced_lloyd.run(x_ND, codebook_KD, iterations=iterations, seed=seed)
    for step in range(polish + 1):
        priced_NK, price_K = priced_lloyd.settle(x_ND, codebook_KD, price_K)
        codes_N = capacity.round_to_bounds(priced_NK, priced_NK.argmin(1), low=low, high=high)
        if step < polish and not few:
            codebook_KD = priced_lloyd.centres(x_ND, codes_N, codebook_KD)
    cost_NK = blocked_distances(x_ND, codebook_KD)
    codes_N, optimal, graph = capacity.exchange(cost_NK, codes_N, low=low, high=high, limit=exchanges)
    return BalancedLevel(codebook_KD, codes_N.astype(np.int32), capacity.prices(graph), optimal)


def first_centres(x_ND: np.ndarray, num_codes: int, *, seed: int) -> tuple[np.ndarray, bool]:
    """(centres float32 [K, D], whether there are no more distinct points than codes)."""
    order = np.random.default_rng(seed).permutation(len(x_ND))[: SAMPLE_PER_CODE * num_codes]
    sample = x_ND[np.sort(order)]
    if len(distinct_rows(sample[: 8 * num_codes])) <= num_codes:
        distinct = distinct_rows(x_ND)
        if len(distinct) <= num_codes:
            return distinct[np.arange(num_codes) % len(distinct)], True
    return kmeans(sample, num_codes, iterations=6, restarts=1, seed=seed, start=None), False


def blocked_distances(x_ND: np.ndarray, codebook_KD: np.ndarray) -> np.ndarray:
    """`squared_distances` float64 [N, K] by the blocks of rows in which `cheapest_codes` computes them."""
    rows = max(1, BLOCK // len(codebook_KD))
    out_NK = np.empty((len(x_ND), len(codebook_KD)))
    for start in range(0, len(x_ND), rows):
        out_NK[start : start + rows] = squared_distances(x_ND[start : start + rows], codebook_KD)
    return out_NK


def inertia(x_ND: np.ndarray, codebook_KD: np.ndarray, codes_N: np.ndarray) -> float:
    """Mean squared distance of points to their own centres."""
    return float(((x_ND - codebook_KD[codes_N]).astype(np.float64) ** 2).sum() / len(x_ND))
