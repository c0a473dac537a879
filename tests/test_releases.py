"""Folders of MiniOneRec and MIMIGenRec: written by data.export, read back by stage 01, equal; what is lost is counted."""

from __future__ import annotations

import ast
import csv
import doctest
import gzip
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from configs.program import ROOT, InputError
from data import artifacts
from data.adapters import releases
from data.adapters.options import MiniOneRecOptions
from data.releases import d3, minionerec, records
from data.releases import text as texts_of_others
from data.sid import read_sids
from infer.tracing.raw_lines import find_raw_lines
from tests.handmade import call, write_sids
from tests.test_prepare import config, dump

REAL = Path(os.environ.get("REAL_DATA", "missing"))
PUBLISHED = ["--filters.user_k", 0, "--filters.item_k", 0, "--split.kind", "published"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """data/ with items of one SID each but two that share theirs, and an export to both systems."""
    root = tmp_path_factory.mktemp("releases")
    recipe = config(root / "c.yaml", amazon={"reviews": ["Store.json*"], "metadata": ["meta_Store.json*"]})
    call("data.prepare", "--config", recipe, "--raw", dump(root / "raw"), "--output_dir", root / "data")
    count = len(artifacts.read_items(root / "data"))
    codes = np.stack(np.unravel_index(np.random.default_rng(0).permutation(216)[:count], (6, 6, 6)), axis=1)
    codes[1] = codes[0]
    write_sids(root / "data/sids/x", data=root / "data", codes=codes.astype(np.int32), sizes=(6, 6, 6))
    for system in ("minionerec", "mimigenrec"):
        call("data.export", "--to", system, "--data", root / "data", "--sids", root / "data/sids/x", "--name", "Shop",
             "--output_dir", root / system)  # fmt: skip
    return root


def read_back(made: Path, system: str, output: Path) -> Path:
    call("data.prepare", "--adapter", system, *PUBLISHED, "--raw", made / system, "--output_dir", output)
    return output


def test_worked_examples_of_the_docstrings():
    assert doctest.testmod(releases).failed == doctest.testmod(texts_of_others).failed == 0


def test_a_minionerec_folder_comes_back_equal(made, tmp_path, capsys):
    names = {
        str(path.relative_to(made / "minionerec"))
        for path in (made / "minionerec").rglob("*")
        if path.is_file()
    }
    splits = {f"Shop.{split}.inter" for split in artifacts.SPLITS} | {
        f"{s}/Shop.csv" for s in artifacts.SPLITS
    }
    tables = {f"Shop.{kind}" for kind in ("item.json", "inter.json", "user2id", "item2id", "index.json")}
    assert names - {"manifest.json", "log.txt"} == splits | tables | {"info/Shop.txt"}
    back = read_back(made, "minionerec", tmp_path / "back")
    first, again = (artifacts.read_items(path) for path in (made / "data", back))
    assert again["source_id"].equals(first["raw_id"])
    for name in ("title", "description", "categories", "brand"):
        assert again[name].equals(first[name]), name
    before, after = (artifacts.read_sequences(path) for path in (made / "data", back))
    users = artifacts.read(made / "data", artifacts.USERS)["raw_id"].to_pylist()
    named = artifacts.read(back, artifacts.USERS)["raw_id"].to_pylist()
    assert [users[u] for u in before["user_id"].to_pylist()] == [
        named[u] for u in after["user_id"].to_pylist()
    ]
    for name in ("history", "target", "split"):
        assert after[name].to_pylist() == before[name].to_pylist(), name
    call(
        "rq.import_sids",
        "--source",
        made / "minionerec/Shop.index.json",
        "--data",
        back,
        "--output_dir",
        tmp_path / "s",
    )
    assert np.array_equal(read_sids(tmp_path / "s").codes_NL, read_sids(made / "data/sids/x").codes_NL)
    # every walk is the user's, as far as windows tell (a history holds at most four items here)
    log = artifacts.read(back, artifacts.INTERACTIONS).group_by("user_id").aggregate([("item_id", "list")])
    walks = {named[u]: items for u, items in zip(log["user_id"].to_pylist(), log["item_id_list"].to_pylist(), strict=True)}  # fmt: skip
    old = (
        artifacts.read(made / "data", artifacts.INTERACTIONS)
        .group_by("user_id")
        .aggregate([("item_id", "list")])
    )
    for user, items in zip(old["user_id"].to_pylist(), old["item_id_list"].to_pylist(), strict=True):
        assert len(items) == 1 or walks[users[user]] == items


def test_a_d3_folder_has_titles_ratings_and_times_and_comes_back(made, tmp_path):
    """Item numbers are shuffled by seed 42; every row of the CSV says what its user's interactions say."""
    assert doctest.testmod(d3).failed == 0
    arguments = ["--to", "d3", "--data", made / "data", "--sids", made / "data/sids/x", "--name", "Shop"]
    call("data.export", *arguments, "--output_dir", tmp_path / "d3")
    items = artifacts.read_items(made / "data")
    numbers = np.random.default_rng(42).permutation(len(items)).tolist()
    raw = dict(zip(numbers, items["raw_id"].to_pylist(), strict=True))
    titles = dict(zip(numbers, items["title"].to_pylist(), strict=True))
    info = [line.split("\t") for line in (tmp_path / "d3/info/Shop.txt").read_text().splitlines()]
    assert info == [[titles[number], str(number)] for number in range(len(items))]
    log = artifacts.read(made / "data", artifacts.INTERACTIONS).to_pylist()
    users = artifacts.read(made / "data", artifacts.USERS)["raw_id"].to_pylist()
    events = {
        (users[e["user_id"]], items["raw_id"][e["item_id"]].as_py(), e["rating"], e["timestamp"]) for e in log
    }
    with open(tmp_path / "d3/train/Shop.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and tuple(rows[0]) == d3.COLUMNS
    for row in rows:
        numbered = [*json.loads(row["history_item_id"]), int(row["item_id"])]
        assert [raw[number] for number in numbered] == [
            *ast.literal_eval(row["history_item_asin"]),
            row["item_asin"],
        ]
        assert [titles[number] for number in numbered] == [
            *ast.literal_eval(row["history_item_title"]),
            row["item_title"],
        ]
        told = [*json.loads(row["history_rating"]), float(row["rating"])]
        times = [*json.loads(row["history_timestamp"]), int(row["timestamp"])]
        for number, rating, time in zip(numbered, told, times, strict=True):
            assert (row["user_id"], raw[number], rating, time) in events

    call(
        "data.prepare",
        "--adapter",
        "minionerec",
        *PUBLISHED,
        "--raw",
        tmp_path / "d3",
        "--output_dir",
        tmp_path / "back",
    )
    named = [
        artifacts.read_items(path)[name].to_pylist()
        for path, name in ((made / "data", "raw_id"), (tmp_path / "back", "source_id"))
    ]
    before, after = (
        [
            ([ids[i] for i in row["history"]], ids[row["target"]], row["split"])
            for row in artifacts.read_sequences(path).to_pylist()
        ]
        for path, ids in zip((made / "data", tmp_path / "back"), named, strict=True)
    )
    assert before == after


def test_the_csv_columns_stay_aligned(made):
    items = artifacts.read_items(made / "data")["title"].to_pylist()
    with open(made / "minionerec/test/Shop.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and tuple(rows[0]) == minionerec.CSV_COLUMNS
    for row in rows:
        ids = json.loads(row["history_item_id"])
        assert [items[item] for item in ids] == ast.literal_eval(row["history_item_title"])
        assert len(ast.literal_eval(row["history_item_sid"])) == len(ids)
    hostile = ['tab\there "quoted"', "line\nend", "it's"]
    text = minionerec.csv_text([("A1", [0, 1], 2)], hostile, ["<a_0>", "<a_1>", "<a_2>"])
    (row,) = csv.DictReader(text.splitlines(keepends=True))
    assert ast.literal_eval(row["history_item_title"]) == hostile[:2] and row["item_title"] == hostile[2]


def test_a_mimigenrec_folder_comes_back_with_what_it_can_hold(made, tmp_path, capsys):
    back = read_back(made, "mimigenrec", tmp_path / "back")
    said = capsys.readouterr().out
    assert "rows name no user" in said and "2 items share their semantic ID" in said
    before, after = (artifacts.read_sequences(path) for path in (made / "data", back))
    codes = read_sids(made / "data/sids/x").codes_NL
    first = {tuple(row): item for item, row in reversed(list(enumerate(codes.tolist())))}
    same = [first[tuple(row)] for row in codes.tolist()]
    assert after["target"].to_pylist() == [same[item] for item in before["target"].to_pylist()]
    assert after["history"].to_pylist() == [[same[i] for i in h] for h in before["history"].to_pylist()]
    funnel = json.loads((back / "funnel.json").read_text())
    assert (funnel["rows_without_user"], funnel["items_sharing_a_sid"]) == (len(before), 2)
    titles = [artifacts.read_items(path)["title"].to_pylist() for path in (made / "data", back)]
    assert titles[0] == titles[1]
    folder = made / "mimigenrec/Shop"
    (folder / "item.json").rename(tmp_path / "item.json")
    try:  # without item.json the train split's own records give the titles
        read_back(made, "mimigenrec", tmp_path / "bare")
    finally:
        (tmp_path / "item.json").rename(folder / "item.json")
    told = artifacts.read_items(tmp_path / "bare")["title"].to_pylist()
    assert told[2:] == titles[0][2:] and told[0] == told[1] in titles[0][:2]


def test_records_by_hand():
    texts = records.Texts(["<a_0>", "<a_1>", "<a_2>"], ["Bolt", "ab", "Nut"], ["", "long", ""])
    rows = [([0], 2), ([0, 1], 2)]
    sft = records.sft_records(rows, "train", texts)
    assert [record["output"] for record in sft] == [
        "<a_2>",
        "<a_2>",
        "Bolt",
        "<a_0>",
        "Nut",
        "<a_2>",
        "Nut",
        "Nut",
    ]
    rl = records.rl_records(rows, "train", texts, source="Shop", seq_sample=5)
    # history of item 1 has no usable title; of item 1 only the description is asked for
    assert [r["extra_info"]["task"].split("_", 1)[0] for r in rl] == ["task1"] * 2 + ["task4"] + ["task5"] * 3
    assert [r["reward_model"]["ground_truth"] for r in rl] == ["<a_2>"] * 3 + ["<a_0>", "<a_1>", "<a_2>"]
    assert rl[1]["prompt"][1]["content"] == sft[1]["input"] and rl[4]["extra_info"]["index"] == 4
    assert {r["ability"] for r in rl} == {"seq_rec", "seq_title2sid", "title_desc2sid"}
    assert len(records.sft_records(rows, "train", texts, tasks=["fusion_seq"])) == 2
    assert len(records.rl_records(rows, "train", texts, source="", tasks=["histitle2sid"], seq_sample=0)) == 0
    assert records.rl_records(rows, "valid", texts, source="x")[0]["data_source"] == "x"


def test_options_of_the_export(made, tmp_path):
    base = ["--to", "minionerec", "--data", made / "data", "--sids", made / "data/sids/x"]
    flags = [
        "--max_test_samples",
        2,
        "--keep_longest_only",
        "true",
        "--csv_name",
        "Shop_5",
        "--deduplicate",
        "true",
    ]
    call("data.export", *base, *flags, "--output_dir", tmp_path / "out")
    rows = list(minionerec.read_csv_rows(tmp_path / "out/test/Shop_5.csv"))
    train = list(minionerec.read_csv_rows(tmp_path / "out/train/Shop_5.csv"))
    assert len(rows) == 2 and len({user for user, _, _ in train}) == len(train)
    facts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    before = artifacts.read_sequences(made / "data")["split"].to_pylist()
    assert facts["train_rows_left_out"] == before.count("train") - len(train) > 0
    shop = ["--to", "mimigenrec", *base[2:], "--name", "Shop", "--seq_sample", 5, "--data_source", "Store"]
    titled = {}
    for seed in (1, 2):
        flags = ["--tasks", '["histitle2sid"]', "--seed", seed, "--deduplicate", "true"]
        call("data.export", *shop, *flags, "--output_dir", tmp_path / f"m{seed}")
        found = json.loads((tmp_path / f"m{seed}/Shop/rl/train.json").read_text())
        assert len(found) == 5 and {record["data_source"] for record in found} == {"Store"}
        assert {record["extra_info"]["task"] for record in found} == {"task4_histitle2sid"}
        assert json.loads((tmp_path / f"m{seed}/Shop/sft/train.json").read_text()) == []
        titled[seed] = [record["prompt"][1]["content"] for record in found]
    assert titled[1] != titled[2], "another seed draws other rows"
    with pytest.raises(InputError, match="tasks .* -> some of sid_sft"):
        call("data.export", *base, "--tasks", '["x"]', "--output_dir", tmp_path / "no")


def test_damaged_folders_are_one_line(made, tmp_path):
    (tmp_path / "D.item.json").write_text('{"0": {"title": "x"}}')
    read = minionerec.read_folder
    with pytest.raises(InputError, match="has no rows"):
        read(tmp_path)
    for text, message in (
        ("user_id,item_id\n", "no column history_item_id"),
        ("user_id,history_item_id,item_id\nA1,[0],7\n", "target 7 is not in D.item.json"),
        ("user_id,history_item_id,item_id\nA1,__import__('os'),0\n", "row 0 is not user, history, item"),
    ):
        (tmp_path / "D.test.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            read(tmp_path)
    (tmp_path / "E.item.json").write_text("{}")
    with pytest.raises(InputError, match="2 files for item.json .* -> name the data set"):
        read(tmp_path)
    whole = gzip.compress(b'{"0": {"title": "x"}}')
    (tmp_path / "F.item.json.gz").write_bytes(whole[:-9])
    (tmp_path / "F.test.inter").write_text(f"{minionerec.INTER_HEADER}\n1\t0\t0\n")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path, "F")
    found = find_raw_lines(
        made / "minionerec", {"adapter": "minionerec", "minionerec": {}}, user="U1", items=["0"]
    )
    assert found.user and found.items[0].key == "0"
    assert releases.files(made / "minionerec", MiniOneRecOptions())[0].name == "Shop.item.json"


@pytest.mark.skipif(not REAL.is_dir(), reason="needs REAL_DATA")
def test_published_folders(tmp_path):
    """Sizes of the references' tables: minionerec.md 2, mimigenrec.md 2."""
    for folder, system in (("amazon18_industrial", "minionerec"), ("mimigenrec_industrial", "mimigenrec")):
        output = tmp_path / system
        raw = REAL / folder / "raw"
        call("data.prepare", "--adapter", system, *PUBLISHED, "--raw", raw, "--output_dir", output)
        splits = artifacts.read_sequences(output)["split"].to_pylist()
        assert (splits.count("valid"), splits.count("test")) == (4532, 4533)
        assert len(artifacts.read_items(output)) == 3686
    index = next((REAL / "amazon18_industrial/raw").glob("*.index.json.gz"))
    call(
        "rq.import_sids", "--source", index, "--data", tmp_path / "minionerec", "--output_dir", tmp_path / "s"
    )
    assert len(read_sids(tmp_path / "s").sids_SL) == 3670


def test_one_script_brings_rows_and_ids(made, tmp_path):
    variables = {
        "FROM": "mimigenrec",
        "RAW": made / "mimigenrec",
        "DATASET": "mimi",
        "DATA_ROOT": tmp_path,
        "QUIET": 1,
    }
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    command = ["bash", str(ROOT / "scripts/import_release.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert np.array_equal(
        read_sids(tmp_path / "mimi/sids/published").codes_NL, read_sids(made / "data/sids/x").codes_NL
    )


def test_the_templates_read_what_they_say(tmp_path, capsys):
    """Two csv files with the columns that the template names; a dump with its file names."""
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"p{n},Thing {n}\n" for n in range(6)))
    log = [f"u{user},p{(user + n) % 6},{1_500_000_000 + n}\n" for user in range(6) for n in range(5)]
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(log))
    template = ROOT / "configs/template_tables/prepare.yaml"
    call("data.validate", "--config", template, "--raw", tmp_path)
    call("data.prepare", "--config", template, "--raw", tmp_path, "--output_dir", tmp_path / "data")
    assert "6 items, 6 users, 30 interactions, 12 train, 6 valid, 6 test" in capsys.readouterr().out
    raw = tmp_path / "dump"
    dump(raw)
    (raw / "Store.json.gz").rename(raw / "Toys_and_Games_5.json.gz")
    (raw / "meta_Store.json").rename(raw / "meta_Toys_and_Games.json")
    amazon = ["--config", ROOT / "configs/template_amazon/prepare.yaml", "--raw", raw]
    call("data.validate", *amazon, "--filters.user_k", 3, "--filters.item_k", 2)
    assert "is fine" in capsys.readouterr().out
