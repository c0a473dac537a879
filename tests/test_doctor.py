"""The doctor: each finding against a made-up machine, and the program as a user without an environment runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from configs import doctor
from configs.integrity import verify_outputs
from configs.program import ROOT
from configs.recipes import SIZES
from data.store.output import open_output

PINS = {"torch": "2.13.0", "numpy": "2.3.5", "trl": "1.16.0"}


@dataclass
class Args:
    output_dir: str
    overwrite: bool = False


def write_output(directory: Path, *, rows: int = 3) -> Path:
    """A finished output of the framework's own writer."""
    with open_output(Args(str(directory)), "prepare", version=1, inputs={}, directory=directory) as out:
        out.write_table("items.parquet", pa.table({"item_id": list(range(rows))}))
        out.write_text("nested/note.txt", "é\n")
    return directory


def run_doctor(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The doctor under a Python that sees no installed package (-S)."""
    env = (
        {k: v for k, v in os.environ.items() if k not in doctor.KEYS}
        | {"PYTHONPATH": str(ROOT)}
        | environment
    )
    command = [sys.executable, "-S", "-m", "configs.doctor", *flags]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def test_pins_are_read_with_extras_comments_and_includes():
    text = "-r requirements.txt\ntorch==2.13.0\njsonargparse[signatures]==4.53.0  # a note\n# faiss-gpu==1.15.1\n"
    assert doctor.read_pins(text) == {"torch": "2.13.0", "jsonargparse": "4.53.0"}


def test_every_requirement_of_the_repository_is_an_exact_pin():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.strip()]
    assert len(doctor.read_pins("\n".join(lines))) == len(lines) > 10


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"torch": "2.13.0+cpu", "numpy": "2.3.5", "trl": "1.16.0"}, ["ok"]),
        ({"torch": "2.13.0", "numpy": "2.3.5"}, ["ok", "FAIL"]),
        ({"torch": "2.13.0", "numpy": "2.4.6", "trl": "1.16.0"}, ["ok", "warn"]),
        ({"torch": "2.13.0", "numpy": "1.26.4", "trl": "1.16.0"}, ["ok", "FAIL"]),
        ({}, ["FAIL"]),
    ],
    ids=["as pinned", "missing", "another minor", "another major", "nothing installed"],
)
def test_packages_against_pins(installed, expected):
    assert levels(doctor.check_packages(PINS, installed)) == expected


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10), "FAIL"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "FAIL")]
)
def test_python_version(version, level):
    assert doctor.check_python(version, "/usr/bin/python3").level == level


def test_gpus_are_read_from_nvidia_smi_lines():
    gpus = doctor.parse_gpus("NVIDIA H100, 80GB HBM3, 81559, 81039\nNVIDIA GB10, [N/A], [N/A]\n")
    assert [gpu.name for gpu in gpus] == ["NVIDIA H100, 80GB HBM3", "NVIDIA GB10"]
    assert gpus[0].total_gib == 81559 / 1024 and gpus[1].free_gib == 0


def test_torch_build_and_index_hint():
    gpu = doctor.Gpu("NVIDIA H100", 80.0, 79.0)
    assert levels(doctor.check_gpus([gpu], "2.13.0", None)) == ["ok"]
    assert levels(doctor.check_gpus([gpu], "2.13.0+cpu", None)) == ["ok", "warn"]
    assert levels(doctor.check_gpus([], "2.13.0+cpu", None)) == ["ok"]
    assert levels(doctor.check_gpus([], None, "https://index.example/cpu")) == ["ok"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has CUDA wheels by default")
def test_index_hint_before_the_setup_of_a_machine_without_gpu():
    hints = [finding.text for finding in doctor.check_gpus([], None, None)]
    assert any("TORCH_INDEX_URL" in hint for hint in hints)


def test_memory_limits():
    gib = doctor.GIB
    assert doctor.check_memory(4 * gib, 4.0).level == "ok"
    assert doctor.check_memory(4 * gib - 1, 4.0).level == "FAIL"
    assert doctor.check_memory(None, 4.0).level == "warn"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_available_memory_is_that_of_this_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < doctor.available_memory() <= total


def test_directories_that_do_not_exist_yet_count_by_their_parent(tmp_path):
    assert doctor.check_directory("DATA_ROOT", tmp_path / "a" / "b", 0.001).level == "ok"
    assert not (tmp_path / "a").exists()
    assert doctor.check_directory("DATA_ROOT", tmp_path, 1e9).level == "FAIL"
    blocked = tmp_path / "file"
    blocked.write_text("")
    finding = doctor.check_directory("DATA_ROOT", blocked / "below", 0.001)
    assert finding.level == "FAIL" and "cannot write" in finding.text


def test_data_as_written_is_sound(tmp_path):
    write_output(tmp_path / "store")
    write_output(tmp_path / "store" / "embeddings" / "text")
    (finding,) = doctor.check_data(tmp_path, deep=False)
    assert finding.level == "ok" and "2 outputs, 4 files" in finding.text


@pytest.mark.parametrize("damage", ["bit", "short", "gone", "manifest", "half a manifest"])
def test_damaged_data_is_named(tmp_path, damage):
    store = write_output(tmp_path / "store", rows=100)
    file, manifest = store / "items.parquet", store / "manifest.json"
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[50] ^= 1
        file.write_bytes(content)
    elif damage == "short":
        file.write_bytes(content[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "manifest":
        record = json.loads(manifest.read_text())
        record["content_hash"] = "0" * 64
        manifest.write_text(json.dumps(record))
    else:
        manifest.write_text(manifest.read_text()[:200])
    (finding,) = doctor.check_data(tmp_path, deep=False)
    assert finding.level == "FAIL"
    assert str(manifest if "manifest" in damage else file) in finding.text


def test_hash_budget_leaves_large_files_to_deep(tmp_path):
    store = write_output(tmp_path / "store", rows=100)
    sizes = {name: (store / name).stat().st_size for name in ("items.parquet", "nested/note.txt")}
    check = verify_outputs(store, hash_budget=sizes["items.parquet"] - 1)
    assert check.bytes == sum(sizes.values()) and check.hashed == sizes["nested/note.txt"]
    assert doctor.sound_data(store, check).level == "warn"


def test_rooms_of_code_in_a_fresh_clone_are_no_data_sets(tmp_path):
    found = list(doctor.check_data(doctor.ROOT / "data", deep=False))
    assert not [finding for finding in found if finding.level != "ok" and "adapters" in finding.text]
    (tmp_path / "store").mkdir()
    (tmp_path / "store/__init__.py").touch()
    (finding,) = doctor.check_data(tmp_path, deep=False)
    assert finding.level == "ok" and "no data set below" in finding.text


def test_unfinished_data_and_foreign_manifests(tmp_path):
    raw = tmp_path / "store" / "raw"
    raw.mkdir(parents=True)
    (raw / "manifest.json").write_text('{"files": ["reviews.json"]}')
    (finding,) = doctor.check_data(tmp_path, deep=False)
    assert finding.level == "warn" and "unfinished" in finding.text


def test_keys_are_named_and_never_shown(tmp_path):
    env_file = tmp_path / ".env"
    env_file.write_text('export HF_TOKEN="hf_secret"\nWANDB_API_KEY=\n# OPENAI_API_KEY=sk-comment\n')
    env_file.chmod(0o600)
    lines = [str(f) for f in doctor.check_keys({"OPENAI_API_KEY": "sk-secret"}, env_file)]
    assert [re.search(r"set in \S+|not set", line)[0] for line in lines] == [
        "set in environment",
        "not set",
        "not set",
        "set in .env",
        "not set",
    ]
    assert "secret" not in "".join(lines)
    env_file.chmod(0o644)
    assert levels(doctor.check_keys({}, env_file))[0] == "warn"


def test_without_packages_it_still_runs_and_says_not_ready(tmp_path):
    result = run_doctor(DATA_ROOT=str(tmp_path), OPENAI_API_KEY="sk-secret")
    assert result.returncode == 3, result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("FAIL  packages") for line in lines)
    assert all(re.match(r"(ok   |warn |FAIL ) ", line) for line in lines[:-1])
    assert lines[-1].startswith("not ready: 1 ")
    assert "sk-secret" not in result.stdout + result.stderr


def test_flag_errors_are_one_line():
    result = run_doctor("--memory", "1")
    assert result.returncode == 2 and result.stderr.startswith("ERROR 2: ") and result.stderr.count("\n") == 1


def test_script_reports_this_environment(tmp_path):
    env = os.environ | {"DATA_ROOT": str(tmp_path), "PYTHON": sys.executable}
    script = ["bash", str(ROOT / "scripts" / "doctor.sh"), "--memory_gib", "0.01", "--disk_gib", "0.001"]
    result = subprocess.run(script, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "as pinned: torch" in result.stdout and result.stdout.endswith("ready\n")


def test_needs_of_a_run_come_from_its_model(tmp_path, capsys):
    shape = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True, "model_type": "qwen3"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    memory, disk = doctor.needs_of(tmp_path, processes=8, on_gpu=True)
    weights = 4 * SIZES["1.7B"].parameters / 2**30
    assert memory == pytest.approx(8 * weights + 1) and disk == pytest.approx(1 + 13 * weights)
    assert doctor.needs_of(tmp_path, processes=1, on_gpu=False)[0] > 4 * weights, (
        "weights, gradients and two moments"
    )
    with pytest.raises(SystemExit) as ended:
        doctor.needs_of(tmp_path / "none", processes=1, on_gpu=True)
    assert ended.value.code == 2 and "no config.json of a decoder" in capsys.readouterr().err


def test_packages_of_switches_are_checked_only_where_they_are_installed():
    pins = {"vllm": "0.31.0", "ray": "2.60.0", "starlette": "1.10.0"}
    found = list(doctor.check_optional(pins, {"vllm": "0.30.1", "starlette": "1.10.0"}))
    assert levels(found) == ["warn"] and "vllm is 0.30.1, the pin is 0.31.0" in found[0].text
