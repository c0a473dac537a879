"""Checkpoints that two processes wrote become whole weights; damaged, foreign and hostile ones are refused."""

from __future__ import annotations

import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from configs.program import InputError
from tests import handmade, tiny
from tests.ranks import together
from tests.test_sharded import LAYOUTS
from train.scale.shards import fitting, is_sharded_checkpoint, read_zero, whole_weights

PARTS = 2


def write_fsdp(folder: str, tied: bool, nested: bool) -> None:
    """As accelerate writes it, by every process its part."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    model = tiny.model(vocab_size=50, tied=tied)
    LAYOUTS["accelerate"](model)
    state = get_model_state_dict(model)
    dcp.save({"model": state} if nested else state, checkpoint_id=folder)


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    place = tmp_path_factory.mktemp("fsdp")
    together(write_fsdp, str(place / "pytorch_model_fsdp_0"), True, True)
    together(write_fsdp, str(place / "bare"), False, False)
    return place


def same(found: dict, model) -> None:
    expected = model.state_dict()
    assert set(expected) >= set(found) and len(found) >= len(list(model.named_parameters()))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0, msg=name)


def test_weights_of_fsdp(fsdp):
    for place, tied in ((fsdp, True), (fsdp / "bare", False)):
        model = tiny.model(vocab_size=50, tied=tied)
        assert is_sharded_checkpoint(place)
        same(fitting(whole_weights(place), model, place), model)
    with pytest.raises(InputError, match="do not belong together"):
        fitting(whole_weights(fsdp), tiny.model("gpt2", vocab_size=50), fsdp)
    with pytest.raises(
        InputError, match=r"embed_tokens.* is \[50, 32\], that of the model of --base \[60, 32\]"
    ):
        fitting(whole_weights(fsdp), tiny.model(vocab_size=60), fsdp)


def zero_names(rank: int, stage: int) -> tuple[str, str]:
    own = f"zero_pp_rank_{rank}_mp_rank_00"
    return f"{own}_optim_states.pt", f"{own if stage == 3 else 'mp_rank_00'}_model_states.pt"


def cut(values: list[torch.Tensor], stage: int) -> list[torch.Tensor]:
    """The flat float32 row of each process, by DeepSpeed's two ways of cutting."""
    if stage == 3:
        padded = [
            torch.nn.functional.pad(v.flatten(), (0, -v.numel() % PARTS)).view(PARTS, -1) for v in values
        ]
        return [torch.cat([value[rank] for value in padded]) for rank in range(PARTS)]
    row = torch.cat([value.flatten() for value in values])
    row = torch.nn.functional.pad(row, (0, -row.numel() % (2 * PARTS)))
    return list(row.view(PARTS, -1))


def write_zero(place: Path, model, *, stage: int, frozen: str | None = None) -> Path:
    """The layout of deepspeed 0.19.8, whose own files were read with the same code."""
    folder = place / "global_step7"
    folder.mkdir(parents=True)
    (place / "latest").write_text("global_step7")
    own = {name: value.detach() for name, value in model.named_parameters()}
    kept = {name: own.pop(name) for name in [frozen] if frozen}
    shapes = OrderedDict((name, value.shape) for name, value in own.items())
    flats = cut(list(own.values()), stage)
    pieces = {name: cut([value], stage) for name, value in kept.items()}
    for rank in range(PARTS):
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        optimizer = {key: [flats[rank]], "partition_count": PARTS if stage == 3 else [PARTS]}
        fragments = {name: cuts[rank] if stage == 3 else kept[name] for name, cuts in pieces.items()}
        state = {
            "module": {}, "buffer_names": [], "param_shapes": [shapes], "frozen_param_fragments": fragments,
            "frozen_param_shapes": {name: value.shape for name, value in kept.items()},
            "shared_params": {"lm_head.weight": "model.embed_tokens.weight"} if stage == 2 else {},
        }  # fmt: skip
        optim_file, model_file = zero_names(rank, stage)
        torch.save({"optimizer_state_dict": optimizer}, folder / optim_file)
        torch.save(state, folder / model_file)
    return place


@pytest.mark.parametrize("frozen", [None, "model.layers.1.self_attn.q_norm.weight"])
@pytest.mark.parametrize("stage", [2, 3])
def test_weights_of_zero(stage, frozen, tmp_path):
    model = tiny.model(vocab_size=51)  # an odd number of rows: padding
    place = write_zero(tmp_path / "run", model, stage=stage, frozen=frozen)
    assert is_sharded_checkpoint(place) and is_sharded_checkpoint(place / "global_step7")
    same(fitting(whole_weights(place), model, place), model)
    (place / "global_step7" / zero_names(1, stage)[0]).unlink()
    with pytest.raises(InputError, match="1 of 2 processes"):
        whole_weights(place)
    (place / "latest").write_text("../elsewhere")
    with pytest.raises(InputError, match="which is not there"):
        whole_weights(place)


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_damaged_and_hostile_checkpoints_are_refused(fsdp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no sharded checkpoint"):
        whole_weights(tmp_path / "empty")
    copy = shutil.copytree(fsdp / "bare", tmp_path / "copy")
    (copy / "__1_0.distcp").unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        whole_weights(copy)
    (copy / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match="not loaded"):
        whole_weights(copy)
    zero = write_zero(tmp_path / "zero", tiny.model(vocab_size=50), stage=3) / "global_step7"
    torch.save({"optimizer_state_dict": Hostile()}, zero / zero_names(0, 3)[0])
    with pytest.raises(InputError, match="cannot be read"):
        read_zero(zero)
    assert not (tmp_path / "touched").exists()


def test_train_merge_joins_parts_into_a_model_that_recommends(chain, tmp_path):
    """The chain's model cut in two, by stage 3; the base gives shape, tokenizer and semantic IDs, no weight."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from infer.engine import DecodeSettings, load_engine

    trained = AutoModelForCausalLM.from_pretrained(chain.model)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    place = write_zero(tmp_path / "checkpoint-7", trained, stage=3)
    flags = ["train.merge", "--checkpoint", place]
    line = handmade.refuse(*flags, "--output_dir", tmp_path / "none")
    assert "without a config.json" in line and not (tmp_path / "none").exists()
    handmade.call(*flags, "--base", chain.model, "--output_dir", tmp_path / "whole")
    found = load_file(tmp_path / "whole/model.safetensors")
    for name, value in trained.named_parameters():
        assert torch.equal(found[name], value), name
    engine = load_engine(tmp_path / "whole", chain.sids, chain.examples, DecodeSettings(beams=4))
    assert len(engine.recommend([[1, 2]], 4)[0]) == 4
    other = ["--base", chain.model.with_name("base"), "--output_dir", tmp_path / "other"]
    assert "another --base" in handmade.refuse(*flags, *other)
    assert not (tmp_path / "other/manifest.json").exists()
    whole = ["train.merge", "--checkpoint", chain.model, "--output_dir", tmp_path / "none"]
    assert "is a whole model already" in handmade.refuse(*whole)
    (tmp_path / "empty").mkdir()
    nothing = ["train.merge", "--checkpoint", tmp_path / "empty", "--output_dir", tmp_path / "none"]
    assert "holds no checkpoint" in handmade.refuse(*nothing)
