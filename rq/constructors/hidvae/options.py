"""Options of HiD-VAE: published values of its Amazon configuration where it has one; differences in configs/hidvae/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from configs.program import InputError
from rq.stack.options import CodebookOptions, LoopOptions, require_sizes


@dataclass
class Align:
    """The tag alignment: InfoNCE between what the levels so far say and the item's tag."""

    weight: float = 0.15
    """Of the alignment in the loss; 0: none. Published: 0.15 Amazon, 0.5 KuaiRand."""
    temperature: float = 0.1
    """Of the cosine. Published: 0.1 Amazon, 0.08 KuaiRand, 0.07 in the paper."""
    mask_same_tag: bool = True
    """Leave other items with the same tag out of the negatives; false: as published."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.temperature <= 0:
            raise InputError(f"align: weight {self.weight} must be >= 0, temperature {self.temperature} > 0")


@dataclass
class TagLoss:
    """The tag prediction."""

    weight: float = 0.55
    """Of the prediction in the loss; 0: none. Published: 0.55 Amazon, 0.7 KuaiRand."""
    gamma: list[float] = field(default_factory=lambda: [2.7])
    """Focal exponent per level, or one for all; 0 is cross-entropy. Published: 2.7 Amazon, 2.5 KuaiRand."""
    alpha: list[float] = field(default_factory=lambda: [0.24])
    """Factor of the loss per level, or one for all."""
    smoothing: float = 0.13
    """Share of a target that is spread over all classes, before `smoothing_rule`."""
    smoothing_rule: Literal["published", "fixed"] = "published"
    """`published` adds 0.015 gamma + 0.05 classes / 100 and stops at 0.25; `fixed` takes it as it is."""
    balance: Literal["none", "inverse_sqrt", "effective"] = "none"
    """Weight of rare classes: none, 1 / sqrt(count), or by effective number (Cui et al. 2019)."""
    mixup: Literal["none", "features", "logits"] = "none"
    """Mix items before the head, or their logits (published); targets are mixed alike."""
    mixup_alpha: float = 0.2
    """Beta(a, a) of the shares."""
    noise_views: int = 0
    """Views with Gaussian noise whose mean probability is measured beside the plain one; 0: none. Published: 5."""
    noise_scale: float = 0.05
    """Standard deviation of that noise, as a share of the vectors' root mean square."""
    hidden: int = 256
    """Width of the first head's hidden layer; level l has (1 + l) times as much."""
    blocks: int = 2
    """Residual blocks of a head."""
    gate: bool = True
    """A sigmoid gate on a head's input."""
    projector: int = 512
    """Hidden width of the tag projectors."""
    dropout: float = 0.4
    """In heads and projectors; grows by 0.075 per level up to 0.55. Published: 0.4 Amazon, 0.25 KuaiRand."""
    learning_rate_factor: float = 1.0
    """Of the heads' learning rate against the loop's."""
    learning_rate_growth: float = 0.1
    """Heads of level l learn at 1 + growth * l times their rate."""
    weight_decay: float | None = None
    """Of the heads; null: the loop's. Published for KuaiRand: 0.05."""
    weight_decay_shrink: float = 0.2
    """Heads of level l decay by weight_decay / (1 + shrink * l)."""

    def __post_init__(self) -> None:
        if (
            min(self.weight, self.smoothing, *self.gamma, *self.alpha, self.noise_scale) < 0
            or self.smoothing >= 1
        ):
            raise InputError("tags: weight, gamma, alpha and noise_scale must be >= 0, smoothing in [0, 1)")
        if not self.gamma or not self.alpha or not 0 <= self.dropout < 1 or self.mixup_alpha <= 0:
            raise InputError("tags: gamma and alpha need a value, dropout lies in [0, 1), mixup_alpha > 0")
        if min(self.hidden, self.projector) < 1 or min(self.blocks, self.noise_views) < 0:
            raise InputError(
                f"tags: hidden {self.hidden} and projector {self.projector} must be >= 1, blocks {self.blocks} and "
                f"noise_views {self.noise_views} >= 0"
            )
        if min(self.learning_rate_growth, self.weight_decay_shrink) < 0 or self.learning_rate_factor <= 0:
            raise InputError(
                "tags: learning_rate_growth and weight_decay_shrink must be >= 0, learning_rate_factor > 0"
            )

    @staticmethod
    def of_level(values: Sequence[float], level: int) -> float:
        """The value of a level: its own, or the only one."""
        return values[level] if len(values) > 1 else values[0]


