"""Published numbers: every shipped file reads, says where it comes from, and a broken line is named."""

from __future__ import annotations

import csv

import pytest

from configs.program import ROOT, InputError
from data.adapters.logs import delimited
from infer.tables import sheet
from infer.tables.published import COLUMNS, known_data, read_published, refuse_other_rows

FILES = sorted((ROOT / "configs").glob("*/published.csv"))
GOOD = "industrial,test,4533,SASRec,,item,not stated,hr@10,0.1088,a paper,quoted,"


def write(path, *lines: str):
    path.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_shipped_numbers_are_complete_and_possible(path):
    lines = path.read_text().splitlines()[1:]
    named = sorted({tuple(line.split(",")[:2]) for line in lines})
    assert named
    count = 0
    for dataset, split in named:
        for row in read_published(path, dataset=dataset, split=split):
            count += len(row.values)
            assert row.source and row.provenance in ("quoted", "third party")
            for name in ("hr", "ndcg"):
                ks = sorted(
                    int(metric.split("@")[1]) for metric in row.values if metric.startswith(f"{name}@")
                )
                values = [row.values[f"{name}@{k}"] for k in ks]
                suspicious = any(note.startswith(("misprint", "NDCG")) for note in row.notes.values())
                assert values == sorted(values) or suspicious, (row.model, name, values)
            for k in (1, 3, 5, 10):
                if {f"hr@{k}", f"ndcg@{k}"} <= row.values.keys():
                    assert row.values[f"ndcg@{k}"] <= row.values[f"hr@{k}"] + 1e-9, row.model
    assert count == len(lines)


def test_there_are_published_numbers_and_they_are_the_known_ones():
    assert {path.parent.name for path in FILES} >= {"minionerec", "mimigenrec", "sidreasoner", "hidvae"}
    rows = read_published(ROOT / "configs/minionerec/published.csv", dataset="industrial", split="test")
    best = next(row for row in rows if row.model == "MiniOneRec")
    assert (best.values["hr@10"], best.values["ndcg@10"], best.level, best.rows) == (
        0.1586,
        0.1167,
        "sid",
        4533,
    )


def test_rows_of_a_data_set_in_their_order(tmp_path):
    other = GOOD.replace("industrial,test,4533", "office,test,4866")
    second = GOOD.replace("SASRec,,item", "TIGER,T5,sid").replace("quoted,", 'quoted,"a note, with a comma"')
    path = write(tmp_path / "p.csv", GOOD, other, second, GOOD.replace("hr@10,0.1088", "ndcg@10,0.0806"))
    rows = read_published(path, dataset="industrial", split="test")
    assert [(row.model, row.values) for row in rows] == [
        ("SASRec", {"hr@10": 0.1088, "ndcg@10": 0.0806}), ("TIGER", {"hr@10": 0.1088})
    ]  # fmt: skip
    assert rows[1].notes == {"hr@10": "a note, with a comma"} and rows[1].backbone == "T5"
    assert read_published(path, dataset="toys", split="test") == []
    assert known_data(path) == "industrial (test), office (test)"
    with pytest.raises(InputError, match="SASRec .a paper. was measured on 4533 rows, these runs on 90"):
        refuse_other_rows(rows, 90, where="p.csv")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (GOOD.replace("0.1088", "10.88"), "p.csv:2: rows '4533' or value '10.88'"),
        (GOOD.replace("4533", "many"), "p.csv:2: rows 'many'"),
        (GOOD.replace("item", "items"), "p.csv:2: unknown level 'items'"),
        (GOOD.replace("hr@10", "recall@10"), "p.csv:2: unknown metric 'recall@10'"),
        (GOOD + ",more", "p.csv:2 has not 12 fields"),
        (GOOD[:40], "p.csv:2 has not 12 fields"),
        (GOOD + "\n" + GOOD, "p.csv:3: SASRec has hr@10 twice"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, said):
    path = write(tmp_path / "p.csv", line)
    with pytest.raises(InputError, match=said):
        read_published(path, dataset="industrial", split="test")
    path.write_text("dataset,model\n")
    with pytest.raises(InputError, match="the columns are not dataset, split"):
        read_published(path, dataset="industrial", split="test")


def test_a_field_that_no_reader_takes_is_refused_in_a_line(tmp_path):
    """Where the csv module gives up in the middle of a file: in published numbers, in the rows of a table, in a small file of a log."""
    before = csv.field_size_limit(1 << 17)
    try:
        long = "x" * (1 << 17) + "y"
        path = write(tmp_path / "p.csv", GOOD + long)
        (tmp_path / "rows.csv").write_text(",".join(sheet.COLUMNS) + "\n" + long + "\n")
        (tmp_path / "log.csv").write_text(f"a,b\n1,{long}\n")
        reads = (
            lambda: read_published(path, dataset="industrial", split="test"),
            lambda: sheet.read_plan(tmp_path),
            lambda: delimited.cells(tmp_path / "log.csv", delimited.Layout(",")),
        )
        for read in reads:
            with pytest.raises(InputError, match=r"no csv.* \(field larger than field limit"):
                read()
    finally:
        csv.field_size_limit(before)
