"""NaviGen's tables: written by data.export, read back by stage 01, equal; values in every shape; faulty ones named."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data import artifacts
from data.predictions import read_predictions, write_predictions
from data.releases import navigen
from data.rows import read_rows
from data.sid import read_sids
from data.store.output import open_output
from data.tids import read_tids
from generation import requests
from tests.handmade import Made, call, refuse, write_sids, write_taught, write_tids
from tests.test_prepare import config, dump
from tests.test_releases import PUBLISHED


def cid(*codes: int) -> str:
    return navigen.CID.text(codes)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """data/ with SIDs, TIDs (item 2 has none), thoughts and instructions, and navigen/, its export with predictions."""
    root = tmp_path_factory.mktemp("navigen")
    recipe = config(root / "c.yaml", amazon={"reviews": ["Store.json*"], "metadata": ["meta_Store.json*"]})
    call("data.prepare", "--config", recipe, "--raw", dump(root / "raw"), "--output_dir", root / "data")
    count = len(artifacts.read_items(root / "data"))
    codes = np.stack(np.unravel_index(np.random.default_rng(0).permutation(216)[:count], (6, 6, 6)), axis=1)
    sids = write_sids(root / "data/sids/x", data=root / "data", codes=codes.astype(np.int32), sizes=(6, 6, 6))
    terms = [() if item == 2 else ("bolt", f"écrou {item}") for item in range(count)]
    write_tids(root / "data/tids/x", data=root / "data", terms=terms)
    keys = artifacts.read_sequences(root / "data")["example_id"].to_pylist()
    texts = {
        "identifier": {key: f"I saw [[item:0]] before row {key}." for key in keys[::2]},
        "instruction": {key: f"A studio shot, {key}." for key in keys[::3]},
        "reasoning": {key: f"I would draw row {key}." for key in keys[::6]},
    }
    for kind, some in texts.items():
        write_taught(root / f"data/reasoning/{kind}", data=root / "data", kind=kind, texts=some)
    rows = read_rows(root / "data", "test", num_items=count)
    with open_output(Made(), "recommend", version=1, inputs={}, directory=root / "eval") as out:
        best = np.argsort(codes[:, 0], kind="stable")[:3]
        table = {
            "example_id": pa.array(np.repeat(rows.example_ids_R, 3), pa.int64()),
            "rank": pa.array([1.0, 2.0, 3.0] * len(rows), pa.float32()),
            "codes": artifacts.int_rows(np.tile(codes[best], (len(rows), 1)).astype(np.int32)),
            "item_ids": artifacts.int_rows(np.tile(best, len(rows)).reshape(-1, 1).astype(np.int32)),
            "score": pa.array([-1.0, -2.0, -3.0] * len(rows), pa.float32()),
        }
        write_predictions(out, pa.table(table))
        out.facts["sids_sha256"] = read_sids(sids).sha256
    call("data.export", "--to", "navigen", "--data", root / "data", "--sids", sids, "--tids", root / "data/tids/x", "--name", "games",
         "--reasoning", json.dumps([str(root / f"data/reasoning/{kind}") for kind in texts]), "--predictions", root / "eval",
         "--output_dir", root / "navigen")  # fmt: skip
    return root


@pytest.fixture(scope="module")
def back(made) -> Path:
    """The export, prepared again."""
    call(
        "data.prepare",
        "--adapter",
        "navigen",
        *PUBLISHED,
        "--raw",
        made / "navigen",
        "--output_dir",
        made / "back",
    )
    return made / "back"


def test_worked_examples_of_the_docstrings():
    assert doctest.testmod(navigen).failed == 0 and doctest.testmod(navigen).attempted


def test_an_export_comes_back_equal(made, back, tmp_path):
    names = {path.stem for path in (made / "navigen").glob("*.parquet")}
    assert names == {"pid2cid2tid"} | {
        f"{s}_{kind}" for s in artifacts.SPLITS for kind in (*navigen.KINDS, "tid2tid")
    }
    items, again = (artifacts.read_items(path) for path in (made / "data", back))
    assert again["raw_id"].equals(items["raw_id"])
    assert again["title"].to_pylist()[:3] == ["bolt, écrou 0", "bolt, écrou 1", ""]
    users = [artifacts.read(path, artifacts.USERS)["raw_id"].to_pylist() for path in (made / "data", back)]
    rows = [artifacts.read_sequences(path) for path in (made / "data", back)]
    for name in ("history", "target", "split"):
        assert rows[1][name].to_pylist() == rows[0][name].to_pylist(), name
    told = [[own[u] for u in table["user_id"].to_pylist()] for own, table in zip(users, rows, strict=True)]
    assert told[0] == told[1]
    source = ["--source", made / "navigen/pid2cid2tid.parquet"]
    call("rq.import_sids", *source, "--data", back, "--output_dir", tmp_path / "s")
    assert np.array_equal(read_sids(tmp_path / "s").codes_NL, read_sids(made / "data/sids/x").codes_NL)
    given = ["--data", back, "--given", made / "navigen/pid2cid2tid.parquet"]
    call("preprocess.generate_tids", *given, "--output_dir", tmp_path / "t")
    found, first = read_tids(tmp_path / "t"), read_tids(made / "data/tids/x")
    assert found.terms == first.terms and found.sources[1:4] == ["given", "unusable", "given"]
    assert "given TIDs are taken as they are" in refuse(
        "preprocess.generate_tids", *given, "--fallback", "keywords", "--output_dir", tmp_path / "no"
    )


def test_what_a_teacher_wrote_stands_beside_its_row(made):
    rows = artifacts.read_sequences(made / "data").to_pylist()
    cids = pq.read_table(made / "navigen/pid2cid2tid.parquet")["sid"].to_pylist()
    for split in artifacts.SPLITS:
        mine = [row for row in rows if row["split"] == split]
        next_item, written = (
            pq.read_table(made / f"navigen/{split}_{kind}.parquet").to_pylist()
            for kind in ("cid2cid", "cid2ins")
        )
        for row, told in zip(mine, next_item, strict=True):
            assert (
                told["hist_sid"] == [cids[item] for item in row["history"]]
                and told["target_sid"] == cids[row["target"]]
            )
            assert told["source_dataset"] == f"games_{split}_cid2cid"
            place = rows.index(row)
            thought = f"I saw {cids[0]} before row {row['example_id']}."
            assert told["reasoning"] == (None if place % 2 else thought)
        termed = [row for row in mine if 2 not in (*row["history"], row["target"])]
        assert [
            (told["hist_tid"], told["target_tid"])
            for told in pq.read_table(made / f"navigen/{split}_tid2tid.parquet").to_pylist()
        ] == [
            ([["bolt", f"écrou {item}"] for item in row["history"]], ["bolt", f"écrou {row['target']}"])
            for row in termed
        ]
        assert 0 < len(termed) < len(mine) or split != "train"
        taught = [row for row in mine if rows.index(row) % 3 == 0 and row["target"] != 2]
        assert [told["target_ins"] for told in written] == [
            f"A studio shot, {row['example_id']}." for row in taught
        ]
        assert all(
            told["target_tid"] == ["bolt", f"écrou {row['target']}"]
            for told, row in zip(written, taught, strict=True)
        )
        assert {told["target_type"] for told in written} <= {"image"}
    mapped = [
        pq.read_table(made / f"navigen/{split}_cid2tid.parquet")["sid"].to_pylist()
        for split in artifacts.SPLITS
    ]
    assert sorted(sum(mapped, [])) == sorted(set(cids) - {cids[2]}), "every item with a TID, once"


def test_texts_come_back_with_their_rows_and_go_out_again(made, back, tmp_path):
    """As columns of sequences, items as placeholders, and as parts of examples where the data set is named as their directory."""
    rows, first = (artifacts.read_sequences(path).to_pylist() for path in (back, made / "data"))
    keys = [row["example_id"] for row in first]
    for name, step, text in (
        ("reasoning", 2, "I saw [[item:0]] before row {}."), ("instruction", 3, "A studio shot, {}."),
        ("instruction_reasoning", 6, "I would draw row {}."),
    ):  # fmt: skip
        there = {at for at in range(0, len(rows), step) if name == "reasoning" or rows[at]["target"] != 2}
        assert [row[name] for row in rows] == [
            text.format(k) if at in there else "" for at, k in enumerate(keys)
        ]
    flags = ["--to", "navigen", "--data", back, "--name", "games", "--output_dir", tmp_path / "again"]
    codes = read_sids(made / "data/sids/x").codes_NL
    sids = write_sids(tmp_path / "s", data=back, codes=codes, sizes=(6, 6, 6))
    tids = write_tids(tmp_path / "t", data=back, terms=read_tids(made / "data/tids/x").terms)
    call("data.export", *flags, "--sids", sids, "--tids", tids, "--reasoning", json.dumps([str(back)]))
    for path in (made / "navigen").glob("*.parquet"):
        assert pq.read_table(tmp_path / "again" / path.name).equals(pq.read_table(path)), path.name
    call("preprocess.build_examples", "--data", back, "--sids", sids, "--tids", tids, "--reasoning", json.dumps([str(back)]),
         "--format", "navigen", "--tasks", "[history_to_sid, history_to_instruction]", "--output_dir", tmp_path / "e")  # fmt: skip
    answers = pq.read_table(tmp_path / "e/train.parquet", columns=["task", "answer"]).to_pylist()
    told = [row["answer"] for row in answers if row["task"] == "history_to_instruction"]
    assert told and all(answer["text"].startswith("A studio shot, ") for answer in told)
    assert {answer["reasoning"] is None for answer in told} == {True, False}
    thoughts = [row["answer"]["reasoning"] for row in answers if row["task"] == "history_to_sid"]
    assert f"I saw {cid(*codes[0].tolist())} before row {keys[0]}." in thoughts


def test_texts_of_a_strange_row_are_counted_and_of_equal_ones_taken_in_order(tmp_path):
    a, b, c = cid(1, 2, 3), cid(4, 5, 6), cid(7, 8, 9)
    folder = tables(
        tmp_path,
        pid2cid2tid={"pid": ["1", "2", "3"], "sid": [a, b, c], "tid": [["nut"], ["bolt"], None]},
        test_cid2cid={
            "uid": ["u", "u", "u", "v"], "hist_sid": [[a], [a], [a], [a]], "target_sid": [a, b, a, c],
            "reasoning": [None, f"after {a} and {cid(9, 9, 9)}", " ", "[[item:1]]"],
        },
        test_cid2ins={
            "uid": ["u", "u", "v", "w", "u"], "hist_sid": [[a]] * 5, "target_tid": [["nut"], ["Bolt"], ["x"], ["nut"], ["glue"]],
            "target_ins": ["first", f"like {b}", "untold terms", "nobody's", "no such target"],
        },
    )  # fmt: skip
    found = navigen.read_folder(folder)
    assert found.rows.texts == {
        "reasoning": ["", f"after [[item:0]] and {cid(9, 9, 9)}", "", "[[\\item:1]]"],
        "instruction": ["first", "like [[item:1]]", "", "untold terms"],
    }
    assert found.unknown["texts_of_unknown_rows"] == 2 and found.unknown["semantic_ids_of_no_item"] == 1


def write_instructed(directory: Path, made: Path, rows: list[dict], told: list[tuple]) -> None:
    """A directory of infer.instruct: of every row of sequences (status, terms, instruction, answer, thought)."""
    schema = artifacts.INSTRUCTIONS
    types = schema.required | schema.optional
    columns = {"example_id": [row["example_id"] for row in rows], "user_id": [row["user_id"] for row in rows]}
    columns |= {
        "target_item": [row["target"] for row in rows],
        "constrained": [False] * 4,
        "item_ids": [[]] * 4,
    }
    columns |= dict(
        zip(
            ("status", "terms", "instruction", "answer", "thought"),
            map(list, zip(*told, strict=True)),
            strict=True,
        )
    )
    columns |= {"forced_close": [False] * 4}
    with open_output(
        Made(), "instruct", version=1, inputs={"data": made / "data"}, directory=directory
    ) as out:
        out.write_table(schema.file, pa.table({n: pa.array(v, types[n]) for n, v in columns.items()}))
        out.facts |= {"split": "test", "mode": "two_stage", "constrained": False, "model": "m"}
        out.facts["sids_sha256"] = read_sids(made / "data/sids/x").sha256


def test_instructions_as_json_lines_are_read_by_the_stage_of_pictures(made, tmp_path):
    """Strict, cut, repaired and unreadable answers, thoughts, a row without a teacher's text."""
    rows = [row for row in artifacts.read_sequences(made / "data").to_pylist() if row["split"] == "test"]
    rows = list({row["user_id"]: row for row in reversed(rows)}.values())[::-1][
        :4
    ]  # the media stage wants a user once
    broken = '{"target_tid":["bolt"],"target_ins":"A cut'
    told = [
        ("ok", ["bolt"], 'A "nut".', '{"target_tid":["bolt"],"target_ins":"A \\"nut\\"."}', "I saw a bolt."),
        ("cut", ["bolt"], "A", '{"target_tid":["bolt"],"target_ins":"A"}', ""),
        ("repaired", ["bolt"], "A cut", broken, ""),
        ("unreadable", [], "", "no", ""),
    ]
    write_instructed(tmp_path / "i", made, rows, told)
    taught = json.dumps([str(made / "data/reasoning/instruction")])
    call("data.export", "--to", "navigen", "--data", made / "data", "--sids", made / "data/sids/x", "--tids", made / "data/tids/x",
         "--name", "games", "--reasoning", taught, "--instructions", tmp_path / "i", "--output_dir", tmp_path / "o")  # fmt: skip
    path = tmp_path / "o/hist_cid2ins_predictions.games_test_cid2ins.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["parse_error"] for line in lines] == [None, None, "repaired", "unreadable"]
    assert lines[0]["raw_completion_text"] == f"<think>\nI saw a bolt.\n</think>\n\n{told[0][3]}"
    assert (
        lines[0]["parsed_json"]
        == lines[0]["prediction"]
        == {"target_tid": ["bolt"], "target_ins": 'A "nut".'}
    )
    assert lines[2]["parsed_json"] is None and lines[2]["prediction"]["target_ins"] == "A cut"
    gold = pq.read_table(tmp_path / "o/test_cid2ins.parquet").to_pylist()
    for line in lines:
        if line["row_idx"] is None:
            assert line["label"]["target_ins"] is None
        else:
            row = gold[line["row_idx"]]
            assert (row["uid"], row["target_ins"], row["hist_sid"]) == (
                line["source_row"]["uid"], line["label"]["target_ins"], line["source_row"]["hist_sid"],
            )  # fmt: skip
    assert {line["row_idx"] is None for line in lines} == {True, False}
    read = requests.read_requests(
        requests.RequestSettings(),
        kind="image",
        instructions=None,
        examples=None,
        prompts=str(path),
        dataset="x",
    )
    assert [one.prompt for one in read] == ['A "nut".', "A", "A cut", ""] and read[0].terms == ("bolt",)
    assert [one.ground_truth for one in read] == [line["label"]["target_ins"] for line in lines]
    assert read[0].dataset == "games_test_cid2cid"
    assert "instructions belong to --to navigen" in refuse(
        "data.export", "--to", "d3", "--data", made / "data", "--sids", made / "data/sids/x", "--instructions", tmp_path / "i",
        "--output_dir", tmp_path / "no",
    )  # fmt: skip


