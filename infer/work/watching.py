"""A running job on the screen: every output of a run with its state, and the newest losses and measures of those that train."""

from __future__ import annotations

import time
from pathlib import Path

from configs.program import InputError, say
from infer.work.metric_lines import read_lines
from infer.work.runs import RunStatus, as_table, find_runs

SHOWN = ("loss", "reward", "grad_norm", "learning_rate", "hit_rate", "zero_variance_share")
LINES = 3  # of every file


def screen(run: str | Path) -> str:
    """What one look shows."""
    found = find_runs(run)
    if not found:
        raise InputError(f"no outputs in {run} -> a run folder, outputs/<run>")
    return "\n".join([as_table(found), *(text for one in found if (text := newest(Path(run), one)))])


def newest(run: Path, one: RunStatus) -> str:
    """The last lines of an output's metrics.jsonl that say how training goes; empty for an output without."""
    file = run / one.folder / "metrics.jsonl"
    if one.state == "finished" or not file.is_file():
        return ""
    try:
        lines = [line for line in read_lines(file) if "loss" in line][-LINES:]
    except InputError as error:
        return f"{one.folder}: {error}"
    told = [
        f"  step {line['step']:>7}  " + "  ".join(f"{name} {line[name]:.4g}" for name in SHOWN if line.get(name) is not None)
        for line in lines
    ]  # fmt: skip
    return "\n".join([f"{one.folder}:", *told]) if told else ""


def watch(run: str | Path, *, every: float) -> None:
    """A screen every so many seconds for as long as something runs; the last one when nothing does."""
    while True:
        say(screen(run))
        if not any(one.state == "running" for one in find_runs(run)):
            return
        time.sleep(every)
        say("")
