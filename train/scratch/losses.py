"""Losses of sequential models beside the full cross-entropy (infer/models/sequential/softmax.py).

Legend: P rows, N items, C the target (first) and its negatives, K neighbours, M = 1 + K.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def drawn_negatives(target_P: np.ndarray, num_items: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [P, count], even over all items but the row's target."""
    drawn = rng.integers(0, num_items - 1, (len(target_P), count))
    return drawn + (drawn >= target_P[:, None])


def binary_cross_entropy(logit_PC: Tensor) -> Tensor:
    """Mean of log(1 + exp(-z)) of the first column and log(1 + exp(z)) of the others.

    >>> float(binary_cross_entropy(torch.tensor([[0.0, 0.0]])))  # log 2
    0.6931471824645996
    """
    sign_PC = torch.ones_like(logit_PC)
    sign_PC[:, 0] = -1
    return functional.softplus(logit_PC * sign_PC).mean()


def propensity(popularity_N: np.ndarray) -> np.ndarray:
    """((n + 1) / sum(n + 1)) ** 0.05, float32 [N]: DROS's weight of an item that is the target of n train rows."""
    share_N = (popularity_N + 1.0) / (popularity_N + 1.0).sum()
    return (share_N**0.05).astype(np.float32)


def dro_term(logit_PN: Tensor, target_P: Tensor, propensity_N: Tensor, *, beta: float) -> Tensor:
    """Mean over P of log sum_j exp(w_j (z_j - [j is the target])^2 / beta).

    Source: Yang et al. 2023, "A Generic Learning Framework for Sequential Recommendation with Distribution Shifts": squared
    errors of all items under the worst distribution near their propensities w.
    """
    error_PN = logit_PN - functional.one_hot(target_P, logit_PN.shape[1])
    return torch.logsumexp(propensity_N * error_PN.square() / beta, dim=1).mean()


def soft_targets(
    target_P: Tensor, neighbour_NK: Tensor | None, weight_NK: Tensor | None, *, share: float
) -> tuple[Tensor, Tensor]:
    """(items int64 [P, M], shares float32 [P, M]): `share` of the probability on the target's neighbours by weight.

    weight_NK: rows of sum 1, or 0 where an item has no neighbour: then the target keeps everything.
    """
    if not share:
        return target_P[:, None], torch.ones(len(target_P), 1, device=target_P.device)
    given_PK = share * weight_NK[target_P]
    items_PM = torch.cat([target_P[:, None], neighbour_NK[target_P]], dim=1)
    return items_PM, torch.cat([1 - given_PK.sum(1, keepdim=True), given_PK], dim=1)
