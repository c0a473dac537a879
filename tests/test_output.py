"""The output directory: one writer, whole files, a manifest last; kept, resumed, refused, or replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from configs.program import ROOT, AlreadyComplete, InputError, NumericError, say, warn
from data.store import claim, fingerprints
from data.store.claim import locked
from data.store.output import LOG, MANIFEST, Output, open_output, read_manifest, require_manifest


@dataclass
class Args:
    output_dir: str
    source: str = "nowhere"
    size: int = 1
    overwrite: bool = False
    seed: int = 7


@contextmanager
def writing(path: Path, *, version: int = 1, stage: str = "demo", **fields: Any) -> Iterator[Output]:
    args = Args(str(path), **fields)
    inputs = {"source": args.source if args.source != "nowhere" else None}
    with open_output(args, stage, version=version, inputs=inputs) as out:
        yield out


def finish(path: Path, text: str = "hello", **fields: Any) -> Path:
    with writing(path, **fields) as out:
        out.write_text("a.txt", text)
        out.counts["rows"] = 3
    return path


def snapshot(path: Path) -> dict[str, bytes]:
    """Every file but the log, which tells the time."""
    files = [p for p in path.rglob("*") if p.is_file() and p.name != LOG]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def test_an_output_keeps_what_its_runs_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out"
    with pytest.raises(RuntimeError), writing(path):
        say("half way")
        raise RuntimeError("the disk of this machine is gone")
    with writing(path):
        warn("slow")
    say("not of this run")
    lines = (path / LOG).read_text().splitlines()
    said = ["half way", "the disk of this machine is gone", "WARNING: slow", "demo: wrote"]
    found = [[line for line in lines if text in line] for text in said]
    assert all(len(one) == 1 and one[0][:2] == "20" for one in found) and "not of this run" not in str(lines)
    assert LOG not in read_manifest(path)["files"]
    assert "half way" in capsys.readouterr().out


def test_a_finished_output_is_kept_as_it_is(tmp_path: Path) -> None:
    path = finish(tmp_path / "out")
    before = snapshot(path)
    assert set(before) == {"a.txt", MANIFEST}  # no lock, no pending mark, no temporary file
    with pytest.raises(AlreadyComplete, match="kept; same configuration and inputs"), writing(path):
        pytest.fail("a finished output must not be written again")
    with pytest.raises(AlreadyComplete), writing(path, overwrite=True):
        pytest.fail("nor with overwrite, when nothing changed")
    assert snapshot(path) == before


def test_what_changed_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    source = tmp_path / "source.csv"
    source.write_text("1")
    path = finish(tmp_path / "out", source=str(source))
    before = snapshot(path)
    with pytest.raises(InputError, match=r"holds another run \(size 1 -> 2\) -> pass --overwrite"):
        finish(path, source=str(source), size=2)
    with pytest.raises(InputError, match=r"\(stage version 1 -> 2\)"):
        finish(path, source=str(source), version=2)
    with pytest.raises(InputError, match=r"\(stage demo -> other\)"):
        finish(path, source=str(source), stage="other")
    source.write_text("2")
    with pytest.raises(InputError, match=r"\(input source\)"):
        finish(path, source=str(source))
    assert snapshot(path) == before
    moved = tmp_path / "moved.csv"
    moved.write_text("1")
    with pytest.raises(AlreadyComplete):  # an input counts by its content, not by its path
        finish(path, source=str(moved))


def test_overwrite_starts_clean_and_keeps_nested_outputs(tmp_path: Path) -> None:
    path = finish(tmp_path / "data")
    with writing(path / "sids" / "x") as out:
        out.write_text("sids.txt", "nested")
    nested = snapshot(path / "sids")
    with writing(path, size=2, overwrite=True) as out:
        assert not out.resuming and not (path / "a.txt").exists()
        out.write_text("b.txt", "new")
    assert set(read_manifest(path)["files"]) == {"b.txt"}
    assert snapshot(path / "sids") == nested


def test_an_unfinished_output_is_resumed_only_by_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(NumericError), writing(path) as out:
        out.write_text("a.txt", "first half")
        raise NumericError("stop")
    assert read_manifest(path) is None
    with pytest.raises(InputError, match=r"is unfinished \(no manifest.json\) -> run the stage first"):
        require_manifest(path, written_by="the stage")
    with pytest.raises(InputError, match="another run"):
        finish(path, size=2)
    with writing(path) as out:
        assert out.resuming and (path / "a.txt").read_text() == "first half"
        out.write_text("b.txt", "second half")
    assert set(read_manifest(path)["files"]) == {"a.txt", "b.txt"}


def test_foreign_files_are_never_deleted(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    (path / "thesis.tex").write_text("ten years")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds files that no stage wrote \(thesis.tex"):
            finish(path, overwrite=overwrite)
    assert snapshot(path) == {"thesis.tex": b"ten years"}
    with pytest.raises(InputError, match="is a file"):
        finish(path / "thesis.tex")
    with pytest.raises(InputError, match=r"out is below .*thesis.tex, which is a file -> choose"):
        finish(path / "thesis.tex" / "run" / "out")
    (path / "__init__.py").touch()
    with pytest.raises(InputError, match=r"holds code \(__init__.py\) -> choose another directory"):
        finish(path, overwrite=True)
    (path / "__init__.py").unlink()
    assert snapshot(path) == {"thesis.tex": b"ten years"}
    empty = tmp_path / "empty"
    empty.mkdir()
    finish(empty)


def test_bad_input_takes_back_the_folders_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/other").touch()
    with pytest.raises(InputError), writing(tmp_path / "outputs/run/eval/model"):
        raise InputError("bad row")
    assert [entry.name for entry in (tmp_path / "outputs").iterdir()] == ["other"]


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError), writing(tmp_path / "new"):
        raise InputError("a bad column")
    with pytest.raises(InputError, match="input does not exist"):
        finish(tmp_path / "other", source=str(tmp_path / "absent"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    with writing(tmp_path / "out") as out:
        out.write_text("a.txt", "old")
        with pytest.raises(ValueError), out.replacing("a.txt") as temporary:
            temporary.write_text("ne")
            raise ValueError
        with pytest.raises(ValueError):
            out.write_json("bad.json", {"loss": float("nan")})
        assert {p.name for p in out.path.iterdir() if not p.name.startswith(".")} == {
            "a.txt",
            LOG,
            "pending.json",
        }
        assert (out.path / "a.txt").read_text() == "old"
        assert not list(out.path.glob(".*.tmp"))


def test_files_are_read_back(tmp_path: Path) -> None:
    with writing(tmp_path / "out") as out:
        out.write_table("deep/t.parquet", pa.table({"x": [1, 2]}))
        out.write_array("x.npy", np.arange(3, dtype=np.float32))
        out.write_json("x.json", {"path": Path("a/b"), "text": "ü"})
    assert pq.read_table(out.path / "deep" / "t.parquet")["x"].to_pylist() == [1, 2]
    assert np.load(out.path / "x.npy", mmap_mode="r").tolist() == [0, 1, 2]
    assert json.loads((out.path / "x.json").read_text()) == {"path": "a/b", "text": "ü"}


def test_the_manifest_says_where_everything_came_from(tmp_path: Path) -> None:
    source = finish(tmp_path / "source")
    path = finish(tmp_path / "out", source=str(source))
    manifest = read_manifest(path)
    assert manifest["inputs"] == {
        "source": {"path": str(source), "sha256": read_manifest(source)["content_hash"]}
    }
    assert manifest["files"]["a.txt"] == {"bytes": 5, "sha256": fingerprints.sha256_bytes(b"hello")}
    assert manifest["config"] == {
        "output_dir": str(path), "source": str(source), "size": 1, "overwrite": False, "seed": 7,
    }  # fmt: skip
    assert (manifest["stage"], manifest["stage_version"], manifest["seed"]) == ("demo", 1, 7)
    assert manifest["counts"] == {"rows": 3}
    assert {
        "argv",
        "config_hash",
        "git",
        "packages",
        "python",
        "time_utc",
        "wall_seconds",
        "peak_mib",
    } <= set(manifest)
    assert manifest["packages"]["pyarrow"] == pa.__version__
    assert read_manifest(source)["content_hash"] == manifest["content_hash"]  # equal files, equal hash
    assert (
        finish(tmp_path / "third", text="hellO")
        and read_manifest(tmp_path / "third")["content_hash"] != manifest["content_hash"]
    )


HOLD = """
    import sys, time, os, signal
    from pathlib import Path
    from tests.test_output import writing
    with writing(Path(sys.argv[1])) as out:
        out.write_text("a.txt", "whole")
        with out.replacing("b.txt") as temporary:
            temporary.write_text("hal")
            print("writing", flush=True)
            sys.stdin.readline()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_holder_that_has_not_said_its_name_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is taken a moment before its holder is written, and the name goes a moment before the lock."""
    lock, holder = FileLock(tmp_path / ".lock"), tmp_path / ".lock.holder"
    with lock:
        writer = threading.Timer(0.2, holder.write_text, ["pid 7 on here since now\n"])
        writer.start()
        with (
            pytest.raises(InputError, match="is in use by pid 7 on here since now -> wait for it"),
            locked(tmp_path),
        ):
            pass
        writer.join()
        holder.unlink()
        monkeypatch.setattr(claim, "HOLDER_SECONDS", 0.05)
        with pytest.raises(InputError, match="is in use by another process -> wait for it"), locked(tmp_path):
            pass


def test_one_writer_and_a_kill_inside_a_write(tmp_path: Path) -> None:
    path = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(path)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "writing\n"
    with pytest.raises(
        InputError, match=rf"output_dir {path} is in use by pid {process.pid} on .* -> wait for it"
    ):
        finish(path)
    process.stdin.write("now\n")
    process.stdin.close()
    assert process.wait(timeout=120) == -signal.SIGKILL
    process.stdout.close()

    assert not (path / "b.txt").exists() and read_manifest(path) is None
    with pytest.raises(InputError, match="is unfinished"):
        require_manifest(path, written_by="the stage")
    with writing(path) as out:
        assert out.resuming and (path / "a.txt").read_text() == "whole"
        out.write_text("b.txt", "both")
    assert set(read_manifest(path)["files"]) == {"a.txt", "b.txt"}
    assert (path / "b.txt").read_text() == "both"
    assert set(snapshot(path)) == {"a.txt", "b.txt", MANIFEST}
