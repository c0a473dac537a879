"""Backbones other than Qwen3 through the three stages of SIDReasoner, program by program: templates without a system turn or none at all,
think markers of several tokens, tied and untied tables, sliding windows, rescaled and capped logits, an output layer with a bias."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from configs.program import InputError
from data import artifacts
from data.predictions import read_predictions
from data.store.models import load_weights, write_model
from data.store.output import open_output
from tests import families, handmade
from tests.handmade import call, refuse
from train.policy.settings import GrpoSettings
from train.policy.text import build
from train.policy.text.trainer import KNOWN

GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}{{ bos_token or '' }}"
    "{% for m in messages %}{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
THINK = "[<think>,</think>]"


@dataclass(frozen=True)
class Backbone:
    """A family of tests/families.py, which tokenizer it gets, the template in place of that tokenizer's own."""

    family: str
    tokenizer: str
    template: str | None = "own"
    changes: dict[str, object] = field(default_factory=dict)


GEMMA2 = Backbone("gemma2", "llama", GEMMA, {"attn_logit_softcapping": 0.5})
LONG = {
    "llama": Backbone("llama", "llama", changes={"tie_word_embeddings": False}),
    "gemma3": Backbone("gemma3", "llama", GEMMA),
    "qwen2.5 sliding": Backbone("qwen2 sliding", "ours"),
    "mistral sliding": Backbone("mistral sliding", "llama"),
    "phi": Backbone("phi", "gpt2", None),
    "gpt2": Backbone("gpt2", "gpt2", None, {"n_positions": 512}),
    "granite": Backbone("granite", "ours"),
    "cohere": Backbone("cohere", "ours"),
}


@pytest.fixture(scope="module")
def taught(chain, tmp_path_factory) -> dict[str, Path]:
    """Examples of stages 1 and 2, whose prompts have a system turn."""
    root = tmp_path_factory.mktemp("taught")
    rows = [row for row in artifacts.read_sequences(chain.data).to_pylist() if row["split"] == "train"][:24]
    texts = {row["example_id"]: f"they walk on from [[item:{row['history'][-1]}]]" for row in rows}
    thoughts = handmade.write_taught(root / "thoughts", data=chain.data, kind="history", texts=texts)
    of = ["--data", chain.data, "--sids", chain.sids, "--wording", "sentence", "--max_history", 3]
    few = ["--max_rows", json.dumps({"train": 40, "valid": 4, "test": 4})]
    think = [*of, *few, "--tasks", "[history_to_sid]", "--reasoning", json.dumps([str(thoughts)])]
    call("preprocess.build_examples", *of, *few, "--tasks", "[history_to_sid, title_to_sid, sid_to_title, item_narrative]",
         "--output_dir", root / "align")  # fmt: skip
    call(
        "preprocess.build_examples",
        *think,
        "--max_rows",
        "{train: null, valid: 4}",
        "--only_taught",
        "true",
        "--output_dir",
        root / "think",
    )
    call("preprocess.build_examples", *think, "--output_dir", root / "prompts")
    return {name: root / name for name in ("align", "think", "prompts")}


def write_base(directory: Path, backbone: Backbone) -> Path:
    """The directory that a publisher would hand out."""
    tokenizer = handmade.tokenizer(backbone.tokenizer)
    if backbone.template != "own":
        tokenizer.chat_template = backbone.template
    rows = len(tokenizer) + 7  # more rows than entries, as published models have
    model = families.model(backbone.family, vocab_size=rows, **backbone.changes)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.bos_token_id = model.generation_config.bos_token_id = tokenizer.bos_token_id
    with open_output(handmade.Made(), "base", version=1, inputs={}, directory=directory) as out:
        write_model(out, model, tokenizer)
    return directory


