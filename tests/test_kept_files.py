"""What a stage did not write stays in its directory whatever becomes of the output: files, folders, other outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.program import InputError
from data.store.directory import PENDING, own_files
from data.store.output import MANIFEST, read_manifest
from tests.test_output import finish, snapshot, writing


def make(path: Path, *, size: int = 1, overwrite: bool = False) -> Path:
    """A file beside a folder; the second size writes other names."""
    with writing(path, size=size, overwrite=overwrite) as out:
        out.write_text("a.txt", f"{size}")
        out.write_text(f"deep/{size}.txt", f"{size}")
    return path


def add_files(path: Path) -> dict[str, bytes]:
    """Somebody's own files in an output, and what they are by name."""
    added = {"notes.txt": b"mine", "deep/notes.txt": b"mine", "mine/long/list.csv": b"1,2", ".hidden": b"3"}
    for name, text in added.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text)
    (path / "mine/empty").mkdir()
    (path / "elsewhere").symlink_to(path.parent)
    return added


def theirs(path: Path) -> dict[str, bytes]:
    own = {*read_manifest(path)["files"], MANIFEST}
    return {name: text for name, text in snapshot(path).items() if name not in own}


def test_an_overwrite_leaves_what_no_stage_wrote(tmp_path: Path) -> None:
    path, alone = make(tmp_path / "data"), make(tmp_path / "alone", size=3)
    added = add_files(path)
    for size in (2, 3):  # what was kept once is not taken for the stage's own the next time
        make(path, size=size, overwrite=True)
        assert set(read_manifest(path)["files"]) == {"a.txt", f"deep/{size}.txt"}
        assert theirs(path) == added and (path / "mine/empty").is_dir() and (path / "elsewhere").is_symlink()
    assert read_manifest(path)["content_hash"] == read_manifest(alone)["content_hash"]


def test_an_unfinished_overwrite_leaves_it_too(tmp_path: Path) -> None:
    path = make(tmp_path / "data")
    added = add_files(path)
    for size in (2, 3):
        with pytest.raises(RuntimeError), writing(path, size=size, overwrite=True) as out:
            out.write_text("deep/half/x.txt", "half")
            raise RuntimeError("stop")
        assert added.items() <= snapshot(path).items() and (path / "deep/half/x.txt").exists()
    make(path, size=3)  # goes on
    assert theirs(path) == added
    assert set(read_manifest(path)["files"]) == {"a.txt", "deep/3.txt", "deep/half/x.txt"}


def test_other_outputs_inside_stay_and_measures_of_the_old_one_go(tmp_path: Path) -> None:
    path = make(tmp_path / "export")
    for name in ("recbole", "below/navigen", "metrics"):
        make(path / name)
    with pytest.raises(RuntimeError), writing(path / "unfinished"):
        raise RuntimeError("stop")
    make(path, size=2, overwrite=True)
    assert read_manifest(path / "recbole") and read_manifest(path / "below/navigen")
    assert (path / "unfinished" / PENDING).exists() and not (path / "metrics").exists()
    make(path / "metrics")
    (path / "metrics/plot.txt").write_text("mine")
    make(path, size=3, overwrite=True)
    assert read_manifest(path / "metrics") and (path / "metrics/plot.txt").exists()


def test_bad_input_takes_back_its_own_files_only(tmp_path: Path) -> None:
    path = make(tmp_path / "data")
    make(path / "recbole")
    add_files(path)
    before = snapshot(path)
    with pytest.raises(InputError, match="a bad row"), writing(path, size=2, overwrite=True) as out:
        out.write_text("b.txt", "2")
        raise InputError("a bad row")
    assert snapshot(path) == before


def test_a_damaged_output_is_made_again_beside_it(tmp_path: Path) -> None:
    path = make(tmp_path / "data")
    added = add_files(path)
    (path / "a.txt").write_text("2")
    with writing(path) as out:
        out.write_text("a.txt", "1")
        assert {str(file.relative_to(path)) for file in own_files(path)} == {"a.txt", "deep/1.txt"}
    assert theirs(path) == added


def test_a_stage_does_not_write_over_it(tmp_path: Path) -> None:
    path = make(tmp_path / "data")
    (path / "b.txt").write_text("mine")
    before = snapshot(path)
    with (
        pytest.raises(InputError, match=r"b.txt is not of this stage, .* -> move it away"),
        writing(path, size=2, overwrite=True) as out,
    ):
        out.write_text("b.txt", "2")
    assert snapshot(path) == before


def test_a_linked_folder_of_an_output_steps_aside_with_it(tmp_path: Path) -> None:
    path = make(tmp_path / "data")
    (path / "deep").rename(tmp_path / "larger_disk")
    (path / "deep").symlink_to(tmp_path / "larger_disk")
    make(path, size=2, overwrite=True)
    assert not (path / "deep").is_symlink() and set(snapshot(path)) == {"a.txt", "deep/2.txt", MANIFEST}
    assert (tmp_path / "larger_disk/1.txt").exists()


def test_a_manifest_of_another_program_makes_no_output(tmp_path: Path) -> None:
    path = tmp_path / "site"
    path.mkdir()
    (path / MANIFEST).write_text('{"name": "a page"}')
    (path / "index.html").write_text("ten years")
    before = snapshot(path)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds files that no stage wrote"):
            finish(path, overwrite=overwrite)
    assert snapshot(path) == before
