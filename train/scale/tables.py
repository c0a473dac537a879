"""The table of token vectors as losses read it, with one dense gradient whatever is read of it.

A slice of a table of 150,000 rows has a gradient of the table's size, and so have the looked up embeddings of a tied model:
each more of them is that much memory and two passes over it. Here the rows of some tokens, log sum exp over all of them
(`table_scores`) and the embeddings (`lookups_of`) write into one; where the table has a gradient already (micro-batches of one
step) and no other process waits for this one's, they add to that in place, as Megatron-LM's fused accumulation does.

log sum exp is taken in blocks of columns: no (rows, vocabulary) tensor. Backward needs every block's probabilities again; they
are kept where all of them fit KEPT_BYTES, else computed anew, a third more arithmetic.

Legend: R rows of hidden states, D hidden size, V vocabulary, C columns that are read, W columns of a block, B rows of a batch,
T slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from infer.search.scoring import elementwise_slope

BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}  # of one block's float32 logits
KEPT_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}  # of all probabilities, between forward and backward
LEAST_COLUMNS = 4096


def table_scores(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    transform: Callable[[Tensor], Tensor],
    *,
    columns_C: Tensor,
    normalise: bool,
    table: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(rows weight[columns] [C, D]; log sum exp over the vocabulary float32 [R], None unless asked for).

    `transform` is what happens to logits behind the output layer (infer/search/scoring.py). table: the parameter that weight_VD is
    or stands for (`Lookups.table`), for gradients in place.
    """
    bytes_needed = 4 * len(hidden_RD) * len(weight_VD)
    keep = torch.is_grad_enabled() and bytes_needed <= _of(KEPT_BYTES, hidden_RD.device)
    rows_CD, log_R = _Table.apply(hidden_RD, weight_VD, bias_V, transform, columns_C, normalise, keep, table)
    return rows_CD, log_R if normalise else None


class Lookups:
    """weight: the table through the last lookup, for whoever else reads it in the same pass; None before one.

    table: the parameter itself.
    """

    def __init__(self) -> None:
        self.weight: Tensor | None = None
        self.table: Tensor | None = None

    def __call__(self, table: nn.Embedding, inputs: tuple[Tensor, ...], output_BTD: Tensor) -> Tensor:
        """A forward hook, before all others (dropout acts on what it gives): the same vectors, whose gradient goes into that of `weight`."""
        output_BTD, self.weight = _Lookup.apply(table.weight, inputs[0], table.padding_idx)
        self.table = table.weight
        return output_BTD


@contextmanager
def lookups_of(model: Any) -> Iterator[Lookups]:
    """Within it a forward of `model` leaves `weight` for its output layer, where both read one plain table that trains.

    Not under a sharded table (DeepSpeed ZeRO-3, FSDP2), nor where an embedding does more than look up: weight stays None.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight, lookups = table.weight, Lookups()
    plain = type(table) is nn.Embedding and table.max_norm is None and not table.scale_grad_by_freq
    whole = type(weight) is nn.Parameter and not hasattr(weight, "ds_id")
    tied = head is not None and head.weight is weight
    if not (plain and whole and tied and weight.requires_grad and torch.is_grad_enabled()):
        yield lookups
        return
    hook = table.register_forward_hook(lookups, prepend=True)
    try:
        yield lookups
    finally:
        hook.remove()


def _held(table_VD: Tensor | None) -> Tensor | None:
    """The gradient that a backward pass may add to in place; None where there is none, or where others watch for it."""
    if table_VD is None or not table_VD.is_leaf or table_VD.grad is None:
        return None
    grad_VD, distributed = table_VD.grad, torch.distributed
    watched = bool(table_VD._backward_hooks) or bool(table_VD._post_accumulate_grad_hooks)
    # DDP and DeepSpeed wait for the gradient to arrive by a hook that no attribute of the parameter shows.
    watched = watched or (distributed.is_available() and distributed.is_initialized())
    plain = grad_VD.layout == torch.strided and grad_VD.dtype == torch.float32 and type(grad_VD) is Tensor
    return grad_VD if plain and not watched else None


class _Lookup(torch.autograd.Function):
    """(weight[ids], weight): the gradient of the second takes that of the first."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids_BT: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids_BT)
        ctx.padding, ctx.table = padding, weight_VD
        ctx.set_materialize_grads(False)
        return nn.functional.embedding(ids_BT, weight_VD), weight_VD.view_as(weight_VD)

    @staticmethod
    def backward(ctx: Any, slope_BTD: Tensor | None, grad_VD: Tensor | None) -> tuple:
        ids_S = ctx.saved_tensors[0].flatten()
        held_VD = _held(ctx.table) if grad_VD is None else None
        if grad_VD is None:
            grad_VD = torch.zeros_like(ctx.table) if held_VD is None else held_VD
        if slope_BTD is not None:
            slope_SD = slope_BTD.flatten(0, -2)
            if ctx.padding is not None:  # torch.nn.Embedding never moves that row
                slope_SD = slope_SD.masked_fill((ids_S == ctx.padding)[:, None], 0.0)
            grad_VD.index_add_(0, ids_S, slope_SD.to(grad_VD.dtype))
        return None if held_VD is not None else grad_VD, None, None


