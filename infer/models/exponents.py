"""The weights of a product of distributions that make rows most likely: all of them, or one factor of weights that are given.

    found = fitted_exponents(FusionModel(members, np.ones(3), "product"), valid_rows)

Log-linear pooling (Genest and Zidek, 1986): log p = sum_m w_m log p_m, less what makes it sum to 1. Its likelihood is concave in the
weights, so what is found does not depend on where the search begins. The slope by a weight is that member's expected score less
its score of the target, the curvature the covariance of the members' scores; one pass over the rows gives both.

Members are fitted on train rows and surer than they are right there. A factor mends that without touching any order; weights of
their own also say how much each member is worth on this data set.

Legend: R rows, B rows of a block, N items, M members.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from configs.program import InputError, NumericError
from data.rows import Rows
from infer.models.fusion import FusionModel, normalised

SCALES, DIGITS, PASSES = (0.02, 50.0), 1e-3, 25  # of a factor
GAIN, WEIGHT_PASSES = 1e-6, 25  # of the mean log-likelihood of a row
LEAST = 1e-6  # weight that is not what rounding left of none

Blocks = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Curve:
    """The mean negative log-likelihood of the targets with some weights, its slope [M] and curvature [M, M]; rows: that counted."""

    nll: float
    slope_M: np.ndarray
    curvature_MM: np.ndarray
    rows: int


@dataclass(frozen=True)
class Weights:
    """weight_M float64, none below 0; nll: of equal weights and of these; rows: that some member thinks impossible do not count."""

    weight_M: np.ndarray
    nll: dict[str, float]
    rows: int


def fitted_exponents(product: FusionModel, rows: Rows) -> Weights:
    """The weights that make `rows` most likely, each drawn to 0 as by a normal prior of deviation 1.

    The prior counts as much as one row: it decides what the rows leave open, as how much of a member that calls all items equal, and
    keeps a few rows from a certainty that no weight is large enough for. A member that makes the rows less likely gets exactly 0.
    Newton's steps, halved while they make things worse, until one gains less than GAIN a row.
    """
    weight_M = np.full(len(product.members), 1 / len(product.members))
    curve = likelihood(product.apart(rows), weight_M)
    equal, worth = curve.nll, _worth(curve, weight_M)
    for _ in range(WEIGHT_PASSES):
        new_M, gain = _step(curve, weight_M)
        if gain < GAIN:
            break
        new = likelihood(product.apart(rows), new_M)
        while _worth(new, new_M) > worth and gain >= GAIN:
            new_M, gain = (new_M + weight_M) / 2, gain / 2
            new = likelihood(product.apart(rows), new_M)
        weight_M, curve, worth = new_M, new, _worth(new, new_M)
    weight_M = np.where(weight_M < LEAST, 0, weight_M)
    if not weight_M.any():
        raise InputError(
            "no member makes the rows more likely than chance -> there is nothing to fit weights to"
        )
    used_M = np.flatnonzero(weight_M)
    left_out = len(weight_M) - len(used_M)
    if left_out and curve.rows < len(rows):  # what a member that is not used thinks impossible is possible
        rest = FusionModel([product.members[m] for m in used_M], weight_M[used_M], product.how)
        found = fitted_exponents(rest, rows)
        weight_M[used_M] = found.weight_M
        return Weights(weight_M, found.nll, found.rows)
    return Weights(weight_M, {"equal": equal, "likelihood": curve.nll}, curve.rows)


def _worth(curve: Curve, weight_M: np.ndarray) -> float:
    return curve.nll + weight_M @ weight_M / (2 * curve.rows)


def _step(curve: Curve, weight_M: np.ndarray) -> tuple[np.ndarray, float]:
    """(where the parabola that fits at `weight_M` is least among weights from 0, what it says that this gains)."""
    from scipy.optimize import nnls

    slope_M = curve.slope_M + weight_M / curve.rows
    root_MM = np.linalg.cholesky(curve.curvature_MM + np.eye(len(weight_M)) / curve.rows).T
    new_M, _ = nnls(root_MM, root_MM @ weight_M - np.linalg.solve(root_MM.T, slope_M))
    way_M = new_M - weight_M
    return new_M, float(-slope_M @ way_M - ((root_MM @ way_M) ** 2).sum() / 2)


def fitted_scale(product: FusionModel, rows: Rows) -> tuple[float, dict[str, float]]:
    """(the factor of all weights that makes `rows` most likely, mean negative log-likelihood with factor 1 and with it).

    The likelihood is concave in it, so its slope has one root: Newton's steps inside a bracket (at most SCALES wide), one pass
    over the rows each. Rows that some member thinks impossible do not count.
    """

    def at(factor: float) -> tuple[float, float, float]:
        whole = ((score_BN[None], target_B) for score_BN, target_B in product.unscaled(rows))
        found = likelihood(whole, np.array([factor]))
        return found.nll, float(found.slope_M[0]), float(found.curvature_MM[0, 0])

    low, high = SCALES
    scale, nll, slope, curvature = 1.0, *at(1.0)
    before = nll
    for _ in range(PASSES):
        if slope == 0:
            break
        low, high = (scale, high) if slope < 0 else (low, scale)
        step = scale - slope / curvature if curvature > 0 else low
        new = step if low < step < high else (low * high) ** 0.5
        if abs(new - scale) < DIGITS * scale:
            break
        scale, (nll, slope, curvature) = new, at(new)
    return scale, {"1": before, "fitted": nll}


def likelihood(blocks: Blocks, weight_M: np.ndarray) -> Curve:
    """The curve at these weights. NumericError where a score is no number, InputError where no row counts."""
    nll, slope_M, curvature_MM, count = 0.0, np.zeros(len(weight_M)), np.zeros((len(weight_M),) * 2), 0
    for score_MBN, target_B in blocks:
        target_MB = score_MBN[:, np.arange(len(target_B)), target_B]
        if np.isnan(score_MBN).any():
            raise NumericError(
                "a member of the fusion scores an item with NaN -> leave it out, or train it again"
            )
        possible_B = np.isfinite(target_MB).all(0)
        if not possible_B.any():
            continue
        if not possible_B.all():
            score_MBN, target_MB = score_MBN[:, possible_B], target_MB[:, possible_B]
        impossible_BN = ~np.isfinite(score_MBN).all(0)
        np.copyto(score_MBN, 0, where=impossible_BN)  # times a probability of 0
        # A member's level is no part of a product, but of what rounding leaves of it.
        level_MB = score_MBN.sum(2) / (~impossible_BN).sum(1)
        score_MBN -= level_MB[:, :, None]
        target_MB = target_MB - level_MB
        total_BN = np.tensordot(weight_M, score_MBN, 1)
        total_BN[impossible_BN] = -np.inf
        log_BN = normalised(total_BN)
        nll -= log_BN[np.arange(len(log_BN)), target_B[possible_B]].sum()
        weighed_MBN = score_MBN * np.exp(log_BN)
        mean_MB = weighed_MBN.sum(2)
        slope_M += (mean_MB - target_MB).sum(1)
        curvature_MM += np.tensordot(weighed_MBN, score_MBN, ([1, 2], [1, 2])) - mean_MB @ mean_MB.T
        count += len(log_BN)
    if not count:
        raise InputError("no row's target is possible for every member -> there is nothing to fit")
    return Curve(float(nll / count), slope_M / count, curvature_MM / count, count)
