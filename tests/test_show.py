"""infer.show as a user types it: titles, marks, rows by name, refusals."""

from __future__ import annotations

import html

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import artifacts
from data.cards import Cards
from data.predictions import THOUGHTS, write_predictions
from data.rows import read_rows
from data.sid import read_sids, sid_format
from data.store.output import open_output
from tests.handmade import Made, call, refuse, resign, succeed, write_sids
from tests.store import ITEMS, write_store
from tests.test_evaluate import BEAMS, CODES, prediction_table, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("show")
    data = write_store(root / "store")
    users = artifacts.read_sequences(data)["user_id"].unique()
    named = {"user_id": users, "raw_id": [f"U-{user}" for user in users.to_pylist()]}
    pq.write_table(pa.table(named), data / "users.parquet")
    resign(data)
    sids = write_sids(root / "sids", data=data, codes=CODES, sizes=(5, 8))
    rows = read_rows(data, "test", num_items=ITEMS)
    table = prediction_table(rows.example_ids_R, read_sids(sids), seed=1)
    return data, sids, rows, write_run(root / "eval" / "sft.test", [table], sid_format="navigen")


def test_history_target_and_marked_recommendations(made):
    data, sids, rows, predictions = made
    table, hit = read_sids(sids), None
    command = ("infer.show", "--predictions", predictions, "--data", data, "--sids", sids)
    whole = succeed(*command, "--users", len(rows), "--top", BEAMS)
    blocks = [block for block in whole.split("\n\n") if block.startswith("example ")]
    assert [int(block.split()[1].rstrip(",")) for block in blocks] == rows.example_ids_R.tolist()
    for row, block in enumerate(blocks):
        target = int(rows.target_R[row])
        title = "(no title, item B0002)" if target == 2 else f"Item {target} of a long series"
        line = next(line for line in block.splitlines() if line.startswith("   -> "))
        assert title in line or target == 1
        assert f", user U-{rows.users_R[row]} chose before" in block
        marked = [line for line in block.splitlines() if line.startswith("  * ")]
        assert len(marked) == ("not in the list" not in line)
        if marked:
            hit, place = row, int(marked[0].split()[1])
            assert f"[place {place} of {BEAMS}]" in line and "(+ 1 with this semantic ID)" in marked[0]
    assert hit is not None and "<|cid_begin|>" in blocks[hit], "semantic IDs as the model writes them"
    one = succeed(*command, "--examples", f"[{rows.example_ids_R[hit]}]", "--top", BEAMS)
    assert one.strip() == blocks[hit].strip() and table.num_items == ITEMS
    assert succeed(*command, "--users", 4) == succeed(*command, "--users", 4), "a seeded sample"


def test_without_semantic_ids_and_refusals(made, tmp_path):
    data, _, _, predictions = made
    command = ("infer.show", "--predictions", predictions, "--data", data)
    assert "<|cid_begin|>" not in succeed(*command)
    assert "has no example 5 -> one of" in refuse(*command, "--examples", "[5]")
    assert "must be at least 1" in refuse(*command, "--top", 0)
    other = write_sids(tmp_path / "other", data=data, codes=CODES[::-1].copy(), sizes=(5, 8))
    wrong = write_run(tmp_path / "x.test", [prediction_table(made[2].example_ids_R, read_sids(made[1]), 1)],
                      sids_sha256="0" * 64)  # fmt: skip
    assert "other semantic IDs" in refuse(
        "infer.show", "--predictions", wrong, "--data", data, "--sids", other
    )


def test_thoughts_are_shown_with_the_titles_of_the_items_they_name(made, tmp_path):
    """On the terminal and on the page; a semantic ID of no item stays as it is, a thought that was cut off ends in an ellipsis."""
    data, sids, rows, _ = made
    table, fmt = read_sids(sids), sid_format("letters")
    run = tmp_path / "eval" / "sft.test"
    example = int(rows.example_ids_R[3])
    texts = [f"They took {table.text(5, fmt)} and <a_4><b_7>,\nso more of it.", "On and", "third", "fourth"]
    assert not len(table.items_of((4, 7)))
    columns = {"example_id": [example] * 4, "thought_index": [0, 1, 2, 3], "token_ids": [[1], [2], [3], [4]], "text": texts, "finished": [True, False, True, True]}  # fmt: skip
    thoughts = artifacts.conform(
        pa.table(columns, schema=pa.schema(list(THOUGHTS.required.items()))), THOUGHTS, where="x"
    )
    with open_output(Made("think"), "recommend", version=1, inputs={"data": data}, directory=run) as out:
        write_predictions(out, prediction_table(rows.example_ids_R, table, seed=1))
        out.write_table(THOUGHTS.file, thoughts)
        out.facts |= {"split": "test", "beams": BEAMS, "score_space": "full", "fitted_on": "train"}
    command = ("infer.show", "--predictions", run, "--data", data, "--sids", sids)
    shown = succeed(*command, "--examples", f"[{example}]")
    assert (
        f"   ~  They took {table.text(5, fmt)} (" in shown
        and "<a_4><b_7>, so more" in shown
        and "On and …" in shown
    )
    assert "... 1 more thoughts" in shown and "fourth" not in shown
    title = Cards(artifacts.read_items(data), table, fmt)(int(table.items_of(table.codes_NL[5])[0])).title
    assert title in " ".join(shown.split())
    call("infer.evaluate", "--predictions", run, "--data", data, "--sids", sids, "--resamples", 20)
    call(
        "infer.report",
        "--data",
        data,
        "--sids",
        sids,
        "--run",
        tmp_path,
        "--users",
        len(rows),
        "--output_dir",
        tmp_path / "page",
    )
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count('<p class="thought">') == 3 and "On and …" in page and f"({html.escape(title)}" in page
