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
    with pytest.raises(InputError, match="eval_steps 0.25 is no multiple of rollout.updates 2"):
        grpo(chain, tmp_path / "third", "--rollout.updates", 2, "--trainer.eval_steps", 0.25)


def test_validations_may_be_planned_by_a_share_of_the_run(chain, tmp_path):
    """A half of four steps is two of them, not every one."""
    run = grpo(
        chain, tmp_path / "share", "--trainer.eval_steps", 0.5, "--trainer.max_steps", 4, "--eval_share", 1
    )
    assert [line["step"] for line in log(run) if "eval_hr@10" in line] == [0, 2, 4]


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


def test_what_one_stage_leaves_the_next_one_learns(chain, tmp_path, monkeypatch):
    """SFT without the newest rows, GRPO from its model on those: no row twice, none lost, the later ones."""
    from data import artifacts
    from train.safety import SafeTrainer

    learned, plain = [], SafeTrainer.equip

    def equip(self, *args, example_ids, **options):
        learned.append(list(example_ids))
        return plain(self, *args, example_ids=example_ids, **options)

    monkeypatch.setattr(SafeTrainer, "equip", equip)
    handmade.call(
        "train.sft", *chain.flags(), "--leave_out_newest", 0.4, "--tasks", "[history_to_sid]", "--output_dir", tmp_path / "sft",
        "--valid_rows", 8, "--valid_beams", 10, "--trainer.max_steps", 2, "--trainer.per_device_train_batch_size", 8,
    )  # fmt: skip
    all_rows = ["--newest_share", 0.4, "--max_rows", "null", "--rollout.hint", "true"]
    handmade.call(
        "train.grpo",
        *chain.flags(model=tmp_path / "sft/final"),
        *SHORT,
        *all_rows,
        "--output_dir",
        tmp_path / "grpo",
    )
    older, newer = learned
    assert sorted(newer) == sorted(pq.read_table(tmp_path / "grpo/hints.parquet")["example_id"].to_pylist())
    examples = artifacts.read(chain.examples, artifacts.EXAMPLES, file="train.parquet")
    rows = [
        row["example_id"]
        for row in examples.select(["example_id", "task"]).to_pylist()
        if row["task"] == "history_to_sid"
    ]
    assert sorted([*older, *newer]) == sorted(rows) and len(set(rows)) == len(rows)
    times = artifacts.read_sequences(chain.data).select(["example_id", "timestamp"]).to_pylist()
    age = {row["example_id"]: (row["timestamp"] or 0, row["example_id"]) for row in times}
    assert max(age[row] for row in older) < min(age[row] for row in newer)
    assert 0.3 < len(newer) / len(rows) < 0.5


def test_all_tasks_of_the_published_mixture_are_rolled_out(chain, tmp_path):
    """MiniOneRec's and MIMIGenRec's: histories, titles, descriptions, histories of titles; an item's question has no history for
    the teacher. Answers that are text (their RL has those tasks switched off) are refused."""
    from train.grpo import GrpoArgs, prompt_rows

    tasks = ["history_to_sid", "title_to_sid", "description_to_sid", "titles_to_sid"]
    examples, named = tmp_path / "examples", f"[{','.join(tasks)}]"
    handmade.call(
        "preprocess.build_examples",
        "--data",
        chain.data,
        "--sids",
        chain.sids,
        "--output_dir",
        examples,
        "--tasks",
        named,
        "--caps",
        "{history_to_sid: 12, titles_to_sid: 12}",
    )
    handmade.call(
        "infer.run_baselines",
        "--models",
        "[pop]",
        "--data",
        chain.data,
        "--output_root",
        tmp_path / "eval",
        "--splits",
        "[]",
    )
    rewards = [
        "--rewards",
        "[exact_match, rank_aware, collaborative]",
        "--teacher",
        tmp_path / "baselines/pop",
    ]
    flags = [*chain.flags(examples=examples), "--tasks", named, *SHORT, "--max_rows", "null", *rewards]
    handmade.call(
        "train.grpo", *flags, "--trainer.per_device_train_batch_size", 20, "--output_dir", tmp_path / "run"
    )
    args = GrpoArgs(str(chain.model), str(examples), str(chain.sids), "x", tasks=tasks)
    rows = prompt_rows(args)
    assert {row["task"] for row in rows} == set(tasks)
    for row in rows:
        asked = " ".join(message["content"] for message in row["messages"])
        assert row["answer"]["sid"] is not None and "".join(
            f"<{'abc'[level]}_{code}>" for level, code in enumerate(row["answer"]["sid"])
        ) not in (asked if row["target"][0] not in row["history"] else ""), row
    assert {"reward/collaborative", "reward/exact_match", "zero_variance_share"} <= {
        key for line in log(tmp_path / "run") for key in line
    }
    for task in ("sid_to_title", "history_to_title"):
        with pytest.raises(InputError, match=f"tasks .'{task}'. have no semantic-ID answer"):
            GrpoArgs("m", "e", "s", "o", tasks=[task])
