"""An output directory: one writer at a time, files written whole, a manifest written last.

    with open_output(args, STAGE, version=VERSION, inputs={"raw": files}) as out:
        out.write_table("items.parquet", table)
        out.counts["items"] = table.num_rows

What `open_output` does with a directory that already exists:
  finished, same configuration, inputs and stage version   raises AlreadyComplete (the program exits 0 in seconds)
  unfinished, same configuration and inputs                 resumes: `out.resuming` is True, files are kept
  anything else                                             InputError, or a clean start with `overwrite`

In a run of several processes (RANK set by the launcher) rank 0 claims, decides and writes; the others wait for its
decision and write nothing.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from configs.program import ROOT, AlreadyComplete, Clock, InputError, logged, note, peak_mib, say
from data.store.claim import HOLDER, LAUNCH, LOCK, announced, follow, locked, rank_and_world
from data.store.configuration import config_hash, differences, earlier_configuration
from data.store.fingerprints import fingerprint, plain, read_record, sha256_file, sha256_json

# Folders inside an output that are outputs of other stages: a rebuild leaves them, their readers compare hashes.
NESTED = {"raw", "embeddings", "tags", "quantizers", "sids", "tids", "reasoning", "examples"}
PENDING, MANIFEST = "pending.json", "manifest.json"
LOG = "log.txt"  # what the run said, with times: no part of what it made
REPLACED = ".replaced"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "pyarrow", "numpy", "faiss-cpu")


class Output:
    """An output directory that is being written. `counts` and `facts` end up in its manifest."""

    def __init__(self, path: Path, *, resuming: bool, leads: bool = True) -> None:
        self.path = path
        self.resuming = resuming
        self.leads = leads
        self.counts: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}

    def write_table(self, name: str, table: Any) -> None:
        """Write a pyarrow table as parquet (zstd), whole or not at all."""
        import pyarrow.parquet as pq

        with self.replacing(name) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def write_array(self, name: str, array: Any) -> None:
        """Write a numpy array as .npy, whole or not at all."""
        import numpy as np

        with self.replacing(name) as temporary, open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        if not self.leads:
            return
        with self.replacing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A temporary path that becomes `name` when the block ends without an error: written, synced, renamed."""
        final = self.path / name
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.tmp")
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def open_output(
    args: Any,
    stage: str,
    *,
    version: int,
    inputs: Mapping[str, str | Path | list[Path] | None],
    directory: str | Path | None = None,
) -> Iterator[Output]:
    """Claim `args.output_dir` (or `directory`) for one run of `stage`.

    `args` is the dataclass of the program's arguments; `overwrite` is one of them. `inputs` maps a name to a path, a list
    of files, or None (unused). Fields of `args` whose name is in `inputs` count by content, not by path. Raises
    AlreadyComplete or InputError as the module docstring says.
    """
    path, clock = Path(args.output_dir if directory is None else directory), Clock()
    overwrite = vars(args).get("overwrite", False)
    if rank_and_world()[0] > 0:
        yield Output(path, resuming=follow(path), leads=False)
        return
    _require_place(path)
    records = hash_inputs(inputs, read_manifest(path))
    identity = {
        "stage": stage,
        "stage_version": version,
        "config_hash": config_hash(args, inputs),
        "inputs": {name: record["sha256"] for name, record in records.items()},
    }

    def changes(record: dict[str, Any]) -> list[str]:
        return _changes(path, record, identity, args, inputs)

    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path):
            resuming = announced(path, lambda: _decide(path, changes, stage, overwrite=overwrite))
            out = Output(path, resuming=resuming)
            out.write_json(PENDING, identity | {"config": plain(args)})
            try:
                with logged(path / LOG):
                    note(" ".join(["$", *sys.argv]))
                    yield out
                    _finish(out, identity=identity, records=records, args=args, clock=clock)
            except InputError:
                if not resuming:
                    _withdraw(path)
                raise
    except InputError:
        if created and path.exists() and not _content(path):
            shutil.rmtree(path)
            with suppress(OSError):  # until one that holds something else
                for parent in created[1:]:
                    parent.rmdir()
        raise


