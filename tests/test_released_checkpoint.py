"""A checkpoint as NaviGen releases it - wrapped tokens with scattered ids, sharded weights, a LoRA adapter with its author's path
to the base - becomes a model that infer.recommend decodes with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.predictions import read_predictions
from data.releases.navigen import CID
from data.sid import read_sids, read_vocab
from infer.loading import load_model
from tests import handmade, tiny

AUTHOR = "/srv/author/checkpoints/Qwen3-1.7B-cid"


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """base/: a tokenizer with the tokens of the catalogue only, in the published order; adapter/: LoRA on it."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("released")
    data = handmade.write_data(root / "data")
    handmade.write_sids(root / "sids", data=data)
    tokenizer = handmade.tokenizer("ours")
    used = [sorted(set(handmade.CODES[:, level].tolist())) for level in range(3)]
    codes = [
        CID.code_token(level, code) for level in (2, 0, 1) for code in used[level][::-1]
    ]  # in no order of ours
    tokenizer.add_tokens([codes[0], CID.suffix[0], *codes[1:], CID.prefix[0]])
    model = tiny.model(vocab_size=len(tokenizer) + 5)  # rows of padding behind, as Qwen3 has
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(root / "base", max_shard_size="30KB")
    tokenizer.save_pretrained(root / "base")
    torch.manual_seed(3)
    lora = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    lora.save_pretrained(root / "adapter")
    written = json.loads((root / "adapter/adapter_config.json").read_text()) | {
        "base_model_name_or_path": AUTHOR
    }
    (root / "adapter/adapter_config.json").write_text(json.dumps(written))
    return root


def test_the_base_is_sharded_and_the_adapter_names_a_path_that_is_not_here(released):
    assert len(list((released / "base").glob("*.safetensors"))) > 2
    error = handmade.refuse(
        "preprocess.expand_vocab", "--model", released / "adapter", "--sids", released / "sids", "--format", "navigen",
        "--output_dir", released / "no",
    )  # fmt: skip
    assert "python -m train.merge --checkpoint ADAPTER --base MODEL" in error and AUTHOR not in error


def test_merged_and_expanded_it_recommends_legal_items_with_exact_scores(released, tmp_path):
    handmade.call(
        "train.merge",
        "--checkpoint",
        released / "adapter",
        "--base",
        released / "base",
        "--output_dir",
        tmp_path / "m",
    )
    handmade.call("preprocess.expand_vocab", "--model", tmp_path / "m", "--sids", released / "sids", "--format", "navigen",
                  "--output_dir", tmp_path / "v")  # fmt: skip
    vocab = read_vocab(tmp_path / "v")
    assert all(level.ids is not None for level in vocab.levels), "the published ids, listed one by one"
    model, tokenizer = load_model(tmp_path / "v", device="cpu")
    before, _ = load_model(tmp_path / "m", device="cpu")
    rows = (
        len(handmade.tokenizer("ours"))
        + sum(len(set(handmade.CODES[:, level].tolist())) for level in range(3))
        + 2
    )
    assert torch.equal(
        model.get_input_embeddings().weight[:rows], before.get_input_embeddings().weight[:rows]
    )
    base = {k: v for path in (released / "base").glob("*.safetensors") for k, v in load_file(path).items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(dict(before.named_parameters())[name], base[name]), "the adapter is in it"
    for codes in handmade.CODES.tolist():
        assert tokenizer(CID.text(codes), add_special_tokens=False)["input_ids"] == vocab.encode(codes)
    handmade.call("preprocess.build_examples", "--data", released / "data", "--sids", released / "sids", "--format", "navigen",
                  "--wording", "short", "--output_dir", tmp_path / "x")  # fmt: skip
    handmade.call("infer.recommend", "--model", tmp_path / "v", "--examples", tmp_path / "x", "--sids", released / "sids",
                  "--decode.beams", 40, "--device", "cpu", "--output_dir", tmp_path / "p")  # fmt: skip
    found, _ = read_predictions(tmp_path / "p")
    sids = read_sids(released / "sids")
    assert {tuple(codes) for codes in found.codes_EL.tolist()} == {
        tuple(codes) for codes in sids.sids_SL.tolist()
    }
    prompt = tokenizer("<|user|>next:" + "".join(CID.text(handmade.CODES[i]) for i in [0, 1, 2, 2, 3]) + "<|assistant|>",
                       add_special_tokens=False)["input_ids"]  # fmt: skip
    for codes, score in zip(found.codes_EL[:3].tolist(), found.score_E[:3].tolist(), strict=True):
        ids = vocab.encode(codes)
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        told = [float(row[token]) for row, token in zip(logprobs, ids, strict=True)]
        assert score == pytest.approx(sum(told[1:-1]), abs=1e-3), "the codes, not the wrapping tokens"


def test_one_token_per_whole_cid(released, tmp_path):
    handmade.call("rq.import_sids", "--source", released / "sids/sids.parquet", "--whole", "true", "--data", released / "data",
                  "--output_dir", tmp_path / "s")  # fmt: skip
    handmade.call("preprocess.expand_vocab", "--model", released / "base", "--sids", tmp_path / "s", "--format", "navigen",
                  "--output_dir", tmp_path / "v")  # fmt: skip
    sids, vocab = read_sids(tmp_path / "s"), read_vocab(tmp_path / "v")
    assert sids.sizes == (len(np.unique(handmade.CODES, axis=0)),) == vocab.sizes
    tokenizer = load_model(tmp_path / "v", device="cpu")[1]
    text = CID.text(sids.codes_NL[3])
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == vocab.encode(sids.codes_NL[3])
