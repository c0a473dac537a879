"""A trainer moves a model, and computes in its own number format: tries, hints, output layers and references go along."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType

from data.tids import Tids
from infer import engine as engines
from infer.text import tids
from tests import handmade, tiny
from tests.test_sid_trainer import flat, trainer
from train.policy import hints
from train.policy.reference import Reference, reference_of, weights_dtype
from train.supervised import head


def placed(*_args: object, device: object) -> SimpleNamespace:
    """In place of a trie, which the device `meta` cannot hold."""
    return SimpleNamespace(device=torch.device(device), whole=None)


def test_tries_are_where_the_model_is_now(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "Catalogues", placed)
    engine = trainer(tmp_path).engine
    first = engine.catalogues
    assert first.device.type == "cpu" and engine.catalogues is first
    engine.model.to("meta")
    assert engine.catalogues.device.type == "meta"


@pytest.mark.parametrize("samples", [0, 2])
def test_identifiers_are_searched_where_the_model_is_now(samples, monkeypatch):
    monkeypatch.setattr(tids, "TokenTrie", placed)
    tokenizer = handmade.tokenizer("ours")
    trie = tids.TidTrie(Tids([("bolt",), ("nut", "m4")], ["chat", "chat"]), tokenizer)
    model, seen = tiny.model(vocab_size=len(tokenizer)), []

    def search(_model: object, batch: list, trie: SimpleNamespace, *_args: object, **_options: object):
        seen.append(trie.device.type)
        nothing = torch.zeros((len(batch), 0), dtype=torch.long)
        return SimpleNamespace(rows_BK=nothing, scores_BK=nothing)

    for name in ("search_tokens", "draw_tokens"):
        monkeypatch.setattr(f"infer.search.token_tree.{name}", search)
    for device in ("cpu", "meta"):
        tids.decode_tids(model.to(device), [[5]], trie, samples=samples)
    assert seen == ["cpu", "meta"]


def test_hints_are_searched_where_training_will_be(tmp_path, monkeypatch):
    """DeepSpeed and FSDP2 leave a model on the CPU until training begins."""
    one, seen = trainer(tmp_path), []

    def found(engine, prompts, targets_R, **_options):
        seen.append(next(engine.model.parameters()).device.type)
        return np.zeros(len(prompts), np.int8)

    monkeypatch.setattr(hints, "find_hints_together", found)
    monkeypatch.setattr(one.accelerator.state, "device", torch.device("meta"))
    out = SimpleNamespace(path=tmp_path, leads=False)
    monkeypatch.setattr(hints, "read_hints", lambda *_args, **_options: "read")
    # what is on `meta` has lost its numbers, so there is no way back from it
    monkeypatch.setattr(one.model, "to", lambda device: moved.append(str(device)) or nn_to(device))
    moved, nn_to = [], lambda device: type(one.model).to(one.model, device) if str(device) == "meta" else None
    assert hints.hints_of(SimpleNamespace(rollout=one.settings, hints=None), one, out) == "read"
    assert seen == ["meta"] and moved == ["meta", "cpu"]


def half(tmp_path, **changes):
    """A trainer that computes in bfloat16."""
    one = trainer(tmp_path, bf16=True, **changes)
    assert one.accelerator.mixed_precision == "bf16"
    return one


@pytest.mark.parametrize("updates", [1, 2])
def test_a_policy_in_bfloat16_starts_at_no_divergence(updates, tmp_path):
    """Loss, reference and old policy are computed in one number format: nothing has moved, so nothing differs."""
    one, ratios = half(tmp_path, seed=0, steps=updates, updates=updates, batch=4), []
    score = one._score

    def watched(model, prompts, beams):
        found = score(model, prompts, beams)
        if torch.is_grad_enabled() and updates > 1 and not one.state.global_step:
            ratios.append(float((found.logps_PGL - one.pending[0].old_PGL).detach().abs().max()))
        return found

    one._score = watched
    one.train()
    log = one.state.log_history[0]
    assert log["kl"] == 0 and log["kl_p99"] == 0
    assert ratios == [0.0] * len(ratios) and len(ratios) == (updates > 1)


def test_validation_is_in_the_number_format_of_training(tmp_path):
    seen = []

    def measure():
        seen.append(torch.is_autocast_enabled("cpu"))
        return {"ndcg@10": 0.0}

    half(tmp_path, validate=measure).evaluate()
    trainer(tmp_path, validate=measure).evaluate()
    assert seen == [True, False]


def test_a_reference_under_deepspeed_computes_in_what_its_policy_does():
    """DeepSpeed turns a policy's weights into bfloat16; a reference that follows keeps its own exact ones beside them."""
    start = tiny.model(vocab_size=40)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, prepare_model=lambda model, **_options: model, _models=[]
    )
    one = SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(device="cpu", bf16=True, fp16=False))
    accelerator._models.append(given := tiny.model(vocab_size=40))
    fixed = reference_of(given, one, lambda *_args: None, moves=False)
    assert {value.dtype for value in fixed.model.parameters()} == {torch.bfloat16} and fixed.masters is None
    accelerator._models.append(given := tiny.model(vocab_size=40))
    moving = reference_of(given, one, lambda *_args: None, moves=True)
    policy = tiny.model(vocab_size=40, seed=1)
    for _ in range(64):
        moving.follow(policy, 1e-3)
    share = 1 - (1 - 1e-3) ** 64
    exact = flat(start) + share * (flat(policy) - flat(start))
    torch.testing.assert_close(flat(moving.model).float(), exact.bfloat16().float(), atol=2e-3, rtol=1e-2)
    lost = start.to(torch.bfloat16)
    alone = Reference(lost, lambda *_args: None, moves=True)
    for _ in range(64):
        alone.follow(policy, 1e-3)
    off = (flat(moving.model).float() - exact).abs().mean(), (flat(lost).float() - exact).abs().mean()
    assert off[1] > 3 * off[0], "steps that bfloat16 rounds away are what the exact weights are for"
    one.args.bf16 = False
    assert weights_dtype(one) is None
    accelerator.distributed_type = DistributedType.MULTI_GPU
    one.args.bf16 = True
    assert weights_dtype(one) is None


