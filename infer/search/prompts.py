"""Prompts of different lengths as one tensor.

Legend: B prompts, T slots of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from configs.program import InputError


def right_pad(prompts: Sequence[Sequence[int]], *, device: Any, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """(ids int64 [B, T] padded behind, lengths int64 [B]); InputError for no prompts or an empty one."""
    if not prompts or min(map(len, prompts)) == 0:
        raise InputError("empty prompt -> every prompt needs at least one token")
    width = max(map(len, prompts))
    rows = [[*prompt, *[pad_id] * (width - len(prompt))] for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


def left_pad(prompts: Sequence[Sequence[int]], *, device: Any, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """(ids int64 [B, T] padded in front, mask int64 [B, T], 0 on padding); InputError for no prompts or an empty one."""
    ids_BT, lengths_B = right_pad(prompts, device=device, pad_id=pad_id)
    slots_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    shift_BT = (slots_T + lengths_B[:, None]) % len(slots_T)
    return ids_BT.gather(1, shift_BT), (slots_T >= len(slots_T) - lengths_B[:, None]).long()
