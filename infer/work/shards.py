"""Many rows over many processes: chunks of rows, shards of chunks, one directory that is whole or unfinished.

The selected rows are cut into chunks of a fixed number of rows, and every chunk is decoded by itself: what comes out does
not depend on who decodes it. A shard is a contiguous range of chunks. Finished chunks lie in `<output>/chunks/` (written
whole or not at all), so that a run that was killed goes on where it was, with as many processes as it is given then. When
a shard's chunks are done it writes its part, one row group per chunk, and then its mark; whoever finishes the output
requires every mark and removes the chunks. In memory there is never more than one chunk of rows.

Processes of one launcher (RANK, WORLD_SIZE) are shards of one run. Independent jobs of a cluster say which they are
(`--shard 3 --of 8`) and leave the output unfinished; `--of 8` alone joins them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.program import Clock, EnvironmentFault, InputError
from data import artifacts
from data.store.claim import rank_and_world
from data.store.output import Output
from data.store.parquet import PARQUET, read_batches

FOLDER = "chunks"
PREDICTIONS, THOUGHTS, INSTRUCTIONS = "predictions", "thoughts", "instructions"
READ_ROWS = 4096
STALL_SECONDS = 1800
PART_SCHEMA = pa.schema(
    [*artifacts.PREDICTIONS.required.items(), ("codes", artifacts.PREDICTIONS.optional["codes"])]
)


@dataclass(frozen=True)
class Plan:
    """rows_N int64: positions of the rows in the examples file, ascending; `shard` of `of` shards."""

    rows_N: np.ndarray
    chunk_rows: int
    shard: int = 0
    of: int = 1

    @property
    def num_chunks(self) -> int:
        return -(-len(self.rows_N) // self.chunk_rows)

    def rows(self, chunk: int) -> np.ndarray:
        """Positions int64 of one chunk's rows."""
        return self.rows_N[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]

    def chunks(self, shard: int) -> range:
        """The chunks of one shard; shards differ by one chunk at most.

        >>> plan = Plan(np.arange(10), 2, of=2)
        >>> list(plan.chunks(0)), list(plan.chunks(1))
        ([0, 1], [2, 3, 4])
        """
        return range(self.num_chunks * shard // self.of, self.num_chunks * (shard + 1) // self.of)


class Left(Exception):
    """Leaves an output unfinished on purpose: claimed, unlocked, to be gone on with."""


@contextmanager
def unfinished() -> Iterator[None]:
    """Around `open_output`: a `Left` that passes through it is no error."""
    with suppress(Left):
        yield


def claim_shared(directory: str | Path, opened: AbstractContextManager[Output]) -> Output:
    """Claim an output for independent shards: checked and marked as theirs, but not locked.

    `opened` is an `open_output` that nobody has entered yet. Jobs that start at once wait for each other here, for a moment.
    """
    from filelock import FileLock, Timeout

    path = Path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    claimed: list[Output] = []
    try:
        with FileLock(claim_file(path), timeout=600), unfinished(), opened as out:
            claimed.append(out)
            raise Left
    except Timeout:
        raise EnvironmentFault(f"{claim_file(path)} is held for 10 minutes -> remove it if no run uses {path}") from None  # fmt: skip
    return claimed[0]


def check_shard(shard: int | None, of: int | None) -> None:
    """InputError for a shard that is none of `of`, or that a launcher has chosen already."""
    if of is not None and of < 1 or shard is not None and of is None:
        raise InputError(f"shard {shard} of {of} -> give both, e.g. --shard 0 --of 8")
    if shard is not None and not 0 <= shard < of:
        raise InputError(f"shard {shard} must lie in 0..{of - 1}")
    if of is not None and rank_and_world()[1] > 1:
        raise InputError("--of is for jobs without a launcher; torchrun's processes are shards already")


def claim_file(path: Path) -> Path:
    """Where shards take turns; outside the output, which would be refused as foreign with it."""
    return path.with_name(f".{path.name}.claim")


def chunk_path(out: Output, kind: str, chunk: int) -> Path:
    return out.path / FOLDER / f"{kind}-{chunk:05d}.parquet"


def stream(files: Sequence[Path], wanted: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, pa.Table]]:
    """(chunk, its rows as a table) for ascending positions in the rows of parquet files, one behind the other.

    Holds only the rows around the current chunk.
    """
    batches = (batch for file in files for batch in read_batches(Path(file), rows=READ_ROWS))
    held: list[tuple[int, pa.Table]] = []  # (position of its first row, rows)
    end = 0
    for chunk, positions in wanted:
        while end <= positions[-1]:
            rows = pa.Table.from_batches([next(batches)])
            held.append((end, rows))
            end += rows.num_rows
        held = [(first, rows) for first, rows in held if first + rows.num_rows > positions[0]]
        window = pa.concat_tables([rows for _, rows in held])
        table = window.take(positions - held[0][0])
        yield chunk, artifacts.conform(table, artifacts.EXAMPLES, where=str(files[0].parent))


