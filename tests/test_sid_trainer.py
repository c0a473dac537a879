"""One GRPO step: the same gradient however its batch is split, and one distribution in rollouts and loss."""

from __future__ import annotations

import math

import pytest
import torch

from data.renderer import Renderer
from data.sid import FORMATS, SidTable
from infer.engine import DecodeSettings, Engine
from tests import handmade, tiny

TABLE = SidTable(handmade.CODES, handmade.SIZES)
PROMPTS = 8


def masked(batch):
    """Some cells missing, one prompt without any, one flat: what made the loss depend on the split."""
    table = {0: [None] * 4, 1: [1.0] * 4, 2: [None, None, 0, 1], 5: [1, 0, None, 0]}
    return [table.get(row["example_id"], [1.0, 0, 0, 0]) for row in batch.rows]


def trainer(
    tmp_path,
    *,
    batch=8,
    accumulate=1,
    drop=False,
    reward=masked,
    generations=4,
    steps=1,
    seed=1,
    hints=None,
    validate=dict,
    bf16=False,
    **settings,
):
    from transformers import TrainingArguments

    from preprocess.model.vocabulary import add_sid_tokens
    from train.policy.settings import GrpoSettings
    from train.policy.sid_trainer import SidTrainer
    from train.rewards.mixture import Member, Mixture

    words = handmade.tokenizer("ours")
    vocab = add_sid_tokens(words, FORMATS["letters"], handmade.SIZES, sids_sha256="").vocab
    model = tiny.model(vocab_size=len(words))
    engine = Engine(model, Renderer(words, vocab), TABLE, DecodeSettings(beams=generations))
    made = {"beta": 0.1, "drop_zero_variance": drop, "num_generations": generations} | settings
    return SidTrainer(
        engine=engine,
        reference=tiny.model(vocab_size=len(words), seed=seed) if made["beta"] else None,
        hints_R=hints,
        rewards=Mixture([Member(reward.__name__, reward, 1.0, {})]),
        settings=GrpoSettings(**made),
        rows=[{"example_id": row, "target": [row]} for row in range(PROMPTS)],
        prompts=engine.renderer.prompts([engine.histories.example([row]) for row in range(PROMPTS)]),
        validate=validate,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=bf16,
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
        ),
    )


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("drop", [False, True])
def test_a_step_does_not_depend_on_how_its_batch_is_split(drop, tmp_path):
    found = {}
    for batch, accumulate in ((8, 1), (1, 8), (2, 4)):
        one = trainer(tmp_path, batch=batch, accumulate=accumulate, drop=drop)
        one.train()
        log = one.state.log_history[0]
        found[batch] = flat(one.model), log
    whole, log = found[8]
    start = flat(tiny.model(vocab_size=one.model.config.vocab_size))
    assert (whole - start).abs().max() > 1e-3, "the step moved the weights"
    for batch in (1, 2):
        weights, other = found[batch]
        torch.testing.assert_close(weights, whole, atol=1e-5, rtol=1e-4)
        for key in ("loss", "reward", "reward/masked", "hit_rate", "zero_variance_share", "kl"):
            assert other[key] == pytest.approx(log[key], rel=1e-4, abs=1e-5), key
    assert log["zero_variance_share"] == 2 / 8
    assert log["reward"] == pytest.approx((4 + 1 + 1 + 4) / (4 + 2 + 3 + 4 * 4))


def stepped(one) -> tuple[torch.Tensor, dict[str, float]]:
    """(weights, log) after one step."""
    one.train()
    return flat(one.model), one.state.log_history[0]


def test_rewards_that_are_all_missing_leave_the_model_as_it_is(tmp_path):
    def silent(batch):
        return [[None] * 4 for _ in batch.rows]

    one = trainer(tmp_path, reward=silent)
    before = flat(one.model)
    after, log = stepped(one)
    assert torch.equal(after, before) and log["loss"] == 0 and log["zero_variance_share"] == 1
    assert all(math.isnan(log[name]) for name in ("reward", "reward/silent", "kl")), (
        "of nothing there is no mean"
    )


def test_a_group_with_fewer_legal_answers_than_rollouts_learns_from_these_alone(tmp_path):
    """Ten semantic IDs and twelve rollouts: whatever a reward says of the two without items, the step is that of ten."""

    def hopeful(batch):
        return [
            [100.0 if not items else float(place) for place, items in enumerate(g)] for g in batch.item_ids
        ]

    legal = len(TABLE.sids_SL)
    (ten, log), (twelve, more) = (
        stepped(trainer(tmp_path, reward=hopeful, generations=rollouts)) for rollouts in (legal, legal + 2)
    )
    torch.testing.assert_close(twelve, ten, atol=1e-5, rtol=1e-4)
    assert log["reward"] == more["reward"] == pytest.approx((legal - 1) / 2)
    assert more["reward/hopeful"] == pytest.approx((sum(range(legal)) + 2 * 100) / (legal + 2))
    assert more["loss"] == pytest.approx(log["loss"], abs=1e-5)


@pytest.mark.parametrize("loss", ["grpo", "expected"])
def test_groups_without_signal_are_drawn_to_the_reference_unless_they_are_dropped(loss, tmp_path):
    def equal(batch):
        return [[1.0] * len(group) for group in batch.item_ids]

    start = flat(trainer(tmp_path).model)
    more = {"loss": loss} | ({"logprob_space": "trie"} if loss == "expected" else {})
    kept, dropped = (stepped(trainer(tmp_path, reward=equal, drop=drop, **more)) for drop in (False, True))
    assert not torch.equal(kept[0], start) and kept[1]["kl"] > 0
    assert torch.equal(dropped[0], start) and dropped[1]["loss"] == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_dropout_of_the_configuration_is_off_in_training_mode_too(kind):
    from train.policy.dropout import without_dropout

    model = tiny.model(kind, vocab_size=50, dropout=0.5).train()
    ids = torch.arange(12)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert without_dropout(model) > 0 and without_dropout(model) == 0
    assert torch.equal(model(ids).logits, model(ids).logits)
    torch.testing.assert_close(model(ids).logits, model.eval()(ids).logits)
    assert any(value == 0.5 for value in model.config.to_dict().values()), (
        "the file of the model says what it said"
    )
