"""infer.show as a user types it: titles, marks, rows by name, refusals."""

from __future__ import annotations

import pytest

from data.rows import read_rows
from data.sid import read_sids
from tests.handmade import refuse, succeed, write_sids
from tests.store import ITEMS, write_store
from tests.test_evaluate import BEAMS, CODES, prediction_table, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("show")
    data = write_store(root / "store")
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
        title = "(no title, item 2)" if target == 2 else f"Item {target} of a long series"
        line = next(line for line in block.splitlines() if line.startswith("   -> "))
        assert title in line or target == 1
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
