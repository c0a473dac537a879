"""What decides the shape of a sequential model. Defaults are the published ones (MiniOneRec's small baselines).

The option groups of the trunks are named as the trunks are: `sasrec`, `gru4rec`, `caser`, `hstu`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from configs.program import InputError
from rq.vectors.embeddings import TEXT_FIELDS, Tfidf

TRUNKS = ("sasrec", "gru4rec", "caser", "hstu")
Trunk = Literal["sasrec", "gru4rec", "caser", "hstu"]


@dataclass
class SasRec:
    """Causal self-attention (Kang and McAuley 2018)."""

    layers: int = 1
    """Blocks."""
    heads: int = 1
    """Of each block; they divide `hidden`."""
    feedforward: int = 1
    """Width of the inner layer as a multiple of `hidden`."""
    activation: Literal["relu", "gelu"] = "relu"
    """Of the inner layer."""


@dataclass
class Gru4Rec:
    """Gated recurrent units (Hidasi et al. 2016)."""

    layers: int = 1
    """Stacked units."""


@dataclass
class Caser:
    """Convolutions over the history as an image (Tang and Wang 2018)."""

    filters: int = 16
    """Horizontal filters of each height."""
    heights: list[int] = field(default_factory=lambda: [2, 3, 4])
    """How many items a horizontal filter spans."""
    vertical: int = 1
    """Vertical filters: weighted sums over the places of the history."""


@dataclass
class Hstu:
    """Pointwise gated attention with relative positions (Zhai et al. 2024), without its time buckets."""

    layers: int = 2
    """Blocks."""
    heads: int = 1
    """Of each block; they divide `hidden`."""


@dataclass
class ScorerOptions:
    """What all trunks share."""

    hidden: int = 32
    """Width of an item's vector and of a state."""
    positions: int = 10
    """Items of a history that are read; a longer one loses its oldest items."""
    dropout: float = 0.3
    """Share of activations dropped inside the trunk in training."""
    embedding_dropout: float | None = None
    """The same of the item vectors that go in; null = as `dropout`."""
    tied: bool = False
    """Score items by the vectors that go in; false: by a table of their own, as published."""
    bias: Literal["zero", "popularity"] = "zero"
    """What an item's bias starts as: 0, or the logarithm of its share of the train rows."""
    copy: bool = False
    """A learned bonus for the items of the history, one value for each number of steps back."""
    companions: int = 0
    """The logit of an item grows with how near it came to the history's items in train rows, a row in training not counting itself:
    so many of each item's companions are known; 0: none"""

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.positions < 1 or self.companions < 0:
            raise InputError(
                f"scorer: hidden {self.hidden} and positions {self.positions} must be at least 1, companions {self.companions} at least 0"
            )
        shares = {"dropout": self.dropout, "embedding_dropout": self.embedding_dropout or 0.0}
        if bad := [name for name, share in shares.items() if not 0 <= share < 1]:
            raise InputError(f"scorer.{bad[0]} {shares[bad[0]]} must lie in [0, 1)")


@dataclass
class TextOptions:
    """What the model is told of item texts. Nothing, unless `table`, `kernel` or the loss's `neighbour_share` asks."""

    table: Literal["none", "add", "init"] = "none"
    """add: an MLP of the text vector is part of every item vector; init: item vectors start as their text vectors, a compact generator's
    tokens as the mean text vector of the items that have them"""
    dim: int = 256
    """Dimensions of the text vectors (TF-IDF, reduced by SVD)."""
    kernel: bool = False
    """The logit of an item grows with the similarity of its text to that of the last item and of the whole history."""
    similar: int = 256
    """Most similar items of each item that the kernel knows."""
    fields: list[str] = field(default_factory=lambda: list(TEXT_FIELDS))
    """Columns of items.parquet that make an item's text."""
    tfidf: Tfidf = field(default_factory=Tfidf)
    """Which terms count."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.similar < 1 or not self.fields:
            raise InputError(
                f"text: dim {self.dim} and similar {self.similar} must be at least 1, fields not empty"
            )


@dataclass
class SequentialShape:
    """Everything that a model's weights have the shape of; saved with them."""

    num_items: int
    trunk: Trunk
    scorer: ScorerOptions
    trunk_options: Any
    """the option group of the trunk"""
    text_table: Literal["none", "add", "init"] = "none"
    text_dim: int = 0
    """columns of the text vectors, 0 where they are not kept"""
    similar: int = 0
    """similar items that the kernel knows of each item; 0: no kernel"""
    companions: int = 0
    """the same of items that came near it in train rows"""

    def __post_init__(self) -> None:
        hidden, options = self.scorer.hidden, self.trunk_options
        heads = getattr(options, "heads", 1)
        if heads < 1 or hidden % heads:
            raise InputError(
                f"{self.trunk}: {heads} heads do not divide scorer.hidden {hidden} -> a divisor of it"
            )
        smallest = min(
            [getattr(options, name, 1) for name in ("layers", "feedforward", "filters", "vertical")]
        )
        heights = getattr(options, "heights", [1])
        if smallest < 1 or not heights or min(heights) < 1:
            raise InputError(f"{self.trunk}: {options} -> every number must be at least 1")
        if max(heights) > self.scorer.positions:
            raise InputError(
                f"caser.heights {heights} are more than scorer.positions {self.scorer.positions} -> smaller heights"
            )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SequentialShape:
        trunk_options = {"sasrec": SasRec, "gru4rec": Gru4Rec, "caser": Caser, "hstu": Hstu}[values["trunk"]]
        nested = {
            "scorer": ScorerOptions(**values["scorer"]),
            "trunk_options": trunk_options(**values["trunk_options"]),
        }
        return cls(**values | nested)
