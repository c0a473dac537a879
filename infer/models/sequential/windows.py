"""Rows of a data set as padded batches of histories, every history with as many targets as it has rows.

A user's rows are mostly prefixes of one another: (a) -> b, (a b) -> c, (a b c) -> d. In a causal model the states of a prefix
are those of its positions in the whole, so such rows are one window (a b c) with the targets b, c, d: one pass instead of
three. A row whose history was cut at the front (`positions`, or a published window) starts a window of its own, unless `row_chains`
keeps a user's rows together for `cut_windows`.

`single_windows` instead makes a window of every row.

Legend: W windows, R rows, I items of all windows, B windows of a batch, T positions of its longest, P targets of a batch, C counted items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.rows import Rows, goes_on
from infer.models.recency import gap_levels
from infer.models.sequential.companions import REACH

NONE = -1


@dataclass(frozen=True)
class RowWindows:
    """Window w has the items `item_I[offsets[w] : offsets[w + 1]]`, oldest first.

    target_I int32: what came after each of them, -1 where that is no row; example_I int64: the row's example. gap_I int64:
    infer.models.recency.gap_levels of the items, None where nobody asked. before_WC int32: what its chain has in front of a window that was
    cut, newest first, -1 where it has no more; None where no window was. No model reads it; rows have been counted with it (`own_counts`).
    """

    offsets: np.ndarray
    item_I: np.ndarray
    target_I: np.ndarray
    example_I: np.ndarray
    gap_I: np.ndarray | None = None
    before_WC: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, chosen: np.ndarray) -> RowWindows:
        """The windows of those numbers (int64), in that order."""
        lengths = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        from_I = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[:-1][chosen], lengths)
        gap_I = None if self.gap_I is None else self.gap_I[from_I]
        before_WC = None if self.before_WC is None else self.before_WC[chosen]
        return RowWindows(
            offsets, self.item_I[from_I], self.target_I[from_I], self.example_I[from_I], gap_I, before_WC
        )

    @property
    def rows_W(self) -> np.ndarray:
        """Targets of every window, int64."""
        return (
            np.add.reduceat(self.target_I != NONE, self.offsets[:-1]).astype(np.int64)
            if len(self)
            else self.offsets[:0]
        )


@dataclass(frozen=True)
class PaddedBatch:
    """history_BT int64, padded on the right with item 0, gap_BT int64 with 0 (unknown, as are all where nobody asked);
    at_P int64 (b * T + t), target_P int64, example_P int64. counted_PC int64: the newest REACH items of each row, newest first, -1 where it
    has no more, those in front of its window too; None where none is."""

    history_BT: np.ndarray
    gap_BT: np.ndarray
    at_P: np.ndarray
    target_P: np.ndarray
    example_P: np.ndarray
    counted_PC: np.ndarray | None = None


def newest(rows: Rows, positions: int) -> tuple[Rows, int]:
    """(rows with the newest `positions` items of each history, how many rows lost some)."""
    lengths = np.diff(rows.offsets)
    longer = lengths > positions
    if not longer.any():
        return rows, 0
    from_end = rows.offsets[1:][rows.history_row_H] - np.arange(len(rows.history_H))
    kept = from_end <= positions
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, positions))])
    ages = None if rows.age_H is None else rows.age_H[kept]
    return replace(rows, offsets=offsets, history_H=rows.history_H[kept], age_H=ages), int(longer.sum())


def row_windows(rows: Rows) -> RowWindows:
    """The rows, those of a user that continue one another (in file order) together. Rows without history are left out."""
    return _together(rows, sliding=False)


def row_chains(rows: Rows) -> tuple[RowWindows, int]:
    """(chains, the longest history: a window of more items would show a row more than it has; 0 without any).

    As `row_windows`, with rows whose history lost its oldest item to a cut (all of one length, the longest) in one chain as well: a
    chain is as long as a user's rows, and `cut_windows` makes windows of it. Of (a b) -> c, (b c) -> d the chain is (a b c).
    """
    return _together(rows, sliding=True), int(np.diff(rows.offsets).max(initial=0))


def _together(rows: Rows, *, sliding: bool) -> RowWindows:
    rows = rows.take(np.flatnonzero(np.diff(rows.offsets) > 0))
    rows = rows.take(np.argsort(rows.users_R, kind="stable"))
    continues_R = _continues(rows, sliding=sliding)
    # What is new in a row: its last item where it continues the row before, else all of its history.
    new_R = np.where(continues_R, 1, np.diff(rows.offsets))
    last_R = rows.offsets[1:] - 1
    new_H = ~continues_R[rows.history_row_H]
    new_H[last_R] = True
    place_R = np.cumsum(new_R) - 1
    target_I = np.full(int(new_R.sum()), NONE, np.int32)
    example_I = np.full(len(target_I), NONE, np.int64)
    target_I[place_R], example_I[place_R] = rows.target_R, rows.example_ids_R
    begins_R = place_R + 1 - new_R
    offsets = np.append(begins_R[~continues_R], len(target_I)).astype(np.int64)
    gap_H = _gaps(rows)
    return RowWindows(
        offsets, rows.history_H[new_H], target_I, example_I, None if gap_H is None else gap_H[new_H]
    )


def single_windows(rows: Rows) -> RowWindows:
    """Every row a window of its own, its target behind its last item. Rows without history are left out."""
    rows = rows.take(np.flatnonzero(np.diff(rows.offsets) > 0))
    last_R = rows.offsets[1:] - 1
    target_I = np.full(len(rows.history_H), NONE, np.int32)
    example_I = np.full(len(rows.history_H), NONE, np.int64)
    target_I[last_R], example_I[last_R] = rows.target_R, rows.example_ids_R
    return RowWindows(rows.offsets, rows.history_H, target_I, example_I, _gaps(rows))


def _gaps(rows: Rows) -> np.ndarray | None:
    return None if rows.age_H is None else gap_levels(rows)


def joined(first: RowWindows, second: RowWindows) -> RowWindows:
    """The windows of both, one after the other; gaps that one of them does not have are unknown."""
    offsets = np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]])
    parts = (
        np.concatenate(pair)
        for pair in (
            (first.item_I, second.item_I),
            (first.target_I, second.target_I),
            (first.example_I, second.example_I),
        )
    )
    both = (first, second)
    gaps = (np.zeros(len(part.item_I), np.int64) if part.gap_I is None else part.gap_I for part in both)
    before_WC = None
    if any(part.before_WC is not None for part in both):
        before_WC = np.concatenate(
            [
                np.full((len(part), REACH), NONE, np.int32) if part.before_WC is None else part.before_WC
                for part in both
            ]
        )
    return RowWindows(offsets, *parts, np.concatenate(list(gaps)), before_WC)


def _continues(rows: Rows, *, sliding: bool) -> np.ndarray:
    """bool [R]: whether a row's history is that of the row before it, of the same user, and its target; `sliding`: or the end of that, both
    being as long as the longest there is."""
    lengths = np.diff(rows.offsets)
    found = goes_on(rows.users_R, rows.offsets, rows.history_H, rows.target_R)
    fits = lengths[1:] == lengths[:-1] + 1
    if sliding:
        longest = lengths.max(initial=0)
        fits |= (lengths[1:] == longest) & (lengths[:-1] == longest)
    found[1:] &= fits
    return found


def cut_windows(chains: RowWindows, positions: int, rng: np.random.Generator) -> RowWindows:
    """Windows of at most `positions` items of `row_chains`, every target in one of them.

    A longer chain is cut at a place that is drawn anew each time this is called: 1 to `positions` items, then as many as fit. So a row
    is learned with between one and `positions` of its history items, in turns. A window begins as a history does: what came before its
    first item is unknown. What has no target is left out.
    """
    sizes_W = np.diff(chains.offsets)
    first_W = np.where(sizes_W > positions, rng.integers(1, positions + 1, len(sizes_W)), sizes_W)
    within_I = np.arange(len(chains.item_I)) - np.repeat(chains.offsets[:-1], sizes_W)
    after_I = within_I - np.repeat(first_W, sizes_W)
    starts = np.flatnonzero((within_I == 0) | ((after_I >= 0) & (after_I % positions == 0)))
    back_C = np.arange(1, REACH + 1)
    before_WC = np.where(
        back_C <= within_I[starts][:, None], chains.item_I[np.maximum(starts[:, None] - back_C, 0)], NONE
    ).astype(np.int32)
    gap_I = chains.gap_I
    if gap_I is not None:
        gap_I = gap_I.copy()
        gap_I[starts] = 0
    offsets = np.append(starts, len(chains.item_I)).astype(np.int64)
    cut = replace(chains, offsets=offsets, gap_I=gap_I, before_WC=before_WC)
    asked = cut.rows_W > 0
    return cut if asked.all() else cut.take(np.flatnonzero(asked))


def batches(windows: RowWindows, *, rows: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Window numbers of each batch: windows of similar lengths together, about `rows` targets a batch, batches in random order.

    A batch ends with the window that reaches the next multiple of `rows`.
    """
    order = np.argsort(np.diff(windows.offsets) + rng.random(len(windows)), kind="stable")
    done = np.cumsum(windows.rows_W[order])
    ends = np.searchsorted(done, np.arange(rows, done[-1], rows)) + 1
    parts = [part for part in np.split(order, np.unique(ends)) if len(part)]
    return [parts[number] for number in rng.permutation(len(parts))]


