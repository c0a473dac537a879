"""Checkpoints that can be trusted: COMPLETE.json is written last and lists every file with its size and hash.

A directory without it, or with a file that does not match, is never resumed from: the newest complete one is taken
instead, and each skipped directory is named with the reason. A checkpoint whose state names a best one that cannot be
trusted is skipped too: at the end other weights would be handed on under the best one's name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from configs.integrity import file_fault, sha256
from configs.program import InputError, say, warn
from data.store.adapters import is_adapter
from data.store.fingerprints import read_record, safetensors_header, sha256_bytes
from data.store.manifest import read_manifest, require_undamaged

MARK = "COMPLETE.json"
FULL_HASH_BELOW = 64 << 20  # bytes
TRAINER_STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def mark_complete(
    directory: Path, *, step: int, full: bool = False, files: Iterable[Path] | None = None
) -> None:
    """Write COMPLETE.json over all files of `directory`, or `files` of it, through a temporary name.

    Of weights of FULL_HASH_BELOW bytes or more it holds the hash of the header only, unless `full`: a checkpoint is written
    every few minutes, a final/ once.
    """
    listed: dict[str, Any] = {}
    found = directory.rglob("*") if files is None else files
    for file in sorted(p for p in found if p.is_file() and MARK not in p.name):
        by_header = not full and _is_large(file)
        digest = {"header_sha256": _header_hash(file)} if by_header else {"sha256": sha256(file)}
        listed[str(file.relative_to(directory))] = {"bytes": file.stat().st_size} | digest
    temporary = directory / f".{MARK}.tmp"
    with open(temporary, "w") as handle:
        json.dump({"step": step, "files": listed}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, directory / MARK)


def fault(directory: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None when every listed file is there with its hash."""
    mark = directory / MARK
    if not mark.is_file():
        return f"no {MARK} (the save was interrupted)"
    try:
        for name, entry in read_record(mark)["files"].items():
            file, by_header = directory / name, entry.get("header_sha256")
            reason = file_fault(file, entry["bytes"], None)
            if reason is None and by_header is not None and _header_hash(file) != by_header:
                reason = f"{file} does not match its hash"
            if reason is None and by_header is None and not _recorded_by_header(file, entry["sha256"]):
                reason = file_fault(file, entry["bytes"], entry["sha256"])
            if reason is not None:
                return reason.removeprefix(f"{directory}/")
    except (InputError, KeyError, TypeError, AttributeError):
        return f"{MARK} is damaged"
    return None


def step_of(directory: Path) -> int:
    """The optimizer step that a directory's COMPLETE.json names; 0 without one."""
    return int((read_record(directory / MARK) or {}).get("step", 0))


def marks(output_dir: Path) -> set[tuple[str, int]]:
    """(checkpoint, when it was marked complete) of those below `output_dir`, looked into no further."""
    found = ((path.name, path / MARK) for _, path in checkpoints(output_dir))
    return {(name, mark.stat().st_mtime_ns) for name, mark in found if mark.is_file()}


def checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """(step, directory) of every checkpoint-<step> below `output_dir`, newest first."""
    found = [
        (int(m.group(1)), p)
        for p in output_dir.glob("checkpoint-*")
        if (m := CHECKPOINT.fullmatch(p.name)) and p.is_dir()
    ]
    return sorted(found, reverse=True)


def best_of(directory: Path) -> Path | None:
    """The best checkpoint so far by a checkpoint's own trainer_state.json, beside it; None where none was chosen yet."""
    state = read_record(directory / TRAINER_STATE) or {}
    step = state.get("best_global_step")
    return directory.with_name(f"checkpoint-{step}") if step else None


