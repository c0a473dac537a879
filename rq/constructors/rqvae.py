"""Quantizers with gradients: RQ-VAE, RQ-Kmeans+ (GPR), residual VQ without an encoder, RQ-VAE in PLUM's manner.

  rqvae         MLP encoder, residual codebooks on the latent vector, mirrored decoder
  rqkmeans_plus encoder x + MLP(x) that starts as the identity, codebooks that start as those of balanced residual k-means
  rvq           codebooks on the item vectors themselves, learned by moving averages (or by their loss)
  plum          RQ-VAE with more codes at coarse levels, random depth in training, and co-occurrence contrast

Torch is imported when a quantizer is trained or loaded, not before.

Legend: N items, D dimensions of a vector, E of a latent vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from configs.program import InputError
from data import artifacts
from data.rows import has_stride
from data.store.output import Output
from rq.constructors.balanced import Balanced, fit_balanced
from rq.stack.options import CodebookOptions, LoopOptions, Source, require_sizes
from rq.stack.residual import ResidualQuantizer, load, stack_fields


@dataclass
class RqVae:
    """Options of RQ-VAE."""

    sizes: list[int] = field(default_factory=lambda: [256, 256, 256])
    """Codes per level, coarse to fine."""
    latent_dim: int = 32
    """Width of the latent vector."""
    layers: list[int] = field(default_factory=lambda: [256, 128])
    """Hidden widths of the encoder; the decoder mirrors them."""
    activation: Literal["relu", "silu", "gelu"] = "relu"
    """Between layers."""
    dropout: float = 0.0
    """Share of a layer's input that is dropped in training."""
    batch_norm: bool = False
    """Batch normalisation after every hidden linear layer."""
    reconstruction: Literal["mse", "l1"] = "mse"
    """Loss between a vector and its reconstruction."""
    quantization_weight: float = 1.0
    """Weight of codebook and commitment terms beside the reconstruction."""
    scale_inputs: bool = True
    """Multiply vectors so that their mean square per dimension is 1: unit vectors of many dimensions have tiny losses."""
    codebook: CodebookOptions = field(default_factory=CodebookOptions)
    """How codebooks learn."""
    loop: LoopOptions = field(default_factory=LoopOptions)
    """How the training runs."""

    def __post_init__(self) -> None:
        require_sizes(self.sizes, constructor="rqvae")
        self.codebook.require_levels(len(self.sizes))
        if self.latent_dim < 1 or min(self.layers, default=1) < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"rqvae: latent_dim {self.latent_dim} and layers {self.layers} must be >= 1, dropout {self.dropout} in [0, 1)"
            )
        if self.quantization_weight <= 0:
            raise InputError(f"rqvae: quantization_weight {self.quantization_weight} must be > 0")


