"""Residual k-means: each level is k-means on what the levels before it left over."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from configs import program
from configs.program import InputError
from rq.residual import ResidualQuantizer
from rq.vq import nearest_codes, train_codebook


@dataclass
class RqKmeans:
    """Options of residual k-means."""

    sizes: list[int] = field(default_factory=lambda: [256, 256, 256])
    """Codes per level, coarse to fine; their product bounds the number of distinct semantic IDs."""
    iterations: int = 25
    """Iterations of each k-means."""
    restarts: int = 3
    """Runs of each k-means from other starts; the one with the least distortion is kept."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or self.iterations < 1 or self.restarts < 1:
            raise InputError(
                f"rqkmeans: sizes {self.sizes}, iterations {self.iterations} and restarts {self.restarts} "
                "must all be >= 1"
            )


def train_rqkmeans(x_ND: np.ndarray, config: RqKmeans, *, seed: int) -> ResidualQuantizer:
    """Codebooks trained level by level on float32 [N, D]; equal for equal seed, vectors and thread count.

    All levels draw their starts with the same seed, hence from the same items, of which little is left after a level:
    fewer outliers are starts of the next. Measured with text + co-occurrence vectors, 3 x 256, one restart, mean of four
    seeds, against a seed per level: third-level perplexity 137 against 53 and 247 against 277 collisions on Amazon
    Industrial, 112 against 42 and 320 against 333 on Office. On generated mixtures it goes either way.
    """
    residual_ND, codebooks = np.array(x_ND, np.float32), []
    for size in program.progress(config.sizes, label="residual k-means", unit="level"):
        codebook = train_codebook(
            residual_ND, size, iterations=config.iterations, restarts=config.restarts, seed=seed
        )
        codes_N, _ = nearest_codes(residual_ND, codebook)
        residual_ND -= codebook[codes_N]
        codebooks.append(codebook)
    return ResidualQuantizer(tuple(codebooks))
