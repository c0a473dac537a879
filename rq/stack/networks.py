"""The networks around a residual stack: multilayer perceptrons, the plain auto-encoder, the residual encoder of RQ-Kmeans+.

Legend: B vectors of a batch, D dimensions of a vector, E of a latent vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.program import InputError

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def mlp(
    widths: list[int],
    *,
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    bias: bool = True,
) -> nn.Sequential:
    """[dropout, linear, (batch norm), activation] per layer, nothing after the last linear one.

    Weights Xavier-normal, biases 0: the layout of LC-Rec's and MiniOneRec's RQ-VAE.
    """
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        linear = nn.Linear(fan_in, fan_out, bias=bias)
        nn.init.xavier_normal_(linear.weight)
        if bias:
            nn.init.zeros_(linear.bias)
        layers += [nn.Dropout(dropout)] if dropout else []
        layers.append(linear)
        if number < len(widths) - 2:
            layers += [nn.BatchNorm1d(fan_out)] if batch_norm else []
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


class Network(nn.Module):
    """Vectors to latent vectors and back. `shape` is what `Network` needs to be made again; see `network_shape`."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.shape = shape
        if shape["kind"] == "identity":
            return
        widths = [shape["dim"], *shape["layers"], shape["latent_dim"]]
        options = {key: shape[key] for key in ("activation", "dropout", "batch_norm", "bias")}
        self.encoder = mlp(widths, **options)
        self.decoder = mlp(widths[::-1], **options)
        if shape["kind"] == "residual":
            nn.init.zeros_(self.encoder[-1].weight)
            if shape["residual_decoder"]:
                nn.init.zeros_(self.decoder[-1].weight)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Latent vectors [B, E]; of a `residual` network x + MLP(x), whose last layer starts at 0: the identity."""
        if self.shape["kind"] == "identity":
            return x_BD
        x_BD = x_BD * self.shape["scale"]
        z_BE = self.encoder(x_BD)
        z_BE = x_BD + z_BE if self.shape["kind"] == "residual" else z_BE
        return nn.functional.normalize(z_BE, dim=1) if self.shape["unit_latent"] else z_BE

    def decode(self, z_BE: Tensor) -> Tensor:
        """Vectors [B, D] of latent ones."""
        if self.shape["kind"] == "identity":
            return z_BE
        out_BD = self.decoder(z_BE)
        return (z_BE + out_BD if self.shape["residual_decoder"] else out_BD) / self.shape["scale"]


def network_shape(
    dim: int,
    *,
    kind: str = "plain",
    layers: list[int],
    latent_dim: int,
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    bias: bool = True,
    unit_latent: bool = False,
    residual_decoder: bool = False,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Description of a network, fit for JSON.

    kind: `plain` (MLP dim -> layers -> latent_dim and its mirror image), `residual` (x + MLP(x); latent_dim = dim) or
    `identity`. unit_latent: latent vectors have length 1. residual_decoder: z + MLP(z), starting at z. scale: vectors are
    multiplied by it on their way in, divided on their way out.
    """
    if (kind != "plain" or residual_decoder) and latent_dim != dim:
        raise ValueError(f"a {kind} network keeps the width: latent_dim {latent_dim}, dim {dim}")
    return {
        "dim": dim, "kind": kind, "layers": list(layers), "latent_dim": latent_dim, "activation": activation,
        "dropout": dropout, "batch_norm": batch_norm, "bias": bias, "unit_latent": unit_latent,
        "residual_decoder": residual_decoder, "scale": scale,
    }  # fmt: skip


@torch.no_grad()
def in_blocks(function: Any, x_ND: Any, *, rows: int = 8192) -> Any:
    """numpy float32 in, numpy float32 out, through a torch function, block by block, on the CPU."""

    blocks = [
        function(torch.from_numpy(np.array(x_ND[start : start + rows], np.float32))).numpy()
        for start in range(0, max(len(x_ND), 1), rows)
    ]
    return np.concatenate(blocks)


def with_weights(module: nn.Module, tensors: dict[str, np.ndarray], *, prefix: str) -> nn.Module:
    """The module with its weights, in evaluation mode and frozen; InputError on any that is missing, extra or misshapen."""
    weights = {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"weights do not fit the network: {reason} -> train again") from None
    return module.eval().requires_grad_(False)
