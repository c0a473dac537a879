"""train.grpo as a user runs it, with options that reach beyond the trainer: files of hints, updates, LoRA, the newest rows."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from tests import handmade
from tests.test_trainers import log, series

SHORT = [
    "--max_rows", 8, "--valid_rows", 8, "--valid_beams", 10, "--eval_share", 1, "--rollout.num_generations", 4, "--trainer.max_steps", 2,
    "--trainer.eval_steps", 2, "--trainer.logging_steps", 1, "--trainer.per_device_train_batch_size", 4, "--trainer.learning_rate", "1e-3",
]  # fmt: skip


def grpo(chain, output, *flags):
    handmade.call("train.grpo", *chain.flags(), *SHORT, *flags, "--output_dir", output)
    return output


def test_hints_are_found_once_and_may_be_those_of_another_run(chain, tmp_path):
    flags = [
        "--rollout.hint",
        "true",
        "--rollout.hint_loss",
        0.01,
        "--rollout.updates",
        2,
        "--rollout.loss",
        "dapo",
    ]
    first = grpo(chain, tmp_path / "first", *flags)
    table = pq.read_table(first / "hints.parquet")
    assert table.num_rows == 8 and set(table["depth"].to_pylist()) <= {0, 1, 2}
    timing = [json.loads(line) for line in (first / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timing] == [1, 2] and timing[0]["rollout_seconds"] > 0
    assert not any("seconds" in key for line in log(first) for key in line), "no clock in metrics.jsonl"
    assert {"eval_pass@4", "eval_hr@10", "kl_p99"} <= {key for line in log(first) for key in line}
    second = grpo(chain, tmp_path / "second", *flags, "--hints", first / "hints.parquet")
    assert not (second / "hints.parquet").exists()
    assert series(second, "hint_depth") == series(first, "hint_depth")
    assert series(second, "reward") == series(first, "reward")
    with pytest.raises(InputError, match="eval_steps 2 is no multiple of rollout.updates 3"):
        grpo(chain, tmp_path / "third", "--rollout.updates", 3)


def test_an_adapter_has_no_second_model_and_starts_at_no_divergence(chain, tmp_path):
    flags = ["--rollout.beta", 0.1, "--patience", 1, "--rewards", "[diversity, prefix_match]"]
    run = grpo(chain, tmp_path / "lora", "--train_what", "lora", *flags)
    kl = series(run, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 0
    with pytest.raises(InputError, match="without the adapter"):
        grpo(chain, tmp_path / "x", "--train_what", "lora", "--reference", chain.model)


def test_the_newest_rows_are_left_by_one_stage_to_the_other(chain, tmp_path):
    run = grpo(chain, tmp_path / "new", "--newest_share", 0.3, "--rollout.beta", 0)
    manifest = json.loads((run / "manifest.json").read_text())
    assert 0 < manifest["counts"]["prompts"] <= 8 and "data" in manifest["inputs"]
    other = handmade.write_data(tmp_path / "other", sequences=[("train", 0, [0], 1)])
    with pytest.raises(InputError, match="made from another state of the data"):
        grpo(chain, tmp_path / "x", "--newest_share", 0.3, "--data", other)
    with pytest.raises(InputError, match="newest_share 1.5 must lie"):
        grpo(chain, tmp_path / "x", "--newest_share", 1.5)
    with pytest.raises(InputError, match="hints nowhere.parquet is read only with rollout.hint true"):
        grpo(chain, tmp_path / "x", "--hints", "nowhere.parquet")
