"""Random numbers that belong to what they are for: a function of (seed, row, path), whatever else is in the batch.

A generator hands out its numbers in the order in which they are asked for, so a draw would depend on the other rows of the
batch, on its size and on the width of the tables. Here every number is a hash of its key: SplitMix64's finaliser (Steele,
Lea and Flood 2014) over a chain of keys, one link per level or token.

Legend: B rows, K beams, X candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BITS = 1 << 64
STEP = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value %= BITS
    return value - BITS if value >= BITS // 2 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """64 bits in, 64 bits out that look unrelated; int64, any shape."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def row_keys(seed: int, keys: Sequence[int], device: Any) -> Tensor:
    """One key per row int64 [B], from the run's seed and an integer that names the row."""
    first = mix(torch.tensor([_signed(seed)], device=device))
    return mix(first + torch.tensor([_signed(key * STEP) for key in keys], device=device))


def child_keys(keys: Tensor, codes: Tensor) -> Tensor:
    """The keys of the children `codes` (int64, from 0) of nodes with the keys `keys`; the shapes broadcast."""
    return mix(keys + (codes + 1) * _signed(STEP))


def gumbel(keys: Tensor) -> Tensor:
    """Standard Gumbel noise float32, one number per key: -log(-log(u)), u one of 2^52 values within (0, 1)."""
    uniform = (_shift(keys, 12).double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log().float()
