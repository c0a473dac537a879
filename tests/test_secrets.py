"""Keys come from the environment and are seen nowhere: one small chain with planted keys, and every byte that it leaves is searched."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import handmade
from tests.fake_openai_server import serving
from tests.test_teacher_stages import DISTILL, IDENTIFY, SEARCH, data, teacher  # noqa: F401 - data is a fixture
from tests.test_trackers import wandb  # noqa: F401 - a fixture

KEYS = {name: f"sk-test-CANARY-{name}" for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN")}
FORMS = [
    form
    for key in KEYS.values()
    for form in (key.encode(), base64.b64encode(key.encode()), key.encode().hex().encode())
]


def found_in(root: Path, said: Iterable[str]) -> list[str]:
    """Files below `root` and texts that hold a key, plain, as base64 or as hex digits."""
    files = [
        str(path)
        for path in root.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in FORMS)
    ]
    return files + [text[-200:] for text in said if any(form in text.encode() for form in FORMS)]


def flags_of(url: str) -> list[object]:
    chosen = {"backend": "openai", "model": "fake", "base_url": url, "backoff": 0.01, "retries": 2}
    return [part for name, value in chosen.items() for part in (f"--ask.client.{name}", value)]


def test_no_output_of_a_chain_holds_a_key(data, chain, wandb, tmp_path, monkeypatch):  # noqa: F811
    """Stages 05 and 06 by a server that repeats the key it got, a training with a tracker that fails with it, and the page."""
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    monkeypatch.setattr(wandb, "FAIL_AT", [2])
    said, run = [], tmp_path / "run"

    def call(module: str, *flags: object, code: int = 0) -> None:
        done = handmade.run(module, *flags, "--debug")
        said.extend((done.stdout, done.stderr))
        assert done.returncode == code, done.stderr

    def telling(turn: str, call_number: int) -> tuple[str, str]:
        return ("500" if call_number == 1 else "ok"), teacher(turn, call_number)[1]

    identified = [IDENTIFY, "--data", data, "--tids", data / "tids/t", "--output_dir"]
    with serving(write=telling) as (url, log):
        call(*identified, data / "reasoning/i", *flags_of(url))
        call(
            SEARCH,
            "--reasoning",
            data / "reasoning/i",
            "--rounds",
            1,
            "--output_dir",
            data / "reasoning/s",
            *flags_of(url),
        )
        call(DISTILL, "--search", data / "reasoning/s", "--output_dir", data / "reasoning/d", *flags_of(url))
        assert {headers["authorization"] for headers in log.headers} == {f"Bearer {KEYS['OPENAI_API_KEY']}"}
    with serving(write=lambda turn, number: ("401", "")) as (url, _):
        call(*identified, data / "reasoning/refused", *flags_of(url), code=5)
    steps = [
        "--trainer.max_steps",
        2,
        "--trainer.eval_steps",
        2,
        "--trainer.logging_steps",
        1,
        "--valid_rows",
        4,
    ]
    call("train.sft", *chain.flags(), *steps, "--tracker", "wandb", "--output_dir", run / "sft")
    assert any("sk-test" not in text and "wandb" in text for text in said), "it failed, and that was said"
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "answers.jsonl", "log.txt", "metrics.jsonl", "config.yaml"} <= {
        path.name for path in made
    }
    assert found_in(tmp_path, said) == []


def test_control_a_key_that_leaks_is_found(tmp_path):
    (tmp_path / "log.txt").write_text(f"Authorization: Bearer {KEYS['HF_TOKEN']}")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/x.bin").write_bytes(b"\0" + base64.b64encode(KEYS["WANDB_API_KEY"].encode()) + b"\0")
    assert len(found_in(tmp_path, ["quiet", KEYS["OPENAI_API_KEY"]])) == 3


@pytest.mark.parametrize("flag", ["--ask.client.api_key", "--ask.client.api_key_env"])
def test_a_key_on_the_command_line_is_refused_unseen(flag, data, tmp_path):  # noqa: F811
    """Other users of a machine see arguments: there is no flag for a key, and one in the place of a variable's name is refused."""
    line = handmade.refuse(
        IDENTIFY,
        "--data",
        data,
        "--tids",
        data / "tids/t",
        "--output_dir",
        tmp_path / "o",
        flag,
        KEYS["HF_TOKEN"],
    )
    assert "CANARY" not in line and not (tmp_path / "o").exists()
