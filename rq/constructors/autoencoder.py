"""The training problem of RQ-VAE and its relatives: reconstruction, quantization, and for PLUM co-occurrence contrast.

    loss = reconstruction + w_q * mean over items, levels and E of [ |sg(r) - c|^2 + beta |r - sg(c)|^2 ]
         + w_c * contrast

Reconstruction is the mean squared (or absolute) difference of x and decode(sum of codewords) over items and D: the terms
of MiniOneRec and LC-Rec. Contrast is InfoNCE between the quantized latent vectors of items that follow each other in train
sequences, the other items of the batch being the negatives.

Legend: B items of a batch, N of the catalogue, P pairs, D dimensions of a vector, E of a latent vector, L levels.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.program import InputError
from rq.constructors.stack_problem import StackProblem
from rq.stack.codebook import Quantized, ResidualStack
from rq.stack.networks import Network
from rq.stack.options import CodebookOptions


class Autoencoder(nn.Module):
    """Network and residual stack."""

    def __init__(self, shape: dict[str, Any], sizes: list[int], options: CodebookOptions) -> None:
        super().__init__()
        self.network = Network(shape)
        self.stack = ResidualStack(sizes, shape["latent_dim"], options)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Latent vectors [B, E]."""
        return self.network.encode(x_BD)


def reconstruction(x_BD: Tensor, out_BD: Tensor, *, kind: Literal["mse", "l1"]) -> Tensor:
    """Mean over items and dimensions."""
    return functional.mse_loss(out_BD, x_BD) if kind == "mse" else functional.l1_loss(out_BD, x_BD)


def quantization(out: Quantized, *, beta: float) -> Tensor:
    """Codebook and commitment terms, mean over items, levels and dimensions."""
    width = out.residuals_BLE.shape[2]
    return (out.codebook_loss_BL + beta * out.commitment_loss_BL).mean() / width


def contrast(
    anchor_BE: Tensor, partner_BE: Tensor, rows_B: Tensor, partners_B: Tensor, *, temperature: float
) -> Tensor:
    """InfoNCE of cosine between row i's anchor and row i's partner; the other rows' partners are the negatives.

    A negative that is the anchor item itself, or the same item as the partner, is left out: it is no negative.
    """
    scores_BB = (
        functional.normalize(anchor_BE, dim=1) @ functional.normalize(partner_BE, dim=1).T / temperature
    )
    own_BB = torch.eye(len(rows_B), dtype=torch.bool, device=scores_BB.device)
    same_BB = (partners_B[None] == rows_B[:, None]) | (partners_B[None] == partners_B[:, None])
    return functional.cross_entropy(
        scores_BB.masked_fill(same_BB & ~own_BB, -torch.inf),
        torch.arange(len(rows_B), device=scores_BB.device),
    )


