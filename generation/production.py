"""Every request becomes a file once: shared between processes, resumed after a kill, checked, with one row of an index each.

    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        produce(out, requests, maker, seed=args.seed, model="zimage")
        if out.leads:
            conclude(out, requests, plan, kind="image")

A file is written under a temporary name, checked, renamed, and then a record of it is written: a row is done when its record and
its file are there and the record is of the same prompt (another seed is another configuration, which `open_output` refuses). So a
run that was killed makes what is missing, with as many processes as it is given then. A row that fails costs its neighbours
nothing: a batch that raises is made again row by row, and what fails still is recorded with its reason. At the end there is an
index of all rows. Rows that failed leave the output unfinished: the same command makes those again. Rows whose prompt cannot be
drawn (empty, too long) are `refused` for good.

The index names the seed that a file was made from. Where a maker draws several rows from one seed, it is that of the first of them:
rows that are made again are drawn together with others, and so perhaps from another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from configs import program
from configs.integrity import sha256
from configs.program import (
    AlreadyComplete,
    Clock,
    InputError,
    NumericError,
    ProgramError,
    ServiceError,
    say,
    warn,
)
from data import artifacts
from data.store.claim import rank_and_world
from data.store.directory import temporary_of
from data.store.fingerprints import read_record
from data.store.output import Output, require_manifest
from generation.pictures import Facts, Faulty, contact_sheet
from generation.requests import MediaRequest, as_lines
from infer.work import shards

FILES, PROMPTS, SHEET = "files", "prompts.jsonl", "contact_sheet.jpg"
MADE, FAILED, REFUSED = "made", "failed", "refused"
IN_A_ROW = 8  # failures without a success after which nothing more is tried


class Maker(Protocol):
    """What draws. `suffix` ends its files; `batch` requests are made together, each `per_seed` of them from one seed; `outside`
    where another program draws."""

    suffix: str
    batch: int
    per_seed: int
    outside: bool

    def refusal(self, prompt: str) -> str | None:
        """Why a prompt that is not empty cannot be drawn, None where it can."""

    def make(
        self, requests: Sequence[MediaRequest], seeds: Sequence[int], files: Sequence[Path]
    ) -> list[str | None]:
        """Write a file per request; per request None, or why there is none. May raise for all of them."""

    def check(self, file: Path) -> Facts:
        """Facts of a file that was made; Faulty where it is not what was asked for."""


@dataclass(frozen=True)
class Production:
    """One process's share."""

    out: Output
    maker: Maker
    seed: int
    model: str

    def record_file(self, request: MediaRequest) -> Path:
        """Of its own for every name, and never that of a mark."""
        digest = hashlib.sha256(request.name.encode()).hexdigest()[:32]
        return self.out.path / shards.FOLDER / f"row-{digest}.json"

    def file(self, request: MediaRequest) -> Path:
        return self.out.path / FILES / f"{request.name}{self.maker.suffix}"

    def done(self, request: MediaRequest) -> bool:
        """Whether a row needs nothing more: its file is there, or it is refused."""
        record = read_record(self.record_file(request))
        if record is None or record["prompt_sha256"] != request.prompt_sha256:
            return False
        if record["status"] == MADE:
            file = self.out.path / record["path"]
            return file.is_file() and file.stat().st_size == record["bytes"]
        return record["status"] == REFUSED

    def seeds(self, batch: Sequence[MediaRequest]) -> list[int]:
        """Per request the seed of its noise: its own, or that of the first of those that are made from one."""
        shared = self.maker.per_seed
        return [batch[place - place % shared].noise_seed(self.seed) for place in range(len(batch))]

    def record(self, request: MediaRequest, status: str, *, seed: int, **facts: Any) -> None:
        """What became of a request; seed: the one that was drawn from, which may be another row's."""
        row = {
            "name": request.name, "prompt_sha256": request.prompt_sha256, "seed": seed, "model": self.model, "status": status,
            **facts,
        }  # fmt: skip
        with self.out.replacing(str(self.record_file(request).relative_to(self.out.path))) as temporary:
            temporary.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")


def share(requests: Sequence[MediaRequest], batch: int) -> shards.Plan:
    """This process's contiguous range of batches."""
    rank, world = rank_and_world()
    return shards.Plan(np.arange(len(requests)), batch, rank, world)


def produce(out: Output, requests: Sequence[MediaRequest], maker: Maker, *, seed: int, model: str) -> None:
    """Make what is missing of this process's share, then leave its mark."""
    work, plan = Production(out, maker, seed, model), share(requests, maker.batch)
    if out.leads:
        out.write_text(PROMPTS, as_lines(requests))
    rows = [requests[row] for chunk in plan.chunks(plan.shard) for row in plan.rows(chunk)]
    missing = [request for request in rows if not work.done(request)]
    fresh, drawn = len(missing) == len(rows), without_refused(work, missing)
    batches = [drawn[start : start + maker.batch] for start in range(0, len(drawn), maker.batch)]
    clock, made, failed = Clock(), 0, 0
    for batch in program.progress(batches, label=f"rank {plan.shard}", unit="batch"):
        outcome = make_batch(work, batch)
        made += outcome.count(None)
        failed += len(outcome) - outcome.count(None)
        if fresh and not made and failed >= IN_A_ROW:
            kind = ServiceError if maker.outside else NumericError
            raise kind(
                f"the first {failed} rows all failed ({outcome[-1]}) -> see {out.path}/{shards.FOLDER}, then run again"
            )
    shards.mark_done(out, plan, [(made, clock.seconds)], entries=made)


