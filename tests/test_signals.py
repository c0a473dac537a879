"""Tokens of users, moments and item types: read from the data, in every prompt alike; and what a target is worth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs.program import InputError
from data import artifacts
from data.prompts import wording
from data.renderer import HistoryRenderer, Renderer
from data.sid import SidTable, sid_format
from data.signals import Signals, environment_words, item_values, item_words, read_signals, user_words
from data.tasks import from_row
from preprocess.model.vocabulary import add_sid_tokens
from tests.handmade import CODES, SIZES, call, tokenizer, write_data, write_sids

TABLE = SidTable(CODES, SIZES)


def test_signals_are_tokens_of_users_moments_and_item_types(tmp_path: Path) -> None:
    log = pa.table({"user_id": [0, 0, 1, 2, 2, 3], "rating": pa.array([5, 4.5, 4, 2, 5, 5], pa.float32()),
                    "split": ["train", "train", "train", "train", "valid", "test"]})  # fmt: skip
    assert user_words(log) == {0: "high", 1: "mid", 2: "low"}  # 4.75, 4, 2; user 3 has no train row
    shop = pa.table({"brand": ["Acme", "", ""], "price": pa.array([None, 50.5, 50.0], pa.float32())})
    assert item_words(shop) == ("promoted", "promoted", "organic")
    assert item_words(pa.table({"brand": [""], "item_type": ["Ad!"]})) == ("ad",)
    with pytest.raises(InputError, match="no column 'place'"):
        environment_words(log, "place")

    data, out = write_data(tmp_path / "data"), tmp_path / "examples"
    sids = write_sids(tmp_path / "sids", data=data)
    arguments = ["--data", data, "--sids", sids, "--tasks", '["history_to_sid"]']
    call("preprocess.build_examples", *arguments, "--output_dir", out, "--signals", '["item_type", "environment"]',
         "--environment_column", "user_id")  # fmt: skip
    table = artifacts.read(out, artifacts.EXAMPLES, file="train.parquet")
    rows = [from_row(row) for row in table.to_pylist()]
    assert (
        rows[3]
        .messages[0]["content"]
        .startswith("<env_1>next:<item_promoted><a_2><b_2><c_2><item_promoted><a_2>")
    )
    words = tokenizer("ours")
    with pytest.raises(InputError, match="use the token <env_0>, which the model's vocabulary lacks"):
        read_signals(out, words)
    words.add_tokens(json.loads((out / "signals.json").read_text())["tokens"])
    signals = read_signals(out, words)
    renderer = Renderer(words, add_sid_tokens(words, sid_format("letters"), SIZES, sids_sha256="").vocab)
    serving = HistoryRenderer(renderer, TABLE, wording("short"), signals=signals)
    moment = words.convert_tokens_to_ids(["<env_0>", "<env_1>", "<env_unknown>"])
    for example, prompt in zip(rows, renderer.prompts(rows), strict=True):
        served = serving.prompt_ids(example.history)  # which knows no moment
        assert prompt[1] in moment[:2] and served == [prompt[0], moment[2], *prompt[2:]]
    assert Signals({3: "high"}, ("home",)).lead(3, "shop") == "<user_high><env_unknown>"
    assert Signals({3: "high"}).lead(None, None) == "<user_unknown>" and Signals().lead(3, "home") == ""
    call("preprocess.build_examples", *arguments, "--output_dir", tmp_path / "bare")
    assert read_signals(tmp_path / "bare", words) is None


def test_value_weights_have_mean_one_over_train() -> None:
    items = pa.table({"price": pa.array([0.0, np.e - 1, None], pa.float32()), "brand": [""] * 3})
    values = item_values(items, np.array([0, 1, 1, 1]))
    # v = (log 2, 1 + log 4, 0) scaled to (.29, 1, 0); log1p: (.2550, .6931, 0)
    assert values[1] / values[0] == pytest.approx(0.6931 / 0.2550, rel=1e-3)
    assert values[[0, 1, 1, 1]].mean() == pytest.approx(1) and values[2] == pytest.approx(0.1)
    assert item_values(pa.table({"brand": ["", ""]}), np.array([0, 1])).tolist() == [1, 1]
