"""The record of the kill matrix: what passed is not run again at the same commit, what was cut off goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import kill_record
from tests.crashes import each_kill
from tests.kill_record import recorded


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KILL_RECORD", str(tmp_path / "out/record.json"))
    monkeypatch.setattr(kill_record, "present_commit", lambda: "abc")
    return tmp_path / "out/record.json"


def write_two(place: Path) -> None:
    place.mkdir(exist_ok=True)
    for name in ("a", "b"):
        (place / name).write_text(name)


def test_a_cell_that_was_cut_off_goes_on_behind_its_last_kill(record, tmp_path):
    place, stood = tmp_path / "place", []
    with pytest.raises(KeyboardInterrupt), recorded("sft", "every write") as cell:
        for event in each_kill(None, place, lambda: write_two(place), after=cell.kills):
            cell.stood(event)
            stood.append(event)
            if event == 2:
                raise KeyboardInterrupt
    (entry,) = json.loads(record.read_text())
    assert (entry["result"], entry["kills"], entry["commit"]) == ("cut off", 2, "abc")
    with recorded("sft", "every write") as cell:
        for event in each_kill(None, place, lambda: write_two(place), after=cell.kills):
            cell.stood(event)
            stood.append(event)
    assert stood == [1, 2, 3], "the folder and two files, each once"
    assert json.loads(record.read_text())[0]["result"] == "passed"


def test_what_passed_is_skipped_at_its_commit_only(record, monkeypatch):
    for event in ("alone", "overwrite"):
        with recorded("sft", event) as cell:
            cell.stood(7)
    with pytest.raises(pytest.skip.Exception, match="passed at abc, 7 kills"), recorded("sft", "alone"):
        pytest.fail("it ran again")
    monkeypatch.setattr(kill_record, "present_commit", lambda: "abd")
    with pytest.raises(ValueError, match="torn"), recorded("sft", "alone") as cell:
        assert cell.kills == 0
        raise ValueError("torn")
    found = {(one["event"], one["result"], one["commit"]) for one in json.loads(record.read_text())}
    assert found == {("overwrite", "passed", "abc"), ("alone", "failed: ValueError: torn", "abd")}
    with recorded("sft", "alone") as cell:
        assert cell.kills == 0, "a failure is looked at from the start"


def test_a_tree_with_changes_is_never_skipped_and_nothing_is_kept_unasked(record, monkeypatch):
    monkeypatch.setattr(kill_record, "present_commit", lambda: "abc-dirty")
    runs = 0
    for _ in range(2):
        with recorded("sft", "alone"):
            runs += 1
    assert runs == 2 and record.exists()
    record.unlink()
    monkeypatch.delenv("KILL_RECORD")
    with recorded("sft", "alone") as cell:
        cell.stood(1)
    assert not record.exists()