def _of(budget: dict[str, int], device: torch.device) -> int:
    return budget.get(device.type, budget["cuda"])


class _Table(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        transform: Callable[[Tensor], Tensor],
        columns_C: Tensor,
        normalise: bool,
        keep: bool,
        table: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_RD.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        ctx.transform, ctx.normalise, ctx.kept = transform, normalise, [] if keep else None
        ctx.table = table
        log_R = hidden_RD.new_zeros(len(hidden_RD), dtype=torch.float32)
        if normalise:
            with torch.autocast(device, enabled=False):
                log_R = _log_sum_exp(ctx, hidden_RD, weight_VD, bias_V)
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, log_R, columns_C)
        return weight_VD[columns_C], log_R

    @staticmethod
    def backward(ctx: Any, rows_slope_CD: Tensor, slope_R: Tensor) -> tuple:
        hidden_RD, weight_VD, bias_V, _, columns_C = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        held_VD = _held(ctx.table) if wanted[1] else None
        weight_grad = held_VD
        if wanted[1] and held_VD is None:
            weight_grad = torch.zeros_like(weight_VD, dtype=torch.float32)
        bias_grad = (
            torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and wanted[2] else None
        )
        hidden_grad = None
        if ctx.normalise:
            hidden_grad = torch.zeros_like(hidden_RD, dtype=torch.float32) if wanted[0] else None
            with torch.autocast(hidden_RD.device.type, enabled=False):
                _slopes(ctx, slope_R, hidden_grad, weight_grad, bias_grad)
        if weight_grad is not None:
            weight_grad.index_add_(0, columns_C, rows_slope_CD.float())
        given = None if held_VD is not None else weight_grad
        grads = [
            None if grad is None else grad.to(value.dtype)
            for grad, value in ((hidden_grad, hidden_RD), (given, weight_VD), (bias_grad, bias_V))
        ]
        return *grads, None, None, None, None, None


def _log_sum_exp(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """float32 [R]; every block's (exp(logits - top), top) goes to ctx.kept, where it is a list."""
    top_R1 = hidden_RD.new_full((len(hidden_RD), 1), float("-inf"), dtype=torch.float32)
    sum_R1 = torch.zeros_like(top_R1)
    for part in _parts(hidden_RD, weight_VD):
        raw_RW = _raw(hidden_RD, weight_VD, bias_V, part, ctx.dtype)
        block_RW = ctx.transform(raw_RW)
        if block_RW is not raw_RW:  # backward needs the logits before it as well
            ctx.kept = None
        new_R1 = torch.maximum(top_R1, block_RW.amax(1, keepdim=True))
        block_RW = block_RW.sub_(new_R1).exp_()
        sum_R1 = sum_R1 * (top_R1 - new_R1).exp() + block_RW.sum(1, keepdim=True)
        top_R1 = new_R1
        if ctx.kept is not None:
            ctx.kept.append((block_RW, new_R1))
    return (top_R1 + sum_R1.log()).squeeze(1)


def _slopes(
    ctx: Any,
    slope_R: Tensor,
    hidden_grad: Tensor | None,
    weight_grad: Tensor | None,
    bias_grad: Tensor | None,
) -> None:
    """Add the gradients of log sum exp, block by block."""
    hidden_RD, weight_VD, bias_V, log_R, _ = ctx.saved_tensors
    used_RD = hidden_RD.to(ctx.dtype)
    for place, part in enumerate(_parts(hidden_RD, weight_VD)):
        if ctx.kept is None:
            raw_RW = _raw(hidden_RD, weight_VD, bias_V, part, ctx.dtype)
            logits_RW = ctx.transform(raw_RW)
            slope_of = None if logits_RW is raw_RW else elementwise_slope(ctx.transform, raw_RW)
            slope_RW = (logits_RW - log_R[:, None]).exp_().mul_(slope_R[:, None])
            slope_RW = slope_RW if slope_of is None else slope_RW.mul_(slope_of)
        else:
            kept_RW, top_R1 = ctx.kept[place]
            slope_RW = kept_RW * (slope_R[:, None] * (top_R1 - log_R[:, None]).exp())
        if bias_grad is not None:
            bias_grad[part] = slope_RW.sum(0)
        slope_RW = slope_RW.to(ctx.dtype)
        if hidden_grad is not None:
            hidden_grad += slope_RW @ weight_VD[part].to(ctx.dtype)
        if weight_grad is not None and weight_grad.dtype == ctx.dtype:
            weight_grad[part].addmm_(slope_RW.t(), used_RD)
        elif weight_grad is not None:
            weight_grad[part] += slope_RW.t() @ used_RD


def _parts(hidden_RD: Tensor, weight_VD: Tensor) -> list[slice]:
    step = max(LEAST_COLUMNS, _of(BLOCK_BYTES, hidden_RD.device) // (4 * max(len(hidden_RD), 1)))
    return [slice(start, start + step) for start in range(0, len(weight_VD), step)]


def _raw(
    hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, part: slice, dtype: torch.dtype
) -> Tensor:
    bias_W = None if bias_V is None else bias_V[part].to(dtype)
    return torch.nn.functional.linear(hidden_RD.to(dtype), weight_VD[part].to(dtype), bias_W).float()