@dataclass
class Unique:
    """The repulsion of items that share a whole semantic ID."""

    weight: float = 1.5
    """Of the repulsion in the loss; 0: none. Published: 1.5 Amazon, 0.5 KuaiRand."""
    margin: float = 0.0
    """Cosine up to which colliding items may stay alike. Published: 0 Amazon, 0.5 KuaiRand, 0.9 in the paper."""
    form: Literal["cosine", "distance"] = "distance"
    """`cosine`, as published: max(0, cos - margin), which hardly moves near-duplicates; `distance`: max(0, 1 - |z - z'| / reach)."""
    reach: float = 0.3
    """Distance of latent vectors from which on colliding items are left alone; for `distance`."""
    mined_pairs: int = 64
    """Colliding pairs of the whole catalogue that join each step; 0: those of the batch alone."""
    mine_every: int = 1
    """Epochs between searches of the catalogue."""

    def __post_init__(self) -> None:
        if self.reach <= 0:
            raise InputError(f"unique: reach {self.reach} must be > 0")
        if self.weight < 0 or not -1 <= self.margin < 1 or self.mined_pairs < 0 or self.mine_every < 1:
            raise InputError(
                f"unique: weight {self.weight} and mined_pairs {self.mined_pairs} must be >= 0, margin {self.margin} in "
                f"[-1, 1), mine_every {self.mine_every} >= 1"
            )


@dataclass
class HidVaeOptions:
    """Options of HiD-VAE."""

    sizes: list[int] = field(default_factory=lambda: [256, 256, 256])
    """Codes per level, coarse to fine; at least as many levels as tags have."""
    latent_dim: int = 32
    """Width of the latent vector."""
    layers: list[int] = field(default_factory=lambda: [512, 256, 128])
    """Hidden widths of the encoder; the decoder mirrors them. SiLU between layers, no bias."""
    dropout: float = 0.0
    """Share of a layer's input that is dropped in training, in encoder and decoder."""
    unit_latent: bool = True
    """Latent vectors have length 1."""
    scale_inputs: bool = True
    """Multiply vectors so that their mean square per dimension is 1 on their way in."""
    binary_columns: int = 0
    """Last columns of the vectors that are 0 or 1 (genre flags): their loss is binary cross-entropy."""
    prefix: Literal["concat", "sum"] = "concat"
    """What tag heads see of levels 0..l: codewords side by side (published code) or added up (paper)."""
    held_out: Literal["items", "tags"] = "items"
    """What training does not see of valid and test items: the `items` at all, or only their `tags`."""
    tag_sources: list[Literal["given", "padding", "graph", "llm", "cluster"]] = field(
        default_factory=lambda: ["given", "padding", "graph", "llm", "cluster"]
    )
    """Tags of these sources are learned; accuracy is measured on `given` ones only, and on all where none is given."""
    align: Align = field(default_factory=Align)
    """Tag alignment."""
    tags: TagLoss = field(default_factory=TagLoss)
    """Tag prediction."""
    unique: Unique = field(default_factory=Unique)
    """Repulsion of colliding items."""
    codebook: CodebookOptions = field(
        default_factory=lambda: CodebookOptions(estimator="rotation", normalise="first", beta=0.4)
    )
    """How codebooks learn."""
    loop: LoopOptions = field(
        default_factory=lambda: LoopOptions(
            epochs=300,
            batch_size=128,
            learning_rate=2.8e-4,
            weight_decay=0.015,
            final_rate=2.5e-4,
            select="last",
        )
    )
    """How the training runs."""

    def __post_init__(self) -> None:
        require_sizes(self.sizes, constructor="hidvae")
        self.codebook.require_levels(len(self.sizes))
        if self.latent_dim < 1 or min(self.layers, default=1) < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"hidvae: latent_dim {self.latent_dim} and layers {self.layers} must be >= 1, dropout {self.dropout} in [0, 1)"
            )
        if self.binary_columns < 0 or not self.tag_sources:
            raise InputError("hidvae: binary_columns must be >= 0, tag_sources at least one source")
        for name in ("gamma", "alpha"):
            if len(getattr(self.tags, name)) not in (1, len(self.sizes)):
                raise InputError(f"hidvae: tags.{name} needs one value, or one per level ({len(self.sizes)})")

    def require_tags(self, levels: int) -> None:
        """InputError when there are more tag levels than codes' levels."""
        if levels > len(self.sizes):
            raise InputError(
                f"hidvae has {len(self.sizes)} levels of codes for {levels} levels of tags -> more sizes, or fewer tag levels"
            )
