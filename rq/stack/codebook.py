"""Codebooks that learn: one level (`Codebook`) and the residual stack of all levels (`ResidualStack`), as torch modules.

    stack = ResidualStack([256, 256, 256], 32, CodebookOptions(estimator="rotation"))
    stack.initialise(latent_NE, seed=0)         # k-means level by level, once; a resumed stack refuses to do it again
    out = stack(latent_BE, generator=g)         # codes, quantised vectors that pass gradients, loss terms
    stack.after_step(out.residuals_BLE, out.codes_BL, generator=g)  # after the optimiser's step: averages, dead codes
    stack.level_codewords(0)                    # effective codewords (SimVQ and normalisation applied), [K, E]

In evaluation mode codes are the cheapest codes and every vector its codeword. In training mode Sinkhorn temperatures and the
estimator apply as the options say. With `ste` and `rotation`
the forward values are the codewords themselves, so codes in training and evaluation are equal as long as no level has a
Sinkhorn temperature; `gumbel` passes a mixture of codewords on to the next level.

Legend: B vectors of a batch, N of the catalogue, L levels, K codes, E dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rq.stack import estimators
from rq.stack.options import CodebookOptions
from rq.stack.sinkhorn import sinkhorn_codes
from rq.stack.vq import cheapest_codes, train_codebook

FADED = 1e-5  # uses of an `ema` code below which average / uses is no place any more


@dataclass
class Quantized:
    """What a stack makes of a batch. Losses are sums over E; a caller averages over batch, levels, or E as its paper does."""

    codes_BL: Tensor
    """int64; the cheapest codes, or Sinkhorn's."""
    quantized_BE: Tensor
    """Sum over levels of what the estimator returns: the decoder's input, passes gradients."""
    levels_BLE: Tensor
    """The same per level."""
    codewords_BLE: Tensor
    """The chosen codewords, with gradients to the codebooks only."""
    residuals_BLE: Tensor
    """What each level was given to quantize."""
    codebook_loss_BL: Tensor
    """|sg(r) - c|^2, which moves codewords; zero for `ema` codebooks."""
    commitment_loss_BL: Tensor
    """|r - sg(c)|^2 without beta, which moves vectors."""


