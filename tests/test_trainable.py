"""What trains moves and nothing else does: every mode, tied and untied tables, with weight decay; adapters are models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from configs.program import InputError
from data.sid import read_vocab
from data.store.checkpoints import fault
from data.store.models import load_tokenizer
from infer.engine import DecodeSettings, load_engine
from infer.loading import load_model
from tests import families, handmade, tiny
from tests.test_sft_batches import packed, windows
from train.new_rows import NewRows
from train.supervised.trainer import answer_loss
from train.trainable import LoraSettings, make_trainable, new_token_ids, new_tokens_of

FLAGS = ["--valid_rows", 20, "--trainer.learning_rate", 5e-3, "--trainer.weight_decay", 0.1]
SHORT = [
    *("--trainer.max_steps", 6, "--trainer.eval_steps", 3, "--trainer.logging_steps", 1),
    *("--trainer.per_device_train_batch_size", 16, "--tasks", "[history_to_sid, sid_to_title]"),
]


@pytest.fixture(scope="session")
def models(chain, tmp_path_factory) -> dict[bool, Path]:
    """{tied: the expanded model}; the untied one has another output table, and reserved rows that new tokens landed on."""
    base = tmp_path_factory.mktemp("untied") / "base"
    shutil.copytree(chain.model.with_name("base"), base)
    (base / "manifest.json").unlink()
    model, _ = load_model(base, device="cpu", trainable=True)
    model.resize_token_embeddings(448)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.9)
    model.config.tie_word_embeddings, model.all_tied_weights_keys = False, {}
    model.save_pretrained(base)
    expanded = base.with_name("vocab")
    handmade.call("preprocess.expand_vocab", "--model", base, "--sids", chain.sids, "--output_dir", expanded)
    return {True: chain.model, False: expanded}


def tables(directory: Path) -> dict[str, torch.Tensor]:
    """All parameters of a model directory, the output table also where it is that of the input."""
    model, _ = load_model(directory, device="cpu", trainable=True)
    found = {name: value.detach().clone() for name, value in model.named_parameters()}
    return found | {"lm_head.weight": model.get_output_embeddings().weight.detach().clone()}


def new_ids(directory: Path) -> list[int]:
    return new_token_ids(read_vocab(directory), load_tokenizer(directory), new_tokens_of(directory))


def run(chain, model: Path, output: Path, *flags: object) -> Path:
    handmade.call("train.sft", *chain.flags(model=model), *FLAGS, *SHORT, *flags, "--output_dir", output)
    return output


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """{parameter: its rows that are not bitwise what they were}."""
    rows = {
        name: ((value != after[name]).flatten(1).any(1) if value.dim() > 1 else value != after[name])
        for name, value in before.items()
    }
    return {name: changed.nonzero().flatten().tolist() for name, changed in rows.items() if changed.any()}


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("what", ["lora", "new_rows", "input_rows_and_head", "embeddings"])
def test_what_trains_moves_and_nothing_else_does(what: str, tied: bool, chain, models, tmp_path) -> None:
    output = run(chain, models[tied], tmp_path / "run", "--train_what", what)
    before, after = tables(models[tied]), tables(output / "final")
    changed, ids = moved(before, after), new_ids(models[tied])
    everything = list(range(len(before[EMBED])))
    if what == "lora":
        linear = {name for name in before if name.endswith("_proj.weight")}
        assert changed.keys() == linear | {EMBED, HEAD}
    else:
        assert changed.keys() == {EMBED, HEAD}
    assert changed[EMBED] == (everything if what == "embeddings" else ids)
    assert changed[HEAD] == (everything if what in ("embeddings", "input_rows_and_head") else ids)
    same = torch.equal(after[EMBED], after[HEAD])
    assert same == (tied and what != "input_rows_and_head")
    assert len(ids) == 20 and (tied or max(ids) < len(everything) - 1), (
        "reserved rows that stay reserved stay as they are"
    )


@pytest.fixture(scope="session")
def adapted(chain, tmp_path_factory) -> Path:
    """A finished LoRA run whose checkpoints are all kept."""
    output = tmp_path_factory.mktemp("adapted") / "run"
    return run(chain, chain.model, output, "--train_what", "lora", "--keep_checkpoints", 9)


def prompt(directory: Path) -> torch.Tensor:
    """Old and new tokens."""
    return torch.tensor([[3, 50, *new_ids(directory)[::5], 7]])


def logits(directory: Path) -> torch.Tensor:
    model, _ = load_model(directory, device="cpu", trainable=True)
    with torch.no_grad():
        return model(prompt(directory)).logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("what", ["lora", "new_rows"])
def test_merged_unmerged_and_peft_agree(what: str, tied: bool, chain, models, tmp_path) -> None:
    """final/ has the logits of the base with its adapter, applied by PEFT alone and by the trainer's own layers."""
    from peft import PeftModel

    output = run(
        chain,
        models[tied],
        tmp_path / "run",
        "--train_what",
        what,
        "--lora.dropout" if what == "lora" else "--seed",
        0,
    )
    base, _ = load_model(models[tied], device="cpu", trainable=True)
    tokens = prompt(models[tied])
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, str(output / "adapter"))(tokens).logits
    assert not torch.allclose(theirs, logits(models[tied]), atol=1e-2)
    assert torch.allclose(logits(output / "final"), theirs, atol=1e-4)
    assert torch.equal(logits(output / "final"), logits(output / "adapter"))
    live, tokenizer = load_model(models[tied], device="cpu", trainable=True)
    ids = new_token_ids(read_vocab(models[tied]), tokenizer, new_tokens_of(models[tied]))
    lora = LoraSettings(dropout=0.0)
    made = make_trainable(live, what, lora, new_ids=ids, base=str(models[tied]), seed=1)
    made.read(output / "adapter")
    assert torch.allclose(live(tokens).logits, theirs, atol=1e-4)
    assert torch.allclose(live.eval()(tokens).logits, theirs, atol=1e-4)


