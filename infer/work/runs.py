"""Which outputs lie below a folder, and how far each is: read from manifests, locks, logs and metrics, changing nothing."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from configs.program import InputError
from data.store.claim import HOLDER
from data.store.fingerprints import read_record
from data.store.output import LOG, MANIFEST, PENDING, REPLACED

SKIPPED = re.compile(r"checkpoint-\d+|final")
STEP = re.compile(r"step (\d+/\d+)(?:, [^,]+, ([^,]+) left)?")
HELD_BY = re.compile(r"pid (\d+) on (\S+)")


@dataclass(frozen=True)
class RunStatus:
    """One output: its folder below the root, stage, state (running, finished, interrupted), `12/300`, `3 min`, last metric."""

    folder: str
    stage: str
    state: str
    step: str
    left: str
    metric: str


def find_runs(root: str | Path) -> list[RunStatus]:
    """Every output below `root`, by folder; InputError where there is no such folder."""
    if not Path(root).is_dir():
        raise InputError(f"{root} is no folder -> the one that holds the runs (OUTPUT_ROOT)")
    found = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name != REPLACED and not SKIPPED.fullmatch(name))
        if MANIFEST in files or PENDING in files:
            found.append(_status(Path(folder), str(Path(folder).relative_to(root))))
    return found


def _status(path: Path, name: str) -> RunStatus:
    try:
        record = read_record(path / MANIFEST)
        state = "finished" if record else "running" if _held(path) else "interrupted"
        record = record or read_record(path / PENDING) or {}
    except InputError:
        return RunStatus(name, "?", "damaged", "", "", "")
    step, left = _progress(path)
    return RunStatus(
        name, record.get("stage", "?"), state, step, left if state == "running" else "", _metric(path)
    )


def _held(path: Path) -> bool:
    """Whether the process that claimed an output is there; one of another machine is believed."""
    try:
        found = HELD_BY.match((path / HOLDER).read_text())
    except OSError:
        return False
    if found is None or found[2] != platform.node():
        return found is not None
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _progress(path: Path) -> tuple[str, str]:
    """(`12/300`, `3 min`) of the newest line that says so."""
    try:
        said = (path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", ""
    found = next((match for line in reversed(said) if (match := STEP.search(line))), None)
    return (found[1], found[2] or "") if found else ("", "")


def _metric(path: Path) -> str:
    """The last validation of a training, or the item-level NDCG@10 of an evaluation."""
    try:
        if (path / "metrics.jsonl").is_file():
            lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            last = next((line for line in reversed(lines) if line.get("eval_ndcg@10") is not None), None)
            return f"NDCG@10 {last['eval_ndcg@10']:.4f} at step {last['step']}" if last else ""
        value = (read_record(path / "metrics.json") or {}).get("item_level/ndcg@10")
        return f"NDCG@10 {value['value']:.4f}" if value else ""
    except (InputError, ValueError, KeyError, TypeError):
        return ""  # a line that is just being written


def as_table(runs: list[RunStatus]) -> str:
    """Aligned columns under their names."""
    rows = [("output", "stage", "state", "step", "left", "last metric")]
    rows += [(run.folder, run.stage, run.state, run.step, run.left, run.metric) for run in runs]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
