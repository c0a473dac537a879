"""Log-probabilities of the codes of G rollouts per prompt: the one policy forward of loss and reference.

`branch_logprobs(model, trie, prompts, beams, space=, temperature=) -> logps_PGL`. This layout is one padded row per
rollout; a trainer takes any function of this signature.

Legend: P prompts, G rollouts, L levels, T prompt tokens, D hidden size, R = P * G rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infer.search.prompts import left_pad
from infer.search.scoring import LevelScorer, Parity
from infer.search.tree import Beams
from infer.search.trie import Trie


def row_logprobs(
    model: Any,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    beams: Beams,
    *,
    space: str,
    temperature: float,
) -> Tensor:
    """float32 [P, G, L] of the codes of `beams`, differentiable: one row [prompt | tokens of levels 0..L-2] per rollout."""
    codes_PGL = beams.codes_BKL
    prompts_count, group, levels = codes_PGL.shape
    ids_PT, mask_PT = left_pad(prompts, device=codes_PGL.device)
    tokens_PGL = torch.stack([trie.tokens[level][codes_PGL[..., level]] for level in range(levels)], dim=2)
    suffix_RS = tokens_PGL[..., :-1].reshape(prompts_count * group, levels - 1)
    ids_RT = torch.cat([ids_PT.repeat_interleave(group, 0), suffix_RS], dim=1)
    mask_RT = torch.cat([mask_PT.repeat_interleave(group, 0), torch.ones_like(suffix_RS)], dim=1)
    positions_RT = (mask_RT.cumsum(1) - 1).clamp(min=0)
    # Through the model's own forward, so that wrappers (DDP) see it; its head computes one position, ours the rest.
    output = model(
        input_ids=ids_RT,
        attention_mask=mask_RT,
        position_ids=positions_RT,
        use_cache=False,
        output_hidden_states=True,
        logits_to_keep=1,
    )
    hidden_PGLD = output.hidden_states[-1][:, -levels:].reshape(prompts_count, group, levels, -1)
    scorer = LevelScorer(getattr(model, "module", model), trie, space, Parity(temperature=temperature))
    logps = []
    for level in range(levels):
        nodes_PG = beams.prefixes_BKL[..., level]
        logps.append(scorer.of_codes(hidden_PGLD[:, :, level], level, nodes_PG, codes_PGL[..., level]))
    return torch.stack(logps, dim=2)
