"""Which examples are computed together: the prefix tree of a user's windows, at most three segments deep.

    root    what all prompts of a task begin with (the instruction); once per row of a batch
    trunk   the longest sequence of a unit behind its root
    branch  what another sequence of the unit has of its own, behind the trunk token where it leaves the trunk

Every token attends to what stands before it in its own sequence and sits at its own position, so losses and gradients are
those of separate sequences, whatever the wording is and also for windows that dropped their oldest items: such a window
shares the instruction only, and positions restart behind it. (A band mask would not be exact: through several layers it
reaches back beyond the window.)

Legend: N sequences, U units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.supervised.tokens import TokenRows


@dataclass(frozen=True)
class Units:
    """Unit u holds the sequences `members_N[offsets_U[u] : offsets_U[u + 1]]`, the trunk first.

    shared_N: how many leading tokens a sequence has in common with its unit's trunk; inputs_N: its tokens that are inputs
    (the last one is a label only); root_U: tokens of the unit's root (0 = none); task_U: whose root; tokens_U: what the unit
    adds to a row that has the root already.
    """

    rows: TokenRows
    members_N: np.ndarray
    offsets_U: np.ndarray
    shared_N: np.ndarray
    inputs_N: np.ndarray
    root_U: np.ndarray
    task_U: np.ndarray
    tokens_U: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_U)

    @property
    def windows_U(self) -> np.ndarray:
        """Sequences of each unit."""
        return np.diff(self.offsets_U)


def ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """0 .. length - 1 for each length, one after the other.

    >>> ragged_arange(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def single_units(rows: TokenRows) -> Units:
    """Every sequence on its own: ordinary packing or padding."""
    count = len(rows)
    inputs, none = rows.lengths_N.astype(np.int64) - 1, np.zeros(count, np.int64)
    return Units(rows, np.arange(count), np.arange(count + 1), inputs, inputs, none, none, inputs)


def tree_units(rows: TokenRows, *, groups_N: np.ndarray, tasks_N: np.ndarray, most: int) -> Units:
    """Sequences of one group (int64, -1 = of none) and task together, at most `most` of them; roots by task (int64)."""
    inputs_N = rows.lengths_N.astype(np.int64) - 1
    alone = groups_N < 0
    group_N = np.where(alone, groups_N.max(initial=-1) + 1 + np.arange(len(rows)), groups_N)
    order = np.lexsort((np.arange(len(rows)), rows.lengths_N, group_N, tasks_N))
    first = _starts(tasks_N[order], group_N[order])
    chunk = (np.arange(len(order)) - _last_start(first)) // most
    unit = np.cumsum(_starts(tasks_N[order], group_N[order], chunk)) - 1
    # within a unit the longest sequence first; of equally long ones the earliest, which has dropped nothing yet
    resort = np.lexsort((order, -rows.lengths_N[order], unit))
    members_N, unit = order[resort], unit[resort]
    offsets_U = np.append(np.flatnonzero(_starts(unit)), len(unit))
    trunk_N = np.empty(len(rows), np.int64)
    trunk_N[members_N] = members_N[offsets_U[:-1]][unit]
    shared_N = common_prefix(rows, trunk_N, inputs_N)
    task_U = tasks_N[members_N[offsets_U[:-1]]]
    root_U = _roots(rows, tasks_N)[task_U]
    added_N = inputs_N - shared_N
    trunks = members_N[offsets_U[:-1]]
    tokens_U = np.add.reduceat(added_N[members_N], offsets_U[:-1]) + inputs_N[trunks] - root_U
    return Units(rows, members_N, offsets_U, shared_N, inputs_N, root_U, task_U, tokens_U)


def common_prefix(rows: TokenRows, other_N: np.ndarray, limits_N: np.ndarray) -> np.ndarray:
    """How many of the first `limits_N` tokens of each row are those of row `other_N`, which is no shorter (int64)."""
    result = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), 1 << 16):
        part = slice(start, start + (1 << 16))
        limits = limits_N[part]
        within = ragged_arange(limits)
        own = np.repeat(rows.starts_N[part], limits) + within
        other = np.repeat(rows.starts_N[other_N[part]], limits) + within
        differs = rows.tokens_S[own] != rows.tokens_S[other]
        end = np.iinfo(np.int64).max  # behind the last row, whose head may be the end
        first = np.append(np.where(differs, within, end), end)
        found = np.minimum.reduceat(first, np.cumsum(limits) - limits)
        result[part] = np.minimum(found, limits)
    return result


def _roots(rows: TokenRows, tasks_N: np.ndarray) -> np.ndarray:
    """Leading prompt tokens that all sequences of each task share, short of any prompt's last one (int64 by task)."""
    roots = np.zeros(tasks_N.max(initial=-1) + 1, np.int64)
    for task in np.unique(tasks_N):
        own = rows.take(tasks_N == task)
        limit = int(own.prompts_N.min()) - 1
        if len(own) > 1 and limit > 0:
            roots[task] = common_prefix(own, np.zeros(len(own), np.int64), np.full(len(own), limit)).min()
    return roots


def _starts(*keys: np.ndarray) -> np.ndarray:
    """Where a new combination of the (sorted) keys begins, bool."""
    changed = np.zeros(len(keys[0]), bool)
    changed[:1] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return changed


def _last_start(starts: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
