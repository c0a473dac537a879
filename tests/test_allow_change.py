"""--allow_change: a run that was cut off goes on with other settings, which are then in force, and its manifest tells."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from configs.program import InputError, NumericError
from data.store.checkpoints import mark_complete
from data.store.directory import PENDING
from data.store.manifest import read_manifest
from data.store.output import Output, allowed_keys, open_output
from tests import handmade
from tests.test_safety import log
from train.policy.sid_trainer import SidTrainer
from train.scale.changed import settings_kept
from train.supervised.trainer import AnswerTrainer


@dataclass
class Args:
    output_dir: str
    source: str
    rate: float = 0.1
    rows: int = 8
    allow_change: list[str] = field(default_factory=list)
    overwrite: bool = False


def work(place: Path, source: Path, *, fails: bool = False, **changes: object) -> Output:
    args = Args(str(place), str(source), **changes)
    with open_output(args, "demo", version=1, inputs={"source": args.source}) as out:
        out.write_text("a.txt", "a")
        if fails:
            raise NumericError("stop")
    return out


def test_every_key_must_be_named_and_the_manifest_tells(tmp_path, monkeypatch):
    place, source = tmp_path / "out", tmp_path / "source.csv"
    source.write_text("1")
    with pytest.raises(NumericError):
        work(place, source, fails=True)
    source.write_text("2")
    changed = {"rate": 0.2, "rows": 4}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    keys = ["world_size", "rate", "rows", "source"]
    with pytest.raises(InputError) as refused:
        work(place, source, **changed)
    told = str(refused.value)
    assert "(world_size 1 -> 2, rate 0.1 -> 0.2, rows 8 -> 4, input source)" in told
    assert f"--allow_change '{json.dumps(keys)}'" in told
    for key in keys:
        with pytest.raises(InputError, match="holds another run"):
            work(place, source, allow_change=[one for one in keys if one != key], **changed)
    with pytest.raises(NumericError):
        work(place, source, allow_change=keys, fails=True, **changed)
    assert work(place, source, allow_change=["rate"], rate=0.3, rows=4).resuming
    assert read_manifest(place)["allowed_changes"] == [
        "world_size 1 -> 2", "rate 0.1 -> 0.2", "rows 8 -> 4", "input source", "rate 0.2 -> 0.3"
    ]  # fmt: skip


def test_what_can_never_be_right_is_neither_allowed_nor_advised(tmp_path):
    place, source = tmp_path / "out", tmp_path / "source.csv"
    source.write_text("1")
    with pytest.raises(NumericError):
        work(place, source, fails=True)
    for stage, version, key in (("other", 1, "stage"), ("demo", 2, "stage_version")):
        args = Args(str(place), str(source), allow_change=[key])
        with (
            pytest.raises(InputError, match="holds another run") as refused,
            open_output(args, stage, version=version, inputs={"source": args.source}),
        ):
            pytest.fail("it went on")
        assert "--allow_change" not in str(refused.value)


def test_a_change_stays_allowed_at_later_starts(tmp_path):
    """The newest checkpoint may be older than the change, whatever the next command says."""
    place, source = tmp_path / "out", tmp_path / "source.csv"
    source.write_text("1")
    for changes in ({}, {"rate": 0.2, "allow_change": ["rate"]}, {"rate": 0.2}):
        with pytest.raises(NumericError):
            work(place, source, fails=True, **changes)
    assert allowed_keys(place) == ["rate"]


@pytest.mark.parametrize("trained", [False, True])
def test_a_change_that_is_refused_is_not_taken_as_allowed(tmp_path, trained):
    """Unless a checkpoint was trained with it before: then it is what the run is."""
    place, source = tmp_path / "out", tmp_path / "source.csv"
    source.write_text("1")
    with pytest.raises(NumericError):
        work(place, source, fails=True)
    before = (place / PENDING).read_text()
    args = Args(str(place), str(source), rate=0.2, allow_change=["rate"])
    with (
        pytest.raises(InputError, match="not this one"),
        open_output(args, "demo", version=1, inputs={"source": args.source}),
    ):
        assert allowed_keys(place) == ["rate"], "what the trainer reads"
        if trained:
            (place / "checkpoint-3").mkdir()
            mark_complete(place / "checkpoint-3", step=3)
        raise InputError("not this one")
    if trained:
        assert work(place, source, rate=0.2).resuming
        return
    assert (place / PENDING).read_text() == before and allowed_keys(place) == []
    with pytest.raises(InputError, match=r"holds another run \(rate 0.1 -> 0.2\)"):
        work(place, source, rate=0.2)
    assert work(place, source).resuming and "allowed_changes" not in read_manifest(place)


def test_a_finished_output_is_never_gone_on_with(tmp_path):
    place, source = tmp_path / "out", tmp_path / "source.csv"
    source.write_text("1")
    assert not work(place, source).resuming and "allowed_changes" not in read_manifest(place)
    with pytest.raises(InputError, match=r"\(rate 0.1 -> 0.2\) -> pass --overwrite"):
        work(place, source, rate=0.2, allow_change=["rate"])


def rates(directory: Path) -> list[float]:
    return [line["learning_rate"] for line in log(directory) if "learning_rate" in line]


def made(rate: float, decay: float, *, parts: DistributedType = DistributedType.NO) -> Any:
    """What of a trainer the loading sees: two groups, a rate that falls to 0 in ten steps."""
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": [weights[0]], "weight_decay": decay}, {"params": [weights[1]], "lr": 3 * rate}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    accelerator = SimpleNamespace(distributed_type=parts, state=SimpleNamespace(deepspeed_plugin=None))
    return SimpleNamespace(
        optimizer=optimizer,
        lr_scheduler=schedule,
        weights=weights,
        is_deepspeed_enabled=False,
        accelerator=accelerator,
    )


def step(trainer: Any) -> None:
    for weight in trainer.weights:
        weight.grad = torch.ones(3)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()


def test_a_rate_that_was_changed_is_the_rate_of_the_steps_that_follow():
    """What the checkpoint's optimizer and schedule hold would win otherwise, without a word."""
    begun = made(1e-3, 0.1)
    for _ in range(4):
        step(begun)

    def gone_on(*allowed: str) -> Any:
        trainer = made(2e-3, 0.3)
        with settings_kept(trainer, allowed):
            trainer.optimizer.load_state_dict(begun.optimizer.state_dict())
            trainer.lr_scheduler.load_state_dict(begun.lr_scheduler.state_dict())
        moments = [
            [part.optimizer.state[one]["exp_avg"] for one in part.weights] for part in (begun, trainer)
        ]
        assert all(map(torch.equal, *moments)) and trainer.lr_scheduler.last_epoch == 4
        return trainer

    for allowed, rate, decay in (
        ((), 1e-3, 0.1),
        (("examples",), 1e-3, 0.1),
        (("trainer.learning_rate",), 2e-3, 0.3),
    ):
        trainer = gone_on(*allowed)
        for share in (0.6, 0.5):
            found = [group["lr"] for group in trainer.optimizer.param_groups]
            assert (
                found == pytest.approx([share * rate, 3 * share * rate]) == trainer.lr_scheduler.get_last_lr()
            )
            assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [decay, 0.0]
            step(trainer)


