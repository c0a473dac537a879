"""The list of runs says what is finished, running and interrupted, how far it is, and what it measured last."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from configs.program import InputError, logged, say
from data.store.output import LOG, open_output
from infer.work.runs import as_table, find_runs
from tests import handmade
from train.progress import Progress, duration


def unfinished(path, *, pid: int | None, log: str = "") -> None:
    path.mkdir(parents=True)
    (path / "pending.json").write_text(json.dumps({"stage": "sft"}))
    (path / LOG).write_text(log)
    if pid is not None:
        (path / ".lock.holder").write_text(f"pid {pid} on {platform.node()} since now\n")


def test_runs_are_listed_with_their_state(tmp_path):
    with open_output(handmade.Made(), "grpo", version=1, inputs={}, directory=tmp_path / "run/grpo") as out:
        out.write_text("metrics.jsonl", '{"step": 4, "eval_ndcg@10": 0.25}\n{"step": 5, "loss": null}\n')
        (out.path / "checkpoint-4").mkdir()
        (out.path / "checkpoint-4/manifest.json").write_text("{}")
        say("step 5/5")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    said = (
        "2026-01-01 10:00:00 step 40/300, 1.3 steps/s, 3 min left, NDCG@10 0.0812 at step 20\n... and more\n"
    )
    unfinished(tmp_path / "run/a", pid=os.getpid(), log=said)
    unfinished(tmp_path / "run/b", pid=gone.pid, log=said)
    unfinished(tmp_path / "run/c", pid=None)
    with open_output(handmade.Made(), "evaluate", version=1, inputs={}, directory=tmp_path / "run/e") as out:
        out.write_json("metrics.json", {"item_level/ndcg@10": {"value": 0.5}})
    found = [
        (run.folder, run.stage, run.state, run.step, run.left, run.metric) for run in find_runs(tmp_path)
    ]
    assert found == [
        ("run/a", "sft", "running", "40/300", "3 min", ""),
        ("run/b", "sft", "interrupted", "40/300", "", ""),
        ("run/c", "sft", "interrupted", "", "", ""),
        ("run/e", "evaluate", "finished", "", "", "NDCG@10 0.5000"),
        ("run/grpo", "grpo", "finished", "5/5", "", "NDCG@10 0.2500 at step 4"),
    ]
    table = as_table(find_runs(tmp_path)).splitlines()
    assert (
        len({line.index(word) for line, word in zip(table[1:3], ("running", "interrupted"), strict=True)})
        == 1
    )
    with pytest.raises(InputError, match="is no folder"):
        find_runs(tmp_path / "nowhere")


class Arguments:
    def __init__(self, warm: int) -> None:
        self.get_warmup_steps = lambda steps: warm


def at(step: int, total: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=total, is_world_process_zero=True)


def test_a_training_says_how_far_it_is_and_what_does_not_fit(tmp_path, capsys, monkeypatch):
    shown = Progress()
    with logged(tmp_path / LOG):
        shown.on_train_begin(Arguments(20), at(10, 20), None)
        clock = SimpleNamespace(seconds=0.0)
        shown.clock = clock
        for step, clock.seconds in ((11, 8.0), (12, 16.0), (13, 24.0), (14, 32.0), (15, 40.0)):
            shown.on_step_end(None, at(step, 20), None)
        shown.on_log(None, at(15, 20), None, logs={"eval_ndcg@10": 0.0812})
        shown.on_log(None, at(15, 20), None, logs={"loss": 1.0})
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "step 14/20, 8.0 s/step, 48 s left",
        "step 15/20, 8.0 s/step, 40 s left, NDCG@10 0.0812 at step 15",
    ]
    assert "the warm-up of 20 steps is not shorter than the run of 20" in said.err
    assert [line[20:] for line in (tmp_path / LOG).read_text().splitlines() if "step " in line[20:25]] == (
        said.out.splitlines()
    )


def test_a_forecast_beyond_an_hour_is_said_at_the_start(capsys):
    shown = Progress()
    shown.on_train_begin(Arguments(0), at(0, 1000), None)
    shown.clock = SimpleNamespace(seconds=30.0)
    shown.on_step_end(None, at(3, 1000), None)
    assert "this run of 1000 steps will take about 2.8 h" in capsys.readouterr().err
    assert [duration(seconds) for seconds in (42, 600, 9000)] == ["42 s", "10 min", "2.5 h"]
