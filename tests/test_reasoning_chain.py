"""SIDReasoner's three stages on the beads with their recorded teacher, program by program: what each hands to the next."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from configs.program import ROOT
from data.reasoning import read_reasoning
from infer.engine import DecodeSettings
from tests.handmade import call, refuse
from tests.test_releases import PUBLISHED
from tests.test_shards import write_zero
from tests.test_text_trainer import GROUP, TABLE, engine_of, examples
from train.policy.settings import ThoughtSettings
from train.policy.text.thoughts import ThoughtPolicy

RECIPES = ROOT / "configs/sidreasoner"


def recipe(name: str) -> list[object]:
    """The paper's recipe and what the beads change in it."""
    files = [RECIPES / f"{name}.yaml", RECIPES / f"beads/{name}.yaml"]
    return [part for file in files if file.is_file() for part in ("--config", file)]


def teach(root, program: str, recorded: str, *more: object) -> None:
    """One program of stage 06 with the answers that lie beside the store."""
    answers = ("--ask.client.backend", "recorded", "--ask.client.model=", "--ask.client.base_url=")
    given = ("--ask.client.recording", root / f"raw/teacher/{recorded}.jsonl", "--data", root / "data")
    call(f"preprocess.{program}", *recipe(program), *answers, *given, *more)


def test_three_stages_from_a_recorded_teacher(tmp_path):
    root, data, sids = tmp_path, tmp_path / "data", tmp_path / "data/sids/published"
    call("data.toy", "--size", "beads", "--output_dir", root / "raw")
    call("data.prepare", "--adapter", "sidreasoner", *PUBLISHED, "--raw", root / "raw", "--output_dir", data)
    call("rq.import_sids", "--source", root / "raw", "--data", data, "--output_dir", sids)
    items, histories, stories = (data / f"reasoning/{name}" for name in ("items", "histories", "narratives"))
    teach(root, "enrich_items", "items", "--output_dir", items)
    teach(root, "enrich_histories", "histories", "--output_dir", histories, "--max_samples", 12)
    told = ("--write", "narrative", "--reasoning", histories)
    teach(root, "enrich_histories", "narratives", "--output_dir", stories, *told)
    for directory, rows in ((items, 96), (histories, 12), (stories, 12)):
        table = read_reasoning(directory, num_items=96)
        assert len(table) == rows and set(table["status"].to_pylist()) == {"ok"}
        assert set(table["teacher"].to_pylist()) == {f"recorded:{directory.name}.jsonl"}

    of = ["--data", data, "--sids", sids, "--max_rows", "{train: null, valid: 6, test: 6}"]
    chats = ["--registry", root / "raw/general/registry.json", "--corpora", "[sums]"]
    call("preprocess.build_examples", *recipe("examples_align"), *of, *chats, "--output_dir", data / "examples/align",
         "--reasoning", f"[{items}, {stories}]")  # fmt: skip
    rows = pq.read_table(data / "examples/align/train.parquet").to_pylist()
    counts = {task: sum(row["task"] == task for row in rows) for task in {row["task"] for row in rows}}
    assert counts["item_narrative"] == 96 and counts["sequence_narrative"] == 12 and counts["chat"] == 144
    assert len(counts) == 9, "eight tasks of stage 1, of which one asks both ways"
    think = ["preprocess.build_examples", *recipe("examples_think"), *of, "--reasoning", f"[{histories}]"]
    call(*think, "--output_dir", data / "examples/think")
    call(*think, "--output_dir", data / "examples/prompts", "--only_taught", "false")
    taught = pq.read_table(data / "examples/think/train.parquet").to_pylist()
    assert len(taught) == 12 and all(row["answer"]["reasoning"] for row in taught)

    run, small = root / "run", ["--shape.hidden_size", 32, "--shape.num_layers", 1]
    call(
        "preprocess.init_base_model",
        *recipe("base_model"),
        *small,
        "--data",
        data,
        "--output_dir",
        run / "base",
    )
    call(
        "preprocess.expand_vocab",
        *recipe("vocab"),
        "--model",
        run / "base",
        "--sids",
        sids,
        "--output_dir",
        run / "vocab",
    )
    steps = ["--trainer.max_steps", 2, "--trainer.eval_steps", 2, "--trainer.logging_steps", 1, "--trainer.per_device_train_batch_size", 4,
             "--valid_rows", 4, "--eval_share", 1, "--sids", sids]  # fmt: skip
    model = run / "vocab"
    for stage, built, more in (
        ("align", "align", ["--item_loss_rows", 4]),
        ("think", "think", ["--valid_thought", 6]),
    ):
        call("train.sft", *recipe(f"sft_{stage}"), *steps, *more, "--model", model, "--examples", data / f"examples/{built}",
             "--output_dir", run / f"sft_{stage}")  # fmt: skip
        model = run / f"sft_{stage}/final"
    facts = json.loads((run / "sft_think/manifest.json").read_text())["facts"]
    assert facts["valid_mode"] == "think" and facts["final_is"].startswith(("checkpoint", "the model"))
    logged = [json.loads(line) for line in (run / "sft_align/metrics.jsonl").read_text().splitlines()]
    assert any("eval_fit_loss/title_to_sid" in line for line in logged)
    call("train.grpo", *recipe("grpo_beams"), *steps, "--thought.max_tokens", 6, "--rollout.num_generations", 2, "--rewards",
         "[{name: rank_discount, params: {fallback: [0.05, 0.2]}}]", "--model", model, "--examples", data / "examples/prompts",
         "--output_dir", run / "grpo")  # fmt: skip
    call("infer.recommend", *recipe("recommend"), "--mode", "race", "--think.max_tokens", 6, "--model", run / "grpo/final", "--sids", sids,
         "--examples", data / "examples/prompts", "--output_dir", run / "eval/grpo.test.race")  # fmt: skip
    assert len(pq.read_table(run / "eval/grpo.test.race/thoughts.parquet")) == 6
    merge_every(run)


