"""Fixed hints: how many codes of the target a prompt must be given so that a search with G beams finds it.

    depths_R = find_hints(engine, prompts, targets_R, group=16, space="full", temperature=1.0)
    write_hints(path, example_ids, depths_R, sids=engine.sids)      # hints.parquet: example_id, depth

Found once with the model as it came in, before training, and kept beside the run: `--hints` takes the file of another run.
Depth 0 means that the beams contain the target anyway; L - 1 leaves the last code to the policy, whether it finds it or not.

Legend: R prompts, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.program import InputError, progress
from data.sid import SidTable
from data.store.output import Output
from data.store.parquet import PARQUET, UNREADABLE, read_table
from infer.engine import Engine
from infer.search.scoring import Parity
from infer.search.tree import search
from train.policy.rollouts import confined

FILE = "hints.parquet"


def find_hints(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    targets_R: np.ndarray,
    *,
    group: int,
    space: str,
    temperature: float,
) -> np.ndarray:
    """int8 [R]: the least depth at which `group` beams contain the target (rows of `sids_SL`), at most L - 1.

    A prompt whose target is on place 3 without help has depth 0 with four beams. The search is deterministic, so the
    hints of a model are always the same.
    """
    depth_R = np.full(len(prompts), engine.sids.num_levels - 1, np.int8)
    left = np.arange(len(prompts))
    for depth in range(engine.sids.num_levels - 1):
        if not len(left):
            break
        found = []
        batches = engine.batches([prompts[row] for row in left])
        for batch in progress(batches, label=f"hints of {depth} codes", unit="batch"):
            rows = left[batch]
            trie = (
                engine.trie
                if depth == 0
                else confined(engine.trie, targets_R[rows], np.full(len(rows), depth))
            )
            beams = search(
                engine.model,
                [prompts[row] for row in rows],
                trie,
                group,
                space,
                parity=Parity(temperature=temperature),
                roots_B=None if depth == 0 else range(len(rows)),
            )
            hit_B = (beams.nodes_BK.cpu().numpy() == targets_R[rows][:, None]).any(1)
            found.append(rows[hit_B])
        depth_R[np.concatenate(found)] = depth
        left = np.setdiff1d(left, np.concatenate(found))
    return depth_R


def find_hints_together(
    engine: Engine, prompts: Sequence[Sequence[int]], targets_R: np.ndarray, **options: Any
) -> np.ndarray:
    """As find_hints, the rows divided among the processes of a run: every one of them calls this and gets all depths.

    They search about as long as one another, so none waits at a barrier until its time is up.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    rank, world = PartialState().process_index, PartialState().num_processes
    mine = np.arange(rank, len(prompts), world)
    found = find_hints(engine, [prompts[row] for row in mine], targets_R[mine], **options)
    depth_R = np.empty(len(prompts), np.int8)
    for other, depths in enumerate(gather_object([found])):
        depth_R[other::world] = depths
    return depth_R


def write_hints(path: Path, example_ids: Sequence[int], depths_R: np.ndarray, *, sids: SidTable) -> None:
    """A file that `read_hints` reads."""
    table = pa.table(
        {"example_id": pa.array(example_ids, pa.int64()), "depth": pa.array(depths_R, pa.int8())}
    )
    pq.write_table(table.replace_schema_metadata({"sids_sha256": sids.sha256}), path, **PARQUET)


def read_hints(path: str | Path, example_ids: Sequence[int], *, sids: SidTable) -> np.ndarray:
    """Depths int8 of examples; InputError for no hint file, one of other semantic IDs, or one without an example."""
    if not Path(path).is_file():
        raise InputError(f"hints {path} is no file -> {FILE} of a run with rollout.hint, or leave it out")
    try:
        table = read_table(path)
        known = dict(zip(table["example_id"].to_pylist(), table["depth"].to_pylist(), strict=True))
        made_of = (table.schema.metadata or {}).get(b"sids_sha256", b"").decode()
    except (*UNREADABLE, KeyError) as error:
        raise InputError(
            f"hints {path} is no hint file ({error}) -> {FILE} of a run with rollout.hint"
        ) from None
    if made_of != sids.sha256:
        raise InputError(
            f"hints {path} are of other semantic IDs ({made_of[:12]} against {sids.sha256[:12]}) -> leave it out, "
            "and they are found anew"
        )
    missing = [example for example in example_ids if example not in known]
    if missing:
        raise InputError(
            f"hints {path} lack example {missing[0]} ({len(missing)} such) -> leave it out, and they are found anew"
        )
    return np.array([known[example] for example in example_ids], np.int8)


def hints_of(args: Any, trainer: Any, out: Output) -> Any:
    """Codes of the target that each prompt is given, found by all processes together and kept in hints.parquet."""
    settings, file = args.rollout, out.path / FILE
    ids = [row["example_id"] for row in trainer.rows]
    if args.hints is not None:
        return read_hints(args.hints, ids, sids=trainer.engine.sids)
    if not file.exists():
        model = trainer.model.eval()
        place = next(model.parameters()).device
        model.to(trainer.accelerator.device)  # DeepSpeed and FSDP2 move it when training begins
        with trainer.accelerator.autocast():
            depths = find_hints_together(
                trainer.engine, trainer.prompts, trainer.targets_R, group=settings.num_generations,
                space=settings.rollout_space, temperature=settings.temperature,
            )  # fmt: skip
        model.to(place)
        if out.leads:
            with out.replacing(FILE) as temporary:
                write_hints(temporary, ids, depths, sids=trainer.engine.sids)
    trainer.accelerator.wait_for_everyone()
    return read_hints(file, ids, sids=trainer.engine.sids)
