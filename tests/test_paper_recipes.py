"""Recipes of papers on a small store, as a user runs them: LC-Rec's tasks in one SFT, S-DPO, titles as D3 and BIGRec decode them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from configs.program import ROOT, InputError
from data import artifacts
from data.predictions import read_predictions
from data.tasks import ID_STRIDE, TaskWindow, from_row, titles_to_title
from infer import recommend
from infer.engine import DecodeSettings, load_engine
from infer.models.listed import ListedScores
from infer.models.members import members_of
from infer.text.titles import title_vectors
from infer.work import decoding
from tests import handmade
from tests.shell import programs_of
from tests.store import ITEMS
from tests.test_grpo_program import SHORT
from tests.test_sid_trainer import PROMPTS, trainer
from tests.test_trainers import log, series
from train.policy.settings import GrpoSettings

TRAINER = [
    "--trainer.max_steps", 2, "--trainer.eval_steps", 2, "--trainer.logging_steps", 1, "--trainer.per_device_train_batch_size", 8,
    "--trainer.learning_rate", "1e-3", "--trainer.gradient_checkpointing", "false", "--valid_rows", 8, "--valid_beams", 10,
]  # fmt: skip


def recipe(name: str) -> Path:
    return ROOT / "configs" / name


def test_lc_recs_tasks_are_built_and_trained_together(chain, tmp_path):
    examples, run = tmp_path / "examples", tmp_path / "sft"
    config = recipe("lcrec/examples.yaml")
    handmade.call(
        "preprocess.build_examples",
        "--config",
        config,
        "--data",
        chain.data,
        "--sids",
        chain.sids,
        "--output_dir",
        examples,
    )
    tasks = yaml.safe_load(config.read_text())["tasks"]
    assert set(pq.read_table(examples / "train.parquet")["task"].to_pylist()) == set(tasks)
    handmade.call(
        "train.sft",
        "--config",
        recipe("lcrec/sft_lcrec.yaml"),
        *chain.flags(examples=examples),
        *TRAINER,
        "--output_dir",
        run,
    )
    assert (run / "final/model.safetensors").exists() and series(run, "loss")[-1] > 0


def test_gprs_commands_can_be_followed(chain, tmp_path):
    """Those of its README, one after the other, with a toy model and few steps."""
    data, runs = tmp_path / "data", tmp_path / "outputs"
    data.mkdir()
    (data / "industrial").symlink_to(chain.data)
    text = recipe("gpr/README.md").read_text().split("## Table")[0]
    text = text.replace("/path/to/Qwen2.5-1.5B", str(chain.model.with_name("base")))
    text = text.replace(" data/", f" {data}/").replace("NUM_GPUS=8", "NUM_GPUS=1")
    unrated = ["--signals", "[item_type]"]  # the store knows no ratings
    toy = {
        "preprocess.build_examples": unrated,
        "preprocess.expand_vocab": [],
        "train.sft": TRAINER,
        "train.grpo": SHORT,
    }
    started = []
    for line in [line for line in text.splitlines() if line.startswith("    ")]:
        for name, *flags in programs_of(f"DATA_ROOT={data} OUTPUT_ROOT={runs} SIDS=x {line}", tmp_path):
            started.append(name)
            handmade.call(name, *flags, *toy[name])
    assert started == list(toy)
    assert (runs / "gpr/grpo_hepo/final/model.safetensors").exists()


def exact(batch):
    """1 for a rollout whose items hold the target, 0 for the others."""
    targets = [set(row["target"]) for row in batch.rows]
    return [
        [float(bool(target & set(items))) for items in group]
        for target, group in zip(targets, batch.item_ids, strict=True)
    ]


def test_preferences_raise_hits_above_the_other_rollouts(tmp_path):
    one = trainer(tmp_path, loss="sdpo", beta=0.5, add_ground_truth=True, steps=6, reward=exact)
    rows = list(range(PROMPTS))

    def margin():
        with torch.no_grad():
            batch = one._made(one.model, [rows])[0]
            logps_PG = one._score(one.model, batch.prompts, batch.rollouts.beams).logps_PGL.sum(2)
        hit_PG = batch.rewards_PGM[..., 0] == 1
        return float(logps_PG[hit_PG].mean() - logps_PG[~hit_PG].mean())

    before = margin()
    one.train()
    assert margin() > before + 0.5
    for wrong in ({"beta": 0.0}, {"updates": 2}, {"baseline": "leave_one_out"}):
        with pytest.raises(InputError, match="loss sdpo compares"):
            GrpoSettings(**{"loss": "sdpo", "beta": 0.1} | wrong)


def test_s_dpo_prefers_the_target_to_the_other_rollouts(chain, tmp_path):
    run = tmp_path / "sdpo"
    given = [
        (name, value)
        for name, value in zip(SHORT[::2], SHORT[1::2], strict=True)
        if "generations" not in name
    ]
    flags = [part for pair in given for part in pair]
    handmade.call(
        "train.grpo", "--config", recipe("sdpo/grpo_sdpo.yaml"), *chain.flags(), *flags, "--output_dir", run
    )
    # The target is one of four; at the start policy and reference agree: log(1 + 3).
    assert abs(series(run, "loss")[0] - 1.3863) < 0.05
    assert any(line.get("given_share", 0) > 0 for line in log(run))


@pytest.fixture(scope="module")
def titled(chain, tmp_path_factory):
    """BIGRec's recipe at toy scale: examples and a trained model."""
    root = tmp_path_factory.mktemp("titles")
    config = recipe("bigrec/examples.yaml")
    handmade.call(
        "preprocess.build_examples",
        "--config",
        config,
        "--data",
        chain.data,
        "--sids",
        chain.sids,
        "--output_dir",
        root / "examples",
    )
    flags = [*chain.flags(examples=root / "examples"), *TRAINER, "--output_dir", root / "sft"]
    handmade.call("train.sft", "--config", recipe("bigrec/sft_titles.yaml"), *flags)
    return root


