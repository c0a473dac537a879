"""Checkpoints that can be trusted: every fault is detected, the newest sound one is chosen, rotation keeps it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.program import InputError
from data.store import checkpoints
from data.store.checkpoints import (
    MARK,
    discard_after,
    fault,
    found_model,
    mark_complete,
    newest_complete,
    require_model,
    rotate,
)


def save(output: Path, step: int, *, marked: bool = True) -> Path:
    directory = output / f"checkpoint-{step}"
    (directory / "deep").mkdir(parents=True)
    save_file({"w": np.full(64, step, np.float32)}, directory / "model.safetensors")
    (directory / "optimizer.pt").write_bytes(bytes(range(200)))
    (directory / "deep" / "rng_state_0.pth").write_bytes(b"random")
    if marked:
        mark_complete(directory, step=step)
    return directory


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


FAULTS = {
    "mark": (lambda d: (d / MARK).unlink(), "the save was interrupted"),
    "damaged mark": (lambda d: (d / MARK).write_text('{"step": 1'), "is damaged"),
    "empty mark": (lambda d: (d / MARK).write_text("{}"), "is damaged"),
    "odd mark": (lambda d: (d / MARK).write_text('{"files": {"a": 1}}'), "is damaged"),
    "mark of lists": (lambda d: (d / MARK).write_text('{"files": []}'), "is damaged"),
    "deep mark": (lambda d: (d / MARK).write_text("[" * 99_999), "is damaged"),
    "missing": (lambda d: (d / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "missing below": (lambda d: shutil.rmtree(d / "deep"), "rng_state_0.pth is missing"),
    "truncated": (
        lambda d: (d / "model.safetensors").write_bytes(b"123"),
        "model.safetensors has 3 bytes, not",
    ),
    "longer": (lambda d: (d / "optimizer.pt").write_bytes(bytes(201)), "has 201 bytes, not 200"),
    "bit flip": (lambda d: flip_bit(d / "optimizer.pt"), "optimizer.pt does not match its hash"),
    "weight flip": (lambda d: flip_bit(d / "model.safetensors"), "model.safetensors does not match its hash"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_an_older_checkpoint_taken(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = save(tmp_path, 5), save(tmp_path, 10)
    assert fault(newer) is None and newest_complete(tmp_path) == newer
    assert capsys.readouterr().err == ""
    damage, message = FAULTS[name]
    damage(newer)
    assert message in fault(newer)
    assert newest_complete(tmp_path) == older
    warning = capsys.readouterr().err
    assert warning.startswith(f"WARNING: skipping {newer}: ") and message in warning
    discard_after(tmp_path, older)
    assert not newer.exists() and older.exists()


def test_newest_is_by_number_and_only_of_checkpoints(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    for step in (9, 10, 100):
        save(tmp_path, step)
    shutil.copytree(tmp_path / "checkpoint-100", tmp_path / "checkpoint-best")
    shutil.copytree(tmp_path / "checkpoint-100", tmp_path / "checkpoint-200.tmp")
    (tmp_path / "checkpoint-9998").write_text("a file")
    assert [step for step, _ in checkpoints.checkpoints(tmp_path)] == [100, 10, 9]
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-100"
    assert json.loads((tmp_path / "checkpoint-100" / MARK).read_text())["step"] == 100
    save(tmp_path, 300, marked=False)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-100"


def test_rotation_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 11):
        save(tmp_path, step)
    rotate(tmp_path, keep=2, protect=tmp_path / "checkpoint-2")
    assert [step for step, _ in checkpoints.checkpoints(tmp_path)] == [11, 4, 2]
    rotate(tmp_path, keep=1)
    assert [step for step, _ in checkpoints.checkpoints(tmp_path)] == [11]


def test_large_weights_are_known_by_header_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FULL_HASH_BELOW", 100)
    directory = save(tmp_path, 1)
    assert fault(directory) is None
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"F32", b"I32"))
    assert "does not match its hash" in fault(directory)
    file.write_bytes(content[:-1])
    assert "bytes, not" in fault(directory)


def test_a_model_directory_is_required(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a model directory .* run stage 8 or give a local"):
        require_model(tmp_path / "nowhere", written_by="stage 8")
    (tmp_path / "config.json").write_text("{}")
    assert require_model(str(tmp_path), written_by="stage 8") == tmp_path


def test_a_trainings_directory_means_what_it_handed_on_else_its_best_else_its_newest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def model(directory: Path) -> Path:
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text("{}")
        return directory

    def found() -> str:
        made = Path(found_model(tmp_path))
        assert (made == tmp_path) == (capsys.readouterr().out == "")
        return made.name

    assert found() == tmp_path.name and found_model("not there") == "not there"
    other = tmp_path / "others"
    for step in (9, 10):
        model(save(other, step, marked=False))
    save(other, 11, marked=False)
    assert Path(found_model(other)).name == "checkpoint-10", (
        "of others: the highest with a model, marks or not"
    )
    assert "checkpoint-10, the newest; nothing says whether" in capsys.readouterr().out
    for step in (5, 10):
        mark_complete(model(save(tmp_path, step)), step=step)
    assert found() == "checkpoint-10"
    (tmp_path / "checkpoint-10/trainer_state.json").write_text('{"best_global_step": 5}')
    mark_complete(tmp_path / "checkpoint-10", step=10)
    assert found() == "checkpoint-5"
    final = model(tmp_path / "final")
    assert found() == "checkpoint-5", "it was not finished"
    mark_complete(final, step=10)
    assert found() == "final" and found_model(final) == str(final)
    final.rename(tmp_path / "gone")
    flip_bit(tmp_path / "checkpoint-10/model.safetensors")
    assert found() == "checkpoint-5"
