"""The losses of HiD-VAE's hierarchical quantizer, each unweighted; `total` weighs them, once.

Sums run over the dimensions of a vector, means over the items of a batch that have what the loss needs: an item without a
tag (class -1) is in no tag loss. A loss without a single usable item is 0.

Legend: B items of a batch, C classes of a level, D dimensions of an item vector, E of a latent vector, L levels, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from data.tags import UNKNOWN


def reconstruction(restored_BD: Tensor, x_BD: Tensor, *, binary_columns: int = 0) -> Tensor:
    """Squared error of the numbers plus binary cross-entropy of the last `binary_columns` columns, which are logits."""
    numbers = x_BD.shape[1] - binary_columns
    loss_B = ((restored_BD[:, :numbers] - x_BD[:, :numbers]) ** 2).sum(1)
    if binary_columns:
        loss_B = loss_B + functional.binary_cross_entropy_with_logits(
            restored_BD[:, numbers:], x_BD[:, numbers:], reduction="none"
        ).sum(1)
    return loss_B.mean()


def alignment(
    latent_BE: Tensor, tag_BE: Tensor, classes_B: Tensor, *, temperature: float, mask_same: bool = True
) -> Tensor:
    """InfoNCE from item to tag: cosine logits over the tags of the batch, the item's own is the right one.

    Another item's tag is no negative when it is the same tag; with `mask_same` those columns leave the denominator (as
    published they stay in it).
    """
    known = classes_B != UNKNOWN
    if not known.any():
        return latent_BE.sum() * 0
    classes_B, latent_BE, tag_BE = classes_B[known], latent_BE[known], tag_BE[known]
    logits_BB = (functional.normalize(latent_BE, dim=1) @ functional.normalize(tag_BE, dim=1).T) / temperature
    if mask_same:
        same_BB = classes_B[:, None] == classes_B[None, :]
        same_BB.fill_diagonal_(False)
        logits_BB = logits_BB.masked_fill(same_BB, float("-inf"))
    return functional.cross_entropy(logits_BB, torch.arange(len(logits_BB), device=logits_BB.device))


def level_weight(level: int) -> float:
    """Weight of the alignment at a level, 0 the first: coarse levels count more."""
    return 1 / (1 + 0.5 * level)


def smoothing_share(base: float, *, gamma: float, classes: int) -> float:
    """Share of the target that is spread over all classes: grows with gamma and with the number of classes."""
    return min(0.25, base + 0.015 * gamma + min(0.3, 0.05 * classes / 100))


def prediction(
    logits_BC: Tensor,
    classes_B: Tensor,
    *,
    gamma: float,
    alpha: float,
    smoothing: float,
    weights_C: Tensor | None = None,
) -> Tensor:
    """Focal loss with smoothed targets: alpha (1 - p_t)^gamma CE(q, p), q = (1 - s) onehot + s / C, p_t = sum q p.

    gamma 0 and alpha 1 are cross-entropy. `weights_C` scales an item by the weight of its class.
    """
    known = classes_B != UNKNOWN
    if not known.any():
        return logits_BC.sum() * 0
    logits_BC, classes_B = logits_BC[known], classes_B[known]
    log_BC = functional.log_softmax(logits_BC, dim=1)
    target_BC = torch.full_like(log_BC, smoothing / log_BC.shape[1])
    target_BC.scatter_add_(
        1,
        classes_B[:, None],
        torch.full((len(log_BC), 1), 1 - smoothing, dtype=log_BC.dtype, device=log_BC.device),
    )
    entropy_B = -(target_BC * log_BC).sum(1)
    true_B = (target_BC * log_BC.exp()).sum(1)
    loss_B = alpha * (1 - true_B).clamp_min(0) ** gamma * entropy_B
    return (loss_B if weights_C is None else loss_B * weights_C[classes_B]).mean()


def class_weights(counts_C: Tensor, *, balance: str) -> Tensor | None:
    """Weights float32 [C] of classes by their train counts, mean 1 over the classes that occur.

    `inverse_sqrt`: 1 / sqrt(n). `effective`: (1 - b) / (1 - b^n) with b = 0.999 (Cui et al. 2019). `none`: None. A class
    without items gets 0.
    """
    if balance == "none":
        return None
    n_C = counts_C.double()
    raw_C = (
        1 / n_C.clamp_min(1).sqrt() if balance == "inverse_sqrt" else 0.001 / (1 - 0.999 ** n_C.clamp_min(1))
    )
    raw_C = raw_C * (n_C > 0)
    return (raw_C / raw_C.sum().clamp_min(1e-12) * (n_C > 0).sum()).float()


def pair_repulsion(
    left_PE: Tensor, right_PE: Tensor, *, margin: float = 0.0, reach: float | None = None
) -> Tensor:
    """mean max(0, cos - margin) over pairs of latent vectors, or with `reach` mean max(0, 1 - distance / reach).

    0 without pairs. The cosine of near-duplicates hardly changes when they move (its slope is the sine of their angle, 0 for
    equal ones); the distance has the same slope however near they are. Two equal vectors have no direction to move in either
    way: exact duplicates are told apart by the repair of collisions.
    """
    if not len(left_PE):
        return left_PE.sum() * 0
    if reach is None:
        return (functional.cosine_similarity(left_PE, right_PE, dim=1) - margin).clamp_min(0).mean()
    distance_P = ((left_PE - right_PE) ** 2).sum(1).clamp_min(1e-12).sqrt()
    return (1 - distance_P / reach).clamp_min(0).mean()


def colliding_pairs(codes_BL: Tensor) -> Tensor:
    """All pairs i < j of rows with the same codes, int64 [P, 2]."""
    _, group_B = torch.unique(codes_BL, dim=0, return_inverse=True)
    same_BB = torch.triu(group_B[:, None] == group_B[None, :], diagonal=1)
    return same_BB.nonzero()


def uniqueness(
    latent_BE: Tensor, codes_BL: Tensor, *, margin: float = 0.0, reach: float | None = None
) -> Tensor:
    """Repulsion of the items of a batch that share a whole semantic ID."""
    pairs_P2 = colliding_pairs(codes_BL)
    left_PE, right_PE = latent_BE[pairs_P2[:, 0]], latent_BE[pairs_P2[:, 1]]
    return pair_repulsion(left_PE, right_PE, margin=margin, reach=reach)


def total(parts: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Sum of parts times their weight; a part without one counts once. Nothing else weighs a loss."""
    return sum(weights.get(name, 1.0) * value for name, value in parts.items())
