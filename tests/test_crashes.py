"""A kill at any write event blocks nobody, leaves nothing behind and changes no result."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from configs.program import AlreadyComplete, InputError
from data.store import output
from data.store.output import open_output
from tests.crashes import each_kill, survives
from tests.test_output import Args

UNSTABLE = {"argv", "time_utc", "wall_seconds", "peak_mib", "git", "seal", "config"}


def state(place: Path) -> dict[str, object]:
    """Every file below `place`, hidden ones too; of manifests what does not change from run to run."""
    found: dict[str, object] = {}
    for file in sorted(p for p in place.rglob("*") if p.is_file()):
        content: object = file.read_bytes()
        if file.name == "manifest.json":
            content = {key: value for key, value in json.loads(content).items() if key not in UNSTABLE}
        if file.name != "log.txt":  # times
            found[str(file.relative_to(place))] = content
    return found


def write(place: Path, *, size: int = 1, overwrite: bool = False, fail: bool = False) -> None:
    """A demo stage with files, a folder, a temporary folder and - with `fail` - bad input found late."""
    args = Args(str(place), size=size, overwrite=overwrite)
    with suppress(AlreadyComplete), open_output(args, "demo", version=1, inputs={}) as out:
        out.write_text("a.txt", f"{size}")
        if fail:
            raise InputError("a bad row")
        out.write_json("deep/b.json", {"size": size})
        with out.replacing("c.bin") as temporary:
            temporary.write_bytes(b"c" * size)


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of git per run would cost more than all the rest."""
    monkeypatch.setattr(output, "_git_state", dict)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A finished output with outputs of other stages inside, and files that no stage wrote."""
    place = tmp_path / "old"
    write(place)
    write(place / "sids" / "x", size=7)
    write(place / "deep" / "other", size=7)
    for name in ("notes.txt", "deep/notes.txt"):
        (place / name).write_text("mine")
    return place


def finished(old: Path, place: Path, *, size: int) -> dict[str, object]:
    shutil.copytree(old, place)
    write(place, size=size, overwrite=True)
    return state(place)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "place"
    write(place)
    expected, events = state(place), []
    for event in each_kill(None, place, lambda: write(place)):
        events.append(event)
        write(place)
        assert state(place) == expected, event
    assert len(events) > 15


def test_a_killed_overwrite_goes_on_and_never_mixes(old: Path, tmp_path: Path) -> None:
    before, expected = state(old), finished(old, tmp_path / "reference", size=2)
    place = tmp_path / "place"
    kept = 0
    for event in each_kill(old, place, lambda: write(place, size=2, overwrite=True)):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place, copy)
        write(place, size=2, overwrite=True)
        assert state(place) == expected, event
        try:  # or the user thinks better of it
            write(copy)
            kept += 1
        except InputError as error:
            assert "holds another run (size 2 -> 1)" in str(error), event
            write(copy, overwrite=True)
        assert state(copy) == before, event
    assert kept > 5


def test_a_killed_overwrite_that_fails_gives_the_old_output_back(old: Path, tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        with suppress(InputError):
            write(place, size=2, overwrite=True, fail=True)

    before, place = state(old), tmp_path / "place"
    fail(shutil.copytree(old, tmp_path / "unharmed"))
    assert state(tmp_path / "unharmed") == before
    for event in each_kill(old, place, lambda: fail(place)):
        with suppress(InputError):
            write(place)  # either it is back, or the new run is unfinished and named
        fail(place)
        write(place, overwrite=True)
        assert state(place) == before, event


def test_an_older_output_that_was_left_aside_never_comes_back(old: Path) -> None:
    """Killed while the replaced output is deleted: what remains of it is older than the finished one."""
    write(old, size=2, overwrite=True)
    before = state(old)
    (old / ".replaced").mkdir()
    (old / ".replaced/a.txt").write_text("older")
    with suppress(InputError):
        write(old, size=3, overwrite=True, fail=True)
    assert state(old) == before


def test_two_interrupted_overwrites_keep_the_first_output(old: Path, tmp_path: Path) -> None:
    before = state(old)
    assert not survives(lambda: write(old, size=2, overwrite=True), old, 25)
    assert (old / ".replaced").exists()
    for size in (3, 4):
        with suppress(InputError):
            write(old, size=size, overwrite=True, fail=True)
    write(old, overwrite=True)
    assert state(old) == before


def test_a_damaged_output_is_made_again_whatever_kills_that(old: Path, tmp_path: Path) -> None:
    expected, place = state(old), tmp_path / "place"
    (old / "a.txt").write_text("2")  # as long as it was
    for event in each_kill(old, place, lambda: write(place)):
        write(place)
        assert state(place) == expected, event
    assert event > 10