def test_a_checkpoint_of_an_adapter_is_small_and_is_a_model(chain, adapted) -> None:
    checkpoint, final = adapted / "checkpoint-3", adapted / "final"
    assert not (checkpoint / "model.safetensors").exists()
    moved_bytes = (checkpoint / "adapter_model.safetensors").stat().st_size
    assert (checkpoint / "optimizer.pt").stat().st_size < 2.5 * moved_bytes + 50_000
    for directory in (checkpoint, final, adapted / "adapter"):
        engine = load_engine(directory, chain.sids, chain.examples, DecodeSettings(beams=4))
        assert len(engine.recommend([[1, 2]], 4)[0]) == 4
    assert not (final / "adapter_config.json").exists()
    assert (final / "new_tokens.json").read_text() == (chain.model / "new_tokens.json").read_text()


def test_an_adapter_is_evaluated_and_trained_on_like_a_model(chain, adapted, tmp_path) -> None:
    flags = chain.flags(model=adapted / "checkpoint-3")
    handmade.call(
        "infer.recommend", *flags, "--max_rows", 5, "--decode.beams", 5, "--output_dir", tmp_path / "eval"
    )
    output = run(chain, adapted / "checkpoint-3", tmp_path / "next", "--train_what", "lora", "--lora.rank", 2)
    assert json.loads((output / "adapter/base.json").read_text())["path"] == str(adapted / "checkpoint-3")
    assert torch.equal(logits(output / "final"), logits(output / "adapter"))


@pytest.mark.parametrize("what", ["all", "lora", "new_rows", "input_rows_and_head", "embeddings"])
def test_gradient_checkpointing_gives_the_same_gradients(what: str) -> None:
    """Also where what comes in is frozen, which re-entrant checkpointing would cut off."""
    sequences, groups, tasks = windows(np.random.default_rng(1), users=4, suffix=1)
    batches = packed("user_tree", sequences, groups, tasks, step_windows=50)
    found = []
    for checkpointing in (False, True):
        model = tiny.model(vocab_size=50, tied=False)
        lora = LoraSettings(dropout=0.0, new_rows=False) if what == "lora" else LoraSettings()
        made = make_trainable(model, what, lora, new_ids=[11, 12, 20], base="b", seed=3)
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                torch.nn.init.ones_(parameter)
        if checkpointing:
            model.gradient_checkpointing_enable()
        answer_loss(model.train(), batches[0]).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert made.what == what and all(grad is not None for grad in found[-1].values())
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert torch.allclose(grad, found[1][name], atol=1e-5 * float(grad.abs().max()) + 1e-7), name


