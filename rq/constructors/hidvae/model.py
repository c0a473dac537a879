"""HiD-VAE's networks: encoder and decoder around a residual stack, and per level a tag head and a tag projector.

    model = HidVae(shape)          # shape: a JSON-able description, enough to build the same model again
    out = model(x_BD)              # Quantized of the stack, latent vectors, restored vectors
    h_BE = model.prefix(out, 1)    # what levels 0..1 say: codewords side by side (`concat`) or added up (`sum`)
    model.heads[1](h_BE)           # class logits of level 1

Legend: B vectors, D dimensions of a vector, E of a latent vector, H of a head's input, C classes, L levels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rq.stack.codebook import Quantized, ResidualStack
from rq.stack.networks import Network
from rq.stack.options import CodebookOptions


class Forward(NamedTuple):
    """One pass over a batch."""

    latent_BE: Tensor
    quantized: Quantized
    restored_BD: Tensor


class TagHead(nn.Module):
    """Class logits [B, C] from what the levels so far say [B, H].

    A sigmoid gate picks input columns, then a hidden layer, residual bottlenecks of 0.9 of its width, and three layers
    down to the classes, none narrower than they are. Below the first level the gated input is scaled to length 1.
    """

    def __init__(
        self, width: int, classes: int, *, hidden: int, blocks: int, dropout: float, gate: bool, unit: bool
    ) -> None:
        super().__init__()
        self.unit = unit
        if gate:
            low, high = max(1, width // 4), max(1, width // 2)
            self.gate = nn.Sequential(
                nn.Linear(width, low), nn.ReLU(), nn.Linear(low, high), nn.ReLU(), nn.Linear(high, width), nn.Sigmoid()
            )  # fmt: skip
        else:
            self.gate = None
        self.stem = nn.Sequential(
            nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout)
        )
        narrow = max(1, int(0.9 * hidden))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden, narrow),
                nn.LayerNorm(narrow),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(narrow, hidden),
            )
            for _ in range(blocks)
        )
        half, quarter = max(classes, hidden // 2), max(classes, hidden // 4)
        self.out = nn.Sequential(
            nn.Linear(hidden, half), nn.ReLU(), nn.Dropout(dropout), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, classes)
        )  # fmt: skip

    def forward(self, h_BH: Tensor) -> Tensor:
        if self.gate is not None:
            h_BH = h_BH * self.gate(h_BH)
        if self.unit:
            h_BH = functional.normalize(h_BH, dim=1)
        hidden_BH = self.stem(h_BH)
        for block in self.blocks:
            hidden_BH = hidden_BH + block(hidden_BH)
        return self.out(hidden_BH)


def tag_projector(dim: int, width: int, *, hidden: int, dropout: float) -> nn.Sequential:
    """Tag vectors [B, dim] to the space of a level's prefix [B, width]."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.LayerNorm(width)
    )  # fmt: skip


class HidVae(nn.Module):
    """The whole model. `shape`: network (see `rq.stack.networks.network_shape`), sizes (codes per level), codebook (a mapping of
    CodebookOptions), classes (per tag level), prefix (`concat` or `sum`), head (hidden, blocks, dropout, gate, projector)
    and binary_columns."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.shape = shape
        network, sizes, classes, head = (shape[name] for name in ("network", "sizes", "classes", "head"))
        latent, dim = network["latent_dim"], network["dim"]
        self.network = Network(network)
        self.stack = ResidualStack(sizes, latent, CodebookOptions(**shape["codebook"]))
        widths = [
            latent * (level + 1) if shape["prefix"] == "concat" else latent for level in range(len(sizes))
        ]
        self.heads, self.projectors = nn.ModuleList(), nn.ModuleList()
        for level, count in enumerate(classes):
            dropout = min(0.55, head["dropout"] + 0.075 * level) if head["dropout"] else 0.0
            self.heads.append(
                TagHead(
                    widths[level],
                    count,
                    hidden=head["hidden"] * (level + 1),
                    blocks=head["blocks"],
                    dropout=dropout,
                    gate=head["gate"],
                    unit=level > 0,
                )
            )
            self.projectors.append(
                tag_projector(dim, widths[level], hidden=head["projector"], dropout=dropout)
            )

    @property
    def num_tag_levels(self) -> int:
        return len(self.heads)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Latent vectors [B, E]."""
        return self.network.encode(x_BD)

    def decode(self, latent_BE: Tensor) -> Tensor:
        """Vectors [B, D]: numbers at length 1, binary columns as logits."""
        out_BD, numbers = (
            self.network.decode(latent_BE),
            self.network.shape["dim"] - self.shape["binary_columns"],
        )
        return torch.cat([functional.normalize(out_BD[:, :numbers], dim=1), out_BD[:, numbers:]], dim=1)

    def forward(self, x_BD: Tensor, *, generator: torch.Generator | None = None) -> Forward:
        latent_BE = self.encode(x_BD)
        quantized = self.stack(latent_BE, generator=generator)
        return Forward(latent_BE, quantized, self.decode(quantized.quantized_BE))

    def prefix(self, levels_BLE: Tensor, level: int) -> Tensor:
        """What levels 0..level say [B, H], from codewords [B, L, E]."""
        upto_BLE = levels_BLE[:, : level + 1]
        return upto_BLE.flatten(1) if self.shape["prefix"] == "concat" else upto_BLE.sum(1)

    def logits(self, levels_BLE: Tensor) -> list[Tensor]:
        """Class logits [B, C] of every tag level."""
        return [head(self.prefix(levels_BLE, level)) for level, head in enumerate(self.heads)]