class Codebook(nn.Module):
    """One level. `price_K` is subtracted from distances: zero, or the prices of a balanced codebook it was started from."""

    def __init__(self, size: int, dim: int, options: CodebookOptions, *, epsilon: float, unit: bool) -> None:
        super().__init__()
        self.options, self.epsilon, self.unit = options, epsilon, unit
        start_KE = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        if options.update == "ema":
            self.register_buffer("words_KE", start_KE)
            self.register_buffer("average_KE", start_KE.clone())
            self.register_buffer("uses_K", torch.ones(size))
        else:
            self.words_KE = nn.Parameter(start_KE)
        if options.simvq:
            self.map_EE = nn.Parameter(torch.eye(dim))
        self.register_buffer("price_K", torch.zeros(size))
        self.register_buffer("idle_K", torch.zeros(size, dtype=torch.int64))

    def codewords(self) -> Tensor:
        """Effective codewords [K, E]."""
        words_KE = self.words_KE @ self.map_EE if self.options.simvq else self.words_KE
        return functional.normalize(words_KE, dim=1) if self.unit else words_KE

    @torch.no_grad()
    def set_codewords(self, words_KE: Tensor) -> None:
        """Start from given codewords."""
        self.words_KE.copy_(words_KE)
        if self.options.update == "ema":
            self.average_KE.copy_(words_KE)
            self.uses_K.fill_(1)

    def distances(self, vectors_BE: Tensor, words_KE: Tensor) -> Tensor:
        """Cost of every code [B, K], prices included."""
        if self.options.distance == "cosine":
            cost_BK = 1 - functional.normalize(vectors_BE, dim=1) @ functional.normalize(words_KE, dim=1).T
        else:
            middle_E = words_KE.detach().mean(0)  # as in vq.nearest_codes
            vectors_BE, words_KE = vectors_BE - middle_E, words_KE - middle_E
            squares_BK = (vectors_BE**2).sum(1, keepdim=True) + (words_KE**2).sum(1)
            cost_BK = squares_BK - 2 * vectors_BE @ words_KE.T
        return cost_BK - self.price_K

    def forward(
        self, vectors_BE: Tensor, *, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(codes int64 [B], estimator's output [B, E], codewords [B, E])."""
        words_KE = self.codewords()
        distances_BK = self.distances(vectors_BE, words_KE)
        if self.training and self.epsilon > 0:
            codes_B = sinkhorn_codes(
                distances_BK.detach(), epsilon=self.epsilon, iterations=self.options.sinkhorn_iterations
            )
        else:
            codes_B = distances_BK.detach().argmin(1)
        chosen_BE = words_KE[codes_B]
        out_BE = chosen_BE.detach()
        if self.training:
            out_BE = self.estimate(
                vectors_BE, chosen_BE, distances_BK, words_KE, temperature=temperature, generator=generator
            )
        return codes_B, out_BE, chosen_BE

    def estimate(
        self,
        vectors_BE: Tensor,
        chosen_BE: Tensor,
        distances_BK: Tensor,
        words_KE: Tensor,
        *,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        if self.options.estimator == "gumbel":
            return estimators.gumbel(distances_BK, words_KE, temperature=temperature, generator=generator)
        if self.options.estimator == "rotation":
            return estimators.exact(chosen_BE, estimators.rotate(vectors_BE, chosen_BE))
        return estimators.straight_through(vectors_BE, chosen_BE)

    @torch.no_grad()
    def after_step(self, vectors_BE: Tensor, codes_B: Tensor, *, generator: torch.Generator | None) -> None:
        """Moving averages, then restarts, from the vectors of a step and the codes they chose."""
        size = len(self.words_KE)
        counts_K = torch.bincount(codes_B, minlength=size)
        if self.options.update == "ema":
            decay = self.options.ema_decay
            sums_KE = torch.zeros_like(self.average_KE).index_add_(0, codes_B, vectors_BE)
            self.uses_K.mul_(decay).add_(counts_K, alpha=1 - decay)
            self.average_KE.mul_(decay).add_(sums_KE, alpha=1 - decay)
            # A code that nobody chooses keeps its place: average and uses fade alike, in the end to nothing.
            means_KE = self.average_KE / self.uses_K.clamp_min(FADED)[:, None]
            self.words_KE.copy_(torch.where(self.uses_K[:, None] > FADED, means_KE, self.words_KE))
        self.idle_K.add_(1).mul_(counts_K == 0)
        if not self.options.restart_after:
            return
        dead = (self.idle_K >= self.options.restart_after).nonzero()[:, 0]
        if not len(dead):
            return
        order_B = torch.randperm(len(vectors_BE), generator=generator, device=vectors_BE.device)
        dead = dead[: len(order_B)]
        fresh_E = vectors_BE[order_B[: len(dead)]]
        self.words_KE.data[dead] = fresh_E
        self.idle_K[dead] = 0
        if self.options.update == "ema":
            self.average_KE[dead] = fresh_E
            self.uses_K[dead] = 1


class ResidualStack(nn.Module):
    """Levels of codebooks; level l is given what levels 0..l-1 left over."""

    def __init__(self, sizes: list[int], dim: int, options: CodebookOptions) -> None:
        super().__init__()
        options.require_levels(len(sizes))
        epsilons = options.sinkhorn_epsilons or [0.0] * len(sizes)
        self.options, self.dim = options, dim
        self.codebooks = nn.ModuleList(
            Codebook(
                size,
                dim,
                options,
                epsilon=epsilon,
                unit=options.normalise == "all" or (options.normalise == "first" and level == 0),
            )
            for level, (size, epsilon) in enumerate(zip(sizes, epsilons, strict=True))
        )
        self.register_buffer("initialised", torch.tensor(False))
        self.temperature = options.temperature_start

    @property
    def sizes(self) -> list[int]:
        return [len(book.words_KE) for book in self.codebooks]

    def set_progress(self, share: float) -> None:
        """Tell the stack how much of the training is done (0..1): the Gumbel temperature falls with it."""
        start, end = self.options.temperature_start, self.options.temperature_end
        self.temperature = start * (end / start) ** min(max(share, 0.0), 1.0)

    def initialise(self, latent_NE: Tensor, *, seed: int) -> bool:
        """k-means level by level on latent vectors, if the options ask for it and it was not done before; whether it ran.

        The flag is a buffer: a stack loaded from a checkpoint keeps what it learned.
        """
        if bool(self.initialised):
            return False
        self.initialised.fill_(True)
        if self.options.start != "kmeans":
            return False
        rest_NE = latent_NE.detach().float().cpu().numpy()
        for book in self.codebooks:
            words_KE = train_codebook(
                rest_NE,
                len(book.words_KE),
                iterations=self.options.kmeans_iterations,
                restarts=1,
                seed=seed,
            )
            book.set_codewords(torch.from_numpy(words_KE).to(latent_NE.device))
            effective_KE = book.codewords().detach().cpu().numpy()
            codes_N = cheapest_codes(rest_NE, effective_KE, distance=self.options.distance)
            rest_NE = rest_NE - effective_KE[codes_N]
        return True

    def start_from(self, codebooks: tuple[np.ndarray, ...], prices: tuple[np.ndarray, ...] | None) -> None:
        """Start from the codebooks (and prices) of a trained quantizer instead of k-means."""
        for level, (book, words_KE) in enumerate(zip(self.codebooks, codebooks, strict=True)):
            book.set_codewords(torch.from_numpy(words_KE))
            if prices is not None:
                book.price_K.copy_(torch.from_numpy(prices[level]))
        self.initialised.fill_(True)

    def level_codewords(self, level: int) -> Tensor:
        """Effective codewords [K, E] of a level."""
        return self.codebooks[level].codewords()

    def forward(
        self, vectors_BE: Tensor, *, depth: int | None = None, generator: torch.Generator | None = None
    ) -> Quantized:
        """Quantize a batch; with `depth` only the first levels count towards `quantized_BE` (codes are those of all)."""
        rest_BE = vectors_BE
        kept: dict[str, list[Tensor]] = {name: [] for name in ("codes", "out", "words", "rests")}
        for book in self.codebooks:
            codes_B, out_BE, words_BE = book(rest_BE, temperature=self.temperature, generator=generator)
            for name, value in zip(kept, (codes_B, out_BE, words_BE, rest_BE), strict=True):
                kept[name].append(value)
            rest_BE = rest_BE - out_BE
        out_BLE, words_BLE, rests_BLE = (torch.stack(kept[name], 1) for name in ("out", "words", "rests"))
        moved_BL = ((rests_BLE.detach() - words_BLE) ** 2).sum(2)
        if self.options.update == "ema":
            moved_BL = torch.zeros_like(moved_BL)
        return Quantized(
            codes_BL=torch.stack(kept["codes"], 1),
            quantized_BE=out_BLE[:, :depth].sum(1),
            levels_BLE=out_BLE,
            codewords_BLE=words_BLE,
            residuals_BLE=rests_BLE,
            codebook_loss_BL=moved_BL,
            commitment_loss_BL=((rests_BLE - words_BLE.detach()) ** 2).sum(2),
        )

    def after_step(
        self, residuals_BLE: Tensor, codes_BL: Tensor, *, generator: torch.Generator | None = None
    ) -> None:
        """Call once after each optimiser step, with all that the step quantized: it changes codewords, which a backward
        pass still needs, and it counts steps."""
        for level, book in enumerate(self.codebooks):
            book.after_step(residuals_BLE[:, level], codes_BL[:, level], generator=generator)

    @torch.no_grad()
    def arrays(self) -> dict[str, Any]:
        """Fields of an `rq.stack.residual.ResidualQuantizer`: codebooks, prices (None when all are zero), distance."""
        books = tuple(
            self.level_codewords(level).float().cpu().numpy() for level in range(len(self.codebooks))
        )
        prices = tuple(book.price_K.double().cpu().numpy() for book in self.codebooks)
        priced = any(price.any() for price in prices)
        return {
            "codebooks": books,
            "prices": prices if priced else None,
            "distance": self.options.distance,
        }
