"""Examples -> token rows for supervised fine-tuning: prompt tokens are context, answer tokens are labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from configs import program
from configs.program import InputError
from data.renderer import Renderer
from data.tasks import from_row

IGNORED = -100  # label of a token that is context only


def token_rows(examples: pa.Table, renderer: Renderer, *, max_length: int) -> dict[str, list[Any]]:
    """{"input_ids", "labels", "length"} of every example, rendered as rollouts and evaluation render it.

    InputError for the first example longer than `max_length` tokens: cutting it would cut the answer.
    """
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": []}
    batches = examples.to_batches(max_chunksize=4096)
    for batch in program.progress(batches, label="render examples", unit="batch"):
        rows = [from_row(row) for row in batch.to_pylist()]
        for example, prompt in zip(rows, renderer.prompts(rows), strict=True):
            answer = renderer.completion_ids(example)
            if len(prompt) + len(answer) > max_length:
                raise InputError(
                    f"example {example.example_id} ({example.task}) has {len(prompt) + len(answer)} tokens, more than "
                    f"max_length {max_length} -> raise max_length or build examples with a smaller max_history or max_title"
                )
            columns["input_ids"].append(prompt + answer)
            columns["labels"].append([IGNORED] * len(prompt) + answer)
            columns["length"].append(len(prompt) + len(answer))
    return columns


class RowCollator:
    """A collator of token rows that hands on which rows they are: {..., "row": int64 [B]}."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        return {**self.collate(examples), "row": torch.tensor([example["row"] for example in examples])}


def task_counts(examples: pa.Table) -> dict[str, int]:
    """Rows by task."""
    return dict(Counter(examples["task"].to_pylist()))


def supervised_dataset(examples: pa.Table, renderer: Renderer, *, max_length: int) -> Any:
    """The rows as a `datasets.Dataset`, ready for SFTTrainer (which leaves given labels alone)."""
    from datasets import Dataset

    if not examples.num_rows:
        raise InputError("no examples to train on -> check the tasks of stage 07 and --tasks")
    return Dataset.from_dict(token_rows(examples, renderer, max_length=max_length))
