"""What the training problems of all autoencoders around a residual stack have in common: start, batches, measures.

Legend: N items, M items that are learned from, B items of a batch, D dimensions of a vector, E of a latent vector, L levels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rq.quality.measures import code_use
from rq.stack.codebook import Quantized
from rq.stack.training import Problem


class StackProblem(Problem):
    """An autoencoder around a residual stack: `model.encode` gives the latent vectors that `model.stack` quantizes.

    A subclass sets `model`, `device`, `x_ND` (float32 [N, D], the whole catalogue), `rows_M` (int64, the items it learns from),
    `kmeans_rows`, the most latent vectors that first codebooks are made of, and `last = []`, to which `terms` gives what it
    quantized by `keep`.
    """

    device: torch.device
    x_ND: Tensor
    rows_M: Tensor
    last: list[tuple[Tensor, Tensor]]
    kmeans_rows: int

    def start(self, *, seed: int) -> None:
        """k-means of a seeded sample of latent vectors, level by level."""
        rows = np.random.default_rng(seed).permutation(self.num_items)[: self.kmeans_rows]
        self.model.eval()
        with torch.no_grad():
            latent_NE = self.model.encode(self.batch(self.rows_M[np.sort(rows)]))
        self.model.stack.initialise(latent_NE, seed=seed)

    def set_progress(self, share: float) -> None:
        """The Gumbel temperature."""
        self.model.stack.set_progress(share)

    def batch(self, items_B: Tensor) -> Tensor:
        """Vectors [B, D] of items, where the model is."""
        return self.x_ND[items_B].to(self.device)

    def keep(self, out: Quantized) -> None:
        """Remember what a part of the step quantized, until `after_step`."""
        self.last.append((out.residuals_BLE.detach(), out.codes_BL))

    def after_step(self, *, generator: torch.Generator) -> None:
        """Moving averages and restarts, from what the whole step quantized.

        One update of all parts together: an update per part would fade averages and count idle codes once per part, and
        make the codebooks depend on how a step is cut.
        """
        residuals_BLE, codes_BL = (torch.cat(parts) for parts in zip(*self.last, strict=True))
        self.model.stack.after_step(residuals_BLE, codes_BL, generator=generator)
        self.last = []

    def code_measures(self, codes_NL: np.ndarray) -> dict[str, float]:
        """`collisions`, the share of items without an ID of their own (items [0, 0, 1]: 1/3), and per level from 1 the use
        of its codes."""
        measures = {"collisions": 1 - len(np.unique(codes_NL, axis=0)) / len(codes_NL)}
        for level, size in enumerate(self.model.stack.sizes):
            use = code_use(codes_NL[:, level], size)
            measures |= {f"{name}_{level + 1}": use[name] for name in ("used", "entropy_nats", "perplexity")}
        return measures
