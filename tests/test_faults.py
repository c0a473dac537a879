"""The table of tests/faults.py: its proofs exist, each fails without its detector, and the proofs that are nobody else's."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.program import ROOT, EnvironmentFault, InputError, classify
from data.store import claim
from data.store.checkpoints import MARK, fault, newest_complete
from data.store.manifest import read_manifest
from data.tids import read_tids
from infer.loading import load_model
from tests import handmade, tiny
from tests.faults import FAULTS
from tests.test_inputs import output_dir  # noqa: F401 - a fixture
from tests.test_loading import sound  # noqa: F401 - a fixture
from tests.test_output import finish, writing
from tests.test_safety import train, trainer
from train.safety import train_to_the_end
from train.scale.room import checkpoint_bytes, require_room


def defined(file: str) -> dict[str, ast.FunctionDef]:
    """{test: its function} of a file of tests."""
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def missing(proofs: list[str]) -> list[str]:
    return [proof for proof in proofs if proof.split("::")[1] not in defined(proof.split("::")[0])]


def test_every_fault_has_its_proofs():
    assert list(FAULTS) == list(range(1, 26))
    proofs = [proof for one in FAULTS.values() for proof in one.proofs]
    assert missing(proofs) == [] and all(one.proofs and one.what for one in FAULTS.values())
    assert missing(["test_faults::test_that_nobody_wrote"]) == ["test_faults::test_that_nobody_wrote"]


TRAINS = {2, 3, 17, 18}  # seconds of training each
NUMBERS = [pytest.param(number, marks=[pytest.mark.long] * (number in TRAINS)) for number in FAULTS]


@pytest.mark.parametrize("number", NUMBERS)
def test_control_without_its_detector_the_proof_fails(
    number: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    control = FAULTS[number].control
    file, name = control.proof.split("::")
    proof = getattr(importlib.import_module(f"tests.{file}"), name)
    if hasattr(proof, "hypothesis"):
        proof = proof.hypothesis.inner_test  # one example instead of many
    wanted = [one for one in inspect.signature(proof).parameters if one not in control.given]
    given = control.given | {one: request.getfixturevalue(one) for one in wanted}
    builtin = hasattr(
        builtins, control.detector.rpartition(".")[2]
    )  # hidden from one module by a name of its own
    monkeypatch.setattr(control.detector, control.off, raising=not builtin)
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:
        proof(**given)
    print(f"{number}: {control.detector} off: {caught.type.__name__}: {str(caught.value)[:100]}")


# Proofs that are nobody else's.


def test_a_disk_too_small_for_the_checkpoints_is_said_before_the_first_step(tmp_path, monkeypatch):
    model = tiny.model(vocab_size=50)
    numbers = sum(one.numel() for one in model.parameters())
    assert checkpoint_bytes(model, "adamw_torch") == (4 * numbers, 8 * numbers)
    assert checkpoint_bytes(model, "adamw_bnb_8bit") == (4 * numbers, 2 * numbers)
    model.model.requires_grad_(False)  # the head, which is tied, with it
    assert checkpoint_bytes(model, "sgd") == (0, 0)
    made = trainer(tmp_path)
    needed = (2 + 2) * 12 * numbers + 4 * numbers  # two kept, the best, the one being written; final/
    for free, enough in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(
            "train.scale.room.shutil.disk_usage", lambda place, free=free: SimpleNamespace(free=free)
        )
        if enough:
            require_room(made, tmp_path)
        else:
            with pytest.raises(EnvironmentFault, match=r"disk too small for .* -> free space"):
                train_to_the_end(made, tmp_path)
    assert made.steps_taken == 0 and not list(tmp_path.glob("checkpoint-*"))


def test_a_gpu_without_memory_keeps_the_checkpoint_and_says_what_to_lower(tmp_path):
    def fails(*args: Any, **kwargs: Any) -> None:
        if made.state.global_step == 5:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free"
            )
        return step(*args, **kwargs)

    (tmp_path / "run").mkdir()
    made = trainer(tmp_path / "run")
    step, made.training_step = made.training_step, fails
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train_to_the_end(made, tmp_path / "run")
    code, line = classify(caught.value)
    assert code == 3 and all(word in line for word in ("1.00 GiB free", "batch size", "max_length", "beams"))
    kept = newest_complete(tmp_path / "run")
    assert kept.name == "checkpoint-4" and fault(kept) is None
    assert train(tmp_path / "run").steps_taken == 6, "the rest, with the same settings"


def test_a_pickle_is_never_opened(sound, tmp_path):  # noqa: F811
    directory, sentinel = tmp_path / "model", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(sentinel),)

    shutil.copytree(sound, directory)
    (directory / MARK).unlink()
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(directory, device="cpu")
    assert not sentinel.exists()
    pickle.loads((directory / "pytorch_model.bin").read_bytes())
    assert sentinel.exists(), "it would have run"


def ranked(monkeypatch: pytest.MonkeyPatch, rank: int, local: int) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", local), ("WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))


def test_a_rank_whose_leader_is_gone_does_not_wait_for_ever(tmp_path, monkeypatch):
    ranked(monkeypatch, 1, 1)
    monkeypatch.setattr(claim, "FOLLOW_SECONDS", 0.2)
    with pytest.raises(EnvironmentFault, match=f"rank 0 did not claim {tmp_path}/out within 0.2 s"):
        finish(tmp_path / "out")


def test_a_machine_with_another_file_is_refused(tmp_path, monkeypatch):
    """The first process of every further machine compares its own files with those of rank 0; the others share its disk."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    ranked(monkeypatch, 0, 0)
    with writing(tmp_path / "out", source=str(tmp_path / "one")):
        for local, source, refused in ((0, "two", True), (0, "one", False), (1, "two", False)):
            ranked(monkeypatch, 1, local)
            if refused:
                with pytest.raises(
                    InputError, match=r"input source of this machine .* is not that of rank 0"
                ):
                    follows(tmp_path, source)
            else:
                follows(tmp_path, source)
        ranked(monkeypatch, 0, 0)


def follows(root: Path, source: str) -> None:
    with writing(root / "out", source=str(root / source)) as out:
        assert not out.leads


def test_a_stage_runs_from_anywhere_with_any_path_in_any_locale(tmp_path):
    """Another folder, a path with a blank and an umlaut, and a locale that knows ASCII alone."""
    root = tmp_path / "my däta"
    made = handmade.write_data(root / "shop")
    variables = {
        "PAPER": "toy",
        "DATASET": "shop",
        "DATA_ROOT": str(root),
        "TIDS": "keywords",
        "QUIET": "1",
        "PYTHON": sys.executable,
    }
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = ["bash", ROOT / "scripts/05_generate_tids.sh"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | variables | locale, capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "ecrou" in read_tids(made / "tids/keywords", num_items=len(handmade.TITLES)).terms[5]
    assert read_manifest(made / "tids/keywords")["inputs"]["data"]["path"] == str(made)
