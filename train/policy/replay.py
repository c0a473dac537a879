"""Which prompts a step sees: those of the loader, several times where several updates use one rollout, and old ones with signal.

Legend: P prompts.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from configs.program import InputError

CAPACITY = 4096


class RepeatedChunks(torch.utils.data.Sampler):
    """Positions shuffled by epoch, every `chunk` of them (the prompts of an optimizer step) `times` in a row.

    An incomplete chunk at the end of an epoch is left out, or the steps would not meet the chunks any more.
    """

    def __init__(self, rows: int, *, chunk: int, times: int, seed: int) -> None:
        if rows < chunk:
            raise InputError(
                f"{rows} prompts, and a step takes {chunk} -> a smaller batch, fewer accumulation steps, or rollout.updates 1"
            )
        self.rows, self.chunk, self.times, self.seed, self.epoch = rows, chunk, times, seed, 0

    def __len__(self) -> int:
        return self.rows // self.chunk * self.chunk * self.times

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows).tolist()
        for start in range(0, self.rows // self.chunk * self.chunk, self.chunk):
            for _ in range(self.times):
                yield from order[start : start + self.chunk]


class Replay:
    """Positions of prompts whose group had signal, the longest unseen first; each process has its own."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.queue: deque[int] = deque(maxlen=CAPACITY)

    def instead(self, flat: Sequence[int], rows: Sequence[int]) -> dict[int, int]:
        """{place in the batch: position that takes it} for groups without signal, at most `share` of the batch."""
        room = min(int(self.share * len(rows)), len(flat))
        chosen = [row for row in self.queue if row not in rows][:room]
        for row in chosen:
            self.queue.remove(row)
        return dict(zip(flat, chosen, strict=False))

    def keep(self, rows: Sequence[int]) -> None:
        """Prompts whose group had signal."""
        for row in rows:
            if row in self.queue:
                self.queue.remove(row)
            self.queue.append(row)

    def write(self, directory: Path, rank: int) -> None:
        (directory / f"replay-{rank}.json").write_text(json.dumps(list(self.queue)))

    def read(self, directory: Path, rank: int) -> None:
        self.queue = deque(json.loads((directory / f"replay-{rank}.json").read_text()), maxlen=CAPACITY)


def require_room(replay: float, prompts: int) -> None:
    """InputError where a share of a batch of so many prompts is less than one prompt: nothing would ever be replayed."""
    if replay and int(replay * prompts) == 0:
        raise InputError(
            f"rollout.replay {replay} of a batch of {prompts} prompts is no prompt -> at least {1 / prompts:.3g}, or a larger "
            "per_device_train_batch_size"
        )
