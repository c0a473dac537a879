"""The weights of a product of distributions that make rows most likely: all of them, or one factor of weights that are given.

    weights_M, nll = fitted_exponents(FusionModel(members, np.ones(3), "product"), valid_rows)

Log-linear pooling (Genest and Zidek, 1986): log p = sum_m w_m log p_m, less what makes it sum to 1. Its likelihood is concave in the
weights, so what is found does not depend on where the search begins. The slope by a weight is that member's expected score less
its score of the target, the curvature the covariance of the members' scores; one pass over the rows gives both.

Members are fitted on train rows and surer than they are right there. A factor mends that without touching any order; weights of
their own also say how much each member is worth on this data set.

Legend: R rows, B rows of a block, N items, M members.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from configs.program import InputError
from data.rows import Rows
from infer.models.fusion import FusionModel, normalised

SCALES, DIGITS, PASSES = (0.02, 50.0), 1e-3, 12  # of a factor, and of a weight the most
WEIGHT_PASSES = 25

Blocks = Iterable[tuple[np.ndarray, np.ndarray]]


def fitted_exponents(product: FusionModel, rows: Rows) -> tuple[np.ndarray, dict[str, float]]:
    """(weights float64 [M], none below 0, that make `rows` most likely; mean negative log-likelihood with equal ones and with them).

    Newton's steps among weights of 0 to 50, halved while they make the rows less likely. Rows that some member thinks impossible do
    not count. A member that is of no use beside the others has weight 0.
    """

    def blocks() -> Blocks:
        return product.apart(rows)

    weight_M = np.full(len(product.members), 1 / len(product.members))
    nll, slope_M, curvature_MM = likelihood(blocks(), weight_M)
    found = {"equal": nll}
    for _ in range(WEIGHT_PASSES):
        new_M = _step(weight_M, slope_M, curvature_MM)
        if np.abs(new_M - weight_M).max() <= DIGITS * max(weight_M.max(), SCALES[0]):
            break
        curve = likelihood(blocks(), new_M)
        while curve[0] > nll + 1e-9 and np.abs(new_M - weight_M).max() > DIGITS * weight_M.max():
            new_M = (new_M + weight_M) / 2
            curve = likelihood(blocks(), new_M)
        weight_M, (nll, slope_M, curvature_MM) = new_M, curve
    if not weight_M.any():
        raise InputError(
            "no member makes the rows more likely than chance -> there is nothing to fit weights to"
        )
    return weight_M, found | {"likelihood": nll}


def _step(weight_M: np.ndarray, slope_M: np.ndarray, curvature_MM: np.ndarray) -> np.ndarray:
    """Where the parabola that fits at `weight_M` is least among weights of 0 to SCALES[1]."""
    from scipy.optimize import lsq_linear

    spread_M, axis_MM = np.linalg.eigh(curvature_MM)
    # Members that say the same, or nothing, leave directions without curvature: they are not left for nothing.
    deviation_M = np.sqrt(np.maximum(spread_M, 1e-7 * max(spread_M[-1], 1e-7)))
    root_MM = deviation_M[:, None] * axis_MM.T
    wanted_M = root_MM @ weight_M - (axis_MM.T @ slope_M) / deviation_M
    return lsq_linear(root_MM, wanted_M, bounds=(0, SCALES[1]), method="bvls").x


def fitted_scale(product: FusionModel, rows: Rows) -> tuple[float, dict[str, float]]:
    """(the factor of all weights that makes `rows` most likely, mean negative log-likelihood with factor 1 and with it).

    The likelihood is concave in it, so its slope has one root: Newton's steps inside a bracket (at most SCALES wide), one pass
    over the rows each. Rows that some member thinks impossible do not count.
    """

    def at(factor: float) -> tuple[float, float, float]:
        whole = ((score_BN[None], target_B) for score_BN, target_B in product.unscaled(rows))
        nll, slope_M, curvature_MM = likelihood(whole, np.array([factor]))
        return nll, float(slope_M[0]), float(curvature_MM[0, 0])

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


def likelihood(blocks: Blocks, weight_M: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(mean negative log-likelihood of the targets with these weights, its slope [M], its curvature [M, M])."""
    nll, slope_M, curvature_MM, count = 0.0, np.zeros(len(weight_M)), np.zeros((len(weight_M),) * 2), 0
    for score_MBN, target_B in blocks:
        target_MB = score_MBN[:, np.arange(len(target_B)), target_B]
        possible_B = np.isfinite(target_MB).all(0)
        score_MBN, target_MB = score_MBN[:, possible_B], target_MB[:, possible_B]
        if not possible_B.any():
            continue
        impossible_BN = ~np.isfinite(score_MBN).all(0)
        score_MBN = np.where(impossible_BN, 0, score_MBN)  # times a probability of 0
        level_MB = score_MBN.sum(2) / (~impossible_BN).sum(
            1
        )  # no part of a product, but of what rounding leaves
        score_MBN, target_MB = score_MBN - level_MB[:, :, None], target_MB - level_MB
        total_BN = np.tensordot(weight_M, score_MBN, 1)
        total_BN[impossible_BN] = -np.inf
        log_BN = normalised(total_BN)
        chance_BN = np.exp(log_BN)
        weighed_MBN = score_MBN * chance_BN
        mean_MB = weighed_MBN.sum(2)
        nll -= log_BN[np.arange(len(log_BN)), target_B[possible_B]].sum()
        slope_M += (mean_MB - target_MB).sum(1)
        curvature_MM += np.tensordot(weighed_MBN, score_MBN, ([1, 2], [1, 2])) - mean_MB @ mean_MB.T
        count += len(log_BN)
    if not count:
        raise InputError("no row's target is possible for every member -> there is nothing to fit")
    return float(nll / count), slope_M / count, curvature_MM / count