@dataclass
class Plum(RqVae):
    """Options of RQ-VAE in PLUM's manner: those of RQ-VAE, and three more."""

    sizes: list[int] = field(default_factory=lambda: [512, 256, 128])
    """Codes per level: PLUM halves a first 2048 from level to level; for a few thousand items start lower."""
    mask_share: float = 0.5
    """Share of the steps in which the decoder sees a random number of the first levels only."""
    contrast_weight: float = 0.1
    """Weight of the contrast between items that follow each other in train sequences; 0: none."""
    contrast_temperature: float = 0.1
    """Of the contrast's cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_share <= 1 or self.contrast_weight < 0 or self.contrast_temperature <= 0:
            raise InputError(
                f"plum: mask_share {self.mask_share} must be a share, contrast_weight {self.contrast_weight} >= 0, "
                f"contrast_temperature {self.contrast_temperature} > 0"
            )


@dataclass
class RqKmeansPlus:
    """Options of RQ-Kmeans+."""

    layers: list[int] = field(default_factory=lambda: [256])
    """Hidden widths of the MLP that is added to a vector; its last layer starts at zero."""
    activation: Literal["relu", "silu", "gelu"] = "relu"
    """Between layers."""
    residual_decoder: bool = True
    """The decoder starts as the identity too (z + MLP(z)); false: a plain MLP from random weights, as published."""
    reconstruction: Literal["mse", "l1"] = "mse"
    """Loss between a vector and its reconstruction."""
    quantization_weight: float = 1.0
    """Weight of codebook and commitment terms beside the reconstruction."""
    start: Balanced = field(default_factory=Balanced)
    """The balanced residual k-means whose codebooks it starts from; without meaning when --warm_start names a quantizer."""
    codebook: CodebookOptions = field(default_factory=CodebookOptions)
    """How codebooks learn; its `start` is not used."""
    loop: LoopOptions = field(
        default_factory=lambda: LoopOptions(epochs=200, learning_rate=1e-4, eval_every=20)
    )
    """How the training runs."""

    @property
    def sizes(self) -> list[int]:
        """Codes per level of the balanced start."""
        return self.start.sizes

    def __post_init__(self) -> None:
        if min(self.layers, default=0) < 1 or self.quantization_weight <= 0:
            raise InputError(
                f"rqkmeans_plus: layers {self.layers} must be at least one width >= 1, quantization_weight "
                f"{self.quantization_weight} > 0"
            )
        if self.start.separate:
            raise InputError("rqkmeans_plus compares whole vectors at every level -> start.separate: 0")
        if self.codebook.simvq or self.codebook.normalise != "none" or self.codebook.distance != "euclidean":
            raise InputError(
                "rqkmeans_plus starts from k-means codebooks as they are -> simvq: false, normalise: none, distance: euclidean"
            )


@dataclass
class Rvq:
    """Options of residual VQ without an encoder."""

    sizes: list[int] = field(default_factory=lambda: [256, 256, 256])
    """Codes per level, coarse to fine."""
    codebook: CodebookOptions = field(default_factory=lambda: CodebookOptions(update="ema", restart_after=50))
    """How codebooks learn."""
    loop: LoopOptions = field(default_factory=lambda: LoopOptions(epochs=100, eval_every=20, warmup_epochs=0))
    """How the training runs."""

    def __post_init__(self) -> None:
        require_sizes(self.sizes, constructor="rvq")
        self.codebook.require_levels(len(self.sizes))
        if self.codebook.estimator != "ste":
            raise InputError("rvq has no encoder that a gradient could reach -> codebook.estimator: ste")


@dataclass(frozen=True, eq=False)
class EncodedQuantizer(ResidualQuantizer):
    """A residual stack between an encoder and a decoder (an `rq.stack.networks.Network` in evaluation mode, on the CPU)."""

    network: Any = None
    kind: ClassVar[str] = "encoded"

    @property
    def dim(self) -> int:
        return self.network.shape["dim"]

    def latent(self, x_ND: np.ndarray) -> np.ndarray:
        from rq.stack.networks import in_blocks

        self.require_dim(x_ND)
        return in_blocks(self.network.encode, x_ND)

    def restore(self, latent_NE: np.ndarray) -> np.ndarray:
        from rq.stack.networks import in_blocks

        return in_blocks(self.network.decode, latent_NE)

    def tensors(self) -> dict[str, np.ndarray]:
        weights = {f"network.{name}": value.numpy() for name, value in self.network.state_dict().items()}
        return super().tensors() | weights

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"network": self.network.shape}

    @classmethod
    def build(cls, tensors: dict[str, np.ndarray], description: dict[str, Any]) -> EncodedQuantizer:
        from rq.stack.networks import Network, with_weights

        network = with_weights(Network(description["network"]), tensors, prefix="network.")
        return cls(**stack_fields(tensors, description), network=network)


def fit_rqvae(source: Source, options: RqVae, *, seed: int, out: Output) -> ResidualQuantizer:
    """RQ-VAE, or PLUM's when `options` are a `Plum`."""
    x_ND = source.x_ND
    shape = {
        "layers": options.layers, "latent_dim": options.latent_dim, "activation": options.activation,
        "dropout": options.dropout, "batch_norm": options.batch_norm,
        "scale": inverse_scale(x_ND) if options.scale_inputs else 1.0,
    }  # fmt: skip
    extra = {}
    if isinstance(options, Plum):
        pairs_P2 = train_pairs(source, needed_by="plum") if options.contrast_weight else None
        extra = {
            "pairs_P2": pairs_P2, "contrast_weight": options.contrast_weight, "mask_share": options.mask_share,
            "contrast_temperature": options.contrast_temperature,
        }  # fmt: skip
    return _fit(x_ND, shape, options.sizes, options, seed=seed, out=out, extra=extra)


