"""Trunks: item vectors of a history in, a state for every position out that has seen this and the older items alone.

Histories are padded on the right, so nothing of the padding reaches a position before it: every row of a batch has the
states that it has alone, and one pass gives the states of all prefixes of a history.

Legend: B histories, T positions of the batch, J positions of the model, D width of an item vector, H heads, F filters,
E width of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from infer.models.sequential import options
from infer.models.sequential.options import SequentialShape


class AttentionBlock(nn.Module):
    """Self-attention and two linear layers, each behind a layer norm and beside a residual; the scale is that of a head."""

    def __init__(self, hidden: int, dropout: float, chosen: options.SasRec) -> None:
        super().__init__()
        self.heads, self.dropout = chosen.heads, dropout
        self.before_attention, self.before_layers = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, chosen.feedforward * hidden)
        self.down = nn.Linear(chosen.feedforward * hidden, hidden)
        self.activation = functional.gelu if chosen.activation == "gelu" else functional.relu

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        qkv = self.qkv(self.before_attention(x_BTD)).view(batch, length, 3, self.heads, width // self.heads)
        q_BHTD, k_BHTD, v_BHTD = qkv.permute(2, 0, 3, 1, 4)
        y_BHTD = functional.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
        y_BTD = self.out(y_BHTD.transpose(1, 2).reshape(batch, length, width))
        x_BTD = x_BTD + functional.dropout(y_BTD, self.dropout, self.training)
        y_BTD = self.down(self.activation(self.up(self.before_layers(x_BTD))))
        return x_BTD + functional.dropout(y_BTD, self.dropout, self.training)


class GatedBlock(nn.Module):
    """HSTU: SiLU attention weights over the number of positions, gated by a projection of the input.

    u, v, q, k = silu(linear(norm(x))); y = linear(norm(silu(q k' / sqrt(d) + r) v / J) * u); r depends on the distance.
    """

    def __init__(self, hidden: int, dropout: float, positions: int, chosen: options.Hstu) -> None:
        super().__init__()
        self.heads, self.dropout, self.positions = chosen.heads, dropout, positions
        self.before, self.after = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.uvqk, self.out = nn.Linear(hidden, 4 * hidden), nn.Linear(hidden, hidden)
        self.distance_HJ = nn.Parameter(torch.randn(chosen.heads, positions) * 0.02)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        parts = functional.silu(self.uvqk(self.before(x_BTD)))
        parts = parts.view(batch, length, 4, self.heads, width // self.heads)
        u_BTHD, v_BTHD, q_BTHD, k_BTHD = parts.unbind(2)
        steps = torch.arange(length, device=x_BTD.device)
        back_TT = steps[:, None] - steps
        score_BHTT = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BTHD) * (width // self.heads) ** -0.5
        score_BHTT = score_BHTT + self.distance_HJ[:, back_TT.clamp(min=0)]
        weight_BHTT = functional.silu(score_BHTT) * (back_TT >= 0) / self.positions
        mixed_BTD = torch.einsum("bhts,bshd->bthd", weight_BHTT, v_BTHD).reshape(batch, length, width)
        y_BTD = self.out(self.after(mixed_BTD) * u_BTHD.reshape(batch, length, width))
        return x_BTD + functional.dropout(y_BTD, self.dropout, self.training)


class BlockTrunk(nn.Module):
    """Learned positions, blocks, a last layer norm: SASRec and HSTU."""

    def __init__(self, shape: SequentialShape) -> None:
        super().__init__()
        scorer, chosen = shape.scorer, shape.trunk_options
        self.position_JD = nn.Parameter(torch.randn(scorer.positions, scorer.hidden) * 0.02)
        self.embedding_dropout = _embedding_dropout(scorer)
        blocks = (
            AttentionBlock(scorer.hidden, scorer.dropout, chosen)
            if shape.trunk == "sasrec"
            else GatedBlock(scorer.hidden, scorer.dropout, scorer.positions, chosen)
            for _ in range(chosen.layers)
        )
        self.blocks, self.norm, self.width = nn.ModuleList(blocks), nn.LayerNorm(scorer.hidden), scorer.hidden

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.position_JD[: x_BTD.shape[1]]
        x_BTD = functional.dropout(x_BTD, self.embedding_dropout, self.training)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)


class RecurrentTrunk(nn.Module):
    """GRU4Rec."""

    def __init__(self, shape: SequentialShape) -> None:
        super().__init__()
        scorer, layers = shape.scorer, shape.trunk_options.layers
        self.embedding_dropout, self.width = _embedding_dropout(scorer), scorer.hidden
        between = scorer.dropout if layers > 1 else 0.0
        self.gru = nn.GRU(scorer.hidden, scorer.hidden, layers, batch_first=True, dropout=between)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.gru(functional.dropout(x_BTD, self.embedding_dropout, self.training))[0]


class ConvolutionTrunk(nn.Module):
    """Caser: maxima of horizontal filters and sums of vertical ones over the places of each prefix, zeros behind it."""

    def __init__(self, shape: SequentialShape) -> None:
        super().__init__()
        scorer, chosen = shape.scorer, shape.trunk_options
        self.positions, self.dropout = scorer.positions, scorer.dropout
        self.embedding_dropout = scorer.embedding_dropout or 0.0
        self.horizontal = nn.ModuleList(
            nn.Conv1d(scorer.hidden, chosen.filters, height) for height in chosen.heights
        )
        self.vertical = nn.Linear(scorer.positions, chosen.vertical)
        self.width = chosen.filters * len(chosen.heights) + chosen.vertical * scorer.hidden

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        x_BTD = functional.dropout(x_BTD, self.embedding_dropout, self.training)
        seen_TT = torch.ones(length, length, dtype=torch.bool, device=x_BTD.device).tril()
        prefix_BTTD = x_BTD[:, None] * seen_TT[:, :, None]
        place_PJD = functional.pad(prefix_BTTD.flatten(0, 1), (0, 0, 0, self.positions - length))
        place_PDJ = place_PJD.transpose(1, 2)
        maxima = [functional.relu(filters(place_PDJ)).amax(2) for filters in self.horizontal]
        sums = self.vertical(place_PDJ).flatten(1)
        state_PE = functional.dropout(torch.cat([*maxima, sums], dim=1), self.dropout, self.training)
        return state_PE.view(batch, length, self.width)


def make_trunk(shape: SequentialShape) -> nn.Module:
    """The trunk of a shape; its `width` is that of its states."""
    kinds = {"gru4rec": RecurrentTrunk, "caser": ConvolutionTrunk}
    return kinds.get(shape.trunk, BlockTrunk)(shape)


def _embedding_dropout(scorer: options.ScorerOptions) -> float:
    return scorer.dropout if scorer.embedding_dropout is None else scorer.embedding_dropout
