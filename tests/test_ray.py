"""Stages on a local Ray cluster of two workers, one of them killed in the middle; needs ray (requirements-cluster.txt)."""

from __future__ import annotations

import doctest
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import ray_tasks
from configs.program import ROOT
from tests.handmade import call, process, refuse, tokenizer, write_data
from tests.test_encoders import flags


def test_worked_examples_and_refusals(tmp_path, monkeypatch):
    assert doctest.testmod(ray_tasks).attempted == 1 and not doctest.testmod(ray_tasks).failed
    assert "at least one of each" in refuse("configs.ray_tasks", "--command", "[]")
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refuse("configs.ray_tasks", "--command", '["infer.recommend"]', code=3)
    assert "pip install -r requirements-cluster.txt" in said
    two = ray_tasks.environments(ray_tasks.RayTasksArgs(command=["x"], processes=2), {})
    assert [(one["RANK"], one["WORLD_SIZE"], one["LOCAL_RANK"]) for one in two] == [
        ("0", "2", "0"),
        ("1", "2", "0"),
    ]
    assert ray_tasks.environments(ray_tasks.RayTasksArgs(command=["x"]), {}) == [{}]


@pytest.fixture
def encoders(tmp_path: Path) -> Path:
    """A tiny BERT and the hand-made data set."""
    from transformers import BertConfig, BertModel

    made = tokenizer("gpt2")
    write_data(tmp_path / "store")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(made), max_position_embeddings=128, **shape)).save_pretrained(
        tmp_path / "bert"
    )
    made.save_pretrained(tmp_path / "bert")
    return tmp_path


def worker_of(rank: int, output: Path) -> int | None:
    """The process that started rank `rank` of the program that writes `output`: a Ray worker."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            told = (entry / "cmdline").read_bytes().split(b"\0")
            given = (entry / "environ").read_bytes().split(b"\0")
            if (
                b"configs.ray_tasks" not in told
                and str(output).encode() in told
                and f"RANK={rank}".encode() in given
            ):
                return int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    return None


def killed_once(command: list[object], output: Path, *, when, together: bool) -> str:
    """What two tasks print of which the worker of the second is killed when `when()` holds."""
    flags = ["--processes", 2, "--together", str(together).lower(), "--cpus", 0.5]
    running = subprocess.Popen(
        [sys.executable, "-m", "configs.ray_tasks", *map(str, flags), "--command", json.dumps([str(c) for c in command])],
        cwd=ROOT, env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    end = time.monotonic() + 900
    while time.monotonic() < end and running.poll() is None:
        worker = worker_of(1, output)
        if worker is not None and when():
            os.kill(worker, signal.SIGKILL)
            break
        time.sleep(0.02)
    else:
        pytest.fail(f"nothing to kill: {running.communicate(timeout=60)[0]}")
    said, _ = running.communicate(timeout=1200)
    assert running.returncode == 0, said
    return said


@pytest.mark.long
def test_recommendations_are_those_of_one_process_though_a_worker_was_killed(chain, tmp_path):
    pytest.importorskip("ray")
    common = [
        "infer.recommend",
        *chain.flags(),
        "--split",
        "test",
        "--chunk_rows",
        4,
        "--decode.beams",
        10,
        "--output_dir",
    ]
    assert process(*common, tmp_path / "one").returncode == 0
    output = tmp_path / "two"
    killed_once(
        [*common, output], output, when=lambda: len(list(output.glob("chunks/*"))) >= 2, together=False
    )
    tables = [
        pq.read_table(folder, columns=["example_id", "rank", "score"]).sort_by([("example_id", "ascending"), ("rank", "ascending")])
        for folder in (sorted((tmp_path / name).glob("predictions-*")) for name in ("one", "two"))
    ]  # fmt: skip
    assert tables[0].equals(tables[1])


@pytest.mark.long
def test_embeddings_of_waiting_processes_begin_again_together(encoders, tmp_path):
    pytest.importorskip("ray")
    common = ["rq.embed_items", *flags(encoders, tmp_path / "one", "bert", "--hf.batch_tokens", "90")]
    call(*common)
    output = tmp_path / "two"
    said = killed_once(
        ["rq.embed_items", *flags(encoders, output, "bert", "--hf.batch_tokens", "90")],
        output,
        when=lambda: True,
        together=True,
    )
    assert "all 2 begin again" in said
    one, two = (np.load(tmp_path / name / "embeddings.npy") for name in ("one", "two"))
    assert np.allclose(one, two, atol=1e-5)