def test_where_settings_cannot_be_changed_on_the_way():
    plateau, parts = made(1e-3, 0.0), made(1e-3, 0.0, parts=DistributedType.FSDP)
    plateau.lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(plateau.optimizer)
    for trainer, said in ((plateau, "no function of the step"), (parts, "needs whole weights")):
        with pytest.raises(InputError, match=said), settings_kept(trainer, ["embedding_rate"]):
            pytest.fail("it went on")
    with (
        pytest.raises(InputError, match="moments on disk"),
        settings_kept(made(1e-3, 0.0), ["trainer.optim"]),
    ):
        pytest.fail("it went on")


def test_a_training_goes_on_with_more_steps_at_another_rate(chain, tmp_path, monkeypatch):
    run = tmp_path / "run"
    settings = {
        "max_steps": 4,
        "eval_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "constant",
    }
    stock = AnswerTrainer.training_step

    def stopped(self, *args, **more):
        if self.state.global_step == 3:
            raise NumericError("stop")
        return stock(self, *args, **more)

    def start(*more: object, **changes: object) -> None:
        flags = [
            part for name, value in (settings | changes).items() for part in (f"--trainer.{name}", value)
        ]
        handmade.call("train.sft", *chain.flags(), *flags, "--valid_rows", 8, "--output_dir", run, *more)

    monkeypatch.setattr(AnswerTrainer, "training_step", stopped)
    with pytest.raises(NumericError):
        start(learning_rate=1e-3)
    monkeypatch.setattr(AnswerTrainer, "training_step", stock)
    with pytest.raises(InputError, match=r"trainer.max_steps 4 -> 6, trainer.learning_rate 0.001 -> 0.0005"):
        start(learning_rate=5e-4, max_steps=6)
    with pytest.raises(InputError, match="moments on disk are those of another optimizer"):
        start("--allow_change", '["trainer.optim"]', learning_rate=1e-3, optim="sgd")
    start("--allow_change", '["trainer.learning_rate", "trainer.max_steps"]', learning_rate=5e-4, max_steps=6)
    assert rates(run) == [1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 5e-4]
    assert len(read_manifest(run)["allowed_changes"]) == 2 and read_manifest(run)["counts"]["steps"] == 6


def test_rollouts_go_on_at_another_rate(chain, tmp_path, monkeypatch):
    run = tmp_path / "run"
    settings = {"max_steps": 3, "eval_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}
    settings |= {"lr_scheduler_type": "constant"}
    stock = SidTrainer.training_step

    def stopped(self, *args, **more):
        if self.state.global_step == 2:
            raise NumericError("stop")
        return stock(self, *args, **more)

    def start(rate: float, *more: object) -> None:
        flags = [
            part
            for name, value in (settings | {"learning_rate": rate}).items()
            for part in (f"--trainer.{name}", value)
        ]
        small = ("--max_rows", 8, "--valid_rows", 4, "--valid_beams", 10, "--rollout.num_generations", 4)
        handmade.call("train.grpo", *chain.flags(), *flags, *small, "--output_dir", run, *more)

    monkeypatch.setattr(SidTrainer, "training_step", stopped)
    with pytest.raises(NumericError):
        start(1e-3)
    monkeypatch.setattr(SidTrainer, "training_step", stock)
    with pytest.raises(InputError, match=r"trainer.learning_rate 0.001 -> 0.0005"):
        start(5e-4)
    start(5e-4, "--allow_change", '["trainer.learning_rate"]')
    assert rates(run) == [1e-3, 1e-3, 5e-4]
    assert read_manifest(run)["allowed_changes"] == ["trainer.learning_rate 0.001 -> 0.0005"]