class AutoencoderProblem(StackProblem):
    """RQ-VAE, RQ-Kmeans+, R-VQ (identity network) and PLUM's RQ-VAE, by what they are given."""

    kmeans_rows = 65_536

    def __init__(
        self,
        x_ND: np.ndarray,
        model: Autoencoder,
        *,
        reconstruction_kind: Literal["mse", "l1"],
        quantization_weight: float,
        device: torch.device,
        pairs_P2: np.ndarray | None = None,
        contrast_weight: float = 0.0,
        contrast_temperature: float = 0.1,
        mask_share: float = 0.0,
    ) -> None:
        self.model, self.num_items, self.device = model.to(device), len(x_ND), device
        self.x_ND = torch.from_numpy(np.array(x_ND, np.float32))
        self.rows_M = torch.arange(self.num_items)
        self.least_batch = 2 if any(isinstance(part, nn.BatchNorm1d) for part in model.modules()) else 1
        self.kind, self.weight = reconstruction_kind, quantization_weight
        self.contrast_weight, self.temperature, self.mask_share = (
            contrast_weight,
            contrast_temperature,
            mask_share,
        )
        self.partners = Partners(pairs_P2, self.num_items) if contrast_weight else None
        self.last: list[tuple[Tensor, Tensor]] = []

    def terms(self, rows_B: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        x_BD = self.batch(rows_B)
        depth = self.draw_depth(generator)
        out = self.model.stack(self.model.encode(x_BD), depth=depth, generator=generator)
        self.keep(out)
        # A width of the data's own scale: a network that scales its input is judged on the scaled vectors.
        scale = self.model.network.shape["scale"]
        rebuilt_BD = self.model.network.decode(out.quantized_BE)
        terms = {
            "reconstruction": reconstruction(x_BD * scale, rebuilt_BD * scale, kind=self.kind),
            "quantization": quantization(out, beta=self.model.stack.options.beta),
        }
        terms["loss"] = terms["reconstruction"] + self.weight * terms["quantization"]
        if self.partners is not None:
            terms["contrast"] = self.contrast_term(rows_B, out, depth, generator)
            terms["loss"] = terms["loss"] + self.contrast_weight * terms["contrast"]
        return terms

    def draw_depth(self, generator: torch.Generator) -> int | None:
        """Progressive masking: with probability `mask_share` only the first 1..L-1 levels reach the decoder."""
        levels = len(self.model.stack.codebooks)
        if levels < 2 or not self.mask_share:
            return None
        share, level = torch.rand(2, generator=generator, device=self.device).tolist()
        return 1 + int(level * (levels - 1)) if share < self.mask_share else None

    def contrast_term(
        self, rows_B: Tensor, out: Quantized, depth: int | None, generator: torch.Generator
    ) -> Tensor:
        """Contrast of the batch's items that have a partner in train sequences; zero when none has."""
        known_M, partners_M = self.partners.draw(rows_B, generator)
        if len(known_M) < 2:
            return out.quantized_BE.sum() * 0
        theirs = self.model.stack(self.model.encode(self.batch(partners_M)), depth=depth, generator=generator)
        rows_M = rows_B[known_M].to(self.device)
        return contrast(
            out.quantized_BE[known_M.to(self.device)],
            theirs.quantized_BE,
            rows_M,
            partners_M.to(self.device),
            temperature=self.temperature,
        )

    def measure(self) -> dict[str, float]:
        """Collision rate of nearest codes, relative reconstruction error, use of every level."""
        codes, squares = [], 0.0
        for x_BD in self.x_ND.split(8192):
            out = self.model.stack(self.model.encode(x_BD.to(self.device)))
            codes.append(out.codes_BL.cpu())
            rebuilt_BD = self.model.network.decode(out.quantized_BE).cpu()
            squares += float(((rebuilt_BD - x_BD).double() ** 2).sum())
        codes_NL = torch.cat(codes).numpy()
        spread = float(((self.x_ND - self.x_ND.mean(0)).double() ** 2).sum())
        return self.code_measures(codes_NL) | {"loss": squares / spread if spread else squares}


class Partners:
    """For every item the items next to it in train sequences, repeats counted."""

    def __init__(self, pairs_P2: np.ndarray | None, num_items: int) -> None:
        if pairs_P2 is None or not len(pairs_P2):
            raise InputError("contrast needs items that follow each other in train sequences -> pass --data")
        both_P2 = np.concatenate([pairs_P2, pairs_P2[:, ::-1]])
        both_P2 = both_P2[both_P2[:, 0] != both_P2[:, 1]]
        order = np.argsort(both_P2[:, 0], kind="stable")
        self.partner_P = torch.from_numpy(both_P2[order, 1].astype(np.int64))
        counts_N = np.bincount(both_P2[:, 0], minlength=num_items)
        self.counts_N = torch.from_numpy(counts_N)
        self.starts_N = torch.from_numpy(np.cumsum(counts_N) - counts_N)

    def draw(self, rows_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(places of the batch with a partner int64 [M], one random partner of each int64 [M])."""
        share_B = torch.rand(len(rows_B), generator=generator, device=generator.device).cpu()
        known_M = (self.counts_N[rows_B] > 0).nonzero()[:, 0]
        rows_M = rows_B[known_M]
        offset_M = (share_B[known_M] * self.counts_N[rows_M]).long()
        return known_M, self.partner_P[self.starts_N[rows_M] + offset_M]
