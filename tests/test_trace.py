"""infer.trace on a small chain: what it tells equals what recommend stored, what evaluate measures and what transformers computes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.program import InputError
from data import artifacts
from data.predictions import from_table
from data.rows import SequenceRow
from data.sid import SidTable, read_sids
from data.store.output import open_output
from infer.engine import DecodeSettings
from infer.search.prefixes import Prefixes
from infer.trace import with_flag
from infer.tracing.facts import (
    TracedTables,
    compare,
    find_row,
    raw_facts,
    split_reason,
    traceable,
    user_walk,
)
from infer.tracing.raw_lines import find_raw_lines
from tests.handmade import Made, call, refuse, succeed
from tests.store import HOSTILE

BEAMS = 12


def title(item: int) -> str:
    return {1: HOSTILE, 2: "(no title, item 2)"}.get(item, f"Item {item} of a long series of useful things")


@pytest.fixture(scope="module")
def stored(chain, tmp_path_factory) -> Path:
    """Predictions of the chain's test rows."""
    directory = tmp_path_factory.mktemp("trace") / "eval" / "vocab.test"
    flags = [*chain.flags(), "--output_dir", directory, "--decode.beams", BEAMS, "--device", "cpu"]
    call("infer.recommend", *flags)
    return directory


@pytest.fixture(scope="module")
def found(stored) -> list[dict[str, Any]]:
    return pq.read_table(stored / "predictions-00000-of-00001.parquet").to_pylist()


def pick(chain: Any, found: list[dict[str, Any]], *, hit: bool) -> tuple[dict[str, Any], float | None]:
    """A test row whose target is (or is not) in its stored list behind the first place, and the stored rank."""
    rows = [row for row in artifacts.read_sequences(chain.data).to_pylist() if row["split"] == "test"]
    for row in rows:
        ranks = [
            line["rank"]
            for line in found
            if line["example_id"] == row["example_id"] and row["target"] in line["item_ids"]
        ]
        if (bool(ranks) and ranks[0] > 1) if hit else not ranks:
            return row, ranks[0] if ranks else None
    pytest.fail("no such row")


def flags(chain: Any, example_id: int) -> list[object]:
    return [example_id, "--data", chain.data, *chain.flags(), "--device", "cpu"]


def trace(chain: Any, path: Path, example_id: int, *more: object) -> tuple[str, dict[str, Any]]:
    """(stdout, the JSON) of a run in a process of its own."""
    text = succeed("infer.trace", *flags(chain, example_id), "--json", path, *more)
    return text, json.loads(path.read_text())


def trace_here(chain: Any, example_id: int, *more: object) -> None:
    """The same in this process: stdout is what capsys has."""
    call("infer.trace", "--example_id", *flags(chain, example_id), *more)


@pytest.fixture(scope="module")
def hit(chain, stored, found, tmp_path_factory) -> tuple[dict[str, Any], float, str, dict[str, Any]]:
    row, rank = pick(chain, found, hit=True)
    path = tmp_path_factory.mktemp("hit") / "trace.json"
    return row, rank, *trace(chain, path, row["example_id"], "--predictions", stored)


def test_titles_rank_and_metrics(hit):
    row, rank, text, facts = hit
    for item in {*row["history"], row["target"]}:
        assert title(item) in text
    assert facts["result"]["rank"] == facts["stored"]["rank"] == rank
    assert f"the target has rank {rank:g}, {rank - 1:g} items before it" in text
    metrics = facts["result"]["metrics"]
    assert metrics["item_level/hr@10"] == metrics["sid_level/hr@10"] == float(rank <= 10)
    assert metrics["item_level/ndcg@10"] == pytest.approx((rank <= 10) / np.log2(rank + 1), abs=1e-6)
    assert metrics["sid_level/mrr@10"] == pytest.approx((rank <= 10) / rank, abs=1e-6)
    assert facts["stored"]["metrics"] == metrics


def test_the_stored_list_is_the_list(hit, found):
    row, _, text, facts = hit
    mine = [line for line in found if line["example_id"] == row["example_id"]]
    assert [[item["item_id"] for item in place["items"]] for place in facts["list"]] == [
        line["item_ids"] for line in mine
    ]
    last = facts["search"]["levels"][-1]["beams"]
    assert [beam["score"] for beam in last] == pytest.approx([line["score"] for line in mine], abs=1e-4)
    assert [[step["code"] for step in beam["path"]] for beam in last] == [line["codes"] for line in mine]
    assert "the same list in the same order" in text and facts["stored"]["differs"] is False


