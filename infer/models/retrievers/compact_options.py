"""What decides the shape of a compact generator. Defaults are those of the measured recipe (configs/minionerec/compact.yaml), without its companions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from configs.program import InputError
from infer.models.sequential.options import SasRec, ScorerOptions, SequentialShape, TextOptions


@dataclass
class CompactOptions:
    """The trunk over item positions and what is added to its logits."""

    hidden: int = 128
    """Width of a token's vector and of a state."""
    positions: int = 10
    """Items of a history that are read; a longer one loses its oldest items."""
    layers: int = 2
    """Blocks of causal self-attention."""
    heads: int = 4
    """Of each block; they divide `hidden`."""
    feedforward: int = 4
    """Width of a block's inner layer as a multiple of `hidden`."""
    dropout: float = 0.4
    """Share of activations dropped in trunk and heads in training."""
    embedding_dropout: float | None = None
    """The same of the item vectors that go in; null = as `dropout`."""
    copy: bool = True
    """A learned bonus for the items of the history, one value for each level and number of steps back, folded up the tree."""
    companions: int = 0
    """At every level a token's logit grows with how near the items below it came to the history's items in train rows, a row in
    training not counting itself: so many of each item's companions are known; 0: none"""
    users: int = 0
    """User tokens: a user has the vector of its number modulo this, in front of the history; 0: none"""
    gaps: int = 0
    """Time tokens: how many vectors there are for the days between an item and the one before it (0, 1 - 2, 3 - 6, 7 - 14 ... days,
    the last for all longer ones), beside one for an unknown time; 0: none"""
    own_vectors: bool = False
    """An item has a vector of its own beside those of its tokens, in a history and, as the mean of the items below a node by their train
    rows, in what scores the node."""
    node_text: bool = False
    """An MLP of the mean text vector of a node's items is part of the vector that scores it; needs text.table."""
    item_path: float = 0.0
    """Weight of a softmax over items on the same state in the log-probability (two paths); 0: semantic IDs alone"""

    def __post_init__(self) -> None:
        smallest = {
            name: getattr(self, name) for name in ("hidden", "positions", "layers", "heads", "feedforward")
        }
        if bad := [name for name, value in smallest.items() if value < 1]:
            raise InputError(f"model.{bad[0]} {smallest[bad[0]]} must be at least 1")
        if self.hidden % self.heads:
            raise InputError(
                f"model: {self.heads} heads do not divide hidden {self.hidden} -> a divisor of it"
            )
        if min(self.users, self.gaps, self.companions) < 0 or not 0 <= self.item_path < 1:
            raise InputError(
                f"model: users {self.users}, gaps {self.gaps} and companions {self.companions} must be at least 0, item_path "
                f"{self.item_path} lie in [0, 1)"
            )
        self.scorer()

    def scorer(self) -> ScorerOptions:
        """The same for the trunks of infer/models/sequential, whose history has the user's token in front."""
        return ScorerOptions(
            hidden=self.hidden,
            positions=self.positions + bool(self.users),
            dropout=self.dropout,
            embedding_dropout=self.embedding_dropout,
            tied=True,
        )


@dataclass
class CompactShape:
    """Everything that a model's weights have the shape of; saved with them."""

    num_items: int
    sizes: tuple[int, ...]
    """codes of every level"""
    model: CompactOptions = field(default_factory=CompactOptions)
    text_dim: int = 0
    """columns of the text vectors, 0: no text in vectors"""
    similar: int = 0
    """similar items that the kernel knows of each item; 0: no kernel"""
    companions: int = 0
    """the same of items that came near it in train rows"""

    @property
    def kernels(self) -> int:
        """How many there are; each has two alphas."""
        return bool(self.similar) + bool(self.companions)

    def trunk(self) -> SequentialShape:
        """The shape of the trunk."""
        options = self.model
        blocks = SasRec(options.layers, options.heads, options.feedforward, "gelu")
        return SequentialShape(self.num_items, "sasrec", options.scorer(), blocks)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CompactShape:
        """What `as_json` gave; InputError where that was before an option went."""
        if gone := values["model"].keys() - {one.name for one in fields(CompactOptions)}:
            raise InputError(f"a compact generator of an older version (model.{min(gone)}) -> train it again")
        return cls(**values | {"model": CompactOptions(**values["model"]), "sizes": tuple(values["sizes"])})


def require_text_options(model: CompactOptions, text: TextOptions) -> None:
    """InputError for text options that lack one another."""
    if model.node_text and text.table != "add":
        raise InputError("model.node_text reads the text vectors -> text.table add")
