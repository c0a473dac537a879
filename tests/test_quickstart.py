"""The quickstart: what it starts, read by the programs themselves; as a user types it, held to committed figures (scripts/test.sh --all)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from configs.program import ROOT
from tests.shell import parsed_programs, stand_in

COMMITTED = ROOT / "configs/toy/results/quickstart.json"
TOLERANCE = 0.03  # of HR@10: thread counts and processors change the last bits, training spreads them


def committed(metric: str) -> dict[str, float]:
    return json.loads(COMMITTED.read_text())[f"item_level/{metric}"]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The scripts and recipes where set-up is done at once and a stand-in is the Python."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts/setup.sh").write_text("exit 0\n")
    for name in ("configs", "data", "sft.sh", "rl.sh", "evaluate.sh"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stand_in(tmp_path / ".venv/bin")
    return tmp_path


def test_the_quickstart_trains_teacher_generator_and_language_model_in_this_order(installed: Path):
    started = parsed_programs(f"bash {installed}/scripts/quickstart.sh", installed / ".venv/bin")
    trainers = [name for name in started if name.startswith("train.")]
    assert trainers == ["train.train_sequential", "train.train_compact", "train.sft", "train.grpo"]
    fused, taught = started.index("infer.fuse"), started.index("train.train_compact")
    assert started.index("train.train_sequential") < fused < taught
    assert started[0] == "data.toy" and started[-1] == "infer.report"


def test_committed_figures_stand_in_both_readmes_and_each_step_pays():
    for file in ("README.md", "README.zh.md", "configs/toy/README.md"):
        text = (ROOT / file).read_text()
        shown = [line for line in text.splitlines() if line.startswith("|")]
        for model in (
            "pop",
            "itemknn_tuned",
            "mixture",
            "teacher",
            "compact_distilled",
            "sft_recommend",
            "grpo",
        ):
            cells = [f"{committed(metric)[model]:.4f}".lstrip("0") for metric in ("hr@10", "ndcg@10")]
            assert any(all(f"| {cell} [" in line for cell in cells) for line in shown), (file, model, cells)
    value = committed("ndcg@10")
    assert value["sft_recommend"] <= value["grpo"] < value["teacher"]
    assert (
        value["pop"]
        < value["itemknn_tuned"]
        < value["mixture"]
        < value["teacher"]
        < value["compact_distilled"]
    )


@pytest.mark.long
def test_the_quickstart_reaches_its_committed_figures_and_instructions_follow(tmp_path: Path):
    variables = {"DATA_ROOT": str(tmp_path / "data"), "OUTPUT_ROOT": str(tmp_path / "outputs"), "QUIET": "1"}

    def run(script: str) -> None:
        done = subprocess.run(
            ["bash", script], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    run("scripts/quickstart.sh")
    for model, value in committed("hr@10").items():
        path = tmp_path / f"outputs/quickstart/eval/{model}.test/metrics/metrics.json"
        found = json.loads(path.read_text())["item_level/hr@10"]["value"]
        assert found == pytest.approx(value, abs=TOLERANCE), model
    run("scripts/quickstart_instruct.sh")
    path = tmp_path / "outputs/quickstart/instructions/sft_dual.test/metrics/metrics.json"
    metrics = json.loads(path.read_text())
    assert metrics["parse/strict"]["value"] == metrics["tid/legal"]["value"] == 1
    assert metrics["protocol"]["rows"] == 500
