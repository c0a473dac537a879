"""log sum exp of the logits over the whole vocabulary with a gradient, in blocks of columns: no (rows, vocabulary) tensor.

Backward computes every block's probabilities again: a third more arithmetic than keeping them, and none of their memory.

Legend: R rows, D hidden size, V vocabulary, W columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from infer.search.scoring import elementwise_slope

BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}  # of one block's float32 logits
LEAST_COLUMNS = 4096


def full_normaliser(
    hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, transform: Callable[[Tensor], Tensor]
) -> Tensor:
    """float32 [R]; `transform` is what happens to logits behind the output layer (infer/search/scoring.py)."""
    return _Normaliser.apply(hidden_RD, weight_VD, bias_V, transform)


def _width(rows: int, device: torch.device) -> int:
    return max(LEAST_COLUMNS, BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"]) // (4 * max(rows, 1)))


class _Normaliser(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        transform: Callable[[Tensor], Tensor],
    ) -> Tensor:
        device = hidden_RD.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        ctx.transform = transform
        top_R1 = hidden_RD.new_full((len(hidden_RD), 1), float("-inf"), dtype=torch.float32)
        sum_R1 = torch.zeros_like(top_R1)
        with torch.autocast(device, enabled=False):
            for part in _parts(hidden_RD, weight_VD):
                block_RW = transform(_raw(hidden_RD, weight_VD, bias_V, part, ctx.dtype))
                new_R1 = torch.maximum(top_R1, block_RW.amax(1, keepdim=True))
                sum_R1 = sum_R1 * (top_R1 - new_R1).exp() + (block_RW - new_R1).exp_().sum(1, keepdim=True)
                top_R1 = new_R1
        log_R = (top_R1 + sum_R1.log()).squeeze(1)
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, log_R)
        return log_R

    @staticmethod
    def backward(ctx: Any, slope_R: Tensor) -> tuple:
        hidden_RD, weight_VD, bias_V, log_R = ctx.saved_tensors
        wanted, dtype = ctx.needs_input_grad, ctx.dtype
        hidden_grad = torch.zeros_like(hidden_RD, dtype=torch.float32) if wanted[0] else None
        weight_grad = torch.empty_like(weight_VD, dtype=torch.float32) if wanted[1] else None
        bias_grad = (
            torch.empty_like(bias_V, dtype=torch.float32) if bias_V is not None and wanted[2] else None
        )
        with torch.autocast(hidden_RD.device.type, enabled=False):
            for part in _parts(hidden_RD, weight_VD):
                raw_RW = _raw(hidden_RD, weight_VD, bias_V, part, dtype)
                logits_RW = ctx.transform(raw_RW)
                slope_of = None if logits_RW is raw_RW else elementwise_slope(ctx.transform, raw_RW)
                slope_RW = (logits_RW - log_R[:, None]).exp_().mul_(slope_R[:, None])
                if slope_of is not None:
                    slope_RW *= slope_of
                if bias_grad is not None:
                    bias_grad[part] = slope_RW.sum(0)
                slope_RW = slope_RW.to(dtype)
                if hidden_grad is not None:
                    hidden_grad += slope_RW @ weight_VD[part].to(dtype)
                if weight_grad is not None:
                    weight_grad[part] = slope_RW.t() @ hidden_RD.to(dtype)
        grads = [
            None if grad is None else grad.to(value.dtype)
            for grad, value in (
                (hidden_grad, hidden_RD),
                (weight_grad, weight_VD),
                (bias_grad, bias_V),
            )
        ]
        return *grads, None


def _parts(hidden_RD: Tensor, weight_VD: Tensor) -> list[slice]:
    step = _width(len(hidden_RD), hidden_RD.device)
    return [slice(start, start + step) for start in range(0, len(weight_VD), step)]


def _raw(
    hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, part: slice, dtype: torch.dtype
) -> Tensor:
    bias_W = None if bias_V is None else bias_V[part].to(dtype)
    return torch.nn.functional.linear(hidden_RD.to(dtype), weight_VD[part].to(dtype), bias_W).float()
