"""The label-only loss is the ordinary one, and accumulation does not change the objective."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig

from configs.program import NumericError
from tests import tiny
from train.arguments import trainer_arguments
from train.supervised.dataset import IGNORED
from train.supervised.trainer import AnswerTrainer, answer_loss


def rows(count: int, seed: int = 0) -> dict[str, list[list[int]]]:
    """Random prompts with answers of one to five tokens."""
    rng = np.random.default_rng(seed)
    prompts = tiny.prompts(rng, rows=count)
    answers = [rng.integers(2, 50, rng.integers(1, 6)).tolist() for _ in range(count)]
    pairs = list(zip(prompts, answers, strict=True))
    return {"input_ids": [p + a for p, a in pairs], "labels": [[IGNORED] * len(p) + a for p, a in pairs]}


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_answer_loss_equals_cross_entropy_of_full_logits(kind):
    data = rows(6)
    width = max(map(len, data["input_ids"]))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in data["input_ids"]])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for row in data["labels"]])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in data["input_ids"]])
    model = tiny.model(kind, vocab_size=50)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    found = answer_loss(model, inputs, None)
    assert torch.allclose(found, expected, atol=1e-5)
    ours = torch.autograd.grad(found, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def trainer_of(directory: Path, *, batch: int, accumulation: int) -> AnswerTrainer:
    """For one SGD step on eight rows."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {str(token): token for token in range(50)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="0", eos_token="1"
    )
    mapping = {
        "max_steps": 1, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "learning_rate": 1.0,
        "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    }  # fmt: skip
    args = trainer_arguments(
        SFTConfig, mapping, output_dir=directory, seed=0, max_length=64, save_strategy="no"
    )
    dataset = Dataset.from_dict(rows(8))
    return AnswerTrainer(
        model=tiny.model(vocab_size=50), args=args, train_dataset=dataset, processing_class=tokenizer
    )


def one_step(directory: Path, *, batch: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Parameters after the step."""
    trainer = trainer_of(directory, batch=batch, accumulation=accumulation)
    trainer.train()
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def test_accumulated_batches_take_the_step_of_one_large_batch(tmp_path):
    whole = one_step(tmp_path / "a", batch=8, accumulation=1)
    parts = one_step(tmp_path / "b", batch=2, accumulation=4)
    start = dict(tiny.model(vocab_size=50).named_parameters())
    assert any(not torch.equal(whole[name], start[name]) for name in whole)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)


def test_a_loss_or_gradient_that_is_not_finite_names_its_examples(tmp_path):
    (tmp_path / "loss").mkdir()
    trainer = trainer_of(tmp_path / "loss", batch=2, accumulation=4)
    trainer.example_ids = [100 + row for row in range(8)]
    original = trainer.compute_loss

    def compute_loss(model, inputs, **kwargs):
        loss = original(model, inputs, **kwargs)
        return loss * float("nan") if 5 in inputs["row"].tolist() else loss

    trainer.compute_loss = compute_loss
    with pytest.raises(NumericError, match="loss is nan at step 1 .* look at the 2 examples"):
        trainer.train()
    named = json.loads((tmp_path / "loss/nan_step.json").read_text())["example_ids"]
    assert len(named) == 2 and 105 in named

    (tmp_path / "gradient").mkdir()
    trainer = trainer_of(tmp_path / "gradient", batch=2, accumulation=4)
    trainer.example_ids = [100 + row for row in range(8)]
    trainer.args.max_grad_norm = 1.0
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NumericError, match="gradient norm is"):
        trainer.train()
    named = json.loads((tmp_path / "gradient/nan_step.json").read_text())["example_ids"]
    assert sorted(named) == [100 + row for row in range(8)]
