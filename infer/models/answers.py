"""The answers of an item model to rows, as a prediction directory like that of any other model.

Legend: R rows, N items.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import Clock
from data.predictions import ranked_items_table, unanswered, write_predictions
from data.rows import Rows
from data.store.output import Output, require_manifest
from infer.models import contract

LISTED = 1 << 23  # entries of all rows that ties beyond the depth may fill


def predict(rows: Rows, model: contract.ItemModel, depth: int, *, label: str) -> pa.Table:
    """Ranked items of every row in long form, block by block; any item model will do.

    A tie at the depth is listed whole where all rows together have room for it, else drawn from (`contract.ranked_lists`).
    """
    step, most = contract.block_rows(model.num_items), LISTED // max(len(rows), 1)
    tables = []
    for start in program.progress(range(0, len(rows), step), label=label, unit="block"):
        block = rows.take(np.arange(start, min(start + step, len(rows))))
        lists = contract.ranked_lists(model.score(block), depth, most=most, keys_R=block.example_ids_R)
        tables.append(
            ranked_items_table(block.example_ids_R, lists.offsets, lists.item_E, lists.rank_E, lists.score_E)
        )
    return pa.concat_tables(tables)


def write_answers(
    out: Output, rows: Rows, model: contract.ItemModel, *, saved: Path, name: str, split: str, depth: int
) -> None:
    """Predictions of `model`, which is saved in `saved`, and in the manifest what is known of it."""
    clock = Clock()
    table = predict(rows, model, depth, label=f"{name}.{split}")
    seconds = clock.seconds
    write_predictions(out, table)
    out.counts |= {"examples": len(rows), "predictions": table.num_rows}
    if hasattr(model, "positions"):
        out.counts["histories_cut"] = int((np.diff(rows.offsets) > model.positions).sum())
    out.facts |= require_manifest(saved, written_by="the stage that fits it")["facts"] | {
        "split": split,
        "model": name,
        "item_model": str(saved),
        "scores": "log-probabilities",
        "depth": min(depth, model.num_items),
        "users_per_second": round(len(rows) / seconds, 1),
    }
    out.facts |= unanswered(rows.example_ids_R, table)
