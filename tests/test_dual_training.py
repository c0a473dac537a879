"""The text half of the quickstart at the size of a test: two stages of SFT, instructions, their metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data import artifacts
from data.tids import read_tids
from tests import handmade

TRAINER = (
    "{max_steps: 3, per_device_train_batch_size: 64, learning_rate: 0.01, eval_steps: 3, logging_steps: 1}"
)
SMALL = [
    "--valid_rows",
    20,
    "--valid_beams",
    10,
    "--samples",
    1,
    "--item_loss_rows",
    20,
    "--trainer",
    TRAINER,
]


def logged(directory: Path) -> dict[str, float]:
    """The last value of everything in metrics.jsonl."""
    found: dict[str, float] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line)
    return found


def test_two_stages_of_training_and_instructions_from_them(dual, tmp_path):
    paths = ["--examples", dual.examples, "--sids", dual.sids]
    first, second = tmp_path / "sft_identifiers", tmp_path / "sft_dual"
    handmade.call(
        "train.sft", *paths, "--model", dual.model, "--output_dir", first, *SMALL,
        "--tasks", '["sid_to_tid", "tid_to_sid"]', "--train_what", "input_rows_and_head",
    )  # fmt: skip
    losses = {name for name in logged(first) if "loss/" in name}
    assert losses == {"eval_fit_loss/sid_to_tid", "eval_fit_loss/tid_to_sid"}
    weights = "{history_to_instruction: 2.0, sid_to_tid: 0.5}"
    handmade.call(
        "train.sft",
        *paths,
        "--model",
        first / "final",
        "--output_dir",
        second,
        *SMALL,
        "--task_weights",
        weights,
    )
    found = logged(second)
    assert found["eval_valid_loss/history_to_instruction"] > 0 and found["eval_fit_loss/tid_to_sid"] > 0
    shown = [json.loads(line) for line in (second / "samples.jsonl").read_text().splitlines()]
    told = next(line for line in shown if line["task"] == "history_to_instruction")
    assert told["answer"].startswith('shelf","thing ') and told["answer"].endswith('"}')
    output = tmp_path / "instructions"
    flags = ["--text.max_new_tokens", 10, "--max_rows", 20, "--device", "cpu"]
    handmade.call(
        "infer.instruct",
        *paths,
        "--model",
        second / "final",
        "--tids",
        dual.tids,
        "--output_dir",
        output,
        *flags,
    )
    handmade.call("infer.grade", "--instructions", output, "--tids", dual.tids)
    metrics = json.loads((output / "metrics/metrics.json").read_text())
    assert metrics["parse/strict"]["value"] == metrics["tid/legal"]["value"] == 1
    groups = read_tids(dual.tids).groups
    assert all(
        tuple(row["terms"]) in groups for row in artifacts.read(output, artifacts.INSTRUCTIONS).to_pylist()
    )


def test_weights_of_tasks_that_are_not_there_are_refused(dual, tmp_path):
    flags = [
        "--examples",
        dual.examples,
        "--sids",
        dual.sids,
        "--model",
        dual.model,
        "--output_dir",
        tmp_path / "no",
    ]
    for weights, words in (
        ("{history_to_tid: 2}", "task_weights names history_to_tid, of which there is no row"),
        ("{no_task: 2}", "task_weights.no_task 2"),
        ("{sid_to_tid: 0}", "task_weights.sid_to_tid 0"),
    ):
        with pytest.raises(Exception, match=words):
            handmade.call("train.sft", *flags, *SMALL, "--task_weights", weights)
