"""Log-probabilities of rollouts the ordinary way: one padded row per rollout, as trainers that know no tree have it.

Legend: P prompts, G rollouts, L levels, T prompt tokens, R = P * G rows.
"""

from __future__ import annotations

import torch

from infer.search.prompts import left_pad
from infer.search.scoring import LevelScorer, Parity


def row_logprobs(model, trie, prompts, beams, *, space, temperature):
    """float32 [P, G, L] of the codes of `beams`, differentiable: one row [prompt | tokens of levels 0..L-2] per rollout."""
    codes_PGL = beams.codes_BKL
    prompts_count, group, levels = codes_PGL.shape
    ids_PT, mask_PT = left_pad(prompts, device=codes_PGL.device)
    tokens_PGL = torch.stack([trie.tokens[level][codes_PGL[..., level]] for level in range(levels)], dim=2)
    suffix_RS = tokens_PGL[..., :-1].reshape(prompts_count * group, levels - 1)
    ids_RT = torch.cat([ids_PT.repeat_interleave(group, 0), suffix_RS], dim=1)
    mask_RT = torch.cat([mask_PT.repeat_interleave(group, 0), torch.ones_like(suffix_RS)], dim=1)
    positions_RT = (mask_RT.cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=ids_RT,
        attention_mask=mask_RT,
        position_ids=positions_RT,
        use_cache=False,
        output_hidden_states=True,
        logits_to_keep=1,
    )
    hidden_PGLD = output.hidden_states[-1][:, -levels:].reshape(prompts_count, group, levels, -1)
    scorer = LevelScorer(model, trie, space, Parity(temperature=temperature))
    logps = []
    for level in range(levels):
        nodes_PG = beams.prefixes_BKL[..., level]
        logps.append(scorer.of_codes(hidden_PGLD[:, :, level], level, nodes_PG, codes_PGL[..., level]))
    return torch.stack(logps, dim=2)
