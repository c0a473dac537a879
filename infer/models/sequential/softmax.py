"""Cross-entropy over all items whose gradient is made with it, block of positions by block: no (positions, items) tensor is kept.

With z the logits, p their softmax and t the target distribution, the slope of the loss by z is p - t: one exponential and
two products of matrices, all in the memory of one block.

Legend: P positions, E width of a state, N items, J steps back, M items of a target distribution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infer.models.sequential.evidence import HistoryEvidence, OwnCounts

BLOCK_VALUES = 1 << 22  # logits held at once: 16 MiB, which caches can help with


def soft_cross_entropy(
    state_PE: Tensor,
    table_NE: Tensor,
    bias_N: Tensor,
    evidence: HistoryEvidence,
    recent_PJ: Tensor,
    target_PM: Tensor,
    share_PM: Tensor,
    own: OwnCounts | None = None,
) -> Tensor:
    """Mean over P of -sum_m share_m log softmax(state table' + bias + evidence)[target_m]; a scalar.

    target_PM int64, share_PM float32 with rows of sum 1. own: what the rows have put into the evidence themselves.
    """
    return _SoftCrossEntropy.apply(
        state_PE,
        table_NE,
        bias_N,
        evidence.alpha_F,
        evidence.bonus_J,
        evidence,
        recent_PJ,
        target_PM,
        share_PM,
        own,
    )


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        state_PE: Tensor,
        table_NE: Tensor,
        bias_N: Tensor,
        alpha_F: Tensor,
        bonus_J: Tensor,
        evidence: HistoryEvidence,
        recent_PJ: Tensor,
        target_PM: Tensor,
        share_PM: Tensor,
        own: OwnCounts | None,
    ) -> Tensor:
        count = len(state_PE)
        state_slope_PE = torch.empty_like(state_PE)
        slopes = [torch.zeros_like(part) for part in (table_NE, bias_N, alpha_F, bonus_J)]
        total = state_PE.new_zeros(())
        step = max(1, BLOCK_VALUES // len(table_NE))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            recent, target, share = recent_PJ[rows], target_PM[rows], share_PM[rows]
            logits_PN = torch.addmm(bias_N, state_PE[rows], table_NE.T)
            features = evidence.features(recent, None if own is None else own.of(rows))
            evidence.add_to(logits_PN, recent, features)
            logits_PN -= logits_PN.amax(1, keepdim=True)
            target_logit_PM = logits_PN.gather(1, target)
            sum_P1 = logits_PN.exp_().sum(1, keepdim=True)
            total += (share * (sum_P1.log() - target_logit_PM)).sum()
            slope_PN = logits_PN.mul_(1 / (count * sum_P1))
            slope_PN.scatter_add_(1, target, share / -count)
            state_slope_PE[rows] = slope_PN @ table_NE
            slopes[0].addmm_(slope_PN.T, state_PE[rows])
            slopes[1] += slope_PN.sum(0)
            for whole, part in zip(slopes[2:], evidence.gradients(slope_PN, recent, features), strict=True):
                whole += part
        ctx.save_for_backward(state_slope_PE, *slopes)
        return total / count

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return *(slope * part for part in ctx.saved_tensors), None, None, None, None, None
