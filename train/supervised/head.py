"""The output layer and its cross-entropy on label positions, in blocks of labels: no (labels, vocabulary) tensor is kept.

Each block's logits are made, scored and turned into their gradient at once, so the peak is one block instead of logits,
log-probabilities and gradients of every label.

Legend: M labels, D hidden size, V vocabulary, R rows that train where not all do, m labels of a block, S entries of soft labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infer.search.scoring import elementwise_slope, logits_transform
from train.new_rows import NAME

BLOCK_BYTES = {
    "cpu": 4 * 2**20,
    "cuda": 512 * 2**20,
}  # of one block's float32 logits: the processor's cache; memory
LEAST_ROWS = 256  # of a block: fewer would read the weights more often than they compute with them
IGNORED = -100


class SoftLabels(NamedTuple):
    """Distributions in place of single tokens: label m has those of the entries `offsets[m] : offsets[m + 1]`, or its own token
    where there are none.

    offsets int64 [M + 1]; tokens int64 [S]; shares float32 [S], which sum to 1 over the entries of a label.
    """

    offsets: Tensor
    tokens: Tensor
    shares: Tensor


def head_loss(
    model: Any,
    hidden_MD: Tensor,
    labels_M: Tensor,
    weights_M: Tensor,
    *,
    smoothing: float = 0.0,
    soft: SoftLabels | None = None,
    weight_VD: Tensor | None = None,
) -> Tensor:
    """Sum over labels of weight * ((1 - s) * -log p(label) + s * mean over V of -log p); float32 scalar.

    -log p(label) of a soft label is sum_i share_i * -log p(token_i).

    Where only some rows of the output table train (train/new_rows.py), they get their gradient and it alone is computed.
    weight_VD: the output layer's weight as another reader of it passed it on (train/scale/tables.py).
    Labels IGNORED count nothing. The model's own scale and soft cap of logits are applied (Gemma 2, Granite, Cohere).
    s = 0.1, V = 4, logits 0: log 4 = 1.386 whatever the label is.
    """
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    transform = logits_transform(model.config)
    weights_M = weights_M * (labels_M != IGNORED)
    rows = getattr(model, NAME, None)
    rows_RD, ids_R = (None, None) if rows is None else (rows.head, rows.ids_R)
    return _HeadLoss.apply(
        hidden_MD,
        head.weight if weight_VD is None else weight_VD,
        bias,
        rows_RD,
        ids_R,
        labels_M.clamp(min=0),
        weights_M,
        smoothing,
        transform,
        soft,
    )


class _HeadLoss(torch.autograd.Function):
    """Forward makes the gradients as well, for a loss of slope one; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        rows_RD: Tensor | None,
        ids_R: Tensor | None,
        labels_M: Tensor,
        weights_M: Tensor,
        smoothing: float,
        transform: Callable[[Tensor], Tensor],
        soft: SoftLabels | None,
    ) -> Tensor:
        inputs = (hidden_MD, weight_VD, bias_V, rows_RD)
        wanted = ctx.needs_input_grad
        device = hidden_MD.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight_VD.dtype
        total = hidden_MD.new_zeros((), dtype=torch.float32)
        grads = [
            torch.zeros_like(value, dtype=torch.float32) if value is not None and needed else None
            for value, needed in zip(inputs, wanted, strict=False)
        ]
        target = _Targets(labels_M, soft, smoothing)
        step = max(LEAST_ROWS, BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"]) // (4 * len(weight_VD)))
        with torch.autocast(device, enabled=False):
            used_VD = weight_VD.to(dtype)
            for start in range(0, len(hidden_MD), step):
                part = slice(start, start + step)
                hidden_mD = hidden_MD[part].to(dtype)
                loss, slope_mV = _block(
                    hidden_mD, used_VD, bias_V, target.of(part), weights_M[part], smoothing, transform
                )
                total += loss
                slope_mV = slope_mV.to(dtype)
                if grads[0] is not None:
                    grads[0][part] = slope_mV @ used_VD
                if grads[1] is not None and dtype == torch.float32:
                    grads[1].addmm_(slope_mV.t(), hidden_mD)
                elif grads[1] is not None:
                    grads[1] += slope_mV.t() @ hidden_mD
                if grads[2] is not None:
                    grads[2] += slope_mV.float().sum(0)
                if grads[3] is not None:
                    grads[3] += (slope_mV[:, ids_R].t() @ hidden_mD).float()
        ctx.save_for_backward(*grads)
        ctx.dtypes = [None if value is None else value.dtype for value in inputs]
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple:
        # a slope of one spares a pass over the weights' gradient; asking a GPU for it would cost more than the pass
        unit = slope.device.type == "cpu" and float(slope) == 1
        scaled = [
            None if grad is None else (grad if unit else grad * slope).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None, None, None


class _Targets:
    """The tokens that labels ask for, as (row of the block, token, share) of every entry; what smoothing takes is off."""

    def __init__(self, labels_M: Tensor, soft: SoftLabels | None, smoothing: float) -> None:
        count = len(labels_M)
        row_S, token_S = torch.arange(count, device=labels_M.device), labels_M
        share_S, self.offsets = torch.ones(count, device=labels_M.device), range(count + 1)
        if soft is not None:
            entries_M = soft.offsets.diff()
            hard_M = entries_M == 0
            row_S = torch.cat([row_S[hard_M], torch.repeat_interleave(row_S, entries_M)])
            order_S = row_S.argsort(stable=True)
            row_S = row_S[order_S]
            token_S = torch.cat([token_S[hard_M], soft.tokens])[order_S]
            share_S = torch.cat([share_S[hard_M], soft.shares])[order_S]
            self.offsets = [0, *(entries_M + hard_M).cumsum(0).tolist()]
        self.row_S, self.token_S, self.share_S = row_S, token_S, share_S * (1 - smoothing)

    def of(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        stop = min(part.stop, len(self.offsets) - 1)
        entries = slice(self.offsets[part.start], self.offsets[stop])
        return self.row_S[entries] - part.start, self.token_S[entries], self.share_S[entries]


def _block(
    hidden_mD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target: tuple[Tensor, Tensor, Tensor],
    weights_m: Tensor,
    smoothing: float,
    transform: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """(loss of a block, its slope by the logits before the transform [m, V]); buffers are reused in place."""
    raw_mV = torch.nn.functional.linear(hidden_mD, weight_VD, bias_V).float()
    logits_mV, slope_of = transform(raw_mV), None
    if logits_mV is not raw_mV:
        slope_of = elementwise_slope(transform, raw_mV)
    (row_s, token_s, share_s), size = target, logits_mV.shape[1]
    norm_m = logits_mV.logsumexp(1)
    loss_m = norm_m.index_add(0, row_s, share_s * logits_mV[row_s, token_s], alpha=-1)
    if smoothing:
        loss_m = loss_m - smoothing * logits_mV.mean(1)
    slope_mV = logits_mV.sub_(norm_m[:, None]).exp_()
    if smoothing:
        slope_mV -= smoothing / size
    slope_mV.index_put_((row_s, token_s), -share_s, accumulate=True)
    slope_mV *= weights_m[:, None]
    if slope_of is not None:
        slope_mV *= slope_of
    return (loss_m * weights_m).sum(), slope_mV
