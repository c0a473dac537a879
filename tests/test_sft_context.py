"""Supervised fine-tuning on histories that the model cannot read whole: shortened, counted, known before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.program import InputError
from data import artifacts
from data.store.output import read_manifest
from infer.engine import DecodeSettings, load_engine
from tests.handmade import call, tokenizer, write_data, write_sids
from train.supervised.tokens import render

SEQUENCES = [
    ("train", 0, [0, 1, 2, 3, 5], 7),
    ("train", 1, [0], 1),
    ("train", 2, [1, 2], 3),
    ("valid", 0, [0, 1, 2, 3, 5, 7], 8),
    ("test", 0, [0, 1, 2, 3, 5, 7, 8], 9),
]
POSITIONS = (
    15  # six of the template, room for two items, an answer of three codes; its end is predicted, not read
)


@pytest.fixture
def flags(tmp_path: Path) -> list[object]:
    """A GPT-2 with as many learned positions as POSITIONS: one token more has no embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    data = write_data(tmp_path / "data", sequences=SEQUENCES)
    sids, examples = write_sids(tmp_path / "sids", data=data), tmp_path / "examples"
    call("preprocess.build_examples", "--data", data, "--sids", sids, "--output_dir", examples)
    words = tokenizer("ours")
    config = GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=POSITIONS, eos_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    model = tmp_path / "model"
    call("preprocess.expand_vocab", "--model", tmp_path / "base", "--sids", sids, "--output_dir", model)
    steps = ["--trainer.max_steps", 1, "--trainer.eval_steps", 1, "--valid_beams", 10]
    return ["--model", model, "--examples", examples, "--sids", sids, *steps]


def test_histories_beyond_the_context_are_shortened_and_counted(flags, tmp_path, capsys):
    chosen = [*flags, "--tasks", '["history_to_sid"]', "--output_dir"]
    for name in ("first", "again"):  # the second time the rendered rows are on disk
        call("train.sft", *chosen, tmp_path / "run" / name)
        assert "tokens lost the oldest items of their history: 1 of history_to_sid" in capsys.readouterr().err
        assert read_manifest(tmp_path / "run" / name)["counts"]["shortened_prompts"] == {"history_to_sid": 1}
    engine = load_engine(flags[1], flags[5], flags[3], DecodeSettings(beams=10), device="cpu")
    table = artifacts.read(flags[3], artifacts.EXAMPLES, file="train.parquet").slice(0, 3)
    rows = render(table, engine.renderer)
    assert rows.lengths_N.max() == POSITIONS + 1, "inputs fill the context; the last token is only predicted"
    histories = [engine.histories.prompt_ids(history) for history in table["history"].to_pylist()]
    starts = rows.starts_N
    trained = [rows.tokens_S[s : s + p].tolist() for s, p in zip(starts, rows.prompts_N, strict=True)]
    assert trained == histories, "recommendation cuts them at the same item"


def test_an_answer_that_does_not_fit_is_refused_before_the_first_step(flags, tmp_path):
    with pytest.raises(
        InputError, match=rf"sid_to_title\) has \d+ tokens, more than max_length {POSITIONS + 1} "
    ):
        call("train.sft", *flags, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_model_is_used_with_prompts_as_long_as_it_was_trained_with(chain, tmp_path):
    short = ["--trainer.max_steps", 2, "--valid_rows", 5, "--tasks", "[history_to_sid]", "--max_prompt", 17]
    call("train.sft", *chain.flags(), *short, "--output_dir", tmp_path / "sft")
    final = tmp_path / "sft/final"

    def bound(**decode):
        return load_engine(final, chain.sids, chain.examples, DecodeSettings(**decode)).renderer.max_prompt

    assert (bound(), bound(max_prompt=25)) == (17, 25)
    call(
        "infer.recommend", *chain.flags(model=final), "--split", "test", "--max_rows", 5, "--output_dir", tmp_path / "test"
    )  # fmt: skip
    assert json.loads((tmp_path / "test/manifest.json").read_text())["facts"]["max_prompt"] == 17
    # the next stage goes on with it, without being told
    call("train.sft", *chain.flags(model=final), *short[:-2], "--output_dir", tmp_path / "more")
    assert json.loads((tmp_path / "more/final/prompts.json").read_text()) == {"max_prompt": 17}