def test_the_way_through_the_data(hit, chain):
    row, _, text, facts = hit
    walk = facts["interactions"]
    assert [step["item_id"] for step in walk if step["part"] == "history"] == row["history"]
    assert [step["item_id"] for step in walk if step["part"] == "target"] == [row["target"]]
    assert [step["order"] for step in walk] == list(range(len(walk)))
    assert facts["prompt"]["served_alike"] is True and "the same ids" in text
    sids = read_sids(chain.sids)
    assert [item["codes"] for item in facts["items"]] == sids.codes_NL[
        [*row["history"], row["target"]]
    ].tolist()


def test_levels_are_what_transformers_computes(hit, chain):
    """Sums of whole-vocabulary log-probabilities along each path, from plain forwards of the model."""
    import torch
    from transformers import AutoModelForCausalLM

    from data.sid import read_vocab

    _, _, _, facts = hit
    model = AutoModelForCausalLM.from_pretrained(chain.model).eval()
    vocab, sids = read_vocab(chain.model), read_sids(chain.sids)
    prompt = facts["prompt"]["ids"]

    def score(codes: list[int]) -> float:
        ids = [int(level.token_ids[code]) for level, code in zip(vocab.levels, codes, strict=False)]
        with torch.no_grad():
            logs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        return sum(float(logs[len(prompt) - 1 + at, token]) for at, token in enumerate(ids))

    first = facts["search"]["levels"][0]["beams"]
    heads = np.unique(sids.codes_NL[:, 0]).tolist()
    wanted = sorted(((score([code]), code) for code in heads), reverse=True)
    assert [beam["path"][0]["code"] for beam in first] == [code for _, code in wanted]
    for level in facts["search"]["levels"]:
        for beam in level["beams"][:4]:
            assert beam["score"] == pytest.approx(score([step["code"] for step in beam["path"]]), abs=1e-3)
            assert sum(step["score"] for step in beam["path"]) == pytest.approx(beam["score"], abs=1e-5)
    target = facts["search"]["target"]
    assert target[-1]["score"] == pytest.approx(score(facts["items"][-1]["codes"]), abs=1e-3)
    assert target[-1]["rank"] == facts["result"]["rank"]


def test_a_lost_target_is_told(chain, stored, found, tmp_path, capsys):
    row, _ = pick(chain, found, hit=False)
    path = tmp_path / "t.json"
    trace_here(chain, row["example_id"], "--predictions", stored, "--show", 2, "--json", path)
    text, facts = capsys.readouterr().out, json.loads(path.read_text())
    assert "LOST HERE" in text and "the target was not recommended" in text
    assert facts["result"]["rank"] is None
    assert {facts["result"]["metrics"][f"item_level/{name}@10"] for name in ("hr", "ndcg")} == {0.0}
    lost = [step for step in facts["search"]["target"] if step["rank"] is None]
    assert lost and all(step["score"] < step["last_beam_score"] for step in lost[:1])


def test_a_changed_list_is_noticed(chain, found, tmp_path, capsys):
    row, _ = pick(chain, found, hit=True)
    mine = [dict(line) for line in found if line["example_id"] == row["example_id"]]
    for key in ("codes", "item_ids"):
        mine[2][key], mine[3][key] = mine[3][key], mine[2][key]
    with open_output(Made(), "recommend", version=1, inputs={}, directory=tmp_path / "other") as out:
        out.write_table("predictions-00000-of-00001.parquet", pa.Table.from_pylist(mine))
        out.facts |= {"split": "test", "model_hash": "another"}
    trace_here(chain, row["example_id"], "--predictions", tmp_path / "other", "--decode.beams", BEAMS)
    text = capsys.readouterr().out
    assert f"differs from place 3 on ({BEAMS} stored, {BEAMS} now); made with another model" in text


def test_refusals(chain, stored, tmp_path):
    ids = {
        split: [row["example_id"] for row in artifacts.read_sequences(chain.data).to_pylist() if row["split"] == split]
        for split in artifacts.SPLITS
    }  # fmt: skip
    line = refuse("infer.trace", *flags(chain, 7))
    assert line == "ERROR 2: no example 7 -> " + ", ".join(
        f"{split} {min(some)}..{max(some)}" for split, some in ids.items()
    )
    first = ids["train"][0]
    with pytest.raises(InputError, match=rf"has no example {first} \(its split: test\)"):
        trace_here(chain, first, "--predictions", stored)
    with pytest.raises(InputError, match="other settings"):
        trace_here(chain, first, "--predictions", stored, "--decode.beams", 5)
    with pytest.raises(InputError, match="leave out --raw"):
        trace_here(chain, first, "--raw", tmp_path)


def test_the_id_may_stand_first():
    assert with_flag(["12", "--data", "x"]) == ["--example_id=12", "--data", "x"]
    assert with_flag(["-3"]) == ["--example_id=-3"]
    assert with_flag(["--example_id", "12"]) == ["--example_id", "12"] and with_flag([]) == []


