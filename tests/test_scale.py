"""Arithmetic of the share of a device's peak, checkpoints that are left out, and samples of every validation."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from tests import handmade, tiny
from train.safety import MetricsFile
from train.scale import sparing
from train.scale.sparing import SpareCheckpoints
from train.scale.work import Work, peak_of, work_of


def test_operations_of_a_token_and_a_label_by_hand():
    """Two layers of width 32: q 32x32, k and v 32x16, o 32x32, three 32x64 of the MLP; norms 2 x 32, 2 x 8; a last norm."""
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 8
    trunk = 2 * layer + 32
    for tied in (True, False):
        model = tiny.model(vocab_size=50, tied=tied)
        assert work_of(model) == Work(per_token=6.0 * trunk, per_label=6.0 * 50 * 32)
    model.model.requires_grad_(False)
    assert work_of(model) == Work(per_token=4.0 * trunk, per_label=6.0 * 50 * 32), (
        "no gradient of frozen weights"
    )
    assert Work(2.0, 10.0)(tokens=3, labels=1) == 16.0


@pytest.mark.parametrize(
    ("name", "tera"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A10", 125),
     ("NVIDIA A10G", 70), ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165),
     ("NVIDIA H200", 989), ("NVIDIA GeForce GTX 1080", None), ("NVIDIA A1000 Laptop", None)],
)  # fmt: skip
def test_peaks_by_name(name, tera):
    assert peak_of(name) == (None if tera is None else tera * 1e12)


def step(spare: SpareCheckpoints, **control: bool) -> TrainerControl:
    state = control.pop("state", TrainerState(global_step=4, max_steps=10))
    made = TrainerControl(**control)
    spare.on_step_end(SimpleNamespace(), state, made)
    return made


def test_checkpoints_between_validations_are_left_out_beyond_their_share(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sparing.time, "perf_counter", lambda: now[0])
    spare = SpareCheckpoints(0.15)
    spare.on_train_begin(None, None, None)
    now[0], spare.saving, spare.spent = 1000.0, 100.0, 149.0
    assert step(spare, should_save=True).should_save, "149 of 1000 s are within 15 %"
    spare.spent = 151.0
    left_out = step(spare, should_save=True)
    assert not left_out.should_save and left_out.should_log and spare.left_out == 1
    assert step(spare, should_save=True, should_evaluate=True).should_save, "it may be the best one"
    assert step(spare, should_save=True, state=TrainerState(global_step=10, max_steps=10)).should_save
    spare.saving = 59.0
    assert step(spare, should_save=True).should_save, "the first minute is free"
    always = SpareCheckpoints(1.0)
    now[0], always.saving, always.spent = 2000.0, 900.0, 999.0
    assert step(always, should_save=True).should_save
    assert not step(always).should_save and not step(always).should_log


@pytest.fixture(scope="module")
def run(chain, tmp_path_factory):
    directory = tmp_path_factory.mktemp("samples") / "run"
    flags = ["--valid_rows", 8, "--trainer.max_steps", 4, "--trainer.eval_steps", 2, "--eval_share", 1]
    handmade.call("train.sft", *chain.flags(), *flags, "--samples", 3, "--output_dir", directory)
    return directory


def lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]


def test_samples_of_every_validation(chain, run):
    found = lines(run)
    assert [(line["step"], line["task"]) for line in found] == [
        (step, task) for step in (2, 4) for task in ("history_to_sid", "sid_to_title") for _ in range(3)
    ]
    sid, text = found[0], found[3]
    assert [row["example_id"] for row in found[:6]] == [row["example_id"] for row in found[6:]], (
        "the same rows"
    )
    best = sid["recommended"]
    assert len(best) == 3 and best[0]["score"] >= best[1]["score"] and best[0]["sid"].startswith("<")
    assert all(row["title"] for row in best), "the data set lies where the examples were made from"
    assert sid["answer"].startswith("<") and " " in sid["answer"] and "generated" not in sid
    assert isinstance(text["generated"], str) and text["answer"] and "recommended" not in text
    MetricsFile(run).rewind(2, owed=False)
    assert {line["step"] for line in lines(run)} == {2}


def test_no_samples_on_demand_and_what_the_manifest_says(chain, tmp_path):
    flags = ["--valid_rows", 8, "--trainer.max_steps", 2, "--trainer.eval_steps", 1, "--samples", 0]
    handmade.call("train.sft", *chain.flags(), *flags, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run/samples.jsonl").exists()
    told = json.loads((tmp_path / "run/manifest.json").read_text())["facts"]["throughput"]
    assert told["mfu"] is None and told["gflops_per_second"] > 0, "a CPU has no peak to compare with"
    assert 0 < told["checkpoint_share"] < 1 and 0 < told["validation_share"] < 1
    assert told["checkpoints_left_out"] == 0
    assert "samples -1" in handmade.refuse(
        "train.sft", *chain.flags(), "--samples", "-1", "--output_dir", tmp_path / "other"
    )