def work(
    out: Output,
    plan: Plan,
    examples: Sequence[Path],
    kind: str,
    make: Callable[[int, pa.Table], pa.Table],
    *,
    show: Callable[..., Any],
) -> tuple[int, float]:
    """Make the chunks of this shard that are not there yet: (rows made now, seconds it took).

    examples: the files of the split; make: (chunk number, its examples) -> the table of the chunk.
    """
    missing = [chunk for chunk in plan.chunks(plan.shard) if not chunk_path(out, kind, chunk).exists()]
    clock, rows = Clock(), 0
    wanted = ((chunk, plan.rows(chunk)) for chunk in missing)
    for chunk, table in show(stream(examples, wanted), label=kind, total=len(missing), unit="chunk"):
        out.write_table(f"{FOLDER}/{chunk_path(out, kind, chunk).name}", make(chunk, table))
        rows += table.num_rows
    return rows, clock.seconds


def write_part(out: Output, plan: Plan, steps: Sequence[tuple[int, float]]) -> None:
    """This shard's part of the predictions, chunk by chunk, and then the mark that it is done."""
    chunks = [chunk_path(out, PREDICTIONS, chunk) for chunk in plan.chunks(plan.shard)]
    mark_done(
        out,
        plan,
        steps,
        entries=join_files(out, artifacts.part_name(PREDICTIONS, plan.shard, plan.of), chunks, PART_SCHEMA),
    )


def mark_done(out: Output, plan: Plan, steps: Sequence[tuple[int, float]], *, entries: int) -> None:
    """The mark of a shard. steps: (rows made now, seconds) of each step; entries: rows of what came out.

    It keeps rows per second through all steps, null after a resume that had nothing to do in one.
    """
    measured = all(rows and seconds for rows, seconds in steps)
    rate = 1 / sum(seconds / rows for rows, seconds in steps) if measured else None
    mark = {"users_per_second": rate, "predictions": entries}
    out_name = f"{FOLDER}/{mark_name(plan.shard, plan.of)}"
    with out.replacing(out_name) as temporary:
        temporary.write_text(json.dumps(mark) + "\n")


def mark_name(shard: int, of: int) -> str:
    return f"shard-{shard:05d}-of-{of:05d}.json"


def join_files(out: Output, name: str, files: Iterable[Path], schema: pa.Schema) -> int:
    """One parquet file of many, a row group each; the number of rows."""
    rows = 0
    with out.replacing(name) as temporary, pq.ParquetWriter(temporary, schema, **PARQUET) as writer:
        for file in files:
            table = artifacts.read_file(file).select(schema.names).cast(schema)
            writer.write_table(table)
            rows += table.num_rows
    return rows


def wait_for_shards(out: Output, plan: Plan) -> None:
    """Until every shard of this launch has left its mark; EnvironmentFault when nothing moves for half an hour."""
    clock, last = Clock(), -1
    while (missing := missing_shards(out, plan)) and clock.seconds < STALL_SECONDS:
        present = len(list((out.path / FOLDER).iterdir()))
        if present != last:
            clock, last = Clock(), present
        time.sleep(0.1)
    if missing:
        raise EnvironmentFault(
            f"shards {missing[:5]} of {plan.of} made no progress for {STALL_SECONDS} s -> look at their logs, run again"
        )


def require_shards(out: Output, plan: Plan) -> None:
    """InputError naming the shards that are not done."""
    missing = missing_shards(out, plan)
    if missing:
        raise InputError(
            f"{out.path}: {len(missing)} of {plan.of} shards are not done (first: {missing[0]}) -> run --shard "
            f"{missing[0]} --of {plan.of}, or leave --of out to decode what is missing here"
        )


def missing_shards(out: Output, plan: Plan) -> list[int]:
    folder = out.path / FOLDER
    return [shard for shard in range(plan.of) if not (folder / mark_name(shard, plan.of)).exists()]


def finish(out: Output, plan: Plan, *, joined: dict[str, pa.Schema]) -> dict[str, Any]:
    """Join the chunks of the kinds `joined` into <kind>.parquet, drop what was only for resuming, and add up the marks.

    {"predictions": rows written, "users_per_second": summed over the shards, None where none was measured}.
    """
    folder = out.path / FOLDER
    marks = [json.loads((folder / mark_name(shard, plan.of)).read_text()) for shard in range(plan.of)]
    for kind, schema in joined.items():
        files = (chunk_path(out, kind, chunk) for chunk in range(plan.num_chunks))
        join_files(out, f"{kind}.parquet", files, schema)
    parts = {artifacts.part_name(PREDICTIONS, shard, plan.of) for shard in range(plan.of)}
    for path in [*out.path.glob("predictions-*.parquet"), *out.path.glob(".predictions-*.tmp")]:
        if path.name not in parts:
            path.unlink()
    shutil.rmtree(folder)
    claim_file(out.path).unlink(missing_ok=True)
    rates = [mark["users_per_second"] for mark in marks if mark["users_per_second"]]
    return {
        "predictions": sum(mark["predictions"] for mark in marks),
        "users_per_second": round(sum(rates), 2) if rates else None,
    }