def three_stages(backbone: Backbone, chain, taught: dict[str, Path], root: Path) -> None:
    base, vocab = write_base(root / "base", backbone), root / "vocab"
    more = () if backbone.tokenizer == "ours" else ("--add_tokens", THINK)
    call("preprocess.expand_vocab", "--model", base, "--sids", chain.sids, *more, "--output_dir", vocab)
    steps = [
        "--sids", chain.sids, "--trainer.max_steps", 1, "--trainer.eval_steps", 1, "--trainer.logging_steps", 1, "--trainer.learning_rate", 1e-3,
        "--trainer.per_device_train_batch_size", 4, "--valid_rows", 4, "--valid_beams", 10, "--eval_share", 1,
    ]  # fmt: skip
    align, think, rl = root / "align", root / "think", root / "rl"
    call("train.sft", *steps, "--model", vocab, "--examples", taught["align"], "--output_dir", align)
    call(
        "train.sft",
        *steps,
        "--valid_thought",
        4,
        "--model",
        align / "final",
        "--examples",
        taught["think"],
        "--output_dir",
        think,
    )
    call("train.grpo", *steps, "--model", think / "final", "--examples", taught["prompts"], "--output_dir", rl, "--tasks", "[history_to_sid]",
         "--thought.max_tokens", 4, "--thought.tail", "beams", "--thought.beams", 10, "--thought.learns", "list", "--thought.credit", "own",
         "--rollout.num_generations", 2, "--rollout.loss", "dapo", "--rollout.beta", 0.01,
         "--rewards", "[{name: rank_discount, params: {fallback: [0.05, 0.2]}}]")  # fmt: skip
    for stage in (align, think, rl):
        lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        assert any(line.get("grad_norm", 0) > 0 for line in lines), stage.name
    assert all(abs(line["kl"]) < 1e-5 for line in lines if "kl" in line), (
        "the reference is the model at the start"
    )
    found = root / "found"
    call("infer.recommend", "--mode", "race", "--think.max_tokens", 4, "--decode.beams", 4, "--model", rl / "final", "--sids", chain.sids,
         "--examples", taught["prompts"], "--output_dir", found)  # fmt: skip
    assert len(pq.read_table(found / "thoughts.parquet")) == 4
    assert len(set(read_predictions(found)[0].example_ids_R.tolist())) == 4


def test_gemma_goes_through_three_stages(chain, taught, tmp_path) -> None:
    """Tied, capped, sliding, a BOS, no system turn, markers of several tokens: most that can go wrong in one."""
    three_stages(GEMMA2, chain, taught, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_further_backbones_go_through_three_stages(name: str, chain, taught, tmp_path) -> None:
    three_stages(LONG[name], chain, taught, tmp_path)


def test_a_marker_of_several_tokens_is_named_before_training(chain, taught, tmp_path) -> None:
    base, vocab = write_base(tmp_path / "base", GEMMA2), tmp_path / "vocab"
    call("preprocess.expand_vocab", "--model", base, "--sids", chain.sids, "--output_dir", vocab)
    line = refuse("train.sft", "--model", vocab, "--sids", chain.sids, "--examples", taught["think"], "--output_dir", tmp_path / "out")  # fmt: skip
    assert "no token of its own for </think>" in line and "--add_tokens" in line
    assert not (tmp_path / "out").exists()


def test_attention_that_caps_its_logits_keeps_the_cap(tmp_path) -> None:
    """Gemma 2 under attention sdpa is another function, and the library's default is sdpa."""
    from transformers import AutoModelForCausalLM

    base = write_base(tmp_path / "base", GEMMA2)
    ids = torch.arange(12)[None]
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        default = plain(ids).logits
        plain.set_attn_implementation("eager")
        capped, ours = (
            plain(ids).logits,
            load_weights(AutoModelForCausalLM, base, dtype=torch.float32)(ids).logits,
        )
    assert torch.equal(ours, capped) and not torch.allclose(default, capped, atol=1e-2)
    with pytest.raises(
        InputError, match="caps its attention logits, which attention sdpa leaves out -> eager, or null"
    ):
        load_weights(AutoModelForCausalLM, base, dtype=torch.float32, options={"attn_implementation": "sdpa"})


@pytest.mark.parametrize("kept", [False, True])
def test_dropout_of_the_models_own_configuration_is_off_unless_asked_for(kept, monkeypatch):
    """GPT-2 brings dropout: with it the policy is not what wrote the rollouts, nor the reference at the start."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    monkeypatch.setattr(build, "TextTrainer", lambda **given: given)
    settings = GrpoSettings(dropout=kept, loss="dapo")
    assert "dropout" in KNOWN, "it can be asked for beside thoughts"
    asked = SimpleNamespace(rollout=settings, vllm=None, samples=0)
    build.make_text_trainer(asked, SimpleNamespace(engine=SimpleNamespace(model=model)))
    assert model[1].p == (0.1 if kept else 0.0)
