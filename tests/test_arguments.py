"""The trainer: mapping is checked and typed; framework settings cannot be overridden by accident."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from configs import program
from configs.program import InputError
from train import arguments
from train.arguments import coerce, trainer_arguments


def make(tmp_path, **mapping):
    return trainer_arguments(TrainingArguments, mapping, output_dir=tmp_path, seed=3)


def test_strings_of_flags_become_the_fields_types(tmp_path):
    args = make(
        tmp_path,
        learning_rate="1e-3",
        max_steps="7",
        gradient_checkpointing="true",
        lr_scheduler_type="cosine",
    )
    assert (args.learning_rate, args.max_steps, args.gradient_checkpointing) == (1e-3, 7, True)
    assert args.lr_scheduler_type == "cosine" and args.seed == 3
    assert args.logging_nan_inf_filter is False


def test_published_schedules_come_through_files_and_flags(tmp_path):
    """Cosine with a floor, and a validation every 5 % of the run, as MiniOneRec's scripts have them."""
    import torch
    from transformers import get_scheduler
    from trl import SFTConfig

    from train.safety import selection
    from train.sft import SftArgs

    required = [part for name in ("model", "examples", "sids", "output_dir") for part in (f"--{name}", "x")]
    (tmp_path / "recipe.yaml").write_text(
        "trainer: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 1e-1}, eval_steps: 0.05}\n"
    )
    dotted = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs.min_lr_rate": "0.1", "eval_steps": ".05"}  # fmt: skip
    for flags in (
        ["--config", str(tmp_path / "recipe.yaml")],
        [part for name, value in dotted.items() for part in (f"--trainer.{name}", value)],
    ):
        args, _ = program.parse(SftArgs, [*required, *flags])
        config = trainer_arguments(
            SFTConfig, args.trainer, output_dir=tmp_path, seed=0, max_length=9, **selection(args.trainer)
        )
        assert config.eval_steps == config.save_steps == 0.05
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        kwargs = {"num_warmup_steps": 0, "num_training_steps": 4, "scheduler_specific_kwargs": config.lr_scheduler_kwargs}  # fmt: skip
        schedule, rates = get_scheduler(config.lr_scheduler_type, optimizer, **kwargs), []
        for _ in range(4):
            optimizer.step()
            schedule.step()
            rates.append(schedule.get_last_lr()[0])
        # floor + (1 - floor) * (1 + cos(pi * step / 4)) / 2
        assert rates == pytest.approx([0.8682, 0.55, 0.2318, 0.1], abs=1e-4)
    assert coerce({"a": ["1e-5", "true", "x", "null"], "b": "3"}, dict, where="") == {
        "a": [1e-5, True, "x", None], "b": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "mapping",
    [{"learning_rat": 1}, {"output_dir": "x"}, {"label_smoothing_factor": 0.3}, {"max_length": 3}, {"max_steps": "seven"}, {"learning_rate": None}, {"gradient_checkpointing": "perhaps"}],
)  # fmt: skip
def test_wrong_keys_and_values_are_named(tmp_path, mapping):
    (key,) = mapping
    with pytest.raises(InputError, match=f"trainer.{key}"):
        make(tmp_path, **mapping)


def test_none_is_allowed_where_the_field_allows_it():
    assert coerce("null", float | None, where="x") is None
    assert coerce("0.5", float | None, where="x") == 0.5


@pytest.mark.parametrize(
    "mapping",
    [{"max_steps": 0}, {"max_steps": -7}, {"num_train_epochs": 0}, {"num_train_epochs": -1.0}, {"learning_rate": "nan"},
     {"learning_rate": "inf"}, {"learning_rate": -1e-3}, {"per_device_train_batch_size": 0}, {"per_device_train_batch_size": -5},
     {"per_device_eval_batch_size": 0}, {"gradient_accumulation_steps": 0}, {"max_grad_norm": -1}],
)  # fmt: skip
def test_what_would_fail_late_or_train_nothing_is_refused(tmp_path, mapping):
    ((key, value),) = mapping.items()
    with pytest.raises(
        InputError, match=rf"trainer.{key} is {float(value) if value in ('nan', 'inf') else value}.* -> "
    ):
        make(tmp_path, **mapping)


def test_steps_or_epochs_may_be_left_to_the_other(tmp_path):
    assert make(tmp_path, max_steps=5, num_train_epochs=0).max_steps == 5
    assert make(tmp_path, max_steps=-1, num_train_epochs=0.5).num_train_epochs == 0.5


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--seed", "4294967296"], ["--rollout.beta", ".nan"]])
def test_a_seed_and_a_number_are_what_they_say(flags):
    from train.grpo import GrpoArgs

    required = [part for name in ("model", "examples", "sids", "output_dir") for part in (f"--{name}", "x")]
    with pytest.raises(InputError, match=r"^(seed is|rollout.beta is not a number)"):
        program.parse(GrpoArgs, [*required, *flags])


def test_bfloat16_is_a_choice_where_the_processor_has_it(tmp_path, monkeypatch):
    assert not make(tmp_path).bf16, "float32 on a CPU unless asked"
    monkeypatch.setattr(arguments, "cpu_has_bfloat16", lambda: True)
    assert make(tmp_path, bf16="true").bf16
    monkeypatch.setattr(arguments, "cpu_has_bfloat16", lambda: False)
    with pytest.raises(
        InputError, match="trainer.bf16 is true, and this CPU does not compute in bfloat16 -> leave it out"
    ):
        make(tmp_path, bf16=True)
    assert not make(tmp_path, bf16=False).bf16