def hash_inputs(inputs: Mapping[str, Any], earlier: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """{name: {path, sha256, ...}} of every input that is used; files of an unchanged size and time are not read again."""
    known = (earlier or {}).get("inputs", {})
    records: dict[str, dict[str, Any]] = {}
    for name, value in inputs.items():
        if value is None:
            continue
        if isinstance(value, (str, Path)):
            records[name] = _record(Path(value), known.get(name))
            continue
        old = {entry["path"]: entry for entry in known.get(name, {}).get("files", [])}
        files = [_record(Path(p), old.get(str(p))) for p in value]
        digest = sha256_json([[Path(f["path"]).name, f["sha256"]] for f in files])
        records[name] = {"files": files, "sha256": digest}
    return records


def _record(path: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    digest = fingerprint(path, known)
    record: dict[str, Any] = {"path": str(path), "sha256": digest}
    if path.is_file():
        record |= {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
    return record


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """The manifest of a finished output, or None."""
    return read_record(Path(directory) / MANIFEST)


def require_manifest(directory: str | Path, *, written_by: str) -> dict[str, Any]:
    """The manifest of a directory that must be finished; InputError names the stage that writes it."""
    manifest = read_manifest(directory)
    if manifest is None:
        state = (
            "is unfinished"
            if (Path(directory) / PENDING).exists()
            else "does not exist or is not an output of ours"
        )
        raise InputError(f"{directory} {state} (no {MANIFEST}) -> run {written_by} first")
    return manifest


def _require_place(path: Path) -> None:
    """InputError where no output can be: a file, below a file, a folder of code."""
    if path.exists() and not path.is_dir():
        raise InputError(f"output_dir {path} is a file -> choose another directory")
    blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if blocking is not None:
        raise InputError(
            f"output_dir {path} is below {blocking}, which is a file -> choose another directory"
        )
    if (path / "__init__.py").exists():
        raise InputError(f"output_dir {path} holds code (__init__.py) -> choose another directory")


def _decide(
    path: Path, changes: Callable[[dict[str, Any]], list[str]], stage: str, *, overwrite: bool
) -> bool:
    """True: resume. False: start clean. Raises AlreadyComplete or InputError.

    `changes` says what differs between an older record of this directory and the present run.
    """
    manifest = read_manifest(path)
    if manifest is not None and not changes(manifest):
        damaged = damaged_file(path, manifest)
        if damaged is None:
            raise AlreadyComplete(f"already complete: {path} (kept; same configuration and inputs)")
        print(
            f"WARNING: {path}/{damaged} is not what was written: this stage runs again",
            file=sys.stderr,
            flush=True,
        )
        (path / MANIFEST).unlink()
        return True
    pending = read_record(path / PENDING)
    if manifest is None and pending is not None and not changes(pending):
        return True
    content = _content(path)
    if not content:
        return False
    if manifest is None and pending is None:
        raise InputError(
            f"output_dir {path} holds files that no stage wrote ({content[0].name}, ...) -> choose another directory"
        )
    if not overwrite:
        changed = ", ".join(changes(manifest or pending or {}))
        raise InputError(
            f"output_dir {path} holds another run ({changed}) -> pass --overwrite or choose another directory"
        )
    old_stage = (manifest or pending or {}).get("stage")
    if old_stage != stage:
        raise InputError(
            f"output_dir {path} holds an output of stage {old_stage} -> choose another directory"
        )
    _set_aside(path, content)
    return False


def _set_aside(path: Path, content: list[Path]) -> None:
    """Keep an overwritten output until its successor is finished; of several attempts the first one's is kept."""
    aside = path / REPLACED
    if aside.exists():
        _delete(content)
        return
    aside.mkdir()
    for entry in content:
        os.replace(entry, aside / entry.name)


def _delete(entries: list[Path]) -> None:
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def damaged_file(path: Path, manifest: dict[str, Any]) -> str | None:
    """The first file of a finished output that is missing or has another size, or None."""
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            return name
    return None


def _content(path: Path) -> list[Path]:
    """What lies in an output directory apart from locks and the outputs of other stages."""
    ours = {LOCK, HOLDER, LAUNCH, REPLACED}
    return [p for p in path.iterdir() if p.name not in ours and not (p.is_dir() and p.name in NESTED)]


def _changes(
    path: Path, record: dict[str, Any], identity: dict[str, Any], args: Any, inputs: Collection[str]
) -> list[str]:
    """What makes a manifest or pending record that of another run, one text per change; [] = the same run."""
    if record.get("stage") != identity["stage"]:
        return [f"stage {record.get('stage')} -> {identity['stage']}"]
    found = []
    if record.get("stage_version") != identity["stage_version"]:
        found.append(f"stage version {record.get('stage_version')} -> {identity['stage_version']}")
    if record.get("config_hash") != identity["config_hash"]:
        old = earlier_configuration(path, record, inputs)
        found += ["configuration"] if old is None else map(str, differences(args, old, apart_from=inputs))
    old_inputs = {name: _digest(entry) for name, entry in record.get("inputs", {}).items()}
    names = [*old_inputs, *(name for name in identity["inputs"] if name not in old_inputs)]
    return found + [f"input {name}" for name in names if old_inputs.get(name) != identity["inputs"].get(name)]


def _digest(entry: str | dict[str, Any]) -> str:
    """An input's content hash, from a pending record (the hash) or a manifest (with its path)."""
    return entry if isinstance(entry, str) else entry["sha256"]


def _finish(
    out: Output, *, identity: dict[str, Any], records: dict[str, Any], args: Any, clock: Clock
) -> None:
    files = {}
    for file in sorted(p for p in out.path.rglob("*") if p.is_file()):
        relative = file.relative_to(out.path)
        if (
            relative.parts[0] in NESTED
            or relative.parts[0] == REPLACED
            or file.name.startswith(".")
            or str(relative) in {PENDING, MANIFEST, LOG}
        ):
            continue
        files[str(relative)] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    manifest = identity | {
        "inputs": records,
        "argv": sys.argv[1:],
        "config": plain(args),
        "content_hash": sha256_json({name: entry["sha256"] for name, entry in files.items()}),
        "counts": out.counts,
        "facts": out.facts,
        "files": files,
        "git": _git_state(),
        "packages": _package_versions(),
        "python": platform.python_version(),
        "seed": getattr(args, "seed", None),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(clock.seconds, 2),
        "peak_mib": peak_mib(),
    }
    out.write_json(MANIFEST, manifest)
    (out.path / PENDING).unlink(missing_ok=True)
    shutil.rmtree(out.path / REPLACED, ignore_errors=True)
    rows = ", ".join(f"{value:,} {name}" for name, value in out.counts.items() if isinstance(value, int))
    say(f"{identity['stage']}: wrote {out.path} ({rows}) in {clock.seconds:.1f} s, peak {peak_mib()} MiB")


def _withdraw(path: Path) -> None:
    """Bad input leaves nothing behind: the files of this run go, unless work (a folder) is among them.

    What this run was to overwrite comes back.
    """
    content, aside = _content(path), path / REPLACED
    if any(entry.is_dir() for entry in content):
        return
    _delete(content)
    if aside.exists():
        for entry in aside.iterdir():
            os.replace(entry, path / entry.name)
        aside.rmdir()


def _git_state() -> dict[str, Any]:
    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
