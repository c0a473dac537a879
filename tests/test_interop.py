"""Files of other systems: read, written back, refused; their predictions scored by our protocol."""

from __future__ import annotations

import doctest
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from configs.program import InputError
from data import sid
from data.adapters import times
from data.releases import index as interop
from data.releases import minionerec
from data.rows import read_rows
from data.shaping import remarks
from data.sid import FORMATS, SidTable, read_sids
from infer.tables.foreign import Reader
from tests.handmade import call, refuse, write_sids
from tests.store import ITEMS, write_store
from tests.test_evaluate import CODES

REAL = Path(os.environ.get("REAL_DATA", "missing"))


def test_worked_examples_of_the_docstrings():
    results = [doctest.testmod(module) for module in (interop, remarks, sid, times)]
    assert sum(result.attempted for result in results) >= 5 and not any(result.failed for result in results)


def test_an_index_is_what_was_written(tmp_path):
    codes = np.array([[12, 0, 255], [3, 10, 0], [12, 0, 254]], np.int32)
    for layout, start in (
        ("minionerec", '{"0": ["<a_12>", "<b_0>", "<c_255>"], '),
        ("mimigenrec", '{\n    "0": [\n'),
    ):
        path = tmp_path / f"{layout}.json"
        interop.write_index(path, codes, layout=layout)
        assert path.read_text().startswith(start)
        index = interop.read_index(path)
        assert (index.codes_NL == codes).all() and index.item_ids.tolist() == [0, 1, 2]
        assert index.largest == (13, 11, 256) and index.padded == 0
    interop.write_new_tokens(tmp_path / "new_tokens.json", codes)
    tokens = json.loads((tmp_path / "new_tokens.json").read_text())
    assert tokens == ["<a_12>", "<a_3>", "<b_0>", "<b_10>", "<c_0>", "<c_254>", "<c_255>"]
    navigen = FORMATS["navigen"]
    interop.write_index(tmp_path / "n.json.gz", codes, keys=["x", "y", "z"], fmt=navigen)
    (tmp_path / "n.json.gz").write_bytes(gzip.compress((tmp_path / "n.json.gz").read_bytes()))
    index = interop.read_index(tmp_path / "n.json.gz", fmt=navigen)
    assert index.keys == ("x", "y", "z") and (index.codes_NL == codes).all()
    with pytest.raises(InputError, match="3 items of the index are not numbers"):
        _ = index.item_ids


def test_an_ordinal_that_only_colliding_items_carry_becomes_a_level(tmp_path):
    path = tmp_path / "index.json"
    written = {"0": ["<a_1>", "<b_2>", "<c_1>"], "1": ["<a_1>", "<b_3>"], "2": ["<a_1>", "<b_2>", "<c_2>"]}
    path.write_text(json.dumps(written))
    index = interop.read_index(path)
    assert index.codes_NL.tolist() == [[1, 2, 1], [1, 3, 0], [1, 2, 2]] and index.padded == 1
    interop.write_index(tmp_path / "again.json", index.codes_NL, drop_last_zero=True)
    assert json.loads((tmp_path / "again.json").read_text()) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"0": ["<a_1>", "<c_2>"]}', r"item 0: token '<c_2>' at level 2 is not like <b_0>"),
        ('{"0": ["<a_01>"]}', "token '<a_01>' at level 1"),
        (
            '{"0": ["<a_1>", "<b_0>"], "1": ["<a_1>"]}',
            "1 items have no token of level 2, and its code 0 is in use",
        ),
        ('{"0": ["<a_1>", "<b_1>", "<c_1>"], "1": ["<a_1>"]}', "item 1 has 1 tokens, others 3"),
        (
            '{"0": ["<a_1>", "<b_2>"], "1": ["<a_0>"]}',
            "1 items have 1 tokens, and item 0 has 2 though no other item has its first 1",
        ),
        ('["<a_1>"]', "is not an index"),
        ('{"0": ["<a_1>"]', "is not valid JSON"),
    ],
)
def test_a_bad_index_is_refused_by_name(tmp_path, text, said):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=said):
        interop.read_index(tmp_path / "index.json")


def test_inter_and_info_files_survive_a_round_trip(tmp_path):
    rows = minionerec.InterRows(("u1", "u2"), ((3, 4, 4), ()), (5, 6))
    minionerec.write_inter(tmp_path / "x.inter", rows)
    assert (tmp_path / "x.inter").read_text().splitlines()[1:] == ["u1\t3 4 4\t5", "u2\t\t6"]
    assert minionerec.read_inter(tmp_path / "x.inter") == rows
    (tmp_path / "x.inter").write_text(minionerec.INTER_HEADER + "\nu1\t3 x\t5\n")
    with pytest.raises(InputError, match=r"x.inter:2 is not user, history, item"):
        minionerec.read_inter(tmp_path / "x.inter")
    changed = minionerec.write_info(tmp_path / "i.txt", np.array([[1, 2], [3, 4]]), ["a\tb\nc", "d"])
    assert changed == 1
    assert (tmp_path / "i.txt").read_text() == "<a_1><b_2>\ta b c\t0\n<a_3><b_4>\td\t1\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("interop")
    data = write_store(root / "store")
    sids = write_sids(root / "sids", data=data, codes=CODES, sizes=(5, 8))
    return root, data, sids


