"""Advantages of codes by the reward of their own semantic ID, where the thought before them has another one (thought.credit own).

A thought is compared with the other thoughts of its prompt, by the largest reward among its beams. A semantic ID is compared with all
semantic IDs that the completions of its prompt hold, by its own reward: in a list of ten with the target in it, that one is pushed up
and the others down, while the thought that led to the list is pushed up. `shared` pushes all of them up.

Legend: P prompts, G rollouts of a group, E = P * G thoughts, K beams behind a thought, B completions, T tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from train.policy.advantages import group_advantages


def code_advantages(
    beam_at: Sequence[Sequence[int]], total_EK: np.ndarray, *, group: int, scale: str
) -> list[list[float]]:
    """Of every token of E completions the advantage of the semantic ID that it is a code of; NaN for other tokens.

    beam_at: the beam of each token, -1 for none; total_EK: rewards of the beams, NaN where there is none. One prompt, two lists of two
    beams with rewards (1, 0) and (0, 0), scale none: codes of the target get .75, all others -.25.
    """
    entries, beams = total_EK.shape
    held_EK = np.zeros((entries, beams), bool)
    for entry, tokens in enumerate(beam_at):
        held_EK[entry, [beam for beam in set(tokens) if beam >= 0]] = True
    rewards = torch.from_numpy(np.where(held_EK, total_EK, np.nan)).float()
    found = group_advantages(rewards.view(-1, group * beams, 1), scale=scale).values_PGM
    values_EK = found.view(entries, beams).tolist()
    return [
        [own[beam] if beam >= 0 else float("nan") for beam in tokens]
        for own, tokens in zip(values_EK, beam_at, strict=True)
    ]


def per_token(advantages_B: Tensor, codes: Sequence[Sequence[float]], *, width: int) -> Tensor:
    """Advantages float32 [B, T]: those of the completions, but for tokens that have their own. width: T, completions padded."""
    own_BT = advantages_B.new_full((len(codes), width), float("nan"))
    for row, values in enumerate(codes):
        own_BT[row, : len(values)] = advantages_B.new_tensor(values)
    return torch.where(own_BT.isnan(), advantages_B[:, None], own_BT)
