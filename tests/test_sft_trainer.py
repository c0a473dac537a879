"""Accumulation does not change the objective; rendered rows are kept by content; validation stays within its share."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainerControl, TrainerState
from trl import SFTConfig

from configs.program import NumericError
from data import artifacts
from infer.engine import DecodeSettings, load_engine
from tests import tiny
from tests.test_sft_batches import packed, windows
from train.arguments import trainer_arguments
from train.supervised import tokens
from train.supervised.schedule import EveryNth, validation_stride
from train.supervised.trainer import AnswerTrainer
from train.trainable import LoraSettings, make_trainable


def trainer_of(directory: Path, *, batch: int, accumulation: int) -> AnswerTrainer:
    """For one SGD step on 16 windows of a few users."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {str(token): token for token in range(50)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="0", eos_token="1"
    )
    mapping = {
        "max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "learning_rate": 1.0,
        "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    }  # fmt: skip
    args = trainer_arguments(
        SFTConfig, mapping, output_dir=directory, seed=0, max_length=64, save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    sequences, groups, tasks = windows(np.random.default_rng(0), users=4, suffix=1)
    batches = packed(
        "user_tree",
        sequences[:16],
        groups[:16],
        tasks[:16],
        step_windows=batch * accumulation,
        parts=accumulation,
    )
    assert len(batches) == accumulation
    return AnswerTrainer(
        model=tiny.model(vocab_size=50), args=args, batches=batches, valid_batches=batches, validator=dict,
        processing_class=tokenizer,
    )  # fmt: skip


def one_step(directory: Path, *, batch: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Parameters after the step."""
    trainer = trainer_of(directory, batch=batch, accumulation=accumulation)
    trainer.train()
    assert trainer.total["windows"] == 16 and 0 <= trainer.throughput()["padding_share"] < 1
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def test_accumulated_batches_take_the_step_of_one_large_batch(tmp_path):
    whole = one_step(tmp_path / "a", batch=16, accumulation=1)
    parts = one_step(tmp_path / "b", batch=4, accumulation=4)
    start = dict(tiny.model(vocab_size=50).named_parameters())
    assert any(not torch.equal(whole[name], start[name]) for name in whole)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)


def test_a_loss_or_gradient_that_is_not_finite_names_its_examples(tmp_path):
    (tmp_path / "loss").mkdir()
    trainer = trainer_of(tmp_path / "loss", batch=4, accumulation=4)
    trainer.example_ids = [100 + row for row in range(16)]
    original, faulty = trainer.compute_loss, set()

    def compute_loss(model, inputs, **kwargs):
        loss, rows = original(model, inputs, **kwargs), inputs["row"].tolist()
        faulty.update(100 + row for row in rows if 5 in rows)
        return loss * float("nan") if 5 in rows else loss

    trainer.compute_loss = compute_loss
    with pytest.raises(NumericError, match="loss is nan at step 1 .* look at the "):
        trainer.train()
    named = json.loads((tmp_path / "loss/nan_step.json").read_text())["example_ids"]
    assert set(named) == faulty and 105 in faulty and len(faulty) < 16

    (tmp_path / "gradient").mkdir()
    trainer = trainer_of(tmp_path / "gradient", batch=4, accumulation=4)
    trainer.example_ids = [100 + row for row in range(16)]
    trainer.args.max_grad_norm = 1.0
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NumericError, match="gradient norm is"):
        trainer.train()
    named = json.loads((tmp_path / "gradient/nan_step.json").read_text())["example_ids"]
    assert sorted(named) == [100 + row for row in range(16)]


def test_rendered_rows_are_kept_by_content(chain, tmp_path, monkeypatch):
    renderer = load_engine(chain.model, chain.sids, chain.examples, DecodeSettings()).renderer
    table = artifacts.read(chain.examples, artifacts.EXAMPLES, file="train.parquet")
    made = tokens.cached_rows(table, renderer, tmp_path, content="a")
    fresh = tokens.render(table, renderer)
    for name in ("tokens_S", "starts_N", "lengths_N", "prompts_N"):
        assert np.array_equal(getattr(made, name), getattr(fresh, name))
    assert isinstance(made.tokens_S, np.memmap)
    rendered = []
    monkeypatch.setattr(tokens, "render", lambda *args: rendered.append(args) or fresh)
    tokens.cached_rows(table, renderer, tmp_path, content="a")
    assert rendered == []
    tokens.cached_rows(table, renderer, tmp_path, content="b")
    renderer.max_prompt = 9
    tokens.cached_rows(table, renderer, tmp_path, content="a")
    assert len(rendered) == 2, "other examples and another prompt bound are rendered anew"
    end = renderer.terminator_ids()[-1]
    sids = np.array([task != "sid_to_title" for task in table["task"].to_pylist()])
    assert made.label_tokens - made.without_end(sids, end).label_tokens == sids.sum()


@pytest.mark.parametrize(
    ("strategy", "planned"), [("steps", [2, 4, 6, 8, 10]), ("epoch", [2, 4, 6, 8, 10, 11])]
)
def test_validation_is_thinned_to_its_share_and_the_last_one_stays(strategy, planned):
    assert validation_stride(100.0, 10.0, share=0.15) == 1
    assert validation_stride(100.0, 900.0, share=1.0) == 1, "a share of 1 leaves none out"
    stride = validation_stride(100.0, 40.0, share=0.15)
    assert stride == 3 and 40 / (stride * 100 + 40) <= 0.15 < 40 / ((stride - 1) * 100 + 40)
    callback, kept = EveryNth(2, 2), []
    for step in range(1, 12):
        control = TrainerControl(should_evaluate=step in planned, should_save=step in planned)
        state = TrainerState(global_step=step, max_steps=11)
        if strategy == "steps" or step in planned:
            hook = callback.on_step_end if strategy == "steps" else callback.on_epoch_end
            hook(SimpleNamespace(eval_strategy=strategy), state, control)
        assert control.should_save == (step in planned or step == 11)
        if control.should_evaluate:
            kept.append(step)
    assert kept == [4, 8, 11]


def test_rows_of_tokens_learn_at_their_own_rate(tmp_path):
    trainer = trainer_of(tmp_path, batch=16, accumulation=1)
    trainer.embedding_rate = 3.0
    start = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    plain = one_step(tmp_path / "plain", batch=16, accumulation=1)
    rows = {name for name in start if "embed_tokens" in name or "lm_head" in name}
    assert rows
    for name, value in trainer.model.named_parameters():
        factor = 3.0 if name in rows else 1.0
        torch.testing.assert_close(
            value - start[name], factor * (plain[name] - start[name]), atol=1e-5, rtol=1e-4
        )
    assert len({id(p) for group in trainer.optimizer.param_groups for p in group["params"]}) == len(start)


def test_new_rows_of_an_adapter_learn_at_their_own_rate_too(chain, tmp_path):
    moved = {}
    for rate in (1.0, 3.0):
        trainer = trainer_of(tmp_path / str(rate), batch=16, accumulation=1)
        trainer.embedding_rate = rate
        choice = make_trainable(
            trainer.model, "lora", LoraSettings(rank=2), new_ids=[30, 31, 40], base=str(chain.model), seed=0
        )
        start = choice.rows.input.detach().clone()
        trainer.train()
        moved[rate] = choice.rows.input.detach() - start
    assert moved[1.0].abs().max() > 1e-6
    torch.testing.assert_close(moved[3.0], 3 * moved[1.0], atol=1e-6, rtol=1e-4)