def newest_complete(output_dir: Path) -> Path | None:
    """The newest checkpoint that can be trusted, and its best one too; each that cannot is named on stderr.

    InputError where sound checkpoints are left, but the best one of each is lost: only a person can choose between a new
    start and a copy of it.
    """
    lost: Path | None = None
    for _, directory in checkpoints(output_dir):
        reason = fault(directory)
        if reason is None:
            best = best_of(directory)
            broken = fault(best) if best and best != directory else None
            if broken is None:
                return directory
            lost, reason = best, f"its best checkpoint {best.name} cannot be trusted: {broken}"
        warn(f"skipping {directory}: {reason}")
    if lost is not None:
        raise InputError(
            f"{lost}, the best checkpoint so far, is lost ({fault(lost)}) -> put a copy of it back, or delete "
            f"{output_dir}/checkpoint-* to train from the start"
        )
    return None


def discard_after(output_dir: Path, resumed: Path | None) -> None:
    """Remove checkpoints that cannot be trusted or are newer than the `resumed` one, so that no rotation counts them."""
    start = int(resumed.name.split("-")[1]) if resumed else -1
    for step, directory in checkpoints(output_dir):
        if step > start or fault(directory) is not None:
            shutil.rmtree(directory)


def rotate(output_dir: Path, *, keep: int, protect: Path | None = None) -> None:
    """Delete all but the newest `keep` complete checkpoints; `protect` (the best one) always stays."""
    for _, directory in checkpoints(output_dir)[keep:]:
        if protect is None or directory.name != protect.name:
            shutil.rmtree(directory)


def found_model(directory: str | Path) -> str:
    """The model that a directory means: itself, or of a training's directory the one that it handed on, which is said.

    That is final/; before there is one the best checkpoint so far, else the newest, of those that can be trusted. Where nothing has
    a COMPLETE.json, as in trainings of others, the highest checkpoint with a model in it. A directory without any comes back as it is.
    """
    path = Path(directory)
    if not path.is_dir() or _is_model(path):
        return str(directory)
    final = path / "final"
    ours = any((one / MARK).is_file() for one in (final, *(one for _, one in checkpoints(path))))
    if _is_model(final) and (not ours or fault(final) is None):
        chosen, why = final, "what its training handed on"
    elif ours:
        newest = newest_complete(path)
        best = best_of(newest) if newest else None
        chosen, why = (best, "the best so far") if best else (newest, "the newest that is complete")
    else:
        chosen = next((one for _, one in checkpoints(path) if _is_model(one)), None)
        why = "the newest; nothing says whether it is complete"
    if chosen is None:
        return str(directory)
    say(f"model: {path} is a training's directory -> {chosen.name}, {why}")
    return str(chosen)


def _is_model(path: Path) -> bool:
    return is_adapter(path) or (path / "config.json").is_file()


def require_model(directory: str | Path, *, written_by: str | None = None) -> Path:
    """A local model directory: config.json, or an adapter; InputError otherwise. Nothing is ever downloaded."""
    path = Path(directory)
    if not _is_model(path):
        first = f"run {written_by} or " if written_by else ""
        raise InputError(
            f"{path} is not a model directory (no config.json) -> {first}give a local Hugging Face directory"
        )
    return path


def require_sound(directory: Path) -> None:
    """InputError for a model directory whose files are not those that its COMPLETE.json or its manifest.json lists."""
    reason = fault(directory) if (directory / MARK).exists() else None
    if reason is not None:
        raise InputError(
            f"{directory} is damaged: {reason} -> copy it again, or run the stage that wrote it again"
        )
    manifest = read_manifest(directory)
    if manifest is not None:
        require_undamaged(directory, manifest)


def _is_large(file: Path) -> bool:
    return file.suffix == ".safetensors" and file.stat().st_size >= FULL_HASH_BELOW


def _header_hash(file: Path) -> str | None:
    try:
        return sha256_bytes(safetensors_header(file))
    except InputError:
        return None


def _recorded_by_header(file: Path, digest: str) -> bool:
    """Whether `digest` is that of a header: marks once held it under the name of a full hash."""
    return _is_large(file) and _header_hash(file) == digest