def test_exact_weights_of_a_reference_come_back(tmp_path):
    policy = tiny.model(vocab_size=40, seed=1)
    one, other = (
        Reference(tiny.model(vocab_size=40), lambda *_args: None, moves=True, dtype=torch.bfloat16)
        for _ in "ab"
    )
    one.follow(policy, 0.3)
    one.write(tmp_path, 0)
    other.read(tmp_path, 0)
    assert torch.equal(flat(other.model), flat(one.model))
    assert all(torch.equal(other.masters[name], value) for name, value in one.masters.items())


def test_the_output_layer_of_a_loss_is_in_the_number_format_of_training(chain, tmp_path, monkeypatch):
    seen, block = set(), head._block

    def watched(hidden_mD, weight_VD, *rest):
        seen.add((hidden_mD.dtype, weight_VD.dtype))
        return block(hidden_mD, weight_VD, *rest)

    monkeypatch.setattr(head, "_block", watched)
    flags = ["--trainer.max_steps", 1, "--trainer.eval_steps", 1, "--valid_rows", 4, "--samples", 0]
    for wanted, dtype in (("true", torch.bfloat16), ("false", torch.float32)):
        seen.clear()
        handmade.call(
            "train.sft", *chain.flags(), *flags, "--trainer.bf16", wanted, "--output_dir", tmp_path / wanted
        )
        assert seen == {(dtype, dtype)}


def test_a_run_under_deepspeed_goes_on_with_all_that_its_checkpoint_has(tmp_path, monkeypatch):
    """The stock trainer reads weights otherwise there: what lies beside them is read where every kind of run comes to."""
    from transformers import Trainer

    first = trainer(tmp_path, reward=first_is_best, steps=2, sync_reference=1, replay=0.5)
    first.train()
    first.replay.keep([5, 3])
    (checkpoint := tmp_path / "checkpoint-2").mkdir()
    first._save_rng_state(str(checkpoint))
    other, read = trainer(tmp_path, sync_reference=1, replay=0.5), []
    other.is_deepspeed_enabled, other.trainable = True, SimpleNamespace(read=read.append)
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda _self, _checkpoint: None)
    other._load_optimizer_and_scheduler(None)
    assert not read and not other.replay.queue
    other._load_optimizer_and_scheduler(str(checkpoint))
    assert (
        read == [checkpoint]
        and list(other.replay.queue) == list(first.replay.queue)
        and 5 in other.replay.queue
    )
    assert torch.equal(flat(other.reference.model), flat(first.reference.model))


def first_is_best(batch):
    return [[1.0 / (1 + place) for place in range(len(group))] for group in batch.item_ids]
