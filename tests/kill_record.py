"""What the kill matrix has shown so far, in one JSON file: a run that was cut off goes on, and what was shown can be looked up.

    KILL_RECORD=outputs/kill_matrix.json       scripts/test.sh --all sets it; without it nothing is kept
    {"stage": "sft", "event": "every write, alone", "result": "passed", "kills": 63, "seconds": 812.4, "commit": "1a2b3c4"}

A cell that passed at the present commit is skipped, one that was cut off goes on behind its last kill. A tree with changes that are
not committed is no commit: it is recorded, never skipped. Delete the file to begin anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from configs.program import ROOT

DIRTY = "-dirty"


@cache
def present_commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", f"--dirty={DIRTY}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or f"none{DIRTY}"


class Cell:
    """One stage under one event. kills: how many it has stood; every one is on disk before the next."""

    def __init__(self, path: Path | None, entry: dict[str, Any]) -> None:
        self.path, self.entry, self.before, self.start = path, entry, entry["seconds"], time.monotonic()

    @property
    def kills(self) -> int:
        return self.entry["kills"]

    def stood(self, kills: int) -> None:
        """That many kills, all in all."""
        self.keep(kills=kills)

    def keep(self, **values: Any) -> None:
        self.entry |= values | {"seconds": round(self.before + time.monotonic() - self.start, 1)}
        if self.path is None:
            return
        others = [one for one in read(self.path) if key(one) != key(self.entry)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps([*others, self.entry], indent=1) + "\n")
        os.replace(temporary, self.path)


def key(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["stage"], entry["event"]


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


@contextmanager
def recorded(stage: str, event: str) -> Iterator[Cell]:
    """The cell; skips the test where it passed before. Its result is kept when the block ends, well or not."""
    place = os.environ.get("KILL_RECORD")
    path, commit = Path(place) if place else None, present_commit()
    entry = {
        "stage": stage,
        "event": event,
        "result": "cut off",
        "kills": 0,
        "seconds": 0.0,
        "commit": commit,
    }
    known = {key(one): one for one in (read(path) if path else [])}.get((stage, event))
    if known is not None and known["commit"] == commit and not commit.endswith(DIRTY):
        if known["result"] == "passed":
            pytest.skip(f"passed at {commit}, {known['kills']} kills: {path}")
        entry |= {name: known[name] for name in ("kills", "seconds") if known["result"] == "cut off"}
    cell = Cell(path, entry)
    try:
        yield cell
    except Exception as error:
        cell.keep(result=f"failed: {type(error).__name__}: {str(error)[:300]}")
        raise
    cell.keep(result="passed")