def test_settings_are_those_of_the_predictions():
    config = {"decode": {"beams": 7, "score_space": "level", "gone": 1}}
    assert traceable(config, DecodeSettings(), "direct", where="p")[0] == DecodeSettings(
        beams=7, score_space="level"
    )
    asked = DecodeSettings(beams=9)
    assert traceable(None, asked, "empty_think", where=None) == (asked, "empty_think")
    for bad, mode in (
        (DecodeSettings(strategy="sample", score_space="trie"), "direct"),
        (DecodeSettings(), "think"),
    ):
        with pytest.raises(InputError, match="a trace follows"):
            traceable(None, bad, mode, where=None)
    with pytest.raises(InputError, match="was decoded with --allowed"):
        traceable(config | {"allowed": "stock.parquet"}, DecodeSettings(), "direct", where="p")


# Pure functions on rows that can be checked by eye.


def row_of(history: list[int], target: int, *, time: int | None = None) -> SequenceRow:
    return SequenceRow(5, "test", 1, tuple(history), target, time, 80, 100)


def walk_of(
    items: list[int], row: SequenceRow, times: list[int | None] | None = None
) -> list[dict[str, Any]]:
    table = pa.table(
        {
            "user_id": [1] * len(items) + [2],
            "item_id": [*items, 9],
            "order": [*range(len(items)), 0],
            "timestamp": pa.array([*(times or [None] * len(items)), 3], pa.int64()),
            "rating": pa.array([float("nan")] * (len(items) + 1), pa.float32()),
        }
    )
    return user_walk(table.take(list(reversed(range(len(table))))), row)


def test_walk_parts():
    steps = walk_of([4, 7, 8, 7, 6], row_of([7, 8], 7))
    assert [step["part"] for step in steps] == ["older", "history", "history", "target", "later"]
    assert steps[0]["rating"] is None
    twice = walk_of([7, 8, 7, 8], row_of([7], 8, time=40), [10, 20, 30, 40])
    assert [step["part"] for step in twice] == ["older", "older", "history", "target"]
    assert twice[0]["date"] == "1970-01-01 00:00"
    assert {step["part"] for step in walk_of([1, 2], row_of([2], 1))} == {""}


def test_split_reasons():
    row = row_of([7, 8], 7)
    walk = walk_of([4, 7, 8, 7], row)
    assert "interaction 4 of the user's 4" in split_reason({"split": {"kind": "leave_one_out"}}, row, walk)
    rule = {"kind": "global_temporal", "train_share": 0.8, "valid_share": 0.1}
    assert (
        "first 80% are train, the next 10% valid, the rest test; this is number 81 (81.00%)"
        in split_reason({"split": rule}, row, walk)
    )
    assert "shipped" in split_reason({"split": {"kind": "published"}}, row, walk)
    assert "names no rule" in split_reason({}, row, walk)


def test_gaps_in_the_valid_range():
    sequences = pa.table({"example_id": [3, 9, 20], "split": ["train", "train", "test"]})
    with pytest.raises(InputError, match=r"train 3\.\.9 \(2 of them\), test 20\.\.20$"):
        find_row(sequences, 5)
    with pytest.raises(InputError, match="no example"):
        find_row(sequences, 1 << 80)


def one_list(codes: list[list[int]], scores: list[float]) -> Any:
    table = {
        "example_id": [1] * len(codes),
        "rank": pa.array(range(1, len(codes) + 1), pa.float32()),
        "codes": pa.array(codes, artifacts.INT_LIST),
        "item_ids": pa.array([[code[0]] for code in codes], artifacts.INT_LIST),
        "score": pa.array(scores, pa.float32()),
    }
    return from_table(pa.table(table), where="test")


def test_verdicts():
    now = one_list([[1, 0], [2, 0], [3, 0]], [-1.0, -2.0, -3.0])
    assert compare(now, now, {"model": True})["verdict"].startswith("the same list in the same order")
    shorter = compare(now, one_list([[1, 0], [2, 0]], [-1.0, -2.0]), {"model": False})
    assert shorter["first_difference"] == 3 and shorter["verdict"].endswith("another model")
    moved = compare(now, one_list([[1, 0], [3, 0], [2, 0]], [-1.0, -2.0, -3.0]), {})
    assert (moved["differs"], moved["first_difference"]) == (True, 2)
    scores = compare(now, one_list([[1, 0], [2, 0], [3, 0]], [-1.0, -2.0, -3.5]), {})
    assert scores["differs"] and "differ by up to 0.5" in scores["verdict"]