def fit_rqkmeans_plus(source: Source, options: RqKmeansPlus, *, seed: int, out: Output) -> ResidualQuantizer:
    """RQ-Kmeans+ from `source.warm_start`, or from balanced residual k-means made first."""
    x_ND = source.x_ND
    if source.warm_start is None:
        start = fit_balanced(source, options.start, seed=seed, out=out)
    else:
        start, _ = load(source.warm_start)
        if start.kind != "residual":
            raise InputError(
                f"warm_start {source.warm_start} is a quantizer with an encoder -> one of rqkmeans or balanced"
            )
        start.require_dim(x_ND)
        if start.lenses:
            raise InputError(
                f"warm_start {source.warm_start} was made with separate > 0: rqkmeans_plus compares whole vectors "
                "-> one with separate: 0"
            )
        if start.distance != "euclidean":
            raise InputError(
                f"warm_start {source.warm_start} compares by {start.distance}: rqkmeans_plus compares by Euclidean distance "
                "-> one with distance: euclidean"
            )
    shape = {
        "kind": "residual", "layers": options.layers, "latent_dim": x_ND.shape[1], "activation": options.activation,
        "residual_decoder": options.residual_decoder,
    }  # fmt: skip
    return _fit(x_ND, shape, list(start.sizes), options, seed=seed, out=out, start=start)


def fit_rvq(source: Source, options: Rvq, *, seed: int, out: Output) -> ResidualQuantizer:
    """Residual VQ: the identity in place of a network."""
    x_ND = source.x_ND
    shape = {"kind": "identity", "layers": [], "latent_dim": x_ND.shape[1]}
    quantizer = _fit(x_ND, shape, options.sizes, options, seed=seed, out=out)
    return ResidualQuantizer(quantizer.codebooks, distance=quantizer.distance)


def _fit(
    x_ND: np.ndarray,
    shape: dict[str, Any],
    sizes: list[int],
    options: Any,
    *,
    seed: int,
    out: Output,
    start: ResidualQuantizer | None = None,
    extra: dict[str, Any] | None = None,
) -> EncodedQuantizer:
    import torch

    from rq.constructors.autoencoder import Autoencoder, AutoencoderProblem
    from rq.stack.networks import network_shape
    from rq.stack.training import device_of, train

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Autoencoder(network_shape(x_ND.shape[1], **shape), sizes, options.codebook)
    if start is not None:
        model.stack.start_from(start.codebooks, start.prices)
    problem = AutoencoderProblem(
        x_ND,
        model,
        reconstruction_kind=getattr(options, "reconstruction", "mse"),
        quantization_weight=getattr(options, "quantization_weight", 1.0),
        device=device_of(options.loop.device),
        **(extra or {}),
    )
    out.facts |= train(problem, options.loop, out=out, seed=seed, label=type(options).__name__.lower())
    model = model.cpu()
    return EncodedQuantizer(**model.stack.arrays(), network=model.network.eval().requires_grad_(False))


def inverse_scale(x_ND: np.ndarray) -> float:
    """1 / root mean square of all entries; 1 for vectors that are all zero."""
    square = float(np.mean(np.square(x_ND, dtype=np.float64)))
    return square**-0.5 if square > 0 else 1.0


def train_pairs(source: Source, *, needed_by: str) -> np.ndarray:
    """(item, next item) of everything in train, int32 [P, 2]; InputError without a data set or without such pairs.

    With a stride a row's target is not what follows most items of its history: the pairs are those of the whole chains then.
    """
    from rq.quality.measures import held_out_pairs
    from rq.vectors.cooccurrence import read_chains, steps_apart

    if source.data is None:
        raise InputError(f"{needed_by} learns from train sequences -> pass --data data/<set>")
    num_items = len(source.x_ND)
    if has_stride(source.data):
        pairs_P2 = np.stack(steps_apart(*read_chains(source.data, num_items=num_items), steps=1), axis=1)
    else:
        sequences = artifacts.read_sequences(source.data, num_items=num_items)
        pairs_P2 = held_out_pairs(sequences, split="train")
    if not len(pairs_P2):
        raise InputError(f"{source.data} has no train row with a history -> contrast_weight 0, or other data")
    return pairs_P2