def opened(titled, chain, examples=None, **decode):
    """An engine of the trained model and the titles of `examples`, as infer.recommend makes them."""
    examples, settings = examples or titled / "examples", DecodeSettings(**decode)
    model = str(titled / "sft/final")
    args = recommend.RecommendArgs(
        model, str(chain.sids), str(examples), "o", answers="title", data=str(chain.data), decode=settings
    )
    engine = load_engine(model, chain.sids, examples, settings)
    return engine, recommend.read_titles(args, engine)


def recommended(titled, chain, paper, output):
    config = recipe(f"{paper}/recommend.yaml")
    flags = [
        "--model",
        titled / "sft/final",
        "--sids",
        chain.sids,
        "--examples",
        titled / "examples",
        "--data",
        chain.data,
    ]
    handmade.call(
        "infer.recommend",
        "--config",
        config,
        *flags,
        "--max_rows",
        6,
        "--decode.beams",
        50,
        "--output_dir",
        output,
    )
    handmade.call("infer.evaluate", "--predictions", output, "--data", chain.data, "--resamples", 5)
    return read_predictions(output)[0]


def test_d3_ranks_the_catalogues_titles_by_their_likelihood(chain, titled, tmp_path):
    found = recommended(titled, chain, "d3", tmp_path / "d3.test")
    engine, titles = opened(titled, chain, beams=50)
    assert titles.untitled == 2 and sum(map(len, titles.items)) == ITEMS - 2, "one empty, one with a marker"
    rows = artifacts.read_file(titled / "examples/test.parquet").to_pylist()
    (row,) = [row for row in rows if row["example_id"] == found.example_ids_R[0]]
    context = replace(engine.histories.context, titles=titles.by_item)
    asked = titles_to_title(context, TaskWindow(0, row["history"], row["target"][0]))
    assert asked.messages[-1]["content"].count("Item ") >= len([i for i in row["history"] if i not in (1, 2)])
    prompt = engine.renderer.prompt_ids(asked)
    expected = {}
    for ids, items in zip(titles.ids, titles.items, strict=True):
        whole = torch.tensor([[*prompt, *ids, *engine.renderer.terminator_ids()]])
        with torch.no_grad():
            logps = engine.model(whole).logits[0].log_softmax(-1)
        taken = range(len(prompt), whole.shape[1])
        expected[items[0]] = sum(float(logps[at - 1, whole[0, at]]) for at in taken)
    mine = slice(found.offsets[0], found.offsets[1])
    listed = dict(zip(found.items_M[mine].tolist(), found.score_E[mine].tolist(), strict=True))
    assert listed.keys() == expected.keys(), "beams enough for every title"
    assert all(abs(listed[item] - score) < 1e-3 for item, score in expected.items())
    assert list(listed) == sorted(listed, key=lambda item: -listed[item])
    ListedScores([found], num_items=ITEMS, where="d3")  # a member of a product, for D3's assistant


