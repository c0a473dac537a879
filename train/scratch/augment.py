"""Histories that nobody had, for a teacher to answer: items of train windows dropped or replaced.

An item is replaced by a draw from what the teacher says comes after a history of that item alone. Every prefix of a made
history is a row that has the teacher's distribution as its target and no item that came.

Legend: W windows, I items of all windows, R rows (prefixes), N items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from configs.needs import Need, require_needs
from configs.program import InputError
from data.rows import Rows
from data.store.configuration import added
from infer.models.contract import block_rows
from infer.models.folds import NOBODY
from infer.models.sequential.windows import RowWindows


@dataclass
class Augmentation:
    """Histories made of train windows for the teacher to answer. Nothing, unless `ratio` asks."""

    ratio: float = 0.0
    """made histories in an epoch for each window that histories are made of; 0: none"""
    variants: int = 1
    """how many histories are made of each window; an epoch sees a random `ratio` of them"""
    drop: float = 0.15
    """chance of an item to be left out (one stays)"""
    replace: float = 0.4
    """chance of an item to be replaced"""
    most: float | None = added(2.0, before=None)
    """rows of made histories for each train row; beyond it they are of a sample of the windows. Rows with a history longer than a model
    reads are a window each, which overlap, unless chains are cut: of MovieLens's 97,171 train rows 753,738 were made. null = of all windows"""
    seed: int = 0
    """of what is made, whatever the seed of the training: the teacher answers once for all seeds"""

    def __post_init__(self) -> None:
        if self.ratio < 0 or self.variants < 1 or not 0 <= self.drop < 1 or not 0 <= self.replace <= 1:
            raise InputError(
                f"augment: ratio {self.ratio} must be at least 0, variants {self.variants} at least 1, drop {self.drop} in "
                f"[0, 1), replace {self.replace} in [0, 1]"
            )
        if self.most is not None and self.most <= 0:
            raise InputError(f"augment.most {self.most} must be above 0, or null")
        if self.ratio > self.variants:
            raise InputError(
                f"augment: ratio {self.ratio} is more than variants {self.variants} -> more variants"
            )
        require_needs(self, "augment.")

    def needs(self) -> list[Need]:
        """How histories are made, where some are."""
        return [
            Need(("variants", "drop", "replace", "most", "seed"), self.ratio > 0, "augment.ratio above 0")
        ]


def made_windows(
    windows: RowWindows,
    chosen: Augmentation,
    *,
    positions: int,
    first_example: int,
    follower: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> RowWindows:
    """`variants` times the windows, each with the target of its last row as its newest item, at most `positions` items.

    follower: items int64 [B] -> an item drawn from what comes after each of them alone. Every position asks (its target is its own
    item, which nothing may learn); examples are numbered from `first_example`.
    """
    rng = np.random.default_rng([chosen.seed, 0])
    parts = [_with_last(windows, positions) for _ in range(chosen.variants)]
    offsets = np.concatenate([[0], *(part[0][1:] + n * part[0][-1] for n, part in enumerate(parts))])
    item_I = np.concatenate([part[1] for part in parts])
    drawn_I = rng.random(len(item_I))
    # The newest item of a window that would lose all of them stays.
    kept_I = drawn_I >= chosen.drop
    none_W = np.add.reduceat(kept_I, offsets[:-1]) == 0
    kept_I[offsets[1:][none_W] - 1] = True
    replaced_I = np.flatnonzero(kept_I & (rng.random(len(item_I)) < chosen.replace))
    item_I = item_I.copy()
    item_I[replaced_I] = follower(item_I[replaced_I], rng)
    lengths = np.add.reduceat(kept_I.astype(np.int64), offsets[:-1])
    made_I = item_I[kept_I].astype(np.int32)
    example_I = first_example + np.arange(len(made_I), dtype=np.int64)
    return RowWindows(np.concatenate([[0], np.cumsum(lengths)]), made_I, made_I, example_I)


def sources(windows: RowWindows, chosen: Augmentation, *, positions: int) -> RowWindows:
    """The windows that histories are made of: all, or a sample of them where more than `most` rows would be made for each of theirs."""
    rows = int(windows.rows_W.sum())
    made = chosen.variants * int((np.minimum(np.diff(windows.offsets), positions - 1) + 1).sum())
    if chosen.most is None or made <= chosen.most * rows:
        return windows
    order = np.random.default_rng([chosen.seed, 1]).permutation(len(windows))
    return windows.take(np.sort(order[: max(1, int(len(windows) * chosen.most * rows / made))]))


def prefixes(windows: RowWindows, users_W: np.ndarray) -> Rows:
    """A row for every position of the windows: its history up to there, the window's user, target 0, ages unknown."""
    lengths = np.diff(windows.offsets)
    within_I = np.arange(len(windows.item_I)) - np.repeat(windows.offsets[:-1], lengths)
    offsets = np.concatenate([[0], np.cumsum(within_I + 1)])
    start_R = np.repeat(windows.offsets[:-1], lengths)
    from_H = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start_R, within_I + 1)
    none_R = np.zeros(len(within_I), np.int32)
    history_H = windows.item_I[from_H]
    users_R = np.repeat(users_W.astype(np.int32), lengths)
    return Rows(windows.example_I, users_R, offsets, history_H, none_R, np.full(len(history_H), np.nan))


def single_items(num_items: int) -> Rows:
    """A row for every item: a history of it alone, which nobody had; the example's number is the item's."""
    items_N = np.arange(num_items)
    none_N = np.zeros(num_items, np.int32)
    return Rows(
        items_N,
        np.full(num_items, NOBODY, np.int32),
        np.arange(num_items + 1),
        items_N.astype(np.int32),
        none_N,
        np.full(num_items, np.nan),
    )


def _with_last(windows: RowWindows, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, items) of the windows, the last target behind the items, the oldest item left out where that is too long."""
    lengths = np.diff(windows.offsets)
    last_W = windows.offsets[1:] - 1
    target_W = windows.target_I[last_W]
    kept_W = np.minimum(lengths, positions - 1)
    offsets = np.concatenate([[0], np.cumsum(kept_W + 1)])
    item_I = np.empty(offsets[-1], np.int64)
    item_I[offsets[1:] - 1] = target_W
    within = np.arange(kept_W.sum()) - np.repeat(np.cumsum(kept_W) - kept_W, kept_W)
    item_I[np.repeat(offsets[:-1], kept_W) + within] = windows.item_I[
        np.repeat(last_W + 1 - kept_W, kept_W) + within
    ]
    return offsets, item_I


def drawn_from(
    after: Callable[[np.ndarray], np.ndarray], items: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A `follower` of items, int64; after: items int64 [B] -> probabilities [B, N] of what comes after each of them alone."""
    which, place = np.unique(items, return_inverse=True)
    chance, result = rng.random(len(items)), np.empty(len(items), np.int64)
    order, step, start = np.argsort(place, kind="stable"), None, 0
    while start < len(which):
        block = which[start : start + (step or 1)]
        sum_BN = np.cumsum(after(block).astype(np.float64), axis=1)
        step = step or block_rows(sum_BN.shape[1])
        sum_BN /= sum_BN[:, -1:]
        asked = order[slice(*np.searchsorted(place[order], [start, start + len(block)]))]
        row = place[asked] - start
        flat = np.searchsorted(
            (sum_BN + np.arange(len(block))[:, None]).ravel(), row + chance[asked], side="right"
        )
        result[asked] = (flat - row * sum_BN.shape[1]).clip(0, sum_BN.shape[1] - 1)
        start += len(block)
    return result
