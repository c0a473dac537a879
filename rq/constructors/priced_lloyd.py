"""Lloyd steps under annealed prices: k-means that tends to equal sizes (the steps of rq/constructors/balanced.py; on a GPU if there is one).

Legend: N points, K centres, D dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rq.stack.vq import SAMPLE_PER_CODE

# Temperatures as shares of mean(D) - mean(min D). Measured on clustered vectors, 256 codes, 12 steps: from 0.2 or 0.02 on
# the centres settle before sizes are even (inertia 3 and 8 % higher); below 0.02 prices no longer follow the centres.
FIRST_EPSILON, LAST_EPSILON = 0.5, 2e-2
DUAL_UPDATES = 8  # price updates per step
SETTLING = (1e-2, 2e-3)  # temperatures of the last price updates
FULL_STEPS = 2  # last steps of a large set that see all of it


def run(
    x_ND: np.ndarray, codebook_KD: np.ndarray, *, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(centres, prices) after annealed Lloyd steps; of a large set all but the last two on a sample of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.from_numpy(x_ND).to(device)
    c = torch.from_numpy(codebook_KD).to(device)
    price = torch.zeros(len(c), device=device)
    sample, first = x, 0.0
    if len(x) > 2 * SAMPLE_PER_CODE * len(c):
        order = np.random.default_rng(seed + 1).permutation(len(x))[: SAMPLE_PER_CODE * len(c)]
        sample = x[torch.from_numpy(np.sort(order)).to(device)]
    all_squares, sample_squares = ((v * v).sum(1, keepdim=True) for v in (x, sample))
    with torch.no_grad():
        for step in range(iterations):
            points, squares = (sample, sample_squares) if step < iterations - FULL_STEPS else (x, all_squares)
            cost = torch_distances(points, c, squares)
            first = first or FIRST_EPSILON * float((cost.mean(1) - cost.min(1).values).mean())
            share = 0.5**step
            epsilon = max(first * max(share, LAST_EPSILON / FIRST_EPSILON), 1e-30)
            price = updated_prices(cost, price, epsilon=epsilon, updates=DUAL_UPDATES)
            codes = (cost - price).argmin(1)
            c = means(points, codes, c)
    return c.cpu().numpy(), price.double().cpu().numpy()


@torch.no_grad()
def settle(x_ND: np.ndarray, codebook_KD: np.ndarray, price_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(priced cost float32 [N, K], prices float64 [K]) after further price updates for centres that stay."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, c = (torch.from_numpy(a).to(device) for a in (x_ND, codebook_KD))
    cost = torch_distances(x, c, (x * x).sum(1, keepdim=True))
    spread = float((cost.mean(1) - cost.min(1).values).mean())
    price = torch.from_numpy(price_K).float().to(device)
    for share in SETTLING:
        price = updated_prices(cost, price, epsilon=max(share * spread, 1e-30), updates=2 * DUAL_UPDATES)
    return (cost - price).cpu().numpy(), price.double().cpu().numpy()


def torch_distances(x: Tensor, c: Tensor, squares: Tensor) -> Tensor:
    """Squared distances float32 [N, K]; squares [N, 1] of the points' lengths."""
    return torch.addmm(squares + (c * c).sum(1), x, c.T, alpha=-2).clamp_min_(0)


def updated_prices(cost: Tensor, price: Tensor, *, epsilon: float, updates: int) -> Tensor:
    """Dual updates of entropic transport towards equal sizes; prices have mean 0.

    One softmax [N, K] absorbs the prices so far; an update then is two products with it: v = exp(change of price / eps),
    P = kernel v / row sums, v *= (n / K) / column sums of P.
    """
    kernel = torch.softmax((price - cost) / epsilon, 1)
    each, v = cost.shape[0] / cost.shape[1], torch.ones_like(price)
    for _ in range(updates):
        mass = v * (kernel.T @ (1 / (kernel @ v)))
        v = (v * each / mass.clamp_min(1e-9)).clamp(1e-12, 1e12)
    price = price + epsilon * v.log()
    return price - price.mean()


def means(x: Tensor, codes: Tensor, c: Tensor) -> Tensor:
    """Mean of each code's points [K, D]; a code without points keeps its centre."""
    counts = torch.bincount(codes, minlength=len(c))[:, None]
    sums = torch.zeros_like(c).index_add_(0, codes, x)
    return torch.where(counts > 0, sums / counts.clamp_min(1), c)


def centres(x_ND: np.ndarray, codes_N: np.ndarray, codebook_KD: np.ndarray) -> np.ndarray:
    """`means` of arrays."""
    return means(*map(torch.from_numpy, (x_ND, codes_N, codebook_KD))).numpy()
