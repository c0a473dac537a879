"""Trie-constrained beam search with the prompt encoded once: beams are branches of one sequence.

One prefill per user, then L - 1 forwards in which the K chosen codes are K query tokens of the same row, appended to the
cache behind the prompt. The cache is never reordered: an ancestor mask tells each branch which earlier slots are its own,
and explicit position ids place all branches of a level at the same position. Only columns that can be legal are scored,
illegal ones are -inf, and nothing is read back to the host during a search.

Score spaces: `full` - log-probabilities under the whole vocabulary (what published systems report); `level` - under the
level's codes; `trie` - under the legal codes of the prefix. Scores are sums over levels.

Differs from beam search in transformers: no row per beam, no prefill per beam, no (rows, vocabulary) tensor; with fewer
legal items than beams it returns fewer instead of illegal or repeated ones. `full` equals it rank for rank.

Legend: B prompts, K beams, L levels, C codes of a level, T prompt tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.program import InputError, NumericError
from infer.trie import SCORE_SPACES, Trie

NORMALISER_CHUNK = 16384  # vocabulary columns per block of the streamed log-sum-exp


@dataclass(frozen=True)
class Beams:
    """Result of a search, best first; rows with fewer legal items than beams have counts_B < K and -inf scores beyond.

    codes_BKL int64, scores_BK float32, nodes_BK int64 (rows of SidTable.sids_SL), counts_B int64.
    """

    codes_BKL: Tensor
    scores_BK: Tensor
    nodes_BK: Tensor
    counts_B: Tensor


@torch.no_grad()
def search(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    trie: Trie,
    beams: int,
    score_space: str = "full",
    *,
    temperature: float = 1.0,
) -> Beams:
    """The `beams` best semantic IDs of each prompt under `model`, a decoder-only Hugging Face model in eval mode.

    temperature divides the logits before normalisation and masking. Raises InputError for an empty prompt or unknown
    score space, NumericError (exit 4) where the model's scores are not finite.
    """
    if beams < 1 or temperature <= 0:
        raise InputError(f"beams {beams} and temperature {temperature} must be positive")
    ids_BT, mask_BT = left_pad(prompt_ids, device=trie.device)
    scorer = LevelScorer(model, trie, score_space, temperature)
    trunk = model.base_model
    lengths_B1 = mask_BT.sum(1, keepdim=True)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    output = trunk(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=True)
    branches = Branches(mask_BT, next(model.parameters()).dtype)
    rows_B1 = torch.arange(len(ids_BT), device=trie.device)[:, None]
    nodes_BK = torch.zeros_like(rows_B1)
    scores_BK = torch.zeros(rows_B1.shape, device=trie.device)
    codes_BKL = torch.empty((*rows_B1.shape, 0), dtype=torch.long, device=trie.device)
    hidden_BKD = output.last_hidden_state[:, -1:]
    for level in range(trie.num_levels):
        step_BKC, child_BKC = scorer(hidden_BKD, level, nodes_BK)
        total = (scores_BK[..., None] + step_BKC).flatten(1)
        scores_BK, flat_BK = total.topk(min(beams, total.shape[1]), dim=1)
        parent_BK, code_BK = flat_BK // trie.sizes[level], flat_BK % trie.sizes[level]
        nodes_BK = child_BKC[rows_B1, parent_BK, code_BK].long().clamp(min=0)
        codes_BKL = torch.cat([codes_BKL[rows_B1, parent_BK], code_BK[..., None]], dim=2)
        if level + 1 < trie.num_levels:
            hidden_BKD = trunk(
                input_ids=trie.tokens[level][code_BK],
                attention_mask=branches.extend(rows_B1, parent_BK),
                position_ids=(lengths_B1 + level).expand_as(code_BK),
                past_key_values=output.past_key_values,
                use_cache=True,
            ).last_hidden_state
    if scores_BK.isnan().any():
        raise NumericError(
            "the model's scores are not finite -> the checkpoint is damaged or training diverged"
        )
    return Beams(codes_BKL, scores_BK, nodes_BK, scores_BK.isfinite().sum(1))


def left_pad(prompts: Sequence[Sequence[int]], *, device: Any, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """(ids int64 [B, T], mask int64 [B, T]) of prompts padded on the left."""
    width = max(map(len, prompts), default=0)
    if not prompts or min(map(len, prompts)) == 0:
        raise InputError("empty prompt -> every prompt needs at least one token")
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


class Branches:
    """Which cache slots each branch may attend to: the prompt, its own ancestors, itself."""

    def __init__(self, mask_BT: Tensor, dtype: torch.dtype) -> None:
        self.prompt_B1T = mask_BT.bool()[:, None]
        self.ancestors: list[Tensor] = []  # per decoded level, bool [B, K, slots of that level]
        self.dtype = dtype

    def extend(self, rows_B1: Tensor, parent_BK: Tensor) -> Tensor:
        """Append one level of slots, one per branch; the additive mask [B, 1, K, T + all slots] of its queries.

        The rows of earlier levels follow the surviving parents, their columns (slots of the cache) never move.
        """
        batch, beams = parent_BK.shape
        own = torch.eye(beams, dtype=torch.bool, device=parent_BK.device).expand(batch, beams, beams)
        self.ancestors = [level[rows_B1, parent_BK] for level in self.ancestors] + [own]
        allowed = torch.cat([self.prompt_B1T.expand(-1, beams, -1), *self.ancestors], dim=2)
        blocked = torch.finfo(self.dtype).min
        return torch.zeros(allowed.shape, dtype=self.dtype, device=allowed.device).masked_fill(
            ~allowed, blocked
        )[:, None]


class LevelScorer:
    """Log-probabilities of a level's codes from hidden states; the head is computed on that level's columns only."""

    def __init__(self, model: Any, trie: Trie, score_space: str, temperature: float) -> None:
        if score_space not in SCORE_SPACES:
            raise InputError(f"unknown score space {score_space!r} -> one of {', '.join(SCORE_SPACES)}")
        head = model.get_output_embeddings()
        self.weight_VD, self.bias_V = head.weight, getattr(head, "bias", None)
        self.trie, self.score_space, self.temperature = trie, score_space, temperature

    def __call__(self, hidden_BKD: Tensor, level: int, nodes_BK: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probabilities float32 [B, K, C], -inf off the trie; child nodes int32 [B, K, C])."""
        child_BKC = self.trie.child_table(level)[nodes_BK]
        logits_BKC = self._logits(hidden_BKD, self.trie.columns[level])
        if self.score_space == "trie":
            logits_BKC = logits_BKC.masked_fill(child_BKC < 0, float("-inf"))
        if self.score_space == "full":
            norm_BK1 = self._full_normaliser(hidden_BKD)[..., None]
        else:
            norm_BK1 = logits_BKC.logsumexp(-1, keepdim=True)
        return (logits_BKC - norm_BK1).masked_fill(child_BKC < 0, float("-inf")), child_BKC

    def _logits(self, hidden: Tensor, columns: slice | Tensor) -> Tensor:
        bias = None if self.bias_V is None else self.bias_V[columns]
        return torch.nn.functional.linear(hidden, self.weight_VD[columns], bias).float() / self.temperature

    def _full_normaliser(self, hidden_BKD: Tensor) -> Tensor:
        """log sum exp over the whole vocabulary [B, K], streamed over blocks of columns."""
        norm = torch.full(hidden_BKD.shape[:-1], float("-inf"), device=hidden_BKD.device)
        for start in range(0, len(self.weight_VD), NORMALISER_CHUNK):
            block = self._logits(hidden_BKD, slice(start, start + NORMALISER_CHUNK))
            norm = torch.logaddexp(norm, block.logsumexp(-1))
        return norm