def test_reentrant_checkpointing_is_refused(chain, tmp_path) -> None:
    with pytest.raises(InputError, match="use_reentrant cuts the gradients"):
        run(
            chain,
            chain.model,
            tmp_path / "out",
            "--trainer.gradient_checkpointing_kwargs",
            '{"use_reentrant": true}',
        )


class Kill(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("what", ["lora", "new_rows", "input_rows_and_head", "embeddings"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(what, chain, tmp_path, monkeypatch) -> None:
    from train import safety

    flags = ["--train_what", what, "--keep_checkpoints", 9, "--trainer.gradient_checkpointing", "true"]
    whole = run(chain, chain.model, tmp_path / "whole", *flags)
    original = safety.PushRows.on_optimizer_step

    def dies(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise Kill

    monkeypatch.setattr(safety.PushRows, "on_optimizer_step", dies)
    with pytest.raises(Kill):
        run(chain, chain.model, tmp_path / "run", *flags)
    monkeypatch.undo()
    run(chain, chain.model, tmp_path / "run", *flags)
    assert (tmp_path / "run/metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    before, after = (load_file(path / "final/model.safetensors") for path in (whole, tmp_path / "run"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_of_a_base_that_is_gone_or_another_is_refused(chain, adapted, tmp_path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(adapted / "adapter", adapter)
    shutil.copytree(chain.model, base)
    record = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps(record | {"path": "gone", "beside": "../base"}))
    (adapter / "COMPLETE.json").unlink()
    assert torch.equal(logits(adapter), logits(adapted / "final")), "found beside the adapter"
    shutil.rmtree(base)
    with pytest.raises(InputError, match="the base model of adapter .* is gone"):
        logits(adapter)
    shutil.copytree(adapted / "final", base)
    with pytest.raises(InputError, match="is not the model that adapter .* was trained on"):
        logits(adapter)
    (adapter / "base.json").unlink()
    with pytest.raises(InputError, match="does not say of which model"):
        run(chain, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_what", "lora", "--lora.targets", "[q_proj, query]"], "no linear layer 'query' -> all, or some of down_proj"),
        (["--train_what", "lora", "--lora.targets", "[lm_head]"], "no linear layer 'lm_head'"),
        (["--train_what", "lora", "--lora.targets", "[]"], "nothing would change"),
        (["--train_what", "lora", "--lora.rank", "0"], "lora.rank 0"),
        (["--train_what", "lora", "--lora.alpha", "0"], "lora.alpha 0"),
        (["--train_what", "lora", "--lora.dropout", "1"], "lora.dropout 1"),
        (["--train_what", "new_rows", "--lora.rank", "4"], "train_what is new_rows"),
        (["--lora.rank", "4"], "train_what is all"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_are_refused(flags, words, chain, tmp_path) -> None:
    with pytest.raises(InputError, match=words):
        run(chain, chain.model, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2", "gemma3", "cohere"])
def test_rows_have_the_gradients_of_their_tables(kind: str) -> None:
    """Through the head loss, and through the scorer of rollouts; also where a table scales its rows."""
    rng = np.random.default_rng(1)
    sequences, groups, tasks = windows(rng, users=4, suffix=1)
    batches = packed("user_tree", sequences, groups, tasks, step_windows=50)
    ids = [11, 12, 20, 35]

    def fresh():
        if kind in ("tied", "untied"):
            return tiny.model(vocab_size=50, tied=kind == "tied")
        return families.model(kind, vocab_size=50)

    whole, part = fresh(), fresh()
    answer_loss(whole, batches[0]).backward()
    part.requires_grad_(False)
    rows = NewRows(part, ids)
    answer_loss(part, batches[0]).backward()
    tables = [whole.get_input_embeddings().weight, whole.get_output_embeddings().weight]
    found = [rows.input, rows.input if rows.output is None else rows.output]
    for table, row in zip(tables, found, strict=True):
        assert torch.allclose(row.grad, table.grad[ids], atol=1e-4 * float(table.grad.abs().max()))
    assert [name for name, p in part.named_parameters() if p.grad is not None] == [
        name for name, p in rows.named_parameters(prefix="new_rows")
    ]
    hidden = torch.randn(5, part.get_input_embeddings().weight.shape[1])
    head = part.get_output_embeddings().weight
    (grad,) = torch.autograd.grad((hidden @ rows.in_table(head).t()).logsumexp(1).sum(), [rows.head])
    other = head.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((hidden @ other.t()).logsumexp(1).sum(), [other])
    assert torch.allclose(grad, expected[ids], atol=1e-5)


def test_a_checkpoint_is_merged_into_a_model_directory(chain, adapted, tmp_path) -> None:
    checkpoint, output = adapted / "checkpoint-3", tmp_path / "merged"
    handmade.call("train.merge", "--checkpoint", checkpoint, "--output_dir", output)
    assert torch.equal(logits(output), logits(checkpoint))
    assert fault(output) is None and (output / "new_tokens.json").exists()
    engine = load_engine(output, chain.sids, chain.examples, DecodeSettings(beams=4))
    assert len(engine.recommend([[1, 2]], 4)[0]) == 4
    handmade.call(
        "train.merge", "--checkpoint", checkpoint, "--output_dir", tmp_path / "half", "--dtype", "bfloat16"
    )
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    moved_base = shutil.copytree(chain.model, tmp_path / "moved")
    foreign = shutil.copytree(checkpoint, tmp_path / "foreign")
    for name in ("base.json", "COMPLETE.json"):
        (foreign / name).unlink()
    handmade.call(
        "train.merge", "--checkpoint", foreign, "--base", moved_base, "--output_dir", tmp_path / "by_hand"
    )
    assert torch.equal(logits(tmp_path / "by_hand"), logits(checkpoint))
    pickled = shutil.copytree(foreign, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    for flags, words in (
        ([adapted / "final"], "is a whole model already"),
        ([foreign], "does not say of which model"),
        ([checkpoint, "--base", adapted / "final"], "is not the model that adapter"),
        ([foreign, "--base", tmp_path], "is not a model directory"),
        ([pickled, "--base", moved_base], "has no adapter_model.safetensors"),
    ):
        with pytest.raises(InputError, match=words):
            handmade.call("train.merge", "--checkpoint", *flags, "--output_dir", tmp_path / "bad")
        assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("what", ["lora", "new_rows"])
def test_rollouts_train_the_same_part(what: str, chain, models, tmp_path) -> None:
    flags = ["--train_what", what, "--max_rows", 16, "--rollout.num_generations", 4, "--trainer.max_steps", 2]
    flags += ["--trainer.eval_steps", 1, "--trainer.learning_rate", 0.1, "--trainer.weight_decay", 0.1]
    output = tmp_path / "run"
    handmade.call(
        "train.grpo", *chain.flags(model=models[False]), *flags, "--valid_rows", 20, "--output_dir", output
    )
    changed = moved(tables(models[False]), tables(output / "checkpoint-2"))
    linear = {name for name in tables(models[False]) if name.endswith("_proj.weight")}
    assert changed.keys() - linear == {EMBED, HEAD} and bool(changed.keys() & linear) == (what == "lora")
    assert changed[EMBED] == changed[HEAD] == new_ids(models[False])
    facts = json.loads((output / "manifest.json").read_text())["facts"]
    assert (output / "adapter").exists() == (facts["best_step"] != 0)
    if facts["best_step"]:
        assert torch.equal(logits(output / "final"), logits(output / "adapter"))


def test_parts_of_split_weights_are_refused(chain, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("train.safety.shards_weights", lambda accelerator: True)
    for what in ("lora", "new_rows", "input_rows_and_head"):
        with pytest.raises(InputError, match=f"train_what {what} needs whole weights"):
            run(chain, chain.model, tmp_path / what, "--train_what", what)


def test_rows_of_their_own_learn_at_the_rate_of_rows(chain, tmp_path) -> None:
    """`embedding_rate` reaches them: at a vanishing one they stay, and the layers move."""
    flags = [
        "--train_what",
        "lora",
        "--embedding_rate",
        1e-12,
        "--trainer.optim",
        "sgd",
        "--trainer.weight_decay",
        0,
    ]
    output = run(chain, chain.model, tmp_path / "run", *flags, "--trainer.learning_rate", 1.0)
    before, after = tables(chain.model), tables(output / "final")
    assert torch.allclose(before[EMBED], after[EMBED], atol=1e-6)
    assert not torch.allclose(
        before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"]
    )