def test_texts_of_other_rows_stand_beside_none(made, tmp_path):
    """Those of a foreign file have no target, and keys that are by chance those of rows here."""
    keys = artifacts.read_sequences(made / "data")["example_id"].to_pylist()
    foreign = write_taught(tmp_path / "foreign", data=made / "data", kind="identifier", texts=dict.fromkeys(keys, "Not yours."), target=None)  # fmt: skip
    flags = ["--to", "navigen", "--data", made / "data", "--sids", made / "data/sids/x", "--tids", made / "data/tids/x"]  # fmt: skip
    call("data.export", *flags, "--reasoning", json.dumps([str(foreign)]), "--output_dir", tmp_path / "out")
    told = pq.read_table(tmp_path / "out/train_cid2cid.parquet")["reasoning"]
    assert told.null_count == len(told) > 0


def test_predictions_as_their_json_lines_come_back(made, tmp_path):
    path = made / "navigen/hist_cid2cid_predictions.games_test_cid2cid.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row_idx"] for line in lines] == list(range(len(lines))) and lines[0]["num_candidates"] == 3
    assert (
        json.loads(lines[0]["candidates"][0]["raw_text"])["target_cid"]
        == lines[0]["candidate_target_cids"][0]
    )
    call("infer.import_predictions", "--files", json.dumps([str(path)]), "--data", made / "data", "--sids", made / "data/sids/x",
         "--sid_format", "navigen", "--output_dir", tmp_path / "p")  # fmt: skip
    ours, theirs = (read_predictions(path)[0] for path in (made / "eval", tmp_path / "p"))
    assert np.array_equal(ours.items_M, theirs.items_M) and np.array_equal(
        ours.example_ids_R, theirs.example_ids_R
    )


