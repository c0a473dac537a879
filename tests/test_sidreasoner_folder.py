"""A SIDReasoner folder: read by stage 01, written by data.export, equal; texts follow the items, not their semantic IDs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data import artifacts
from data.reasoning import escaped, placeholder
from data.releases import sidreasoner
from data.sid import FORMATS
from tests.handmade import call, resign, write_sids

CODES = [(0, 1, 2), (0, 1, 3), (4, 4, 4), (0, 1, 2), (5, 0, 1)]  # items 0 and 3 share theirs
NAMES = [FORMATS["letters"].text(codes) for codes in CODES]
PUBLISHED = ["--filters.user_k", 0, "--filters.item_k", 0, "--split.kind", "published"]
# user, history, target
TRAIN = [("A7", [0], 1), ("A7", [0, 1], 2), ("A8", [3], 1), ("A8", [3, 1], 4)]
LATER = {"valid": [("A7", [0, 1, 2], 3)], "test": [("A8", [3, 1, 4], 2)]}


def write_folder(root: Path, *, narrative: str = "", lines: list[tuple[str, str, str, str]] = ()) -> Path:
    """A published folder of five items: index/, splits, info; `lines` are (history SIDs, SID, narrative, reasoning)."""
    items = {
        str(at): {"title": f"Thing {at}", "description": "", "brand": "b", "categories": ""}
        for at in range(5)
    }
    (root / "index").mkdir(parents=True)
    (root / "index/Shop.item.json").write_text(json.dumps(items))
    index = {str(at): [f"<{level}_{code}>" for level, code in zip("abc", codes, strict=True)] for at, codes in enumerate(CODES)}  # fmt: skip
    (root / "index/Shop.index.json").write_text(json.dumps(index))
    enhanced = {key: dict(item) for key, item in items.items()}
    enhanced["3"]["llm_stage2"] = narrative
    enhanced["4"]["llm_stage2"] = f"{NAMES[4]} goes with {NAMES[1]}."
    (root / "index/Shop.item_enhanced_v2.json").write_text(json.dumps(enhanced))
    for split, rows in ({"train": TRAIN} | LATER).items():
        (root / split).mkdir()
        titles = [f"Thing {at}" for at in range(5)]
        (root / split / "Shop_5_2016-10-2018-11.csv").write_text(
            sidreasoner.minionerec.csv_text(rows, titles, NAMES)
        )
    with open(root / "index/Shop.integrated_narrative.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["history_item_sid", "item_sid", "integrated_narrative", "reasoning_path"])
        writer.writerows(lines)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """raw/ with texts that try to break out, data/ read from it."""
    root = tmp_path_factory.mktemp("sidreasoner")
    lines = [
        (str([NAMES[0], NAMES[1]]), NAMES[2], f"First {NAMES[0]}, then {NAMES[1]}.", f"They liked {NAMES[0]}; [[item:9]] {{x}}"),
        # the same semantic IDs as the first train row: the second line of them is that of the other user's row
        (str([NAMES[0]]), NAMES[1], "one", "uno <|end|>"),
        (str([NAMES[3]]), NAMES[1], f"two {NAMES[3]}", ""),
        (str([NAMES[2]]), NAMES[2], "no such row", "none"),
        (str([NAMES[0], NAMES[1], NAMES[2]]), NAMES[3], "of a valid row", "must not enter"),
    ]  # fmt: skip
    narrative = f"<think>secret</think>\n{NAMES[3]} is like {NAMES[1]}, not <a_9><b_9><c_9>."
    raw = write_folder(root / "raw", narrative=narrative, lines=lines)
    call("data.prepare", "--adapter", "sidreasoner", *PUBLISHED, "--raw", raw, "--output_dir", root / "data")
    return root


def test_texts_name_items_and_stand_at_their_rows(made):
    items, rows = artifacts.read_items(made / "data"), artifacts.read_sequences(made / "data").to_pylist()
    told = items["narrative"].to_pylist()
    # item 3 shares its semantic ID with item 0, and its own narrative means itself
    assert told == [
        "",
        "",
        "",
        f"{placeholder(3)} is like {placeholder(1)}, not <a_9><b_9><c_9>.",
        f"{placeholder(4)} goes with {placeholder(1)}.",
    ]
    found = {(tuple(row["history"]), row["target"]): row for row in rows}
    row = found[(0, 1), 2]
    assert row["narrative"] == f"First {placeholder(0)}, then {placeholder(1)}."
    assert row["reasoning"] == f"They liked {placeholder(0)}; {escaped('[[item:9]]')} {{x}}"
    assert (
        found[(0,), 1]["reasoning"] == "uno <|end|>"
        and found[(3,), 1]["narrative"] == f"two {placeholder(3)}"
    )
    assert all(row["narrative"] == row["reasoning"] == "" for row in rows if row["split"] != "train")
    funnel = json.loads((made / "data/funnel.json").read_text())
    assert funnel["texts_of_unknown_rows"] == 2 and funnel["semantic_ids_of_no_item"] == 1


def test_a_folder_comes_back_equal_and_new_semantic_ids_are_written_into_the_texts(made, tmp_path):
    new = np.array([(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (5, 5, 5)], np.int32)
    for name, codes in (("old", np.array(CODES, np.int32)), ("new", new)):
        write_sids(made / f"data/sids/{name}", data=made / "data", codes=codes, sizes=(6, 6, 6))
        call("data.export", "--to", "sidreasoner", "--data", made / "data", "--sids", made / f"data/sids/{name}",
             "--name", "Shop", "--output_dir", tmp_path / name)  # fmt: skip
        call("data.prepare", "--adapter", "sidreasoner", *PUBLISHED, "--raw", tmp_path / name, "--output_dir", tmp_path / f"{name}_back")  # fmt: skip
        for table in ("items", "sequences"):
            before, after = (
                pq.read_table(path / f"{table}.parquet")
                for path in (made / "data", tmp_path / f"{name}_back")
            )
            columns = [column for column in before.column_names if column not in ("source_id", "raw_id")]
            assert after.select(columns).equals(before.select(columns)), (name, table)
    enhanced = json.loads((tmp_path / "new/index/Shop.item_enhanced_v2.json").read_text())
    assert enhanced["3"]["llm_stage2"] == "<a_4><b_4><c_4> is like <a_2><b_2><c_2>, not <a_9><b_9><c_9>."
    assert "llm_stage2" not in enhanced["0"]
    with open(tmp_path / "new/index/Shop.integrated_narrative.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3
    told = next(line for line in lines if line["integrated_narrative"].startswith("First"))
    assert told["reasoning_path"] == "They liked <a_1><b_1><c_1>; [[item:9]] {x}"


def test_prompts_for_rl_are_of_train_and_valid_rows_only(made, tmp_path):
    call("data.export", "--to", "sidreasoner", "--data", made / "data", "--sids", write_sids(
        made / "data/sids/rl", data=made / "data", codes=np.array(CODES, np.int32), sizes=(6, 6, 6)),
        "--name", "Shop", "--output_dir", tmp_path / "out")  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out/rl").iterdir()) == ["train.parquet", "valid.parquet"]
    train, valid = (
        pq.read_table(tmp_path / f"out/rl/{split}.parquet").to_pylist() for split in ("train", "valid")
    )
    assert [row["reward_model"]["ground_truth"] for row in train] == [NAMES[target] for _, _, target in TRAIN]
    assert [row["extra_info"]["split"] for row in valid] == ["valid"]
    asked = {row["prompt"][1]["content"] for row in (*train, *valid)}
    assert len(asked) == 3 and not any(", ".join([NAMES[3], NAMES[1], NAMES[4]]) in text for text in asked)


def test_damaged_folders_are_named(tmp_path):
    raw = write_folder(tmp_path / "raw")
    index = json.loads((raw / "index/Shop.index.json").read_text())
    (raw / "index/Shop.index.json").write_text(json.dumps({key: index[key] for key in "0124"}))
    with pytest.raises(InputError, match="has no semantic ID of item 3"):
        sidreasoner.read_folder(raw)
    (raw / "index/Shop.index.json").write_text(json.dumps(index))
    (raw / "index/Shop.integrated_narrative.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column history_item_sid .it has a, b."):
        sidreasoner.read_folder(raw, "Shop")
    (raw / "index/Shop.index.json").unlink()
    with pytest.raises(InputError, match="no index.json in"):
        sidreasoner.read_folder(raw)


def test_a_teachers_own_thinking_is_no_reasoning(tmp_path):
    """A leading block is taken off, one that never ends leaves nothing and is counted, an empty cell is no text."""
    lines = [
        (str([NAMES[0]]), NAMES[1], "", "<think>\nhm\n</think>\n\nThey like things."),
        (str([NAMES[0], NAMES[1]]), NAMES[2], "told", "<think>\nhm, and so on"),
        (str([NAMES[3], NAMES[1]]), NAMES[4], "told too", "Things, as </think> says."),
    ]
    published = sidreasoner.read_folder(write_folder(tmp_path / "raw", lines=lines))
    found = {(tuple(published.rows.histories[at]), published.rows.targets[at]): text
             for at, text in enumerate(published.rows.texts["reasoning"]) if text}  # fmt: skip
    assert found == {((0,), 1): "They like things.", ((3, 1), 4): "Things, as </think> says."}
    assert published.unknown["texts_of_thinking_without_end"] == 1
    assert sorted(filter(None, published.rows.texts["narrative"])) == ["told", "told too"]


def test_released_texts_become_thoughts_and_narratives_with_the_semantic_ids_of_today(made, tmp_path):
    new = np.array([(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (5, 5, 5)], np.int32)
    sids = write_sids(made / "data/sids/train", data=made / "data", codes=new, sizes=(6, 6, 6))
    build = ["--data", made / "data", "--sids", sids, "--output_dir", tmp_path / "examples",
             "--tasks", "[history_to_sid, item_narrative, sequence_narrative]"]  # fmt: skip
    call("preprocess.build_examples", *build, "--reasoning", f"[{made}/data]")
    rows = pq.read_table(tmp_path / "examples/train.parquet").to_pylist()
    told = {(row["task"], tuple(row["history"]), *row["target"]): row["answer"] for row in rows}
    thought = told["history_to_sid", (0, 1), 2]["reasoning"]
    assert thought == "They liked <a_1><b_1><c_1>; [[item:9]] {x}"
    assert told["history_to_sid", (3, 1), 4]["reasoning"] is None
    assert told["sequence_narrative", (0, 1), 2]["text"] == "First <a_1><b_1><c_1>, then <a_2><b_2><c_2>."
    assert "Thing" in told["sequence_narrative", (3, 1), 4]["text"], "a row without a text gets the template"
    assert told["item_narrative", (), 4]["text"] == "<a_5><b_5><c_5> goes with <a_2><b_2><c_2>."
    assert "Thing 3" in told["item_narrative", (), 3]["text"], (
        "a semantic ID of no item would be learned as one"
    )
    assert told["history_to_sid", (0,), 1]["reasoning"] is None, "so would a token"
    assert "Thing 1" in told["item_narrative", (), 1]["text"]
    with pytest.raises(InputError, match="identifier.* of which there are some already"):
        call(
            "preprocess.build_examples",
            *build,
            "--overwrite",
            "true",
            "--reasoning",
            f"[{made}/data, {made}/data]",
        )


def with_column(data: Path, out: Path, file: str, name: str, values: pa.Array) -> Path:
    """A copy of a data set with another column in one of its tables."""
    shutil.copytree(data, out, ignore=shutil.ignore_patterns("sids"))
    table = pq.read_table(out / file)
    table = table.drop_columns([name]).append_column(name, values)
    pq.write_table(table, out / file)
    return resign(out)


def test_texts_of_items_that_are_not_there_are_refused_and_columns_of_numbers_are_a_users_own(made, tmp_path):
    build = [
        "--tasks",
        "[history_to_sid, item_narrative, sequence_narrative]",
        "--output_dir",
        tmp_path / "out",
    ]
    for file, rows, more in (("items.parquet", 5, False), ("sequences.parquet", 6, True)):
        far = pa.array([""] * 2 + ["see [[item:99999]]"] + [""] * (rows - 3))
        for name, values in (("far", far), ("own", pa.array([0.5] * rows))):
            data = with_column(made / "data", tmp_path / f"{name}_{file[:3]}", file, "narrative", values)
            sids = write_sids(data / "sids/x", data=data, codes=np.array(CODES, np.int32), sizes=(6, 6, 6))
            told = ["--reasoning", f"[{data}]"] if more else []
            asked = [
                "preprocess.build_examples",
                "--data",
                data,
                "--sids",
                sids,
                *build,
                *told,
                "--overwrite",
            ]
            export = ["data.export", "--to", "sidreasoner", "--data", data, "--sids", sids, "--name", "Shop"]
            if name == "own":
                call(*asked)
                call(*export, "--output_dir", tmp_path / f"export_{file[:3]}")
                continue
            for program in (asked, [*export, "--output_dir", tmp_path / "no"]):
                with pytest.raises(
                    InputError, match=rf"{file}: narrative of row 2: its text names item 99999, outside 0..4"
                ):
                    call(*program)


def test_general_chats_are_read_whatever_the_file_is_called(made, tmp_path):
    """Printed lists with parts; what is no list is refused and never evaluated."""
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Why's the sky blue?"},
        {"role": "assistant", "content": "<think>\nLight scatters.\n</think>\n\nIt scatters."},
    ]
    (tmp_path / "general").mkdir()
    file = tmp_path / "general/sampled_data.arrow"
    file.write_text("".join(json.dumps({"messages": told}) + "\n" for told in (str(chat), json.dumps(chat))))
    entry = {
        "file_name": "general/sampled_data.arrow",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
    }
    (tmp_path / "registry.json").write_text(json.dumps({"general": entry}))
    sids = write_sids(
        made / "data/sids/chat", data=made / "data", codes=np.array(CODES, np.int32), sizes=(6, 6, 6)
    )
    build = ["preprocess.build_examples", "--data", made / "data", "--sids", sids, "--tasks", "[chat]", "--corpora", "[general]",
             "--registry", tmp_path / "registry.json"]  # fmt: skip
    call(*build, "--output_dir", tmp_path / "examples")
    rows = pq.read_table(tmp_path / "examples/train.parquet").to_pylist()
    assert len(rows) == 2 and rows[0]["messages"] == rows[1]["messages"]
    assert rows[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert rows[0]["answer"]["reasoning"] == "Light scatters." and rows[0]["answer"]["text"] == "It scatters."
    file.write_text(json.dumps({"messages": "__import__('os').abort()"}) + "\n")
    with pytest.raises(InputError, match="record 0 is no sharegpt record of general"):
        call(*build, "--output_dir", tmp_path / "no")