def test_bigrec_grounds_what_is_written_in_the_nearest_titles(chain, titled, tmp_path):
    found = recommended(titled, chain, "bigrec", tmp_path / "bigrec.test")
    assert np.diff(found.offsets).tolist() == [ITEMS - 2] * 6 and (found.score_E <= 0).all()
    assert not members_of([tmp_path / "bigrec.test"])[0].has_probabilities, "distances"
    engine, titles = opened(titled, chain)
    vectors = title_vectors(engine.model, titles.ids, batch_size=7)
    alone = title_vectors(engine.model, titles.ids[3:4], batch_size=1)
    assert torch.allclose(vectors[3], alone[0], atol=1e-5), "padding has no part"
    with pytest.raises(InputError, match="answers title -> with --data"):
        recommend.RecommendArgs("m", "s", "e", "o", answers="title")
    with pytest.raises(InputError, match="decode.length_penalty 1.0 is read only with answers sid"):
        decode = DecodeSettings(length_penalty=1.0)
        recommend.RecommendArgs("m", "s", "e", "o", answers="title", data="d", decode=decode)


@pytest.fixture(scope="module")
def office(chain, tmp_path_factory):
    """Examples of titles that say what the shop sells and leave long titles out."""
    examples = tmp_path_factory.mktemp("office") / "examples"
    told = [
        "--category",
        "office products",
        "--max_title",
        40,
    ]  # titles of items from 10 on have 41 characters
    handmade.call(
        "preprocess.build_examples",
        "--config",
        recipe("bigrec/examples.yaml"),
        *told,
        "--data",
        chain.data,
        "--sids",
        chain.sids,
        "--output_dir",
        examples,
    )
    return examples


def asked(monkeypatch, engine, titles, rows):
    """The prompts of titles that are asked of `rows`, and what was found."""
    prompts = []
    search = decoding.decode_titles

    def seen(model, ids, *args, **options):
        prompts.extend(ids)
        return search(model, ids, *args, **options)

    monkeypatch.setattr(decoding, "decode_titles", seen)
    return prompts, decoding.predict_titles(engine, rows, titles, how="title")


def test_titles_are_asked_for_as_they_were_taught(chain, titled, office, monkeypatch):
    """The same category, the same titles left out of histories and answers."""
    engine, titles = opened(titled, chain, office)
    valid = artifacts.read_split(office, "valid")
    taught = {
        row["example_id"] % ID_STRIDE: from_row(row)
        for row in valid.filter(pc.equal(valid["task"], "titles_to_title")).to_pylist()
    }
    rows = valid.filter(pc.equal(valid["task"], "history_to_sid"))
    rows = rows.filter(pc.is_in(rows["example_id"], pa.array(list(taught), pa.int64())))
    prompts, found = asked(monkeypatch, engine, titles, rows)
    expected = engine.renderer.prompts([taught[key] for key in rows["example_id"].to_pylist()])
    assert prompts == expected and len(prompts) == len(taught) > 3
    assert "office products" in engine.told(prompts[0]) and "Item 10" not in "".join(
        map(engine.told, prompts)
    )
    shown = {item for items in found["item_ids"].to_pylist() for item in items}
    assert shown == {0, *range(3, 10)}, "no title that training left out is an answer"


def test_a_prompt_leaves_room_for_the_longest_title(chain, titled, monkeypatch):
    """Without a bound of its own a model's context holds prompt and title; a bound that leaves too little is refused."""
    engine, titles = opened(titled, chain)
    rows = artifacts.read_split(titled / "examples", "test").slice(0, 1)
    rows = rows.set_column(rows.column_names.index("history"), "history", [[[*range(3, ITEMS)] * 2]])
    whole = len(asked(monkeypatch, engine, titles, rows)[0][0])
    context = whole + titles.longest - 1
    monkeypatch.setattr(decoding, "context_length", lambda _: context)
    cut, again = opened(titled, chain)
    (prompt,), _ = asked(monkeypatch, cut, again, rows)
    assert whole - 30 < len(prompt) < whole and len(prompt) + titles.longest <= context
    with pytest.raises(
        InputError,
        match=f"max_prompt of at most {context - titles.longest}, or examples of a smaller max_title",
    ):
        opened(titled, chain, max_prompt=whole)
