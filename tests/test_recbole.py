"""RecBole's atomic files: our splits go out and come back equal, its top-k becomes predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data import artifacts
from data.releases import atomic
from tests import publishers
from tests.handmade import call
from tests.test_prepare import config, dump


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """data/ (several valid and test rows of a user) and its export."""
    root = tmp_path_factory.mktemp("recbole")
    call(
        "data.prepare",
        "--config",
        config(root / "c.yaml"),
        "--raw",
        dump(root / "raw"),
        "--output_dir",
        root / "data",
    )
    call(
        "data.export",
        "--to",
        "recbole",
        "--data",
        root / "data",
        "--name",
        "shop",
        "--output_dir",
        root / "export",
    )
    return root


def rows(directory: Path) -> list[tuple[Any, ...]]:
    table = artifacts.read_sequences(directory)
    return list(
        zip(*(table[name].to_pylist() for name in ("user_id", "history", "target", "split")), strict=True)
    )


def test_windows_go_out_and_come_back_equal(made, tmp_path):
    call("data.prepare", "--adapter", "recbole", "--recbole.name", "shop", "--raw", made / "export/shop", "--output_dir",
         tmp_path / "back", "--filters.user_k", 0, "--filters.item_k", 0, "--split.kind", "published")  # fmt: skip
    first, again = (artifacts.read_items(path) for path in (made / "data", tmp_path / "back"))
    for name in ("title", "brand", "categories"):
        assert again[name].to_pylist() == first[name].to_pylist(), name
    assert again["source_id"].to_pylist() == first["raw_id"].to_pylist()
    users = [int(name) for name in artifacts.read(tmp_path / "back", artifacts.USERS)["raw_id"].to_pylist()]
    back = [(users[user], *rest) for user, *rest in rows(tmp_path / "back")]
    assert back == rows(made / "data"), "the same windows in the same order, repeats included"


def test_histories_are_cut_to_the_newest(made, tmp_path):
    call(
        "data.export",
        "--to",
        "recbole",
        "--data",
        made / "data",
        "--max_history",
        2,
        "--output_dir",
        tmp_path / "cut",
    )
    text = (tmp_path / "cut/dataset/dataset.test.inter").read_text().splitlines()
    test = [row for row in rows(made / "data") if row[3] == "test"]
    assert [line.split("\t")[1] for line in text[1:]] == [" ".join(map(str, row[1][-2:])) for row in test]
    assert "MAX_ITEM_LIST_LENGTH: 2" in (tmp_path / "cut/dataset.yaml").read_text()
    compile((tmp_path / "cut/topk.py").read_text(), "topk.py", "exec")


def answers(made: Path, path: Path, changed: dict[int, str | None] | None = None) -> list[int]:
    """A top-k file in which the target of row n stands at place n % 4 + 1, with one mention too much; example ids."""
    table = pq.read_table(made / "data/sequences.parquet").to_pylist()
    table = [row for row in table if row["split"] == "test"]
    lines = ["item_id_list:token_seq\texample_id:token"]
    for at, row in enumerate(table):
        others = [item for item in range(5) if item != row["target"]]
        items = [*others[: at % 4], row["target"], row["target"], *others[at % 4 :]]
        line = f"{' '.join(map(str, items))}\t{row['example_id']}"
        line = (changed or {}).get(at, line)
        lines += [line] if line is not None else []
    publishers.write(path, "\n".join(lines) + "\n")
    return [row["example_id"] for row in table]


def test_a_top_k_file_is_scored(made, tmp_path):
    examples = answers(made, tmp_path / "topk.test.inter")
    call("infer.import_predictions", "--files", f"[{tmp_path}/topk.test.inter]", "--data", made / "data", "--output_dir",
         tmp_path / "eval/sasrec.test")  # fmt: skip
    call(
        "infer.evaluate",
        "--predictions",
        tmp_path / "eval/sasrec.test",
        "--data",
        made / "data",
        "--resamples",
        10,
    )
    metrics = json.loads((tmp_path / "eval/sasrec.test/metrics/metrics.json").read_text())
    places = [at % 4 + 1 for at in range(len(examples))]
    assert metrics["item_level/hr@1"]["value"] == pytest.approx(
        sum(p == 1 for p in places) / len(places), abs=1e-5
    )
    assert metrics["item_level/hr@3"]["value"] == pytest.approx(
        sum(p <= 3 for p in places) / len(places), abs=1e-5
    )
    manifest = json.loads((tmp_path / "eval/sasrec.test/manifest.json").read_text())
    assert manifest["facts"]["duplicates_dropped"] == len(examples) and manifest["facts"]["model"] == "sasrec"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: None}, "1 of .* examples have no answer"),
        ({0: "1 2\t99999"}, "example 99999 is not of this split"),
        ({1: "1 x\t5"}, "is no example and its items"),
        ({1: "\t5"}, "has no answer"),
        ({1: "999\tSAME"}, "names item 999"),
    ],
)
def test_top_k_files_that_do_not_fit_are_refused(made, tmp_path, changed, message):
    examples = answers(made, tmp_path / "t.inter")
    changed = {at: line and line.replace("SAME", str(examples[at])) for at, line in changed.items()}
    answers(made, tmp_path / "t.inter", changed)
    base = ["infer.import_predictions", "--data", made / "data", "--output_dir", tmp_path / "out"]
    with pytest.raises(InputError, match=message):
        call(*base, "--files", f"[{tmp_path}/t.inter]")
    assert not (tmp_path / "out/manifest.json").exists()


def test_flags_that_do_not_go_together(made, tmp_path):
    base = ["infer.import_predictions", "--data", "d", "--output_dir", "o"]
    for more, message in (
        (["--files", "[a.inter]", "--sids", "s"], "leave sids out"),
        (["--files", "[a.json]"], "name the SID directory"),
        (["--files", "[a.json, b.inter]", "--sids", "s"], "one system at a time"),
    ):
        with pytest.raises(InputError, match=message):
            call(*base, *more)
    base = ["data.export", "--data", "d", "--output_dir", "o"]
    for more, message in (
        (["--to", "recbole", "--sids", "s"], "leave sids out"),
        (["--to", "minionerec"], "name the SID directory"),
        (["--to", "recbole", "--deduplicate", "true"], "deduplicate compares semantic IDs"),
        (["--to", "recbole", "--max_history", "0"], "max_history 0"),
    ):
        with pytest.raises(InputError, match=message):
            call(*base, *more)


def test_a_log_without_a_split_and_a_split_of_single_rows(tmp_path):
    fields = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    log = [(f"u{n % 3}", f"i{n % 5}", 1 + n % 5, 10**9 + n * 7 % 40) for n in range(30)]
    publishers.write(tmp_path / "raw/shop.inter", atomic.table_text(fields, log))
    publishers.write(
        tmp_path / "raw/shop.item.gz",
        atomic.table_text(["item_id:token", "class:token_seq"], [("i0", "a b")]),
    )
    keep = ["--filters.user_k", 0, "--filters.item_k", 0]
    call("data.prepare", "--adapter", "recbole", "--raw", tmp_path / "raw", "--output_dir", tmp_path / "a", *keep,
         "--split.kind", "leave_one_out")  # fmt: skip
    table = pq.read_table(tmp_path / "a/interactions.parquet").to_pylist()
    items = artifacts.read_items(tmp_path / "a")
    assert items["raw_id"].to_pylist() == ["i0", "i1", "i2", "i3", "i4"] and items["categories"][
        0
    ].as_py() == ["a", "b"]
    expected = [
        (n, t)
        for u in ("u0", "u1", "u2")
        for name, n, _, t in sorted(log, key=lambda row: row[3])
        if name == u
    ]
    assert [(f"i{row['item_id']}", row["timestamp"]) for row in table] == expected
    for split in ("train", "valid", "test"):
        part = (
            [row for at, row in enumerate(log) if at < 24]
            if split == "train"
            else log[24:27]
            if split == "valid"
            else log[27:]
        )
        untimed = [row[:2] for row in part]
        publishers.write(tmp_path / f"split/shop.{split}.inter", atomic.table_text(fields[:2], untimed))
    call("data.prepare", "--adapter", "recbole", "--raw", tmp_path / "split", "--output_dir", tmp_path / "b", *keep,
         "--split.kind", "published")  # fmt: skip
    assert json.loads((tmp_path / "b/funnel.json").read_text())["windows"] == {
        "train": 21,
        "valid": 3,
        "test": 3,
    }
    with pytest.raises(InputError, match=r"no none.inter \(or .gz\) in .*data sets there: shop"):
        call("data.prepare", "--adapter", "recbole", "--recbole.name", "none", "--raw", tmp_path / "split", "--output_dir", tmp_path / "c")  # fmt: skip
    publishers.write(tmp_path / "bad/x.inter", "user_id\titem_id\n1\t2\n")
    with pytest.raises(InputError, match="column 'user_id' has no type"):
        call(
            "data.prepare", "--adapter", "recbole", "--raw", tmp_path / "bad", "--output_dir", tmp_path / "d"
        )


def test_every_file_may_be_gzipped_and_a_plain_one_comes_first(tmp_path):
    fields = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    log = [(f"u{n % 3}", f"i{n % 5}", 1 + n % 5, 10**9 + n) for n in range(30)]
    texts = {
        "inter": atomic.table_text(fields, log),
        "item": atomic.table_text(["item_id:token", "title:token_seq"], [("i0", "a b")]),
        "user": atomic.table_text(["user_id:token", "age:token"], [("u1", "7")]),
    }
    for kind, text in texts.items():
        publishers.write(tmp_path / f"plain/shop.{kind}", text)
        publishers.write(tmp_path / f"packed/shop.{kind}.gz", text)
        publishers.write(tmp_path / f"both/shop.{kind}", text)
    publishers.write(tmp_path / "both/shop.inter.gz", "old")
    for folder in ("plain", "packed", "both"):
        call("data.prepare", "--adapter", "recbole", "--raw", tmp_path / folder, "--output_dir", tmp_path / f"d/{folder}",
             "--filters.user_k", 0, "--filters.item_k", 0, "--split.kind", "leave_one_out")  # fmt: skip
    for name in ("items", "interactions", "sequences", "users"):
        first, *others = (
            pq.read_table(tmp_path / f"d/{folder}/{name}.parquet") for folder in ("plain", "packed", "both")
        )
        assert all(other.equals(first) for other in others), name
