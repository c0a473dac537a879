"""How a model that trains is loaded: attention, 4-bit weights, Unsloth and Liger; what is not here is refused."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from configs.program import EnvironmentFault, InputError
from infer import loading
from infer.loading import LoadSettings, load_model
from infer.search.causal import MASKED_BY_US, require_masks
from tests import families, handmade, tiny
from train.sft import SftArgs
from train.trainable import LoraSettings


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tokenizer = handmade.tokenizer("ours")
    tiny.model(vocab_size=len(tokenizer)).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def test_attention_is_what_was_asked_for(directory: Path) -> None:
    assert loading.ATTENTIONS == MASKED_BY_US
    for attention in loading.ATTENTIONS:
        model, _ = load_model(directory, trainable=True, loading=LoadSettings(attention=attention))
        assert model.config._attn_implementation == attention
    for attention in ("flash_attention_2", "flex_attention"):
        with pytest.raises(InputError, match=f"{attention} reads no mask .* -> sdpa or eager"):
            LoadSettings(attention=attention)


def test_what_is_not_installed_is_a_fault_of_the_machine(directory: Path) -> None:
    for settings, package in (
        (LoadSettings(quantize="4bit"), "bitsandbytes"),
        (LoadSettings(loader="unsloth"), "unsloth"),
        (LoadSettings(liger=True), "liger_kernel"),
    ):
        if torch.cuda.is_available():
            pytest.skip("this machine may have them")
        with pytest.raises(EnvironmentFault, match=package):
            load_model(directory, trainable=True, loading=settings)


def test_quantized_weights_cannot_move() -> None:
    usual = {
        "model": "m",
        "examples": "e",
        "sids": "s",
        "output_dir": "o",
        "loading": LoadSettings(quantize="4bit"),
    }
    SftArgs(**usual, train_what="lora")
    for what in ("all", "embeddings", "input_rows_and_head"):
        with pytest.raises(InputError, match=f"train_what {what} moves weights"):
            SftArgs(**usual, train_what=what)


def test_a_model_that_leaves_masks_out_is_found() -> None:
    for kind in ("qwen3", "gpt2", "gemma2", "mistral sliding"):
        require_masks(families.model(kind, vocab_size=20, attention="eager"))
    careless = tiny.model(vocab_size=20)
    original = careless.forward
    careless.forward = lambda *args, attention_mask=None, **kwargs: original(*args, **kwargs)
    with pytest.raises(InputError, match="sees tokens that its mask hides"):
        require_masks(careless)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Pretends that packages and a GPU are here."""

    def install(name: str, **content: object) -> None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "default_device", lambda: "cpu")
    return install


@pytest.mark.parametrize("heeds_masks", [True, False])
def test_unsloth_loads_and_is_watched(heeds_masks: bool, directory: Path, installed) -> None:
    calls = []

    def from_pretrained(name: str, **options: object):
        calls.append((name, options))
        model, tokenizer = load_model(directory, device="cpu", trainable=True)
        if not heeds_masks:
            original = model.forward
            model.forward = lambda *args, attention_mask=None, **kwargs: original(*args, **kwargs)
        return model, tokenizer

    installed("unsloth", FastLanguageModel=SimpleNamespace(from_pretrained=from_pretrained))
    settings = LoadSettings(loader="unsloth")
    if not heeds_masks:
        with pytest.raises(InputError, match="sees tokens that its mask hides"):
            load_model(directory, device="cpu", trainable=True, loading=settings)
        return
    model, _ = load_model(directory, device="cpu", trainable=True, loading=settings)
    assert calls[0][0] == str(directory) and calls[0][1]["load_in_4bit"] is False
    assert calls[0][1]["local_files_only"] and not calls[0][1]["trust_remote_code"] and model is not None


def test_liger_changes_the_model_but_not_its_loss(directory: Path, installed, monkeypatch) -> None:
    """Its kernels are on the GPU alone, so the model is there before they are put in and looked at."""
    calls, places = [], []
    installed("liger_kernel")

    def put_in(**given: object) -> None:
        calls.append(given)
        places.append(next(given["model"].parameters()).device.type)

    installed("liger_kernel.transformers", _apply_liger_kernel_to_instance=put_in)
    model, _ = load_model(directory, device="cpu", trainable=True, loading=LoadSettings(liger=True))
    assert calls == [{"model": model, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    monkeypatch.setattr(loading, "default_device", lambda: "meta")
    monkeypatch.setattr("infer.search.causal.require_masks", lambda model: put_in(model=model))
    load_model(directory, device="cpu", trainable=True, loading=LoadSettings(liger=True))
    assert places == ["cpu", "meta", "meta"]


def test_four_bits_with_the_real_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs where bitsandbytes is installed; it computes on a CPU too."""
    pytest.importorskip("bitsandbytes")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from train.trainable import make_trainable

    monkeypatch.setattr(LoadSettings, "require", lambda self: None)
    tokenizer = handmade.tokenizer("ours")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen3Config(
        vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, **shape
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, trainable=True, loading=LoadSettings(quantize="4bit"))
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    made = make_trainable(model, "lora", LoraSettings(), new_ids=[9, 11], base=str(tmp_path), seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        model.train()(torch.tensor([[9, 3, 11]], device=device)).logits.float().logsumexp(-1).sum().backward()
    assert made.rows.input.grad.abs().sum() > 0 and all(parameter.grad is not None for parameter in trained)
