"""Stage 07 on a data set that can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import artifacts
from data.prompts import ItemTexts, plain_texts, wording
from data.sid import SidTable, sid_format
from data.store.lineage import recorded_data_hash
from data.store.output import read_manifest
from data.tasks import ID_STRIDE, Example, TaskContext, from_row, history_to_sid
from preprocess.examples.rows import Sequences, item_rows, tables, to_table
from tests.handmade import CODES, SIZES, TITLES, call, refuse, succeed, write_data, write_sids

PROGRAM = "preprocess.build_examples"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_data(tmp_path_factory.mktemp("store") / "data")
    write_sids(data / "sids" / "made", data=data)
    return data


def arguments(data: Path, name: str) -> list[object]:
    return ["--data", data, "--sids", data / "sids" / "made", "--output_dir", data / "examples" / name]


def read(data: Path, name: str, split: str) -> list[Example]:
    table = artifacts.read(data / "examples" / name, artifacts.EXAMPLES, file=f"{split}.parquet")
    return [from_row(row) for row in table.to_pylist()]


def test_rows_prompts_and_counts(store: Path) -> None:
    out = succeed(PROGRAM, *arguments(store, "default"))
    assert "18 train, 2 valid, 1 test" in out
    train = read(store, "default", "train")
    by_task = {
        task: [e for e in train if e.task == task]
        for task in ("history_to_sid", "sid_to_title", "title_to_sid")
    }

    sequences = by_task["history_to_sid"]
    assert [e.example_id for e in sequences] == [100, 101, 102, 103]  # 104 has an empty history
    assert sequences[1].messages == ({"role": "user", "content": "next:<a_0><b_0><c_0><a_0><b_1><c_2>"},)
    assert (sequences[1].history, sequences[1].target, sequences[1].user_id) == ((0, 1), (2,), 0)
    assert (sequences[1].answer.sid, sequences[1].answer.item_id) == ((1, 2, 4), 2)

    titled = by_task["sid_to_title"]  # 6 shares a semantic ID with 5, 11 has title and semantic ID of 10
    assert [e.target for e in titled] == [(0,), (1,), (2,), (5,), (7,), (10,), (11,)]
    assert (titled[0].messages[0]["content"], titled[0].answer.text) == (
        "title of:<a_0><b_0><c_0>",
        "Steel bolt, 10 mm",
    )
    assert titled[0].example_id == ID_STRIDE
    assert titled[0].user_id is None

    found = by_task["title_to_sid"]  # 7 shares a title with 1
    assert [e.target for e in found] == [(0,), (1,), (2,), (5,), (6,), (10,), (11,)]
    assert found[2].messages[0]["content"] == 'sid of: Brass "gold" washer {5}'
    assert found[2].answer.sid == (1, 2, 4)
    assert len({e.example_id for e in train}) == len(train)

    assert [e.history for e in read(store, "default", "valid")] == [(0, 1, 2, 2), (5, 6, 7, 8, 9, 10)]
    assert {e.task for split in ("valid", "test") for e in read(store, "default", split)} == {
        "history_to_sid"
    }


def test_manifest_says_what_was_made_and_skipped(store: Path) -> None:
    call(PROGRAM, *arguments(store, "facts"), "--wording", "sentence", "--format", "navigen")
    manifest = read_manifest(store / "examples" / "facts")
    assert manifest["facts"] == {
        "sids_sha256": SidTable(CODES, SIZES).sha256,
        "wording": "sentence",
        "format": "navigen",
        "tasks": ["history_to_sid", "sid_to_title", "title_to_sid"],
        "category": "items",
        "min_title": 3,
        "max_title": None,
    }
    titles = {"short_title": 2, "reserved_marker": 2}
    assert manifest["counts"]["tasks"]["train"] == {"history_to_sid": 4, "sid_to_title": 7, "title_to_sid": 7}
    assert manifest["counts"]["skipped"]["train"] == {
        "history_to_sid": {"empty_history": 1},
        "sid_to_title": titles | {"ambiguous_sid": 1},
        "title_to_sid": titles | {"ambiguous_title": 1},
    }
    system, user = read(store, "facts", "test")[0].messages
    assert system == {"role": "system", "content": wording("sentence").system}
    assert "<|cid_begin|><s_a_0><s_b_0><s_c_0><|cid_end|>, <|cid_begin|>" in user["content"]


def test_options_choose_tasks_newest_items_and_a_seeded_sample(store: Path) -> None:
    options = [
        "--tasks",
        '["history_to_sid"]',
        "--max_history",
        2,
        "--max_rows.train",
        2,
        "--max_rows.valid",
        1,
    ]
    call(PROGRAM, *arguments(store, "few"), *options)
    train = read(store, "few", "train")
    assert len(train) == 2 and {e.task for e in train} == {"history_to_sid"}
    assert [e.example_id for e in train] == sorted(e.example_id for e in train)
    full = {e.example_id: e.history for e in read(store, "default", "train")}
    assert all(e.history == full[e.example_id][-2:] for e in train)
    assert len(read(store, "few", "valid")) == 1
    call(PROGRAM, *arguments(store, "brief"), "--tasks", '["sid_to_title"]', "--max_title", 9)
    assert [e.answer.text for e in read(store, "brief", "train")] == [
        "Steel nut",
        "Brass nut",
        "Steel nut",
        "Wood glue",
        "Wood glue",
    ]
    assert (
        read_manifest(store / "examples" / "brief")["counts"]["skipped"]["train"]["sid_to_title"][
            "long_title"
        ]
        == 5
    )
    samples = set()
    table = artifacts.read_sequences(store)
    for seed in range(8):
        rows, empty = Sequences.from_table(table).rows("train", max_rows=2, seed=seed)
        assert (len(rows), empty) == (2, 1)
        samples.add(tuple(rows.tolist()))
    assert len(samples) > 1


def test_a_finished_output_is_kept_and_another_is_refused(store: Path) -> None:
    succeed(PROGRAM, *arguments(store, "kept"))
    before = (store / "examples" / "kept" / "manifest.json").read_bytes()
    assert "already complete" in succeed(PROGRAM, *arguments(store, "kept"))
    assert "max_history None -> 1" in refuse(PROGRAM, *arguments(store, "kept"), "--max_history", 1)
    assert (store / "examples" / "kept" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--wording", "long"],
            "unknown wording 'long' -> one of short, bare, codes, turn, sentence, minionerec",
        ),
        (["--tasks", '["history_to_sid", "history_to_sid"]'], "each only once"),
        (["--tasks", '["chat"]'], "task chat, registry and corpora belong together"),
        (["--tasks", '["gossip"]'], "gossip"),
        (["--tasks", "{title_to_sid: 0}"], "tasks.title_to_sid is 0.0 -> a share"),
        (["--tasks", "{title_to_sid: 1.5}"], "tasks.title_to_sid is 1.5"),
        (["--tasks", "[]"], "name at least one task"),
        (["--caps", "{titles_to_sid: 3}"], "caps.titles_to_sid is 3"),
        (["--tasks", '["preference_to_sid"]'], "preferences and a task of"),
        (["--signals", '["environment"]'], "signal environment and environment_column belong together"),
        (
            ["--max_title", 1],
            "the data gives no train example of sid_to_title (10 long_title, 2 short_title)",
        ),
        (["--wording", "bare", "--frame", "alpaca"], "wording bare has no frame"),
        (["--frame", "alpaca"], "wording short has no instruction to fill in"),
        (["--max_history", 0], "max_history is 0"),
        (["--max_rows.test", 0], "max_rows.test is 0"),
        (["--max_rows.dev", 3], "max_rows.dev"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(store: Path, options: list[object], words: str) -> None:
    assert words in refuse(PROGRAM, *arguments(store, "bad"), *options)
    assert not (store / "examples" / "bad").exists()


def test_semantic_ids_of_another_data_set_are_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    few = write_sids(data / "sids" / "few", data=data, codes=CODES[:5])
    line = refuse(PROGRAM, "--data", data, "--sids", few, "--output_dir", tmp_path / "x")
    assert f"{few} has semantic IDs of 5 items, but {data} has 12 items" in line
    other = write_data(tmp_path / "other", titles=[title + "!" for title in TITLES])
    foreign = write_sids(data / "sids" / "foreign", data=other)
    line = refuse(PROGRAM, "--data", data, "--sids", foreign, "--output_dir", tmp_path / "x")
    assert f"{foreign} was made from another state of the data than {data}" in line
    unknown = write_sids(data / "sids" / "unknown", data=None)
    assert recorded_data_hash(unknown) is None
    call(PROGRAM, "--data", data, "--sids", unknown, "--output_dir", tmp_path / "x")
    line = refuse(PROGRAM, "--data", data, "--sids", tmp_path / "nowhere", "--output_dir", tmp_path / "y")
    assert "scripts/04_build_sids.sh" in line and not (tmp_path / "y").exists()


def test_the_trail_to_the_data_goes_through_every_stage(tmp_path: Path) -> None:
    from data.store.output import open_output
    from tests.handmade import Made

    data = write_data(tmp_path / "data")
    source = {"data": data}
    for stage in ("embeddings", "quantizer", "sids"):
        with open_output(Made(), stage, version=1, inputs=source, directory=tmp_path / stage) as out:
            out.write_json("made.json", stage)
        source = {f"the {stage}": tmp_path / stage}
    assert recorded_data_hash(tmp_path / "sids") == read_manifest(data)["content_hash"]
    (tmp_path / "embeddings" / "manifest.json").unlink()
    assert recorded_data_hash(tmp_path / "sids") is None


def test_a_history_outside_the_catalogue_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", sequences=[("train", 0, [0, 12], 1)])
    sids = write_sids(tmp_path / "sids", data=data)
    line = refuse(PROGRAM, "--data", data, "--sids", sids, "--output_dir", tmp_path / "x")
    assert "`history` names an item outside 0..11" in line


def test_the_target_never_shapes_a_prompt() -> None:
    context = TaskContext(
        SidTable(CODES, SIZES), sid_format("letters"), wording("sentence"), plain_texts(TITLES)
    )
    prompts = {
        history_to_sid(context, key=1, history=[0, 1], target=target).messages[-1]["content"]
        for target in range(12)
    }
    assert len(prompts) == 1


def test_one_answer_per_question() -> None:
    """What item_rows keeps, against the plain definition over all pairs of items."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        titles = [f"title {number}" for number in rng.integers(0, 6, 20)]
        sids = SidTable(rng.integers(0, 3, (20, 2)).astype(np.int32), (3, 3))
        for task in ("title_to_sid", "sid_to_title"):
            kept, skipped = item_rows(task, ItemTexts.read(titles, "title"), sids)
            pairs = [(titles[i], tuple(sids.codes_NL[i].tolist())) for i in range(20)]
            pairs = pairs if task == "title_to_sid" else [(codes, title) for title, codes in pairs]
            first = dict(reversed(pairs))
            assert kept.tolist() == [
                i for i, (question, answer) in enumerate(pairs) if first[question] == answer
            ]
            assert sum(skipped.values()) == 20 - len(kept)


def test_rows_survive_the_table_and_chunks_hold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    context = TaskContext(
        SidTable(CODES, SIZES), sid_format("letters"), wording("sentence"), plain_texts(TITLES)
    )
    examples = [
        history_to_sid(
            context,
            key=key,
            history=list(range(key % 5 + 1)),
            target=key % 12,
            user_id=None if key % 2 else key,
        )
        for key in range(25)
    ]
    assert [from_row(row) for row in to_table(examples).to_pylist()] == examples
    monkeypatch.setattr("preprocess.examples.rows.CHUNK", 10)
    parts = list(tables(iter(examples)))
    assert [len(part) for part in parts] == [10, 10, 5]
    assert [from_row(row) for part in parts for row in part.to_pylist()] == examples


def test_schema_on_disk_is_the_contract(store: Path) -> None:
    schema = pq.read_schema(store / "examples" / "default" / "train.parquet")
    expected = artifacts.EXAMPLES.required | {"user_id": pa.int32()}
    assert {field.name: field.type for field in schema} == expected
    assert (
        json.loads((store / "examples" / "default" / "manifest.json").read_text())["stage"]
        == "build_examples"
    )
