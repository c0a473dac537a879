"""An output directory: one writer at a time, files written whole, a manifest written last.

    with open_output(args, STAGE, version=VERSION, inputs={"raw": files}) as out:
        out.write_table("items.parquet", table)
        out.counts["items"] = table.num_rows

What `open_output` does with a directory that already exists:
  finished, same configuration, inputs and stage version   raises AlreadyComplete (the program exits 0 in seconds)
  unfinished, same configuration and inputs                 resumes: `out.resuming` is True, files are kept
  unfinished, changed in what `allow_change` names          the same (a field of some programs), and the manifest tells;
                                                            a change that is refused before the next checkpoint is forgotten
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from configs.integrity import sha256
from configs.memory import peak_mib
from configs.needs import unread
from configs.program import (
    ROOT,
    AlreadyComplete,
    Clock,
    InputError,
    logged,
    note,
    raise_environment_fault,
    say,
)
from data.store.checkpoints import marks
from data.store.claim import announced, follow, locked, rank_and_world, require_same_inputs
from data.store.configuration import config_hash, differences, earlier_configuration
from data.store.directory import (
    KEPT,
    LOG,
    PENDING,
    REPLACED,
    content,
    files_of_others,
    own_files,
    require_place,
    set_aside,
    settle,
    temporary_of,
    withdraw,
)
from data.store.fingerprints import plain, read_record, sha256_json
from data.store.inputs import hash_inputs, same_input
from data.store.manifest import MANIFEST, faults, read_manifest, require_undamaged, sealed

ALLOWED = "allowed_changes"  # of a manifest: in what its run was let go on changed, in that order
NEVER_ALLOWED = {"stage", "stage_version", "configuration"}  # what is there is no beginning of this run
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "pyarrow", "numpy", "faiss-cpu")


class Change(NamedTuple):
    """What makes a run another one: its key, as `allow_change` takes it, and a text with the old and the new value."""

    key: str
    text: str


class Output:
    """An output directory that is being written. `counts` and `facts` end up in its manifest; files of `kept` are not its own."""

    def __init__(self, path: Path, *, resuming: bool, leads: bool = True, kept: Iterable[str] = ()) -> None:
        self.path = path
        self.resuming = resuming
        self.leads = leads
        self.kept = frozenset(kept)
        self.counts: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}

    def write_table(self, name: str, table: Any) -> None:
        """Write a pyarrow table as parquet, whole or not at all."""
        import pyarrow.parquet as pq

        from data.store.parquet import PARQUET

        with self.replacing(name) as temporary:
            pq.write_table(table, temporary, **PARQUET)

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
        if name in self.kept:
            raise InputError(f"{final} is not of this stage, which writes a file of that name -> move it away, then run the same command again")  # fmt: skip
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_of(final)
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
        resuming, of_rank_0 = follow(path)
        # The first of another machine may have files of its own.
        if os.environ.get("LOCAL_RANK") == "0":
            own = hash_inputs(inputs, None)
            require_same_inputs({name: record["sha256"] for name, record in own.items()}, of_rank_0)
        yield Output(path, resuming=resuming, leads=False)
        return
    require_place(path)
    records = hash_inputs(inputs, _earlier_manifest(path, overwrite=overwrite))
    identity = {
        "stage": stage,
        "stage_version": version,
        "config_hash": config_hash(args, inputs),
        "inputs": {name: record["sha256"] for name, record in records.items()},
    }

    def changes(record: dict[str, Any]) -> list[Change]:
        return _changes(path, record, identity, args, inputs)

    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path):
            settle(path)
            pending = _pending(identity, args)
            resuming = announced(path, lambda: _decide(path, changes, pending, args), identity["inputs"])
            earlier, trained = read_record(path / PENDING), marks(path)
            identity |= {ALLOWED: pending[ALLOWED]} if ALLOWED in pending else {}
            out = Output(path, resuming=resuming, kept=pending.get(KEPT, ()))
            out.write_json(PENDING, pending)
            try:
                with logged(path / LOG):
                    note(" ".join(["$", *sys.argv]))
                    yield out
                    _finish(out, identity=identity, records=records, args=args, clock=clock)
            except InputError:
                if not resuming:
                    withdraw(path)
                elif marks(path) <= trained:  # refused before anything came of it
                    out.write_json(PENDING, earlier)
                raise
    except AlreadyComplete:
        raise
    except InputError:
        if created and path.exists() and not content(path):
            shutil.rmtree(path)
            with suppress(OSError):  # until one that holds something else
                for parent in created[1:]:
                    parent.rmdir()
        raise
    except Exception as error:
        raise_environment_fault(error, where=f"while writing {path}")
        raise


def allowed_keys(directory: str | Path) -> list[str]:
    """In which keys the unfinished run of a directory was let go on changed, at whichever of its starts."""
    record = read_record(Path(directory) / PENDING) or {}
    return [text.removeprefix("input ").split(" ")[0] for text in record.get(ALLOWED, [])]


def require_manifest(directory: str | Path, *, written_by: str) -> dict[str, Any]:
    """The manifest of a directory that must be finished and undamaged; InputError names the stage that writes it."""
    manifest = read_manifest(directory)
    if manifest is None:
        state = (
            "is unfinished"
            if (Path(directory) / PENDING).exists()
            else "does not exist or is not an output of ours"
        )
        raise InputError(f"{directory} {state} (no {MANIFEST}) -> run {written_by} first")
    require_undamaged(directory, manifest)
    return manifest


def _earlier_manifest(path: Path, *, overwrite: bool) -> dict[str, Any] | None:
    """The manifest that an output directory has from an earlier run; with `overwrite` a damaged one says nothing."""
    try:
        return read_manifest(path)
    except InputError:
        if not overwrite:
            raise
        return {}


def _pending(identity: dict[str, Any], args: Any) -> dict[str, Any]:
    """The record of an output that is not finished."""
    record = identity | {"config": plain(args)}
    if "allow_change" in vars(args):  # a training's steps are cut by the number of processes
        record |= {"world_size": rank_and_world()[1]}
    return record


def _decide(
    path: Path,
    changes: Callable[[dict[str, Any]], list[Change]],
    identity: dict[str, Any],
    args: Any,
) -> bool:
    """True: resume. False: start clean. Raises AlreadyComplete or InputError.

    `changes` says what differs between an older record of this directory and the present run, `identity` is its own: what
    `args.allow_change` lets an unfinished run differ in is added to it.
    """
    overwrite, allowed = (vars(args).get(name, False) for name in ("overwrite", "allow_change"))
    manifest = _earlier_manifest(path, overwrite=overwrite)
    if manifest is not None and not changes(manifest):
        damaged = faults(path, manifest)
        if not damaged:
            raise AlreadyComplete(f"already complete: {path} (kept; same configuration and inputs)")
        reasons = "; ".join(damaged.values())
        print(f"WARNING: {reasons}: this stage runs again", file=sys.stderr, flush=True)
        identity |= {ALLOWED: manifest[ALLOWED]} if ALLOWED in manifest else {}
        identity |= {KEPT: files_of_others(path)}
        Output(path, resuming=True).write_json(
            PENDING, identity
        )  # before the manifest goes: never without a record
        for name in (*damaged, MANIFEST):
            (path / name).unlink(missing_ok=True)
        return True
    pending = read_record(path / PENDING)
    if manifest is None and pending is not None:
        found = changes(pending)
        if {change.key for change in found} <= set(allowed or ()) - NEVER_ALLOWED:
            told = [*pending.get(ALLOWED, []), *(change.text for change in found)]
            identity |= ({ALLOWED: told} if told else {}) | {KEPT: pending.get(KEPT, [])}
            return True
    entries = content(path)
    if not entries:
        return False
    if manifest is None and pending is None:  # a manifest.json of another program is a file like others
        raise InputError(
            f"output_dir {path} holds files that no stage wrote ({entries[0].name}, ...) -> choose another directory"
        )
    if not overwrite:
        found = changes(manifest or pending or {})
        changed = ", ".join(change.text for change in found)
        never = NEVER_ALLOWED & {change.key for change in found}
        going_on = manifest is None and "world_size" in identity and not never
        more = f"go on with --allow_change '{json.dumps([one.key for one in found])}', " if going_on else ""
        raise InputError(
            f"output_dir {path} holds another run ({changed}) -> {more}pass --overwrite or choose another directory"
        )
    old_stage = (manifest or pending or identity).get("stage")
    if old_stage != identity["stage"]:
        raise InputError(
            f"output_dir {path} holds an output of stage {old_stage} -> choose another directory"
        )
    set_aside(path)
    identity |= {KEPT: files_of_others(path)}
    return False


def _changes(
    path: Path, record: dict[str, Any], identity: dict[str, Any], args: Any, inputs: Mapping[str, Any]
) -> list[Change]:
    """What makes a manifest or pending record that of another run; [] = the same run."""
    if record.get("stage") != identity["stage"]:
        return [Change("stage", f"stage {record.get('stage')} -> {identity['stage']}")]
    found = []
    if record.get("stage_version") != identity["stage_version"]:
        text = f"stage version {record.get('stage_version')} -> {identity['stage_version']}"
        found.append(Change("stage_version", text))
    world = rank_and_world()[1]
    if record.get("world_size", world) != world:
        found.append(Change("world_size", f"world_size {record['world_size']} -> {world}"))
    if record.get("config_hash") != identity["config_hash"]:
        old = earlier_configuration(path, record, inputs)
        if old is None:
            found.append(Change("configuration", "configuration"))
        else:
            found += [Change(one.key, str(one)) for one in differences(args, old, apart_from=inputs)]
    old_inputs = {name: _digest(entry) for name, entry in record.get("inputs", {}).items()}
    names = [*old_inputs, *(name for name in identity["inputs"] if name not in old_inputs)]
    unused = unread(args)  # an earlier run may have been given what nothing read
    current = identity["inputs"]
    return found + [
        Change(name, f"input {name}")
        for name in names
        if name not in unused and not same_input(inputs.get(name), old_inputs.get(name), current.get(name))
    ]


def _digest(entry: str | dict[str, Any]) -> str:
    """An input's content hash, from a pending record (the hash) or a manifest (with its path)."""
    return entry if isinstance(entry, str) else entry["sha256"]


def _finish(
    out: Output, *, identity: dict[str, Any], records: dict[str, Any], args: Any, clock: Clock
) -> None:
    files = {
        str(file.relative_to(out.path)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(own_files(out.path))
    }
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
    out.write_json(MANIFEST, sealed(manifest))
    (out.path / PENDING).unlink(missing_ok=True)
    shutil.rmtree(out.path / REPLACED, ignore_errors=True)
    rows = ", ".join(f"{value:,} {name}" for name, value in out.counts.items() if isinstance(value, int))
    say(f"{identity['stage']}: wrote {out.path} ({rows}) in {clock.seconds:.1f} s, peak {peak_mib()} MiB")


@cache
def _git_state() -> dict[str, Any]:
    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}


@cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
