"""Vectors that lie in a file: read a block at a time, the pages of the file given back behind it.

A memory map's pages count as this process's memory until they are asked for elsewhere, so a pass over a file larger than memory
looks, to a scheduler with a limit, as large as the file. Arrays in memory are read the same way and keep theirs.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

STREAM_ROWS = 1 << 16  # vectors that are in memory at once where all of them are not


def row_blocks(x_ND: np.ndarray) -> Iterator[slice]:
    """The rows in order, STREAM_ROWS at a time; what the block before has mapped is given back when the next one is asked for."""
    for start in range(0, len(x_ND), STREAM_ROWS):
        yield slice(start, start + STREAM_ROWS)
        give_back(x_ND)


def rows_of(x_ND: np.ndarray, rows_R: np.ndarray) -> np.ndarray:
    """Rows in ascending order, a copy: x_ND[rows_R] without more than a block of the file in memory."""
    ends = np.searchsorted(rows_R, np.arange(0, len(x_ND) + STREAM_ROWS, STREAM_ROWS))
    taken_RD = np.empty((len(rows_R), *x_ND.shape[1:]), x_ND.dtype)
    for number, _ in enumerate(row_blocks(x_ND)):
        here = slice(ends[number], ends[number + 1])
        taken_RD[here] = x_ND[rows_R[here]]
    return taken_RD


def give_back(x_ND: Any) -> None:
    """The pages that an array maps of its file, to be read again where they are asked for again."""
    while x_ND is not None and not isinstance(x_ND, mmap.mmap):
        x_ND = getattr(x_ND, "base", None)
    if x_ND is not None:
        x_ND.madvise(mmap.MADV_DONTNEED)
