"""Losses on questions about items: of taught rows as fit, of held-out ones apart, equal to a padded batch with all logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from configs.program import InputError
from data import artifacts
from data.store.output import read_manifest
from infer.engine import DecodeSettings, load_engine
from tests import tiny
from tests.handmade import call, tokenizer, write_data, write_sids
from tests.test_sft_batches import reference
from train.supervised.item_losses import item_tables
from train.supervised.tokens import render

TASKS = ["history_to_sid", "title_to_sid", "sid_to_title"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("items")
    data = write_data(root / "data")
    sids = write_sids(root / "sids", data=data)
    for name, share in (("held", 0.5), ("all", 0)):
        call("preprocess.build_examples", "--data", data, "--sids", sids, "--output_dir", root / name, "--tasks",
             json.dumps(TASKS), "--held_out_items", share)  # fmt: skip
    words = tokenizer("ours")
    tiny.model("qwen3", vocab_size=len(words)).save_pretrained(root / "base")
    words.save_pretrained(root / "base")
    call("preprocess.expand_vocab", "--model", root / "base", "--sids", sids, "--output_dir", root / "model")
    return root


def run(store: Path, examples: str, output: Path, *flags: object) -> dict[str, float]:
    """The values of the last validation."""
    paths = ["--model", store / "model", "--examples", store / examples, "--sids", store / "sids"]
    steps = ["--trainer.max_steps", 1, "--trainer.eval_steps", 1, "--valid_beams", 10, "--samples", 0]
    call("train.sft", *paths, *steps, "--output_dir", output, *flags)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if "eval_loss" in line)


def test_only_a_split_is_taken_for_the_held_out_rows(store: Path, tmp_path: Path) -> None:
    """A file beside the splits that begins like one is none."""
    examples = shutil.copytree(store / "all", tmp_path / "examples")
    shutil.copy(store / "held/held_out.parquet", examples / "held_out_before.parquet")
    train = artifacts.read_split(examples, "train")
    assert {name.split("/")[0] for name in item_tables(train, examples, tasks=[], rows=3, seed=0)} == {
        "fit_loss"
    }


def test_fit_and_held_out_losses_are_those_of_the_rows(store: Path, tmp_path: Path) -> None:
    logged = run(store, "held", tmp_path / "run", "--item_loss_rows", 3)
    engine = load_engine(
        tmp_path / "run/final", store / "sids", store / "held", DecodeSettings(beams=10), device="cpu"
    )
    train = artifacts.read(store / "held", artifacts.EXAMPLES, file="train.parquet")
    tables = item_tables(train, store / "held", tasks=[], rows=3, seed=0)
    named = {f"eval_{kind}/{task}" for kind in ("fit_loss", "held_out_loss") for task in TASKS[1:]}
    assert {f"eval_{name}" for name in tables} == named <= set(logged)
    for name, table in tables.items():
        rows = render(table, engine.renderer)
        sequences = []
        for start, length, prompt in zip(rows.starts_N, rows.lengths_N, rows.prompts_N, strict=True):
            ids = rows.tokens_S[start : start + length].tolist()
            sequences.append((ids[:prompt], ids[prompt:]))
        expected = float(reference(engine.model, sequences).detach()) / rows.label_tokens
        assert logged[f"eval_{name}"] == pytest.approx(expected, rel=1e-4), name
    assert len(tables["fit_loss/title_to_sid"]) == 3
    assert read_manifest(tmp_path / "run")["facts"]["best_ndcg@10"] == logged["eval_ndcg@10"], (
        "they choose nothing"
    )


def test_what_there_is_no_row_of_is_said(store: Path, tmp_path: Path) -> None:
    train = artifacts.read(store / "all", artifacts.EXAMPLES, file="train.parquet")
    assert set(item_tables(train, store / "all", tasks=["sid_to_title"], rows=99, seed=0)) == {
        "fit_loss/sid_to_title"
    }
    with pytest.raises(InputError, match="item_loss_rows measures item tasks .* no row"):
        item_tables(train, store / "all", tasks=["history_to_sid"], rows=9, seed=0)
    with pytest.raises(InputError, match="item_loss_rows -1 must be at least 0"):
        run(store, "all", tmp_path / "run", "--item_loss_rows", -1)