def foreign_rows(data: Path, sids: Path, *, beams: int = 6, style: str = "minionerec") -> list[dict]:
    """What another system would write for the test rows: random lists, the target on every third one."""
    table, rows = read_sids(sids), read_rows(data, "test", num_items=ITEMS)
    rng, fmt, result = np.random.default_rng(0), FORMATS["letters"], []
    for row in range(len(rows)):
        history = [table.text(int(i), fmt) for i in rows.history_H[rows.offsets[row] : rows.offsets[row + 1]]]
        target = int(rows.target_R[row])
        wrong = [s for s in rng.permutation(len(table.sids_SL)) if s != table.sid_of_item_N[target]][:beams]
        chosen = [int(s) for s in wrong]
        if row % 3 == 0:
            chosen[row % beams] = int(table.sid_of_item_N[target])
        answers = [fmt.text(table.sids_SL[sid].tolist()) for sid in chosen]
        if style == "sidreasoner":
            result.append(
                {"history": history, "output": table.text(target, fmt), "cot": "...", "predict": answers}
            )
        else:
            question = f"What comes after {', '.join(history)}?"
            result.append({"input": question, "output": table.text(target, fmt) + "\n", "predict": answers})
    return result


def import_and_score(directory: Path, files: list[Path], data: Path, sids: Path, *more: object) -> dict:
    named = f"[{','.join(map(str, files))}]"
    common = ("--data", data, "--sids", sids, "--output_dir", directory)
    call("infer.import_predictions", "--files", named, *common, *more)
    call("infer.evaluate", "--predictions", directory, "--data", data, "--sids", sids, "--resamples", 10)
    return json.loads((directory / "metrics" / "metrics.json").read_text())


def published_metrics(rows: list[dict], k: int) -> tuple[float, float]:
    """HR and NDCG as MiniOneRec counts them: the first place at which the texts are equal."""
    places = [
        next((at for at, answer in enumerate(row["predict"]) if answer.strip() == row["output"].strip()), k)
        for row in rows
    ]
    hits = [place for place in places if place < k]
    return len(hits) / len(rows), sum(1 / np.log2(place + 2) for place in hits) / len(rows)


def test_their_predictions_get_their_numbers(made, tmp_path):
    _, data, sids = made
    rows = foreign_rows(data, sids)
    half = len(rows) // 2
    for at, part in enumerate((rows[:half], rows[half:])):
        (tmp_path / f"{at}.json").write_text(json.dumps(part))
    shards = [tmp_path / "0.json", tmp_path / "1.json"]
    values = import_and_score(tmp_path / "theirs.test", shards, data, sids, "--settings", '{"beams": "6"}')
    for k in (1, 3, 5):
        hr, ndcg = published_metrics(rows, k)
        assert values[f"sid_level/hr@{k}"]["value"] == pytest.approx(hr, abs=1e-6)
        assert values[f"sid_level/ndcg@{k}"]["value"] == pytest.approx(ndcg, abs=1e-6)
    assert hr > 0 and values["protocol"]["model"] == "theirs" and values["protocol"]["beams"] == "6"
    assert values["protocol"]["parse_rate_strict"] == 1.0
    # In another order, and in the fields of another system: the same numbers.
    shuffled = [
        foreign_rows(data, sids, style="sidreasoner")[at]
        for at in np.random.default_rng(1).permutation(len(rows))
    ]
    (tmp_path / "s.json").write_text(json.dumps(shuffled))
    again = import_and_score(tmp_path / "s.test", [tmp_path / "s.json"], data, sids)
    assert {k: v for k, v in again.items() if k != "protocol"} == {
        k: v for k, v in values.items() if k != "protocol"
    }


