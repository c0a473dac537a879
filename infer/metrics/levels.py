"""What counts as a hit: every level of the metrics as places of the targets, one float pair per row.

  item_level          the items that are recommended, colliding items of one SID in random order
  sid_level           a recommended SID counts for every item that shares it (the published protocol)
  item_level_unseen   without the items of the history, and without rows whose target is in the history
  item_level_merged   items with the same text (one product sold under several ids) are one item
  item_level_dedup    the same, and the rows in which one user chooses one product count as one row together, so that
                      a product that a few users buy over and over (review spam) does not decide a benchmark
  prefix=1, position=1 ...  the first codes of the target's SID, or one code of it, whatever the others are; the
                      last prefix is sid_level

Legend: R rows, N items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.predictions import Predictions
from data.rows import Rows
from data.sid import SidTable
from infer.metrics import ranking
from infer.metrics.placement import (
    Placement,
    find_targets,
    joined,
    place_items,
    place_merged,
    place_prefixes,
    place_sids,
    place_unseen,
)

FILE = "rows.parquet"


@dataclass(frozen=True)
class Level:
    """Places of the targets, the weight of every row (float64, 0: does not count), list lengths that are complete."""

    placement: Placement
    weight_R: np.ndarray
    ks: tuple[int, ...]

    def value_R(self, metric: str) -> np.ndarray:
        """`ranking.by_name` of every row, float64 [R]."""
        return ranking.by_name(metric, self.placement.before_R, self.placement.group_R)

    def values(self) -> list[np.ndarray]:
        """All its metrics, in order, of every row."""
        return [self.value_R(metric) for metric in self.metrics]

    def take(self, rows: np.ndarray) -> Level:
        """The rows at positions `rows` (int64)."""
        placement = Placement(self.placement.before_R[rows], self.placement.group_R[rows])
        return Level(placement, self.weight_R[rows], self.ks)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of this level: `hr@1` ... `ndcg@1` ... and the MRR of the longest lists, `mrr@50`."""
        return (*(f"hr@{k}" for k in self.ks), *(f"ndcg@{k}" for k in self.ks), f"mrr@{max(self.ks)}")


@dataclass(frozen=True)
class Placed:
    """Places of a block of rows: placements by level; counts_R bool: rows that count in `unseen`; left: see there."""

    placements: dict[str, Placement]
    counts_R: np.ndarray
    left: int


def place_rows(
    predictions: Predictions,
    rows: Rows,
    *,
    sids: SidTable | None,
    num_items: int,
    product_N: np.ndarray | None,
) -> Placed:
    """The places at every level that these predictions have; example r of them is row r of `rows`.

    product_N int64: the product of every item, None: not known.
    """
    target_R = rows.target_R
    found = find_targets(predictions, target_R)
    placements = {"item_level": place_items(predictions, found)}
    if predictions.codes_EL is not None or sids is not None:
        sid_of_item_N = sids.sid_of_item_N if sids else None
        placements["sid_level"] = place_sids(predictions, found, target_R, sid_of_item_N)
    unseen, counts_R, left = place_unseen(
        predictions, found, target_R, rows.history_row_H, rows.history_H, num_items
    )
    placements["item_level_unseen"] = unseen
    if product_N is not None:
        placements["item_level_merged"] = place_merged(predictions, found, target_R, product_N)
    if predictions.codes_EL is not None and sids is not None:
        placements |= place_prefixes(predictions, sids.codes_NL[target_R])
    return Placed(placements, counts_R, left)


def levels_of_blocks(
    blocks: Sequence[Placed], rows: Rows, *, ks: Sequence[int], product_N: np.ndarray | None
) -> dict[str, Level]:
    """The levels of `rows`, whose blocks follow one another; ks: list lengths up to the declared one."""
    ones_R, ks = np.ones(len(rows)), tuple(ks)
    counts_R = np.concatenate([block.counts_R for block in blocks])
    # A list that lost items is complete only up to what is left of it.
    complete = tuple(k for k in ks if k <= min(block.left for block in blocks))
    levels = {}
    for name in blocks[0].placements:
        placed = joined([block.placements[name] for block in blocks])
        if name != "item_level_unseen":
            levels[name] = Level(placed, ones_R, ks)
        elif complete and counts_R.any():
            levels[name] = Level(placed, counts_R.astype(np.float64), complete)
        if name == "item_level_merged":
            once_R = once_per_user(rows.users_R, product_N[rows.target_R])
            levels["item_level_dedup"] = Level(placed, once_R, ks)
    return levels


def once_per_user(users_R: np.ndarray, product_R: np.ndarray) -> np.ndarray:
    """Weights float64 [R]: the rows of one user with one product share the weight 1.

    >>> once_per_user(np.array([7, 7, 7, 8]), np.array([3, 3, 5, 3])).tolist()
    [0.5, 0.5, 1.0, 1.0]
    """
    key = users_R.astype(np.int64) * (int(product_R.max(initial=0)) + 1) + product_R
    _, pair_R, counts = np.unique(key, return_inverse=True, return_counts=True)
    return 1.0 / counts[pair_R]


def level_table(levels: dict[str, Level], rows: Rows) -> pa.Table:
    """The places of all levels, one line per example: what paired comparisons need of an evaluation."""
    columns: dict[str, pa.Array] = {
        "example_id": pa.array(rows.example_ids_R, pa.int64()),
        "user_id": pa.array(rows.users_R, pa.int32()),
        "target": pa.array(rows.target_R, pa.int32()),
    }
    for name, level in levels.items():
        columns[f"{name}/before"] = pa.array(level.placement.before_R, pa.float32())
        columns[f"{name}/group"] = pa.array(level.placement.group_R, pa.int32())
        columns[f"{name}/weight"] = pa.array(level.weight_R, pa.float64())
    table = pa.table(columns)
    return table.replace_schema_metadata(
        {f"{name}/ks": ",".join(map(str, level.ks)) for name, level in levels.items()}
    )


def levels_of(table: pa.Table) -> dict[str, Level]:
    """The inverse of `level_table`."""
    found = {}
    for key, ks in (table.schema.metadata or {}).items():
        name, _, what = key.decode().rpartition("/")
        if what != "ks" or f"{name}/before" not in table.column_names:
            continue
        before_R = table[f"{name}/before"].to_numpy().astype(np.float64)
        placement = Placement(before_R, table[f"{name}/group"].to_numpy().astype(np.int64))
        weight_R = table[f"{name}/weight"].to_numpy()
        found[name] = Level(placement, weight_R, tuple(map(int, ks.decode().split(","))))
    return found
