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
