"""Units -> batches of rows: shuffled by epoch, cut where the windows add up to the batch size, laid out without waste.

A batch is a set of rows of tokens in which each token sees at most three spans: the root, the part of the trunk that its
window has, and its own segment up to itself. Labels are pairs (state, target): the state of a trunk token may predict the
first code of one window, the second of another, and so on.

Legend: B rows, T slots of a row, M labels, P segments, K tokens, U units, W sequences of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from train.supervised.soft_answers import SoftAnswers
from train.supervised.units import Units, ragged_arange

IGNORED = -100  # target of a padded label
LABEL_STEP, WIDTH_STEP = 32, 16  # shapes in steps: the allocator meets few sizes and its memory does not grow
MEGABATCH = 50  # batches that are sorted by length together where the layout pads
SOFT = (
    "soft_offsets",
    "soft_tokens",
    "soft_shares",
)  # of a batch with soft labels: train.supervised.head.SoftLabels
SPANS = ("root_from", "root_to", "trunk_from", "trunk_to", "own_from")


class Batches(torch.utils.data.Dataset):
    """Item i is batch i of the current epoch; the same for every process and every run of a seed.

    step_windows: windows of an optimizer step, which whole units meet on average; parts: batches that a step is split into
    (processes times accumulation), about equal in tokens, so that a step does not depend on how it is split; row_tokens:
    length that rows aim at (a longer unit widens them), None = a row per unit, padded; weights_N multiplies the losses of a
    sequence; by_length: examples of similar lengths together; soft: distributions in place of some of the labels; redraw: the units
    and soft labels of an epoch, as many windows of the same examples as `units`.
    """

    def __init__(
        self,
        units: Units,
        *,
        step_windows: int,
        row_tokens: int | None,
        seed: int | None,
        weights_N: np.ndarray | None = None,
        by_length: bool = False,
        parts: int = 1,
        soft: SoftAnswers | None = None,
        redraw: Callable[[int], tuple[Units, SoftAnswers]] | None = None,
    ) -> None:
        self.units, self.row_tokens, self.seed, self.by_length = units, row_tokens, seed, by_length
        self.step_windows, self.parts, self.weights_N = step_windows, parts, weights_N
        self.soft, self.redraw, self.drawn = soft, redraw, 0
        self.steps = max(1, -(-int(units.windows_U.sum()) // step_windows))
        self.set_epoch(0)

    def __len__(self) -> int:
        return self.steps * self.parts

    def set_epoch(self, epoch: int) -> None:
        """Shuffle the units anew for `epoch`, draw its answers; without a seed they keep their order."""
        if self.redraw is not None and epoch != self.drawn:
            self.units, self.soft = self.redraw(epoch)
            self.drawn = epoch
        order, turn = np.arange(len(self.units)), np.arange(self.steps)
        if self.seed is not None:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(order)
            if self.by_length:
                mega = np.cumsum(self.units.windows_U[order]) // (self.step_windows * MEGABATCH)
                order = order[np.lexsort((-self.units.tokens_U[order], mega))]
                turn = generator.permutation(turn)
        windows = self.units.windows_U[order]
        centre = np.cumsum(windows) - windows / 2
        step = np.minimum((centre * self.steps / windows.sum()).astype(np.int64), self.steps - 1)
        self.order, self.turn = order, turn
        self.cuts = np.searchsorted(step, np.arange(self.steps + 1))

    def __getitem__(self, index: int) -> dict[str, Any]:
        step = self.turn[index // self.parts]
        chosen = self.order[self.cuts[step] : self.cuts[step + 1]]
        return self.collate(chosen[self._part(chosen) == index % self.parts])

    def _part(self, chosen_U: np.ndarray) -> np.ndarray:
        """Which part of its step each unit belongs to: the longest first, to the part with the fewest tokens."""
        part_U, fill = np.zeros(len(chosen_U), np.int64), [0] * self.parts
        sizes = self.units.tokens_U[chosen_U]
        for u in np.argsort(-sizes, kind="stable").tolist() if self.parts > 1 else ():
            part_U[u] = fill.index(min(fill))
            fill[part_U[u]] += int(sizes[u])
        return part_U

    def collate(self, chosen_U: np.ndarray) -> dict[str, Any]:
        """The batch of some units: input_ids and position_ids int64 [B, T], spans int32 [B, T, 5], states, labels int64 [M].

        `states` are flat slots (row * T + slot); padded labels are IGNORED. real_tokens, real_labels and windows are counts, `row` the
        examples. With weights: label_weights float32 [M]; with soft labels: SOFT.
        """
        units, rows = self.units, self.units.rows
        if not len(chosen_U):  # more processes than units: a batch without labels
            chosen_U, empty = np.zeros(1, np.int64), True
        else:
            empty = False
        row_U, slot_U, root_slots = self._place(chosen_U)
        width = self._width(chosen_U, row_U, slot_U)
        sizes = np.diff(units.offsets_U)[chosen_U]
        unit_W = np.repeat(np.arange(len(chosen_U)), sizes)
        nth_W = ragged_arange(sizes)
        member_W = units.members_N[np.repeat(units.offsets_U[:-1][chosen_U], sizes) + nth_W]
        root_W = units.root_U[chosen_U][unit_W]
        is_trunk_W = nth_W == 0
        # segments: the trunk from the root on, branches from where they leave the trunk
        from_W = np.where(is_trunk_W, root_W, units.shared_N[member_W])
        length_W = units.inputs_N[member_W] - from_W
        before_W = np.cumsum(length_W) - length_W
        slot_W = slot_U[unit_W] + before_W - before_W[is_trunk_W][unit_W]
        root_from_W = np.array(
            [root_slots[row_U[u], units.task_U[chosen_U[u]]] for u in range(len(chosen_U))]
        )[unit_W]
        trunk_to_W = np.where(is_trunk_W, slot_U[unit_W], slot_U[unit_W] + from_W - root_W)
        spans_W = np.stack([root_from_W, root_from_W + root_W, slot_U[unit_W], trunk_to_W, slot_W], 1)
        segments = [(rows.starts_N[member_W], from_W, length_W, row_U[unit_W], slot_W, spans_W)]
        segments.append(self._root_segments(root_slots, chosen_U))
        parts = [np.concatenate(column) for column in zip(*segments, strict=True)]
        batch = self._tokens(parts, int(row_U.max()) + 1, width)
        batch |= self._labels(member_W, from_W, root_W, slot_U[unit_W], slot_W, row_U[unit_W] * width, empty)
        return batch | {"windows": 0 if empty else len(member_W), "row": torch.from_numpy(member_W)}

    def _place(self, chosen_U: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[tuple[int, int], int]]:
        """(row, first slot) of every unit and the slots of roots by (row, task): the longest unit first, into the emptiest row."""
        units, sizes = self.units, self.units.tokens_U[chosen_U]
        roots = units.root_U[chosen_U]
        if self.row_tokens is None:
            number = len(chosen_U)
        else:  # all rows are as long as the longest unit makes one: then they may as well be filled
            number = max(1, -(-int(sizes.sum()) // max(self.row_tokens, int((sizes + roots).max()))))
        row_U, slot_U = np.zeros(len(chosen_U), np.int64), np.zeros(len(chosen_U), np.int64)
        fill, root_slots = [0] * number, {}
        for u in np.argsort(-sizes, kind="stable").tolist():
            row = u if self.row_tokens is None else fill.index(min(fill))
            key = (row, int(units.task_U[chosen_U[u]]))
            if key not in root_slots:
                root_slots[key] = fill[row]
                fill[row] += int(roots[u])
            row_U[u], slot_U[u] = row, fill[row]
            fill[row] += int(sizes[u])
        return row_U, slot_U, root_slots

    def _width(self, chosen_U: np.ndarray, row_U: np.ndarray, slot_U: np.ndarray) -> int:
        longest = int((slot_U + self.units.tokens_U[chosen_U]).max())
        return -(-longest // WIDTH_STEP) * WIDTH_STEP

    def _root_segments(self, root_slots: dict[tuple[int, int], int], chosen_U: np.ndarray) -> tuple:
        """The segments of the roots, as those of the sequences."""
        units = self.units
        of_task = {int(units.task_U[u]): u for u in chosen_U.tolist()}
        found = [(*key, slot, of_task[key[1]]) for key, slot in root_slots.items()]
        row, _, slot, unit = np.array(found, np.int64).reshape(-1, 4).T
        starts = units.rows.starts_N[units.members_N[units.offsets_U[unit]]]
        none = np.zeros_like(slot)
        return starts, none, units.root_U[unit], row, slot, np.stack([none, none, none, none, slot], 1)

    def _tokens(self, parts: list[np.ndarray], height: int, width: int) -> dict[str, Any]:
        start_P, from_P, length_P, row_P, slot_P, spans_P = parts
        within_K = ragged_arange(length_P)
        position_K = np.repeat(from_P, length_P) + within_K
        at_K = np.repeat(row_P * width + slot_P, length_P) + within_K
        ids, positions = np.zeros(height * width, np.int64), np.zeros(height * width, np.int64)
        spans = np.zeros((height * width, len(SPANS)), np.int32)
        spans[:, -1] = np.tile(
            np.arange(width), height
        )  # padding sees itself, so that its softmax is defined
        ids[at_K] = self.units.rows.tokens_S[np.repeat(start_P, length_P) + position_K]
        positions[at_K] = position_K
        spans[at_K] = np.repeat(spans_P, length_P, axis=0)
        return {
            "input_ids": torch.from_numpy(ids.reshape(height, width)),
            "position_ids": torch.from_numpy(positions.reshape(height, width)),
            "spans": torch.from_numpy(spans.reshape(height, width, -1)),
            "real_tokens": len(at_K),
        }

    def _labels(
        self,
        member_W: np.ndarray,
        from_W: np.ndarray,
        root_W: np.ndarray,
        trunk_slot_W: np.ndarray,
        slot_W: np.ndarray,
        base_W: np.ndarray,
        empty: bool,
    ) -> dict[str, Any]:
        """States and targets of all answers; the state before the segment's first token is in the trunk."""
        rows = self.units.rows
        prompt_W = rows.prompts_N[member_W].astype(np.int64)
        count_W = rows.lengths_N[member_W] - prompt_W
        state_M = np.repeat(prompt_W - 1, count_W) + ragged_arange(count_W)  # positions
        from_M, root_M, trunk_M, slot_M, base_M = (
            np.repeat(values, count_W) for values in (from_W, root_W, trunk_slot_W, slot_W, base_W)
        )
        slot_M = np.where(state_M < from_M, trunk_M + state_M - root_M, slot_M + state_M - from_M)
        target_M = rows.tokens_S[np.repeat(rows.starts_N[member_W], count_W) + state_M + 1]
        room = -(-max(len(state_M), 1) // LABEL_STEP) * LABEL_STEP
        states, labels = np.zeros(room, np.int64), np.full(room, IGNORED, np.int64)
        states[: len(slot_M)] = base_M + slot_M
        if not empty:
            labels[: len(slot_M)] = target_M
        made = torch.from_numpy(labels)
        # `shift_labels`: the trainer counts these as they are
        batch = {"states": torch.from_numpy(states), "labels": made, "shift_labels": made}
        batch["real_labels"] = 0 if empty else len(slot_M)
        if self.weights_N is not None:
            weights = np.ones(room, np.float32)
            weights[: len(slot_M)] = np.repeat(self.weights_N[member_W], count_W)
            batch["label_weights"] = torch.from_numpy(weights)
        if self.soft is not None:
            entries, tokens, shares = self.soft.labels(member_W, count_W)
            offsets = np.zeros(room + 1, np.int64)
            offsets[1 : len(entries) + 1] = entries
            made = (np.cumsum(offsets), tokens, shares)
            batch |= {name: torch.from_numpy(values) for name, values in zip(SOFT, made, strict=True)}
        return batch


def visible(spans_BT5: torch.Tensor) -> torch.Tensor:
    """Which slot sees which, bool [B, T, T], of the spans of a batch."""
    slots = torch.arange(spans_BT5.shape[1], device=spans_BT5.device)
    root_from, root_to, trunk_from, trunk_to, own_from = spans_BT5[..., None, :].unbind(-1)
    own = (slots >= own_from) & (slots <= slots[:, None])
    return ((slots >= root_from) & (slots < root_to)) | ((slots >= trunk_from) & (slots < trunk_to)) | own