def without_refused(work: Production, rows: Sequence[MediaRequest]) -> list[MediaRequest]:
    """The rows whose prompts can be drawn; the others are recorded."""
    reasons = [work.maker.refusal(r.prompt) if r.prompt else "the prompt is empty" for r in rows]
    for request, reason in zip(rows, reasons, strict=True):
        if reason:
            work.record(request, REFUSED, seed=request.noise_seed(work.seed), reason=reason)
    return [request for request, reason in zip(rows, reasons, strict=True) if not reason]


def make_batch(work: Production, batch: Sequence[MediaRequest]) -> list[str | None]:
    """Per request None, or why it failed; each is recorded."""
    files, seeds = [work.file(request) for request in batch], work.seeds(batch)
    targets = [temporary_of(file) for file in files]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    try:
        outcome = work.maker.make(batch, seeds, targets)
    except ProgramError:
        raise
    except Exception as error:  # of a library, about one row or about all of them
        program.raise_environment_fault(error, where=f"while drawing {batch[0].name}")
        if len(batch) > 1:
            return [reason for request in batch for reason in make_batch(work, [request])]
        outcome = [f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"]
    seconds = round(clock.seconds / len(batch), 3)
    for place, request in enumerate(batch):
        told = {"seed": seeds[place], "seconds": seconds}
        outcome[place] = outcome[place] or _keep(work, request, targets[place], files[place], told)
        if outcome[place]:
            targets[place].unlink(missing_ok=True)
            work.record(request, FAILED, seed=seeds[place], reason=outcome[place])
    return outcome


def _keep(
    work: Production, request: MediaRequest, made: Path, file: Path, told: dict[str, Any]
) -> str | None:
    """Check, rename and record one file, with what is told of its making; why it is not kept."""
    try:
        facts = work.maker.check(made)
    except Faulty as fault:
        return str(fault)
    if facts.poster is not None:
        poster = file.with_suffix(".jpg")
        os.replace(facts.poster, poster)
        facts = Facts(**asdict(facts) | {"poster": str(poster.relative_to(work.out.path))})
    descriptor = os.open(made, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    digest, size = sha256(made), made.stat().st_size
    os.replace(made, file)
    path = str(file.relative_to(work.out.path))
    work.record(request, MADE, path=path, bytes=size, sha256=digest, **told, **asdict(facts))
    return None


def conclude(out: Output, requests: Sequence[MediaRequest], maker: Maker, *, seed: int, model: str) -> None:
    """Once every share is done: the index, the contact sheet, and an error where rows failed."""
    plan, work = share(requests, maker.batch), Production(out, maker, seed, model)
    shards.wait_for_shards(out, plan)
    records = [read_record(work.record_file(request)) for request in requests]
    absent = [request.name for request, record in zip(requests, records, strict=True) if record is None]
    if absent:
        raise NumericError(
            f"{len(absent)} rows have no record (first: {absent[0]}) -> run the same command again"
        )
    table = index_table(requests, records)
    out.write_table(artifacts.MEDIA.file, table)
    statuses = Counter(table["status"].to_pylist())
    out.counts |= {"rows": table.num_rows} | {status: statuses[status] for status in (MADE, REFUSED)}
    shown = [record["poster"] or record["path"] for record in records if record["status"] == MADE]
    if shown:
        with out.replacing(SHEET) as temporary:
            contact_sheet([out.path / path for path in shown]).save(temporary, "JPEG", quality=85)
    marks = list((out.path / shards.FOLDER).glob("shard-*.json"))
    rates = [json.loads(file.read_text())["users_per_second"] for file in marks]
    out.facts["rows_per_second"] = round(sum(filter(None, rates)), 4) or None
    for file in marks:  # what failed is made again: nobody may take an old mark for the new one
        file.unlink()
    if failed := statuses[FAILED]:
        first = next(
            (r, record) for r, record in zip(requests, records, strict=True) if record["status"] == FAILED
        )
        kind = ServiceError if maker.outside else NumericError
        raise kind(
            f"{failed} of {len(requests)} rows failed (first: {first[0].name}: {first[1]['reason']}); the others are in "
            f"{out.path}/{FILES} -> run the same command again: it makes these only"
        )
    shutil.rmtree(out.path / shards.FOLDER)
    say(f"{statuses[MADE]} of {len(requests)} rows made, {statuses[REFUSED]} refused: {out.path}")


def index_table(requests: Sequence[MediaRequest], records: Sequence[dict[str, Any]]) -> pa.Table:
    """The table of data.artifacts.MEDIA, in the order of the requests."""
    rows = [asdict(request) | record for request, record in zip(requests, records, strict=True)]
    kinds = artifacts.MEDIA.required | artifacts.MEDIA.optional
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()})


@contextmanager
def already_said() -> Iterator[None]:
    """Around `open_output`: that the output is complete is said, and what comes after it still happens."""
    try:
        yield
    except AlreadyComplete as complete:
        say(str(complete))


def require_no_refusals(directory: str | Path, *, skip: bool) -> None:
    """InputError (or a warning, with `skip`) where rows of a finished output could not be drawn as they were worded."""
    counts = require_manifest(directory, written_by=artifacts.MEDIA.written_by)["counts"]
    if not counts[REFUSED]:
        return
    table = artifacts.read(directory, artifacts.MEDIA)
    row = next(row for row in table.to_pylist() if row["status"] == REFUSED)
    text = f"{counts[REFUSED]} of {counts['rows']} rows were refused (first: {row['uid']}: {row['reason']}); the others are done"
    if not skip:
        raise InputError(f"{text} -> correct their prompts, or accept it: --skip_refused true")
    warn(text)
