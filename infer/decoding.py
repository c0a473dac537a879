"""Decoding a split: which rows are answered, the batched search over them, and the table of predictions.

Legend: N examples, K beams, R returned semantic IDs of all examples.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import program
from configs.program import InputError
from data import artifacts
from data.sid import SidTable
from data.tasks import from_row
from infer.engine import Engine


def select_rows(examples: pa.Table, *, max_rows: int | None, seed: int) -> pa.Table:
    """The history_to_sid rows, or a seeded sample of `max_rows` of them in their own order."""
    rows = np.flatnonzero(pc.equal(examples["task"], "history_to_sid").to_numpy())
    if not len(rows):
        raise InputError("the examples have no history_to_sid rows -> build them with that task")
    if max_rows is not None and max_rows < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_rows, replace=False))
    return examples.take(rows)


def predict(engine: Engine, examples: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nodes int64 [N, K] with -1 where there is none, scores float32 [N, K], example ids int64 [N])."""
    prompts = [engine.renderer.prompt_ids(from_row(row)) for row in examples.to_pylist()]
    beams = min(engine.settings.beams, len(engine.sids.sids_SL))
    nodes_NK = np.full((len(prompts), beams), -1, np.int64)
    scores_NK = np.full((len(prompts), beams), -np.inf, np.float32)
    total = -(-len(prompts) // engine.settings.batch_size)
    for rows, found in program.progress(
        engine.search_batches(prompts), label="recommend", total=total, unit="batch"
    ):
        width = found.nodes_BK.shape[1]
        finite = found.scores_BK.isfinite().cpu().numpy()
        nodes_NK[rows, :width] = np.where(finite, found.nodes_BK.cpu().numpy(), -1)
        scores_NK[rows, :width] = found.scores_BK.cpu().numpy()
    return nodes_NK, scores_NK, examples["example_id"].to_numpy()


def prediction_table(
    nodes_NK: np.ndarray, scores_NK: np.ndarray, example_ids: np.ndarray, sids: SidTable
) -> pa.Table:
    """Long form: a row per example and returned semantic ID, rank from 1."""
    row_R, rank_R = np.nonzero(nodes_NK >= 0)
    sid_R = nodes_NK[row_R, rank_R]
    sizes_R = sids.group_sizes_S[sid_R]
    members = [sids.items_of_sid(sid) for sid in range(len(sids.sids_SL))]
    items = np.concatenate([members[sid] for sid in sid_R]) if len(sid_R) else np.empty(0, np.int32)
    return pa.table(
        {
            "example_id": example_ids[row_R],
            "rank": (rank_R + 1).astype(np.float32),
            "codes": artifacts.int_rows(sids.sids_SL[sid_R]),
            "item_ids": artifacts.int_lists(np.concatenate([[0], np.cumsum(sizes_R)]), items),
            "score": scores_NK[row_R, rank_R],
        }
    )