def merge_every(run) -> None:
    """A checkpoint of thoughts in parts, as several processes leave it, becomes a model directory with the same weights."""
    trained = AutoModelForCausalLM.from_pretrained(run / "grpo/checkpoint-2")
    write_zero(run / "cut/checkpoint-2", trained, stage=3)
    flags = [
        "train.merge",
        "--checkpoint",
        run / "cut",
        "--base",
        run / "vocab",
        "--output_dir",
        run / "merged",
    ]
    assert "no checkpoint at a multiple of 3" in refuse(*flags, "--every", 3)
    call(*flags, "--every", 2)
    joined = AutoModelForCausalLM.from_pretrained(run / "merged/checkpoint-2").state_dict()
    assert all(torch.equal(value, joined[name]) for name, value in trained.state_dict().items())


def test_thoughts_of_a_validation_have_a_length(tmp_path):
    line = refuse(
        "train.sft",
        "--valid_thought",
        -1,
        "--model",
        "m",
        "--examples",
        "e",
        "--sids",
        "s",
        "--output_dir",
        tmp_path / "o",
    )
    assert "valid_thought -1 at least 0" in line


def test_the_target_is_scored_behind_a_thought_wherever_it_stands():
    """For reward rank_margin: the score is that of an exhaustive search."""
    engine = engine_of(seed=2)
    engine.settings = DecodeSettings(beams=12)
    rows, prompts = examples(engine)
    settings = ThoughtSettings(max_tokens=6, tail="beams", beams=4, score_target=True)
    made = ThoughtPolicy(engine, settings, group=GROUP, seed=0).roll_out(rows, prompts, step=0)
    end = engine.sids.num_levels + 1
    behind = [a + b[:-end] for a, b in zip(made.prompt_ids, made.completion_ids, strict=True)]
    nodes, scores = engine.rank(behind)
    aims = TABLE.sid_of_item_N[[row["target"][0] for row in rows for _ in range(GROUP)]]
    assert np.allclose(made.ranked.target_P, scores[nodes == aims[:, None]], atol=1e-4)
