"""Loading a model: every tensor or none, the files that were written, and no code of a checkpoint - at every call."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from configs.program import EnvironmentFault, InputError
from data.store import models
from data.store.checkpoints import MARK, mark_complete
from data.store.models import load_weights
from infer.chat.local import LocalModel
from infer.loading import load_model
from preprocess.expand_vocab import load as load_to_expand
from rq.vectors import encoders
from tests import handmade, tiny
from tests.test_checkpoints import flip_bit
from tests.test_layering import product

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied tiny model with a tokenizer, written like a final/."""
    directory = tmp_path_factory.mktemp("model") / "final"
    tokenizer = handmade.tokenizer("ours")
    tiny.model(vocab_size=len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    mark_complete(directory, step=1)
    return directory


def changed(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def cut(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-1000])


BAD = {
    "missing": (
        lambda d: changed(d, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        "lacks model.layers.1.mlp.up_proj.weight ->",
    ),
    "left over": (
        lambda d: changed(d, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)})),
        "does not know model.layers.2",
    ),
    "misshapen": (
        lambda d: changed(d, lambda t: t.update({"model.norm.weight": torch.ones(7)})),
        "model.norm.weight",
    ),
    "truncated": (cut, "cannot be loaded"),
    "deep config": (lambda d: (d / "config.json").write_text('{"a":' * 99_999), "cannot be loaded"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_model_is_complete_or_refused(name: str, sound: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(sound, directory)
    (directory / MARK).unlink()
    assert (
        load_weights(AutoModelForCausalLM, directory, dtype="auto").lm_head is not None
    )  # tied, hence not stored
    damage, message = BAD[name]
    damage(directory)
    for load in (lambda: load_model(directory, device="cpu"), lambda: load_to_expand(directory)):
        with pytest.raises(InputError, match=message):
            load()


def test_files_that_complete_json_does_not_list_as_they_are_are_refused(sound: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(sound, directory)
    load_model(directory, device="cpu")
    flip_bit(directory / WEIGHTS)
    with pytest.raises(
        InputError, match=r"model is damaged: model.safetensors does not match its hash -> copy"
    ):
        load_model(directory, device="cpu")
    (directory / MARK).write_text("[]")
    with pytest.raises(InputError, match=r"COMPLETE.json is damaged"):
        load_model(directory, device="cpu")


def test_code_of_a_checkpoint_never_runs(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks on a terminal where it is not told; `yes |` would have it run."""
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    directory, sentinel = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(sound, directory)
    (directory / MARK).unlink()
    (directory / "evil.py").write_text(
        f"open({str(sentinel)!r}, 'w')\nfrom transformers import Qwen3Config\nclass Config(Qwen3Config):\n    model_type = 'evil'\n"
    )
    config = json.loads((directory / "config.json").read_text())
    evil = {"AutoConfig": "evil.Config", "AutoModel": "evil.Config", "AutoModelForCausalLM": "evil.Config"}
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": evil}))
    calls: list[Callable[[], object]] = [
        lambda: load_model(directory, device="cpu"),
        lambda: load_to_expand(directory),
        lambda: LocalModel(directory, batch=1, template={}),
        lambda: encoders.load_model(str(directory), dtype="float32"),
    ]
    for call in calls:
        with pytest.raises(InputError, match="cannot be loaded"):
            call()
    assert not sentinel.exists()


def test_the_machine_is_not_blamed_on_the_model(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: object, **kwargs: object) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 99 bytes"
        )

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", no_memory)
    with pytest.raises(EnvironmentFault, match=rf"out of memory while loading {sound} \(.*can't allocate"):
        load_weights(AutoModelForCausalLM, sound, dtype="auto")


def loading_calls(source: str) -> list[str]:
    """Calls of from_pretrained and from_config, which load what a directory says."""
    nodes = ast.walk(ast.parse(source))
    calls = [
        node.func.attr
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    return [name for name in calls if name in ("from_pretrained", "from_config")]


def test_there_is_one_place_that_loads_models_and_one_that_loads_pipelines() -> None:
    assert loading_calls("AutoModel.from_pretrained(x)") == ["from_pretrained"]
    where = {module for module, source in product().items() if loading_calls(source)}
    assert where == {models.__name__, "generation.makers.pipelines"}
