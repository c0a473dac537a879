"""The digit that tells items of equal codes apart is a level like the others, from the folder of MiniOneRec to the metrics."""

from __future__ import annotations

import ast
import csv
import json
import re

import numpy as np

from data import artifacts
from data.releases.index import read_index
from infer.engine import DecodeSettings, load_engine
from rq.ids.layouts import lay_out
from tests import tiny
from tests.handmade import call, tokenizer, write_sids
from tests.test_prepare import config, dump

WHOLE = re.compile(r"(?:<[a-d]_\d+>){4}")


def test_every_item_has_four_tokens_everywhere(tmp_path):
    data, sids, out = tmp_path / "data", tmp_path / "sids", tmp_path / "out"
    recipe = config(
        tmp_path / "c.yaml", amazon={"reviews": ["Store.json*"], "metadata": ["meta_Store.json*"]}
    )
    call("data.prepare", "--config", recipe, "--raw", dump(tmp_path / "raw"), "--output_dir", data)
    items = len(artifacts.read_items(data))
    codes = np.random.default_rng(0).integers(0, 3, (items, 3)).astype(np.int32)
    table = lay_out(codes, (3, 3, 3), layout="sid_dedup").table
    assert table.num_levels == 4 and len(table.sids_SL) == items > len(np.unique(codes, axis=0))
    write_sids(sids, data=data, codes=table.codes_NL, sizes=table.sizes)

    export = ["data.export", "--to", "minionerec", "--data", data, "--sids", sids, "--name", "Shop"]
    call(*export, "--output_dir", tmp_path / "folder")
    assert np.array_equal(read_index(tmp_path / "folder/Shop.index.json").codes_NL, table.codes_NL)
    told = [line.split("\t")[0] for line in (tmp_path / "folder/info/Shop.txt").read_text().splitlines()]
    assert len(set(told)) == len(told) == items and all(map(WHOLE.fullmatch, told))
    with open(tmp_path / "folder/train/Shop.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert {row["item_sid"], *ast.literal_eval(row["history_item_sid"])} <= set(told)

    words = tokenizer("ours")
    tiny.model("qwen3", vocab_size=len(words)).save_pretrained(out / "base")
    words.save_pretrained(out / "base")
    tasks = ["--tasks", '["history_to_sid", "title_to_sid", "sid_to_title"]']
    call(
        "preprocess.build_examples", "--data", data, "--sids", sids, "--output_dir", out / "examples", *tasks
    )
    call("preprocess.expand_vocab", "--model", out / "base", "--sids", sids, "--output_dir", out / "vocab")
    assert len(json.loads((out / "vocab/new_tokens.json").read_text())) == sum(table.sizes)
    given = ["--examples", out / "examples", "--sids", sids]
    engine = load_engine(out / "vocab", sids, out / "examples", DecodeSettings(beams=50), device="cpu")
    (found,) = engine.recommend([[0, 1]], k=items)
    assert sorted(one.item_ids for one in found) == [(item,) for item in range(items)]
    assert all(tuple(one.codes) == tuple(table.codes_NL[one.item_ids[0]]) for one in found)

    predictions = tmp_path / "model.test"
    call(
        "infer.recommend", "--model", out / "vocab", *given, "--output_dir", predictions, "--decode.beams", 50
    )
    call("infer.evaluate", "--predictions", predictions, "--data", data, "--sids", sids, "--resamples", 10)
    metrics = json.loads((predictions / "metrics/metrics.json").read_text())
    for k in (1, 5, 10):
        assert metrics[f"sid_level/hr@{k}"] == metrics[f"item_level/hr@{k}"], "no two items share an ID"
    assert metrics["all/invalid_rate"]["value"] == 0
