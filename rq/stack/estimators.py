"""How a gradient passes from a codeword to the vector that chose it.

Every function returns float32 [B, D] whose forward value is the codeword (for `gumbel` a soft mixture of codewords) and
whose gradient reaches the vector. `exact` removes the last bits of rounding from a forward value, so that what the next
level sees in training is bit for bit what it sees in evaluation.

Legend: B vectors, K codes, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12


def exact(value_BD: Tensor, estimate_BD: Tensor) -> Tensor:
    """Forward `value` exactly, backward the gradient of `estimate`."""
    return value_BD.detach() + (estimate_BD - estimate_BD.detach())


def straight_through(vectors_BD: Tensor, words_BD: Tensor) -> Tensor:
    """The codeword forward, the identity backward (Bengio et al. 2013)."""
    return exact(words_BD, vectors_BD)


def rotate(vectors_BD: Tensor, words_BD: Tensor) -> Tensor:
    """|c| / |r| * R r, where the constant rotation R takes the direction of r to that of its codeword c.

    With u = r/|r|, q = c/|c|, w = (u + q)/|u + q|:  R r = r - 2 w (w.r) + 2 q (u.r)  (Fifty et al. 2024, eq. 4). Without
    the factor |c|/|r| the forward value has the length of r, not of c. Where r or c is 0, or c points opposite to r, there
    is no such rotation: these rows are passed straight through.
    """
    r_BD, c_BD = vectors_BD.detach(), words_BD.detach()
    length_B1, target_B1 = r_BD.norm(dim=1, keepdim=True), c_BD.norm(dim=1, keepdim=True)
    u_BD, q_BD = r_BD / length_B1.clamp_min(TINY), c_BD / target_B1.clamp_min(TINY)
    middle_BD = u_BD + q_BD
    span_B1 = middle_BD.norm(dim=1, keepdim=True)
    w_BD = middle_BD / span_B1.clamp_min(TINY)
    along_w = (vectors_BD * w_BD).sum(1, keepdim=True)
    along_u = (vectors_BD * u_BD).sum(1, keepdim=True)
    rotated_BD = (target_B1 / length_B1.clamp_min(TINY)) * (
        vectors_BD - 2 * w_BD * along_w + 2 * q_BD * along_u
    )
    possible_B1 = (length_B1 > TINY) & (target_B1 > TINY) & (span_B1 > 1e-4)
    return torch.where(possible_B1, rotated_BD, straight_through(vectors_BD, words_BD))


def gumbel(
    distances_BK: Tensor, codebook_KD: Tensor, *, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """softmax((g - distance) / temperature) @ codebook with Gumbel noise g (Jang et al. 2017): a mixture, not one codeword."""
    uniform_BK = torch.rand(distances_BK.shape, generator=generator, device=distances_BK.device)
    noise_BK = -torch.log(-torch.log(uniform_BK.clamp(1e-10, 1 - 1e-7)))
    return torch.softmax((noise_BK - distances_BK) / temperature, dim=1) @ codebook_KD
