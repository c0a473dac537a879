"""Resume ends where an uninterrupted run ends: same weights, same log, and the best checkpoint is really the best one."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from configs import program
from configs.program import EnvironmentFault, InputError, Interrupted
from tests import tiny
from tests.ranks import together
from tests.test_checkpoints import flip_bit
from train.arguments import trainer_arguments
from train.safety import SafeTrainer, selection, train_to_the_end
from train.scale.preemption import OWED, StopOnSignal

ROWS, STEPS_PER_EPOCH = 32, 4
SCORES = {2: 0.1, 4: 0.3, 6: 0.2, 8: 0.2, 10: 0.2}  # the best checkpoint is checkpoint-4


class PlainTrainer(SafeTrainer, Trainer):
    """The stock trainer with the safety net and nothing else."""

    evaluates_loss = False


def collate(rows: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """Token rows of one length as both inputs and labels, and which rows they are."""
    ids_BT = torch.tensor([row["ids"] for row in rows])
    return {"input_ids": ids_BT, "labels": ids_BT, "row": torch.tensor([row["row"] for row in rows])}


def trainer(
    directory: Path, scores: dict[int, float] = SCORES, dropout: float = 0.0, **settings: object
) -> SafeTrainer:
    """A tiny model in training whose validation scores are given by step; ten steps in epochs of four by default."""
    ids = np.random.default_rng(0).integers(2, 50, (ROWS, 6)).tolist()
    mapping = {
        "per_device_train_batch_size": ROWS // STEPS_PER_EPOCH,
        "learning_rate": 1e-3,
        "logging_steps": 1,
    }
    mapping |= {"max_steps": 10, "eval_steps": 2} if "num_train_epochs" not in settings else {}
    mapping |= settings
    fixed = selection(mapping) | {"remove_unused_columns": False}
    made = PlainTrainer(
        model=tiny.model("gpt2" if dropout else "qwen3", vocab_size=50, dropout=dropout),
        args=trainer_arguments(TrainingArguments, mapping, output_dir=directory, seed=0, **fixed),
        train_dataset=[{"ids": row, "row": number} for number, row in enumerate(ids)],
        eval_dataset=[],
        data_collator=collate,
    )
    made.vocab = tiny.vocabulary((2, 2))
    made.validate = lambda: {"ndcg@10": scores.get(made.state.global_step, 0.0)}
    made.steps_taken = 0
    stepped = made.training_step

    def training_step(*args: object, **kwargs: object) -> object:
        made.steps_taken += 1
        return stepped(*args, **kwargs)

    made.training_step = training_step
    return made


def train(directory: Path, **settings: object) -> SafeTrainer:
    directory.mkdir(exist_ok=True)
    made = trainer(directory, **settings)
    train_to_the_end(made, directory)
    return made


def same(left: SafeTrainer, right: SafeTrainer) -> bool:
    pairs = zip(left.model.parameters(), right.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def log(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SafeTrainer]:
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, train(directory)


@pytest.mark.parametrize(("settings", "complaint"), [
    ({"adam_beta1": 1.5}, "no optimizer of these values.*beta"),
    ({"adam_epsilon": -1.0}, "no optimizer of these values.*epsilon"),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, "no learning rate schedule"),
    ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"lr_edn": 1.0}}, "no learning rate schedule"),
    ({"eval_steps": 0}, "number of steps above 0"),
])  # fmt: skip
def test_values_that_torch_refuses_are_the_users(tmp_path: Path, settings: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        train(tmp_path, **settings)


def test_a_resume_from_the_last_checkpoint_takes_no_step(
    whole: tuple[Path, SafeTrainer], tmp_path: Path
) -> None:
    directory, reference = whole
    assert reference.state.best_global_step == 4 and reference.steps_taken == 10
    steps = {path.name for path in directory.glob("checkpoint-*")}
    moved = tmp_path / "moved"  # the state records the best checkpoint's path before the move
    shutil.copytree(directory, moved)
    old = moved / "checkpoint-6"  # killed before the rotation
    shutil.copytree(moved / "checkpoint-8", old)
    again = train(moved)
    assert {path.name for path in moved.glob("checkpoint-*")} == steps
    assert (again.steps_taken, again.state.global_step) == (0, 10)
    assert again.state.best_model_checkpoint == str(moved / "checkpoint-4")
    assert same(again, reference) and log(moved) == log(directory)


def test_a_damaged_best_checkpoint_rewinds_to_a_trusted_state_or_is_refused(
    whole: tuple[Path, SafeTrainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, reference = whole
    lost = tmp_path / "lost"
    shutil.copytree(directory, lost)  # checkpoint-10, -8 and the best one, 4, which all of them need
    flip_bit(lost / "checkpoint-4/model.safetensors")
    with pytest.raises(
        InputError, match=r"checkpoint-4, the best checkpoint so far, is lost \(model.safeten"
    ):
        train(lost)
    assert "skipping " in capsys.readouterr().err and (lost / "checkpoint-10").exists()

    rewound = tmp_path / "rewound"
    rewound.mkdir()
    early = trainer(rewound)
    early.keep_checkpoints = 9
    train_to_the_end(early, rewound)
    flip_bit(rewound / "checkpoint-4/model.safetensors")
    again = train(rewound)
    assert again.steps_taken == 8  # from checkpoint-2, whose best one is itself
    assert same(again, reference) and log(rewound) == log(directory)
    assert sorted(p.name for p in rewound.glob("checkpoint-*")) == [
        "checkpoint-10",
        "checkpoint-4",
        "checkpoint-8",
    ]


def test_a_best_checkpoint_damaged_during_the_run_is_not_handed_on(tmp_path: Path) -> None:
    class Damage(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 9:
                flip_bit(tmp_path / "checkpoint-4/model.safetensors")

    made = trainer(tmp_path)
    made.add_callback(Damage())
    with pytest.raises(EnvironmentFault, match=r"checkpoint-4 was damaged: model.safetensors does not match"):
        train_to_the_end(made, tmp_path)


class Terminate(TrainerCallback):
    """SIGTERM to this process while a step is taken."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("step", [5, 8, 12], ids=["inside an epoch", "at its end", "at the last step"])
