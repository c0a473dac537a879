"""Options that several trained quantizers share: what a codebook does while it learns, and how the training runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from configs.plans import ITEMS_PER_CODE
from configs.program import InputError, warn
from rq.stack.vq import Distance, distinct_rows

LOOKED_AT = 1 << 16  # items that are enough to see that there are enough: a memory map is not copied for it


@dataclass
class Source:
    """What a constructor may learn from. Paths that it needs and does not find are an InputError of its own."""

    x_ND: np.ndarray
    """Item vectors float32, finite; row i is item i."""
    data: str | None = None
    """Prepared data set (train sequences)."""
    tags: str | None = None
    """Tags directory (stage 03)."""
    warm_start: str | None = None
    """Directory of a trained quantizer to start from."""


@dataclass
class CodebookOptions:
    """How the codebooks of a residual stack assign, learn and stay alive (rq/stack/codebook.py)."""

    estimator: Literal["ste", "rotation", "gumbel"] = "ste"
    """How gradients pass a code: straight-through, rotation trick with the norm rescaled, or Gumbel softmax."""
    distance: Distance = "euclidean"
    """What is nearest: `euclidean` or `cosine`."""
    start: Literal["kmeans", "uniform"] = "kmeans"
    """First codewords: k-means of the latent vectors level by level, or uniform in [-1/K, 1/K]."""
    kmeans_iterations: int = 100
    """Iterations of that k-means."""
    update: Literal["gradient", "ema"] = "gradient"
    """Codewords follow their loss, or the exponential moving average of the vectors they are chosen for."""
    ema_decay: float = 0.99
    """Share of the old average that is kept at each step; for `ema`."""
    restart_after: int = 0
    """A code that no vector chose for this many steps moves onto a vector of the batch; 0: never."""
    simvq: bool = False
    """Codewords are a learned linear map of the codebook (SimVQ), so that all of them move together."""
    normalise: Literal["none", "first", "all"] = "none"
    """Levels whose codewords are scaled to length 1."""
    beta: float = 0.25
    """Weight of the commitment term, which draws vectors to their codewords."""
    sinkhorn_epsilons: list[float] = field(default_factory=list)
    """Per level: > 0 assigns batches in training by entropic transport of this temperature; empty: all by distance."""
    sinkhorn_iterations: int = 50
    """Row and column scalings of each such assignment."""
    temperature_start: float = 1.0
    """Gumbel temperature at the first step."""
    temperature_end: float = 0.2
    """Gumbel temperature at the last step; it falls geometrically."""

    def __post_init__(self) -> None:
        if self.kmeans_iterations < 1 or self.sinkhorn_iterations < 1 or self.restart_after < 0:
            raise InputError(
                f"codebook: kmeans_iterations {self.kmeans_iterations} and sinkhorn_iterations "
                f"{self.sinkhorn_iterations} must be >= 1, restart_after {self.restart_after} >= 0"
            )
        if not 0 < self.ema_decay < 1 or self.beta < 0 or min(self.sinkhorn_epsilons, default=0) < 0:
            raise InputError(
                f"codebook: ema_decay {self.ema_decay} must lie in (0, 1), beta {self.beta} and sinkhorn_epsilons "
                f"{self.sinkhorn_epsilons} must be >= 0"
            )
        if not 0 < self.temperature_end <= self.temperature_start:
            raise InputError(
                f"codebook: temperatures {self.temperature_start} -> {self.temperature_end} must be > 0 and not rise"
            )
        if self.simvq and (self.update == "ema" or self.restart_after or self.normalise != "none"):
            raise InputError(
                "codebook: simvq moves all codewords by one matrix -> update: gradient, restart_after: 0, normalise: none"
            )
        if self.update == "ema" and self.normalise != "none":
            raise InputError(
                "codebook: an average of vectors has no fixed length -> normalise: none with ema"
            )

    def require_levels(self, levels: int) -> None:
        """InputError unless there is one Sinkhorn temperature per level, or none at all."""
        if self.sinkhorn_epsilons and len(self.sinkhorn_epsilons) != levels:
            raise InputError(
                f"codebook.sinkhorn_epsilons {self.sinkhorn_epsilons} are {len(self.sinkhorn_epsilons)} values for "
                f"{levels} levels -> one per level, 0 for none"
            )


@dataclass
class LoopOptions:
    """How a quantizer's training runs (rq/stack/training.py)."""

    epochs: int = 1000
    """Passes over all items."""
    batch_size: int = 1024
    """Items per step; more than there are items: all of them in one step."""
    accumulate: int = 1
    """Batches whose mean gradient makes one step."""
    learning_rate: float = 1e-3
    """Step size after the warm-up."""
    weight_decay: float = 0.0
    """Of AdamW."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: as it is, or falling along a half cosine to `final_rate`."""
    final_rate: float = 0.0
    """Where the cosine ends, as a share of learning_rate."""
    warmup_epochs: int = 10
    """Epochs over which the learning rate rises from 0."""
    clip: float = 1.0
    """Longest gradient of all parameters together; 0: any."""
    eval_every: int = 50
    """Epochs between measurements of the whole catalogue; each ends with a checkpoint."""
    patience: int = 0
    """Stop after this many measurements without a better `select`; 0: never."""
    select: Literal["collisions", "loss", "last"] = "collisions"
    """Which state becomes the quantizer: fewest collisions of nearest codes, least loss, or the last."""
    save_limit: int = 2
    """Newest checkpoints that are kept to resume from; the best by collisions and by loss are kept beside them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it trains; auto: the GPU if there is one."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate, self.eval_every, self.save_limit) < 1:
            raise InputError(
                f"loop: epochs {self.epochs}, batch_size {self.batch_size}, accumulate {self.accumulate}, eval_every "
                f"{self.eval_every} and save_limit {self.save_limit} must be >= 1"
            )
        if self.learning_rate <= 0 or min(self.weight_decay, self.clip) < 0 or not 0 <= self.final_rate <= 1:
            raise InputError(
                f"loop: learning_rate {self.learning_rate} must be > 0, weight_decay {self.weight_decay} and clip "
                f"{self.clip} >= 0, final_rate {self.final_rate} a share in [0, 1]"
            )
        if not 0 <= self.warmup_epochs <= self.epochs or self.patience < 0:
            raise InputError(
                f"loop: warmup_epochs {self.warmup_epochs} must lie in 0..epochs ({self.epochs}), patience "
                f"{self.patience} must be >= 0"
            )


def require_sizes(sizes: list[int], *, constructor: str) -> None:
    """InputError unless there is at least one level and every level has a code."""
    if not sizes or min(sizes) < 1:
        raise InputError(f"{constructor}: sizes {sizes} must be at least one level of at least one code")


def warn_of_sizes(sizes: list[int], x_ND: np.ndarray) -> None:
    """Say on stderr which level has more codes than these items can fill: a code of one or two items is no shared meaning.

    3 x 256 codes for 300 items with 280 different vectors: 256 codes for 280, about 1.1 each, at most 70 are advised.
    """
    distinct, asked = len(distinct_rows(x_ND[:LOOKED_AT])), max(sizes)
    if asked * ITEMS_PER_CODE > distinct and len(x_ND) > LOOKED_AT:
        distinct = len(distinct_rows(x_ND))
    if asked * ITEMS_PER_CODE > distinct:
        most = max(1, distinct // ITEMS_PER_CODE)
        warn(
            f"{asked} codes in a level for {len(x_ND):,} items with {distinct:,} different vectors, "
            f"{distinct / asked:.1f} per code -> at most {most} codes give {ITEMS_PER_CODE} to each"
        )