@given(st.data())
def test_paths_equal_counting(data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    codes = data.draw(
        st.lists(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=12)
    )
    codes_NL = np.array(codes, np.int32)
    prefixes = Prefixes(SidTable(codes_NL, sizes))
    for row in codes_NL:
        for depth, step in enumerate(prefixes.path(row.tolist()), start=1):
            nodes = np.unique(codes_NL[:, :depth], axis=0)
            same = (codes_NL[:, : depth - 1] == row[: depth - 1]).all(1)
            assert (step.level, step.code) == ("abcd"[depth - 1], row[depth - 1])
            assert step.items == (codes_NL[:, :depth] == row[:depth]).all(1).sum()
            assert step.choices == len(np.unique(codes_NL[same, depth - 1]))
            assert step.node == np.flatnonzero((nodes == row[:depth]).all(1))[0]
            assert (prefixes.tables[depth - 1].sids_SL[step.node] == row[:depth]).all()
    if (missing := next((c for c in range(sizes[0]) if c not in codes_NL[:, 0]), None)) is not None:
        with pytest.raises(InputError, match="no item"):
            prefixes.path([missing])


AMAZON = {
    "adapter": "amazon",
    "amazon": {"format": 2018, "reviews": ["reviews*"], "metadata": ["meta*"]},
}


def amazon_dump(folder: Path) -> Path:
    folder.mkdir()
    reviews = [
        {"reviewerID": "U1", "asin": "B1", "overall": 5.0, "unixReviewTime": 100},
        {"reviewerID": "U10", "asin": "B1", "overall": 5.0, "unixReviewTime": 101, "reviewText": "U1 was right"},
        {"reviewerID": "U1", "asin": "B2", "overall": 1.0, "unixReviewTime": 200},
        {"reviewerID": "U1", "asin": "B9", "overall": 1.0, "unixReviewTime": 300},
    ]  # fmt: skip
    lines = [json.dumps(line) for line in reviews] + ['{"reviewerID": "U1", "asin": "B2"', ""]
    with gzip.open(folder / "reviews.json.gz", "wt") as file:
        file.write("\n".join(lines))
    metadata = [
        {"asin": "B2", "title": "second"},
        {"asin": "B1", "also_buy": ["B2"]},
        {"asin": "B2", "title": "again"},
    ]
    (folder / "meta.json").write_text("\n".join(map(json.dumps, metadata)) + "\n")
    return folder


def test_raw_lines_of_a_dump(tmp_path):
    raw = amazon_dump(tmp_path / "raw")
    found = find_raw_lines(raw, AMAZON, user="U1", items=["B1", "B2"])
    assert [(line.line, line.key) for line in found.user] == [(1, "U1"), (3, "U1"), (4, "U1"), (5, "U1")]
    assert [(line.line, line.key) for line in found.items] == [(1, "B2"), (2, "B1")]
    assert found.user[1].event == ("B2", 200)
    assert found.user[3].event is None and found.user[3].broken
    assert find_raw_lines(raw, AMAZON, user=None, items=[]).user == []


def test_what_became_of_raw_lines(tmp_path):
    items = pa.table({"raw_id": ["B1", "B2"]})
    walk = [{"item_id": 0, "timestamp": 100, "order": 0}]
    facts = raw_facts(
        str(amazon_dump(tmp_path / "raw")), TracedTables(AMAZON, items, walk, "U1"), [{"raw_id": "B1"}]
    )
    assert [line["became"].split(":")[0] for line in facts["user"]] == [
        "interaction 0",
        "left out",
        "left out",
        "broken, not read",
    ]
    assert "repeat" in facts["user"][1]["became"] and "not in the data set" in facts["user"][2]["became"]
    assert [line["key"] for line in facts["items"]] == ["B1"]


def test_raw_rows_of_tables(tmp_path):
    pq.write_table(
        pa.table({"product": [7, 9], "title": ["x", "y"], "raw_id": ["R7", "R9"]}), tmp_path / "items.parquet"
    )
    (tmp_path / "log.csv").write_text("who,product,timestamp\nann,7,1\nanna,9,2\nann,9,3\n")
    spec = {
        "items": {"file": "items.parquet", "columns": {"item_id": "product"}, "extras": []},
        "interactions": {
            "file": "log.csv",
            "columns": {"user_id": "who", "item_id": "product"},
            "extras": [],
        },
        "users": {"file": "", "columns": {}, "extras": []},
    }
    found = find_raw_lines(tmp_path, {"adapter": "tables", "tables": spec}, user="ann", items=["R9"])
    assert [(line.line, line.fields["item_id"]) for line in found.user] == [(0, "7"), (2, "9")]
    assert [(line.line, line.key, line.fields["title"]) for line in found.items] == [(1, "R9", "y")]
    (tmp_path / "log.csv").unlink()
    with pytest.raises(InputError, match="check --raw"):
        find_raw_lines(tmp_path, {"adapter": "tables", "tables": spec}, user="ann", items=["R9"])
