"""tests/gpu/run.sh without a GPU: its parts run at small sizes, one that fails or hangs is told, the others stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from configs.program import ROOT
from tests.gpu import parts


def report(tmp_path, *flags: str) -> tuple[int, dict]:
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "tests/gpu/run.sh", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, json.loads((tmp_path / "gpu.json").read_text())


@pytest.mark.long
def test_the_script_at_small_sizes(tmp_path):
    code, told = report(tmp_path, "--tiny")
    assert code == 0, told
    assert told["machine"]["result"]["torch"] and told["tiny"]
    layouts = told["parts"]["sft"]["result"]["layouts"]
    assert layouts["user_tree"]["slots"] < layouts["packed"]["slots"] < layouts["padded"]["slots"]
    assert layouts["user_tree"]["loss"] == pytest.approx(layouts["padded"]["loss"], rel=1e-4)
    assert layouts["packed"]["loss"] == pytest.approx(layouts["padded"]["loss"], rel=1e-4)
    resumed = told["parts"]["resume"]["result"]
    assert resumed["same_bytes"] and resumed["largest_difference"] == 0
    assert 8 <= resumed["steps_before_the_kill"] <= resumed["steps"] == 24


def test_the_parts_fit_into_eight_minutes():
    script = (ROOT / "tests/gpu/run.sh").read_text()
    install = int(script.split("INSTALL_SECONDS:-")[1].split("}")[0])
    assert install + sum(seconds for _, seconds in parts.PARTS.values()) <= 8 * 60


def test_a_part_that_fails_or_hangs_is_told(tmp_path, monkeypatch, capsys):
    broken = {
        "decode": (["-c", "print('.{\"users\": 3}'); raise SystemExit('no such device')"], 20),
        "sft": (["-c", "import time; print('{}', flush=True); time.sleep(60)"], 0.5),
        "resume": (["-c", "print('{\"steps\": 1}')"], 20),
    }
    monkeypatch.setattr(parts, "PARTS", broken)
    monkeypatch.setattr(parts, "PROBE", "print('{}')")
    assert parts.main(["--out", str(tmp_path / "gpu.json")]) == 1
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told
    found = told["parts"]
    assert not found["decode"]["ok"] and "no such device" in found["decode"]["error"]
    assert found["decode"]["result"] == {"users": 3}
    assert not found["sft"]["ok"] and "not done within 0.5 s" in found["sft"]["error"]
    assert found["resume"] == {"ok": True, "seconds": found["resume"]["seconds"], "result": {"steps": 1}}