def test_a_terminated_run_that_saves_by_epoch_ends_like_an_uninterrupted_one(
    step: int, tmp_path: Path
) -> None:
    settings: dict[str, object] = {"num_train_epochs": 3, "scores": {4: 0.1, 8: 0.1, 12: 0.3}}
    reference = train(tmp_path / "whole", **settings)
    (tmp_path / "run").mkdir()
    stopped = trainer(tmp_path / "run", **settings)
    stopped.add_callback(Terminate(step))
    with pytest.raises(Interrupted):
        train_to_the_end(stopped, tmp_path / "run")
    again = train(tmp_path / "run", **settings)
    assert again.steps_taken == 12 - step and again.state.best_global_step == 12
    assert same(again, reference)

    def evaluations(directory: Path) -> list[dict[str, float]]:
        return [line for line in log(directory) if "eval_ndcg@10" in line]

    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole")


def preempted(directory: Path, *, where: str, at: int) -> SafeTrainer:
    """A training with dropout whose validations draw random numbers; SIGUSR1 in the middle of validation `at`, or of step `at`."""
    directory.mkdir(exist_ok=True)
    made = trainer(directory, dropout=0.2)
    validate, stepped = made.validate, made.training_step

    def here(place: str, step: int) -> None:
        torch.rand(3)
        if (place, step) == (where, at):
            signal.raise_signal(signal.SIGUSR1)
        program.poll()

    def measured() -> dict[str, float]:
        here("validation", made.state.global_step)
        torch.rand(2)
        return validate()

    def training_step(*args: object, **kwargs: object) -> object:
        here("step", made.state.global_step + 1)
        return stepped(*args, **kwargs)

    made.validate, made.training_step = measured, training_step
    return made


@pytest.mark.parametrize(
    ("where", "at", "left"), [("validation", 4, 4), ("step", 6, 5), ("step", 5, 4), ("step", 1, 0)]
)
def test_a_notice_in_a_validation_or_inside_a_step_ends_there_and_changes_nothing(
    where: str, at: int, left: int, tmp_path: Path
) -> None:
    reference = preempted(tmp_path / "whole", where="", at=0)
    train_to_the_end(reference, tmp_path / "whole")
    stopped = preempted(tmp_path / "run", where=where, at=at)
    with pytest.raises(Interrupted) as notice:
        train_to_the_end(stopped, tmp_path / "run")
    assert notice.value.code == 143 and stopped.state.global_step == left
    assert (tmp_path / f"run/checkpoint-{left}/COMPLETE.json").exists() == (left > 0)
    assert (tmp_path / f"run/checkpoint-{left}" / OWED).exists() == (where == "validation")
    again = preempted(tmp_path / "run", where="", at=0)
    train_to_the_end(again, tmp_path / "run")
    assert again.steps_taken == 10 - left and again.state.best_global_step == 4
    assert same(again, reference) and log(tmp_path / "run") == log(tmp_path / "whole")
    assert not list((tmp_path / "run").glob(f"*/{OWED}"))


def stop_of(numbers: list[int | None]) -> int | None:
    flag = program.StopFlag()
    flag.signum = numbers[torch.distributed.get_rank()]
    StopOnSignal(flag).agree()
    return flag.signum


def test_a_process_that_was_told_to_stop_stops_all_of_them():
    assert together(stop_of, [None, signal.SIGTERM]) == [signal.SIGTERM] * 2
    assert together(stop_of, [None, None]) == [None] * 2
