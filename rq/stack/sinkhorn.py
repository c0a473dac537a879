"""Entropic transport in the log domain: a batch is spread evenly over the codes of a level.

Exponentials of distances over a small temperature overflow; their logarithms do not. Source: Cuturi 2013; the scaling and
the centring of distances are those of LC-Rec's and MiniOneRec's quantizers, so their temperatures (0.003) mean the same.

Legend: B vectors, K codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def centred(distances_BK: Tensor) -> Tensor:
    """Distances shifted and scaled into [-1, 1] by their largest and smallest value, float64 [B, K]."""
    d_BK = distances_BK.double()
    high, low = d_BK.max(), d_BK.min()
    return (d_BK - (high + low) / 2) / ((high - low) / 2 + 1e-5)


def log_plan(cost_BK: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """log of the transport plan exp(-cost / epsilon) scaled alternately: rows to sum 1/B, then columns to sum 1/K.

    float64 [B, K]. Columns are scaled last, so their sums are exact; rows approach 1/B with the iterations.
    """
    rows, columns = cost_BK.shape
    plan_BK = cost_BK.double() / -epsilon
    for _ in range(iterations):
        plan_BK = plan_BK - plan_BK.logsumexp(1, keepdim=True) - math.log(rows)
        plan_BK = plan_BK - plan_BK.logsumexp(0, keepdim=True) - math.log(columns)
    return plan_BK


@torch.no_grad()
def sinkhorn_codes(distances_BK: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Code int64 [B] with the largest share of each vector's transport; distances are centred first.

    With B <= K every vector tends to a code of its own; equal vectors keep equal codes (they are not told apart).
    """
    return log_plan(centred(distances_BK), epsilon=epsilon, iterations=iterations).argmax(1)
