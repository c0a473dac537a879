"""Groups of rows that are reported apart: by the target's popularity, the history's length, repeats.

Legend: R rows, N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from configs.program import InputError
from data.rows import Rows

MAX_VALUES = 50
HISTORY_BUCKETS = ((1, 2), (3, 5), (6, 10), (11, None))


def popularity_tiers(popularity_N: np.ndarray) -> np.ndarray:
    """0 head, 1 torso, 2 tail for every item, int64 [N].

    The items, most popular first, are cut where a third and two thirds of the train rows are reached; items
    of equal count are in one tier. Items without train rows are tail. Counts 5, 3, 1, 0: shares before them
    0, 5/9, 8/9, 1.

    >>> popularity_tiers(np.array([5, 3, 1, 0])).tolist()
    [0, 1, 2, 2]
    """
    counts = np.sort(popularity_N)[::-1]
    total = np.concatenate([[0], np.cumsum(counts)])
    more_popular = np.searchsorted(-counts, -popularity_N, side="left")
    share_before = total[more_popular] / max(int(total[-1]), 1)
    tiers = np.digitize(share_before, [1 / 3, 2 / 3])
    return np.where(popularity_N == 0, 2, tiers)


def group_masks(rows: Rows, popularity_N: np.ndarray) -> dict[str, np.ndarray]:
    """{"target=cold": bool [R], ...}; groups without rows are left out.

    target=cold|warm          without / with train rows
    popularity=head|torso|tail  a third of the train rows each, see `popularity_tiers`
    history=1-2|3-5|6-10|11+  items in the row's history (history=0 where one is empty)
    repeat=yes|no             the target is in the row's own history
    """
    cold = popularity_N[rows.target_R] == 0
    tier = popularity_tiers(popularity_N)[rows.target_R]
    lengths = np.diff(rows.offsets)
    repeat = np.zeros(len(rows), bool)
    repeat[rows.history_row_H[rows.history_H == rows.target_R[rows.history_row_H]]] = True
    masks = {"target=cold": cold, "target=warm": ~cold}
    masks |= {f"popularity={name}": tier == number for number, name in enumerate(("head", "torso", "tail"))}
    masks["history=0"] = lengths == 0
    for low, high in HISTORY_BUCKETS:
        name = f"history={low}-{high}" if high else f"history={low}+"
        masks[name] = (lengths >= low) & (lengths <= (high or np.inf))
    masks |= {"repeat=yes": repeat, "repeat=no": ~repeat}
    return {name: mask for name, mask in masks.items() if mask.any()}


def column_masks(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"dataset=games": bool [R], ...} of columns with few values, texts [R]; InputError when one has too many.

    >>> column_masks({"dataset": np.array(["games", "beauty", "games"])})["dataset=games"].tolist()
    [True, False, True]
    """
    masks = {}
    for name, value_R in columns.items():
        values = np.unique(value_R)
        if len(values) > MAX_VALUES:
            raise InputError(
                f"column {name!r} has {len(values)} values, more than {MAX_VALUES} -> group by a coarser one"
            )
        masks |= {f"{name}={value}": value_R == value for value in values}
    return masks


def apart_masks(apart_items: Sequence[int], target_R: np.ndarray, num_items: int) -> dict[str, np.ndarray]:
    """{"apart=yes", "apart=no": bool [R]} of rows whose target is one of some items; {} for none; InputError for an unknown one.

    >>> apart_masks([4, 5], np.array([4, 0, 5]), 6)["apart=no"].tolist()
    [False, True, False]
    """
    if unknown := [item for item in apart_items if not 0 <= item < num_items]:
        raise InputError(f"apart_items: no item {unknown[0]} -> ids 0..{num_items - 1} of items.parquet")
    apart_R = np.isin(target_R, apart_items)
    masks = {"apart=yes": apart_R, "apart=no": ~apart_R} if len(apart_items) else {}
    return {name: mask for name, mask in masks.items() if mask.any()}
