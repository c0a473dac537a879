"""Examples in parts: the same rows in the same order as in one file, and the same training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data import artifacts
from infer.work import shards
from tests import handmade
from tests.chain import Chain
from train.policy.workload import prompt_rows

SPLITS = ("train", "valid", "test", "held_out")
BUILD = ("--tasks", '["history_to_sid", "title_to_sid"]', "--held_out_items", 0.2)
ROWS = 150  # of a part


def build(chain: Chain, directory: Path, *flags: object) -> Path:
    made = ("--data", chain.data, "--sids", chain.sids, "--output_dir", directory)
    handmade.call("preprocess.build_examples", *made, *BUILD, *flags)
    return directory


@pytest.fixture(scope="module")
def layouts(chain, tmp_path_factory) -> tuple[Path, Path]:
    """The same examples in one file per split and in parts."""
    root = tmp_path_factory.mktemp("layouts")
    return build(chain, root / "one"), build(chain, root / "parts", "--rows_per_file", ROWS)


def test_the_parts_are_the_rows_of_one_file(layouts):
    one, parts = layouts
    for split in SPLITS:
        rows = pq.read_table(one / f"{split}.parquet")
        files = artifacts.split_files(parts, split)
        assert len(files) == -(-rows.num_rows // ROWS)
        sizes = [pq.read_metadata(file).num_rows for file in files]
        assert sizes[:-1] == [ROWS] * (len(files) - 1) and 0 < sizes[-1] <= ROWS
        for found in (artifacts.read_split(parts, split), artifacts.read_split(one, split)):
            assert found.equals(rows)
        assert artifacts.read_split(parts, split, columns=["target"]).equals(rows.select(["target"]))
    assert len(artifacts.split_files(parts, "train")) > 3
    names = {path.name for path in parts.iterdir()}
    assert "held_out.parquet" in names and "train.parquet" not in names
    counts = [json.loads((place / "manifest.json").read_text())["counts"] for place in layouts]
    assert counts[0] == counts[1]


def test_rows_are_streamed_over_the_borders_of_files(layouts, monkeypatch):
    one, parts = layouts
    ids = artifacts.read_split(one, "train")["example_id"].to_numpy()
    monkeypatch.setattr(shards, "READ_ROWS", 64)
    plan = shards.Plan(np.sort(np.random.default_rng(0).choice(len(ids), len(ids) // 2, replace=False)), 40)
    wanted = ((chunk, plan.rows(chunk)) for chunk in range(plan.num_chunks))
    streamed = shards.stream(artifacts.split_files(parts, "train"), wanted)
    read = np.concatenate([table["example_id"].to_numpy() for _, table in streamed])
    assert np.array_equal(read, ids[plan.rows_N])


def test_training_over_parts_is_training_over_one_file(chain, layouts, tmp_path):
    """Line for line, with a teacher of nothing but the rows; GRPO takes the same prompts."""
    logs = []
    for examples in layouts:
        run = tmp_path / examples.name
        settings = {"max_steps": 3, "eval_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 16}
        flags = [part for name, value in settings.items() for part in (f"--trainer.{name}", value)]
        flags += ["--valid_rows", 20, "--item_loss_rows", 20, "--output_dir", run]
        handmade.call("train.sft", *chain.flags(examples=examples), *flags)
        logs.append((run / "metrics.jsonl").read_text())
    assert logs[0] == logs[1]
    logged = [json.loads(line) for line in logs[0].splitlines()]
    assert sum("loss" in line for line in logged) == 3 and any(
        "held_out_loss" in key for line in logged for key in line
    )

    prompts = [
        prompt_rows(
            SimpleNamespace(
                examples=str(examples),
                tasks=["history_to_sid"],
                task_rows={},
                newest_share=None,
                max_rows=50,
                seed=0,
            )
        )
        for examples in layouts
    ]
    assert prompts[0] == prompts[1] and len(prompts[0]) == 50


def test_recommend_answers_a_split_in_parts(chain, layouts, tmp_path):
    for examples in layouts:
        flags = ("--split", "train", "--max_rows", 40, "--chunk_rows", 16, "--decode.beams", 5)
        out = ("--output_dir", tmp_path / examples.name)
        handmade.call("infer.recommend", *chain.flags(examples=examples), *flags, *out)
    name = artifacts.part_name("predictions")
    one, parts = (pq.read_table(tmp_path / examples.name / name) for examples in layouts)
    assert one.equals(parts) and one.num_rows == 200


def test_a_part_that_is_missing_or_of_another_run_is_named(chain, layouts, tmp_path):
    parts = build(chain, tmp_path / "e", "--rows_per_file", ROWS)
    second = artifacts.split_files(parts, "train")[1]
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(InputError, match=rf"{second.name}.*run that stage again"):
        artifacts.read_split(parts, "train")
    with pytest.raises(InputError, match="lacks 1 of its parts .first: part 1."):
        artifacts.split_files(parts, "train")
    second.write_bytes(kept)
    (parts / artifacts.part_name("train", 0, 2)).write_bytes(kept)
    with pytest.raises(InputError, match="mixes runs of"):
        artifacts.split_files(parts, "train")
    with pytest.raises(InputError, match="has no nothing-"):
        artifacts.split_files(parts, "nothing")


def test_a_file_of_no_rows_is_refused(chain, tmp_path):
    with pytest.raises(InputError, match="rows_per_file is 0"):
        build(chain, tmp_path / "e", "--rows_per_file", 0)
