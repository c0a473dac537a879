"""The trainer: mapping is checked and typed; framework settings cannot be overridden by accident."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from configs.program import InputError
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
