"""Trackers: they get what metrics.jsonl gets, never block, never stop a run, never see or leave a secret."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.program import EnvironmentFault
from tests import handmade
from train.arguments import Tracker
from train.trackers import STARTS, tracker_callbacks

FAKE = """
import os
CALLS, FAIL_AT = [], []

class TrackedRun:
    def log(self, values, step):
        if step in FAIL_AT:
            raise RuntimeError("no route to host, key " + os.environ.get("WANDB_API_KEY", ""))
        CALLS.append((step, values))
    def finish(self):
        CALLS.append("finished")

def init(**settings):
    CALLS.append(settings)
    return TrackedRun()

def Settings(**settings):
    return settings
"""


@dataclass
class Args:
    tracker: str = "wandb"
    trainer: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the package, which records its calls."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    yield importlib.import_module("wandb")
    sys.modules.pop("wandb")


def state(step: int, main: bool = True) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, is_world_process_zero=main)


def test_a_training_sends_its_log_and_leaves_the_output_as_it_is(chain, tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k3y-that-is-secret")
    run = tmp_path / "out/sft"
    flags = [
        "--trainer.max_steps",
        2,
        "--trainer.eval_steps",
        1,
        "--trainer.logging_steps",
        1,
        "--valid_rows",
        8,
    ]
    call = ["train.sft", *chain.flags(), *flags, "--output_dir", run]
    handmade.call(*call, "--tracker", "wandb")
    settings, *sent, last = wandb.CALLS
    assert last == "finished" and settings["name"] == "out-sft" and settings["mode"] is None
    assert settings["config"]["trainer"]["max_steps"] == 2
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in logged:
        step = line.pop("step")
        assert any(at == step and line.items() <= values.items() for at, values in sent), line
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in written if b"k3y-that" in file.read_bytes()]
    before = (run / "manifest.json").stat().st_mtime_ns
    handmade.call(*call)
    assert (run / "manifest.json").stat().st_mtime_ns == before, "the same run without a tracker is kept"


def test_without_a_key_nothing_asks_for_a_network(tmp_path, wandb, monkeypatch):
    (callback,) = tracker_callbacks(Args(trainer={"run_name": "mine"}), tmp_path / "run/grpo")
    callback.on_train_begin(None, state(0), None)
    assert (wandb.CALLS[0]["mode"], wandb.CALLS[0]["name"]) == ("offline", "mine")
    assert Path(wandb.CALLS[0]["dir"]) == tmp_path / "run/tracking"
    callback.on_log(None, state(3), None, logs={"loss": 2, "note": "text", "broken": float("nan")})
    assert wandb.CALLS[1:] == [(3, {"loss": 2.0})]
    monkeypatch.setenv("WANDB_MODE", "online")
    again = tracker_callbacks(Args(), tmp_path / "run/grpo")[0]
    again.on_train_begin(None, state(0), None)
    assert wandb.CALLS[2]["mode"] is None and wandb.CALLS[2]["id"] == wandb.CALLS[0]["id"]


def test_only_the_main_process_reports(tmp_path, wandb):
    (callback,) = tracker_callbacks(Args(), tmp_path / "run/sft")
    callback.on_train_begin(None, state(0, main=False), None)
    callback.on_log(None, state(1, main=False), None, logs={"loss": 1.0})
    callback.on_train_end(None, state(1, main=False), None)
    assert wandb.CALLS == []


def test_a_tracker_that_fails_is_left_out_and_its_message_shows_no_key(tmp_path, wandb, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "k3y-that-is-secret")
    wandb.FAIL_AT.append(2)
    (callback,) = tracker_callbacks(Args(), tmp_path / "run/sft")
    callback.on_train_begin(None, state(0), None)
    for step in (1, 2, 3):
        callback.on_log(None, state(step), None, logs={"loss": 1.0})
    callback.on_train_end(None, state(3), None)
    assert [call[0] for call in wandb.CALLS[1:]] == [1]
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert "no route to host, key ***" in warning and "k3y" not in warning


def test_a_tracker_that_is_not_installed_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="swanlab is not installed -> .* pip install swanlab"):
        tracker_callbacks(dataclasses.replace(Args(), tracker="swanlab"), tmp_path / "run")
    assert tracker_callbacks(Args("none"), tmp_path) == [] and not list(tmp_path.iterdir())
    assert set(Tracker.__args__) == {"none", *STARTS}