def padded(windows: RowWindows, chosen: np.ndarray) -> PaddedBatch:
    """The batch of some windows."""
    lengths = np.diff(windows.offsets)[chosen]
    longest = int(lengths.max(initial=1))
    row_I = np.repeat(np.arange(len(chosen)), lengths)
    within_I = np.arange(len(row_I)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    from_I = windows.offsets[chosen][row_I] + within_I
    history_BT = np.zeros((len(chosen), longest), np.int64)
    history_BT[row_I, within_I] = windows.item_I[from_I]
    gap_BT = np.zeros_like(history_BT)
    if windows.gap_I is not None:
        gap_BT[row_I, within_I] = windows.gap_I[from_I]
    asked = windows.target_I[from_I] != NONE
    at_P, from_P = (row_I * longest + within_I)[asked], from_I[asked]
    return PaddedBatch(
        history_BT, gap_BT, at_P, windows.target_I[from_P].astype(np.int64), windows.example_I[from_P],
        None if windows.before_WC is None else _counted(windows.before_WC[chosen], history_BT, at_P),
    )  # fmt: skip


def _counted(before_BC: np.ndarray, history_BT: np.ndarray, at_P: np.ndarray) -> np.ndarray:
    """The newest REACH items up to each place, those in front of the window behind it."""
    whole_BS = np.concatenate([before_BC[:, ::-1], history_BT], axis=1)
    window_P, place_P = np.divmod(at_P, history_BT.shape[1])
    return whole_BS[window_P[:, None], REACH + place_P[:, None] - np.arange(REACH)]