def test_navigen_lines_duplicates_and_repair(made, tmp_path):
    _, data, sids = made
    table, rows, fmt = read_sids(sids), read_rows(data, "test", num_items=ITEMS), FORMATS["navigen"]
    lines = []
    for row in range(len(rows)):
        target = int(rows.target_R[row])
        history = [table.text(int(i), fmt) for i in rows.history_H[rows.offsets[row] : rows.offsets[row + 1]]]
        right, wrong = table.text(target, fmt), table.text((target + 9) % ITEMS, fmt)
        candidates = [
            {"rank": 2, "parsed_target_cid": wrong},
            {"rank": 1, "raw_text": f'{{"target_cid":"{wrong}'},
            {"rank": 3, "parsed_target_cid": right},
        ]
        lines.append({"prompt_text": " ".join(history), "gold_target_cid": right, "candidates": candidates})
    path = tmp_path / "navigen.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = import_and_score(
        tmp_path / "n.test", [path], data, sids, "--sid_format", "navigen", "--repair", "true"
    )
    protocol = values["protocol"]
    assert (protocol["parse_rate_strict"], protocol["parse_rate_repaired"]) == (
        pytest.approx(2 / 3, abs=1e-6),
        1.0,
    )
    assert protocol["duplicates_dropped"] == len(rows) and protocol["invalid_answers"] == 0
    assert values["sid_level/hr@1"]["value"] == 0 and values["sid_level/hr@3"]["value"] == 1
    # The wrong answer stands twice before the right one: third place, not second.
    assert (
        values["sid_level/ndcg@3"]["value"] == 0.5 and values["prefix_level/prefix=2/ndcg@3"]["value"] == 0.5
    )
    command = (
        "--data",
        data,
        "--sids",
        sids,
        "--output_dir",
        tmp_path / "strict.test",
        "--sid_format",
        "navigen",
    )
    call("infer.import_predictions", "--files", f"[{path}]", *command)
    said = refuse(
        "infer.evaluate", "--predictions", tmp_path / "strict.test", "--data", data, "--sids", sids, code=4
    )
    assert f"{len(rows)} of {3 * len(rows)} predictions are not in the catalogue" in said


def test_incomplete_and_foreign_predictions_are_refused(made, tmp_path):
    _, data, sids = made
    rows = foreign_rows(data, sids)
    command = ("--data", data, "--sids", sids, "--output_dir", tmp_path / "out.test")

    def said(value: object) -> str:
        path = tmp_path / "bad.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return refuse("infer.import_predictions", "--files", f"[{path}]", *command)

    assert f"has {len(rows) - 1} rows, the split {len(rows)} -> pass all shards" in said(rows[1:])
    other = [*rows[1:], {**rows[0], "input": "after <a_1><b_2>, <a_1><b_2>, <a_1><b_2>?"}]
    assert f"row {len(rows) - 1} (target " in said(other)
    unordered = [{**row, "input": "?"} for row in (*rows[1:], rows[0])]
    assert "names another target than example" in said(unordered)
    assert "row 3 has no output and predict" in said([*rows[:3], {"input": "x"}, *rows[4:]])
    assert "row 0: predictions must be one text or more" in said([{**rows[0], "predict": []}, *rows[1:]])
    assert "has no rows" in said("[]")
    for candidate in ("text", {"raw_text": "x"}, {"rank": "first"}):
        line = {"gold_target_cid": "x", "candidates": [{"rank": 1}, candidate]}
        assert "row 0: a candidate has no rank" in said(json.dumps(line))
    assert not (tmp_path / "out.test").exists()


def test_an_ordinal_may_be_missing_in_texts_only_where_it_is_said():
    table = SidTable(np.array([[1, 2, 1], [1, 2, 2], [1, 3, 0]], np.int32), (2, 4, 3))
    fixed, ordinal = (Reader(table, FORMATS["letters"], ordinal_last=last) for last in (False, True))
    assert fixed.codes("<a_1><b_3>") == (None, False)
    assert ordinal.codes("<a_1><b_3>\n") == ((1, 3, 0), True)
    assert ordinal.codes("<a_1><b_2><c_2>") == ((1, 2, 2), True)
    assert ordinal.all_in("<a_1><b_3>, <a_1><b_2><c_1>") == [(1, 3, 0), (1, 2, 1)]


@pytest.mark.skipif(not REAL.is_dir(), reason="needs REAL_DATA")
def test_published_files_are_written_back_byte_for_byte(tmp_path):
    for name, layout in (
        ("amazon18_industrial/raw/Industrial_and_Scientific.index.json.gz", "minionerec"),
        ("amazon18_office/raw/Office_Products.index.json.gz", "minionerec"),
        ("mimigenrec_industrial/raw/id2sid.json.gz", "mimigenrec"),
        ("mimigenrec_office/raw/id2sid.json.gz", "mimigenrec"),
    ):
        index = interop.read_index(REAL / name)
        interop.write_index(tmp_path / "index.json", index.codes_NL, layout=layout)
        assert (tmp_path / "index.json").read_bytes() == gzip.decompress((REAL / name).read_bytes()), name
        if layout == "mimigenrec":
            interop.write_new_tokens(tmp_path / "new.json", index.codes_NL)
            published = REAL / name.replace("id2sid.json.gz", "new_tokens.json")
            assert (tmp_path / "new.json").read_bytes() == published.read_bytes()
    info = REAL / "amazon18_industrial/raw/info/Industrial_and_Scientific_5_2016-10-2018-11.txt.gz"
    published = gzip.decompress(info.read_bytes())
    titles = [line.split("\t", 1)[1].rsplit("\t", 1)[0] for line in published.decode().splitlines()]
    index = interop.read_index(REAL / "amazon18_industrial/raw/Industrial_and_Scientific.index.json.gz")
    minionerec.write_info(tmp_path / "info.txt", index.codes_NL, titles)
    assert (tmp_path / "info.txt").read_bytes() == published