def tables(folder: Path, **columns: dict) -> Path:
    for name, values in columns.items():
        folder.mkdir(exist_ok=True, parents=True)
        pq.write_table(pa.table(values), folder / f"{name}.parquet")
    return folder


def test_values_of_every_shape_ids_that_are_no_asins_and_shared_cids(tmp_path):
    a, b = cid(1, 2, 3), cid(4, 5, 6)
    folder = tables(
        tmp_path / "raw",
        pid2cid2tid={
            "pid": ["p-1", "a b", "Z", "p-1"],
            "sid": [[a], [b], [b], [a]],
            "tid": [["nut"], ["bolt", "m8"], None, ["nut"]],
        },
        train_cid2cid={"hist_sid": [f'["{a}", "{b}"]', f"'{b}','{a}'"], "target_sid": [[b], [a, b]]},
        test_cid2cid={"hist_sid": [[b, a]], "target_sid": [a]},
    )
    found = navigen.read_folder(folder)
    assert [(item.raw_id, item.title) for item in found.items] == [
        ("p-1", "nut"),
        ("a b", "bolt, m8"),
        ("Z", ""),
    ]
    assert found.rows.histories == [[0, 1], [1, 0], [1, 0]] and found.rows.targets == [1, 0, 0]
    assert not found.has_users and found.unknown == {
        "rows_without_user": 3, "rows_of_one_item_twice": 1, "items_sharing_a_cid": 2, "ambiguous_mentions": 4, "items_without_tid": 1,
        "texts_of_unknown_rows": 0, "semantic_ids_of_no_item": 0,
    }  # fmt: skip
    (folder / "pid2cid2tid.parquet").unlink()
    assert [item.raw_id for item in navigen.read_folder(folder).items] == [a, b], (
        "without a catalogue a CID an item"
    )
    call(
        "data.prepare", "--adapter", "navigen", *PUBLISHED, "--raw", folder, "--output_dir", tmp_path / "out"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("<|cid_begin|><s_a_1><s_c_2><s_b_3><|cid_end|>", "row 1: hist_sid is"),
        ("<|cid_begin|><s_a_1><s_b_2><|cid_end|>", "row 1: hist_sid is"),
        ("<s_a_1><s_b_2><s_c_3>", "row 1: hist_sid is"),
        (cid(1, 2, 3) + " and more", "row 1: hist_sid is"),
        (cid(9, 9, 9), "row 1: hist_sid names .* no item"),
    ],
)
def test_a_malformed_or_foreign_cid_is_named_with_file_and_row(tmp_path, value, said):
    good = cid(1, 2, 3)
    catalogue = {"pid": ["1"], "sid": [good]}
    rows = {"uid": ["u", "v"], "hist_sid": [[good], [good, value]], "target_sid": [good, good]}
    folder = tables(tmp_path / "raw", pid2cid2tid=catalogue, valid_cid2cid=rows)
    with pytest.raises(InputError, match=rf"valid_cid2cid.parquet: {said}"):
        navigen.read_folder(folder)
    error = refuse(
        "data.prepare", "--adapter", "navigen", *PUBLISHED, "--raw", folder, "--output_dir", tmp_path / "out"
    )
    assert "valid_cid2cid.parquet: row 1" in error and not (tmp_path / "out").exists()


def test_missing_columns_and_wrong_options(made, tmp_path):
    folder = tables(tmp_path / "raw", test_cid2cid={"hist_sid": [[cid(1, 2, 3)]]})
    with pytest.raises(InputError, match="test_cid2cid.parquet has no column target_sid"):
        navigen.read_folder(folder)
    tables(
        folder,
        test_cid2cid={"hist_sid": [[cid(1, 2, 3)]], "target_sid": pa.array([[]], pa.list_(pa.string()))},
    )
    with pytest.raises(InputError, match="row 0: target_sid is empty"):
        navigen.read_folder(folder)
    with pytest.raises(InputError, match="no rows"):
        navigen.read_folder(tables(tmp_path / "other", test_cid2ins={"hist_sid": [[cid(1, 2, 3)]]}))
    arguments = ["--data", made / "data", "--sids", made / "data/sids/x", "--output_dir", tmp_path / "no"]
    assert "tids for navigen" in refuse("data.export", "--to", "navigen", *arguments)
    assert "belong to --to navigen" in refuse(
        "data.export", "--to", "d3", *arguments, "--predictions", made / "eval"
    )
