"""infer.instruct: legal terms and valid JSON from any model, rows that end by themselves, work that is cut and gone on with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data import artifacts
from data.answers import read_answer
from data.renderer import THINK_END
from data.store.output import read_manifest
from data.tids import read_tids
from infer.engine import DecodeSettings, load_engine
from infer.text.generate import TextSettings
from infer.text.thinking import ThinkSettings
from infer.text.tids import DecodedTid, TidTrie
from infer.work import shards
from infer.work.instructing import best_tid, instruct, make_room
from tests import handmade

SHORT = ["--text.max_new_tokens", 12, "--chunk_rows", 16, "--device", "cpu"]
FEW = ["--max_rows", 40]
THINK = ["--mode", "two_stage", "--think.max_tokens", 6, "--think.thoughts", 2, "--think.temperature", 1]


@pytest.fixture(scope="module")
def whole(dual, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "model.test"
    handmade.call("infer.instruct", *dual.flags(output, *SHORT, *THINK, *FEW))
    return output


def table(directory: Path) -> list[dict]:
    return artifacts.read(directory, artifacts.INSTRUCTIONS).to_pylist()


def check(rows: list[dict], tids: Path) -> None:
    """Every answer is JSON of its task, its terms are a TID with all its items, and the columns say what it says."""
    groups = read_tids(tids).groups
    for row in rows:
        read = read_answer("history_to_instruction", row["answer"])
        assert read.how == "strict" and list(read.terms) == row["terms"] and read.text == row["instruction"]
        assert groups[tuple(row["terms"])] == row["item_ids"] and row["instruction"].strip()
        assert row["constrained"] and row["status"] in ("ok", "cut")


def test_every_row_of_a_random_model_is_answered_in_valid_json(dual, whole):
    rows = table(whole)
    wanted = [
        row["example_id"]
        for row in pq.read_table(dual.examples / "test.parquet").to_pylist()
        if row["task"] == "history_to_instruction"
    ]
    assert {row["example_id"] for row in rows} < set(wanted) and len(rows) == 40
    check(rows, dual.tids)
    assert [json.loads(line) for line in (whole / "instructions.jsonl").read_text().splitlines()] == rows
    manifest = read_manifest(whole)
    assert manifest["counts"]["rows"] == len(rows) and manifest["facts"]["constrained"] is True
    assert manifest["counts"]["forced_close"] == sum(row["forced_close"] for row in rows) > 0
    assert manifest["counts"]["cut"] == sum(row["status"] == "cut" for row in rows) > 0
    assert all(THINK_END not in row["thought"] for row in rows) and any(row["thought"] for row in rows)


def test_shards_and_a_killed_run_give_what_one_run_gives(dual, whole, tmp_path):
    output = tmp_path / "run" / "model.test"
    refusal = handmade.refuse("infer.instruct", *dual.flags(output, *SHORT, *THINK, *FEW, "--of", 2))
    assert "2 of 2 shards are not done" in refusal and not output.exists()
    handmade.call("infer.instruct", *dual.flags(output, *SHORT, *THINK, *FEW, "--shard", 1, "--of", 2))
    chunk = max((output / shards.FOLDER).glob("instructions-*.parquet"))
    before = chunk.stat().st_mtime_ns
    handmade.call("infer.instruct", *dual.flags(output, *SHORT, *THINK, *FEW, "--shard", 1, "--of", 2))
    assert chunk.stat().st_mtime_ns == before
    handmade.call("infer.instruct", *dual.flags(output, *SHORT, *THINK, *FEW))  # what is left, then all of it
    same = [name for name in artifacts.INSTRUCTIONS.required if name != "score"]
    assert [[row[name] for name in same] for row in table(output)] == [
        [row[name] for name in same] for row in table(whole)
    ]
    assert not (output / shards.FOLDER).exists()


def test_of_a_trainings_directory_its_checkpoint_answers(dual, tmp_path, capsys):
    shutil.copytree(dual.model, tmp_path / "run/checkpoint-3")
    shutil.copytree(dual.model, tmp_path / "run/checkpoint-4", ignore=shutil.ignore_patterns("config.json"))
    flags = replace(dual, model=tmp_path / "run").flags(tmp_path / "out", *SHORT, "--max_rows", 2)
    handmade.call("infer.instruct", *flags)
    assert "run is a training's directory -> checkpoint-3" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest["inputs"]["model"]["path"] == str(tmp_path / "run/checkpoint-3")


def test_the_other_mode_other_splits_and_no_constraints(dual, tmp_path):
    output = tmp_path / "model.valid"
    handmade.call(
        "infer.instruct", *dual.flags(output, *SHORT, "--split", "valid", "--max_rows", 20, "--beams", 1)
    )
    rows = table(output)
    check(rows, dual.tids)
    assert len(rows) == 20 and {row["thought"] for row in rows} == {""}
    free = tmp_path / "free"
    handmade.call(
        "infer.instruct", *dual.flags(free, *SHORT, *THINK, "--constrained", "false", "--max_rows", 20)
    )
    rows = table(free)
    assert not any(row["constrained"] for row in rows)
    for row in rows:
        read = read_answer("history_to_instruction", row["answer"])
        assert row["status"] == {"strict": "ok"}.get(read.how, read.how) and list(read.terms) == row["terms"]
    assert read_manifest(free)["counts"]["unreadable"] > 0  # a random model writes no JSON


def test_a_row_does_not_depend_on_the_rows_beside_it(dual):
    """Every row ends its thought by itself, and nothing of an overrun gets into its answer."""
    think = ThinkSettings(max_tokens=8, temperature=1.0, batch_size=16)
    decode = DecodeSettings(beams=1)
    engine = load_engine(
        dual.model, dual.sids, dual.examples, decode, device="cpu", mode="think", think=think
    )
    end = engine.renderer.think_end_id()

    def likelier(module, inputs, output):  # some thoughts end early, some are closed by force
        output.logits[..., end] += 5.0

    engine.model.register_forward_hook(likelier)
    trie = TidTrie(read_tids(dual.tids), engine.renderer.tokenizer, ending='"],"target_ins":"')
    rows = pq.read_table(dual.examples / "test.parquet")
    rows = rows.filter(pa.compute.equal(rows["task"], "history_to_instruction")).slice(0, 12)
    text = TextSettings(max_new_tokens=8)
    together = instruct(engine, trie, rows, text=text, beams=4, constrained=True)
    assert len(set(together["forced_close"].to_pylist())) == 2
    alone = [
        instruct(engine, trie, rows.slice(at, 1), text=text, beams=4, constrained=True).to_pylist()[0]
        for at in range(12)
    ]
    named = ("example_id", "terms", "instruction", "thought", "forced_close", "status")
    assert [[one[name] for name in named] for one in together.to_pylist()] == [
        [one[name] for name in named] for one in alone
    ]


def test_several_thoughts_count_together():
    def tid(name: str, probability: float) -> DecodedTid:
        return DecodedTid((name,), (0,), float(np.log(probability)), ())

    found = [[tid("a", 0.5), tid("b", 0.3)], [tid("b", 0.4), tid("c", 0.35)]]
    place, best, score = best_tid(found, how="logsumexp")
    assert (place, best.terms) == (1, ("b",)) and score == pytest.approx(np.log((0.3 + 0.4) / 2))
    place, best, score = best_tid(found, how="max")
    assert (place, best.terms) == (0, ("a",)) and score == pytest.approx(np.log(0.5))


def test_what_has_no_room_or_does_not_fit_is_refused(dual, chain, tmp_path):
    engine = load_engine(dual.model, dual.sids, dual.examples, DecodeSettings(), device="cpu")
    trie = TidTrie(read_tids(dual.tids), engine.renderer.tokenizer)
    with pytest.raises(InputError, match="the model reads 2048 tokens"):
        make_room(engine, trie, longest_text=2048, chosen=None)
    make_room(engine, trie, longest_text=100, chosen=None)
    assert engine.renderer.max_prompt == 2048 - 100 - trie.longest
    line = handmade.refuse("infer.instruct", *replace(dual, examples=chain.examples).flags(tmp_path / "no"))
    assert "has no history_to_instruction rows" in line
    for more, words in (
        (["--text.samples", 2, "--text.temperature", 1], "a row has one instruction"),
        (["--think.writer", "vllm", "--mode", "two_stage"], "holds no model for the terms"),
        (["--shard", 3, "--of", 2], "must lie in 0..1"),
    ):
        assert words in handmade.refuse("infer.instruct", *dual.flags(tmp_path / "no", *more))
    assert not (tmp_path / "no").exists()
