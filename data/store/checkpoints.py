"""Checkpoints that can be trusted: COMPLETE.json is written last and lists every file with its size and hash.

A directory without it, or with a file that does not match, is never resumed from: the newest complete one is taken
instead, and each skipped directory is named with the reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

from configs.program import InputError
from data.store.fingerprints import safetensors_header, sha256_bytes, sha256_file

MARK = "COMPLETE.json"
FULL_HASH_BELOW = 64 << 20  # bytes; of larger tensors files header and size are recorded
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def mark_complete(directory: Path, *, step: int) -> None:
    """Write COMPLETE.json over all files of `directory`, through a temporary name."""
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and MARK not in p.name):
        files[str(file.relative_to(directory))] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
    temporary = directory / f".{MARK}.tmp"
    with open(temporary, "w") as handle:
        json.dump({"step": step, "files": files}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, directory / MARK)


def fault(directory: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None when every listed file is there with its hash."""
    mark = directory / MARK
    if not mark.exists():
        return f"no {MARK} (the save was interrupted)"
    try:
        files = json.loads(mark.read_text())["files"]
    except (json.JSONDecodeError, KeyError):
        return f"{MARK} is damaged"
    for name, entry in files.items():
        file = directory / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}"
        if _digest(file) != entry["sha256"]:
            return f"{name} does not match its hash"
    return None


def checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """(step, directory) of every checkpoint-<step> below `output_dir`, newest first."""
    found = [
        (int(m.group(1)), p) for p in output_dir.glob("checkpoint-*") if (m := CHECKPOINT.fullmatch(p.name))
    ]
    return sorted(found, reverse=True)


def newest_complete(output_dir: Path) -> Path | None:
    """The newest checkpoint that can be trusted; each newer one that cannot is named on stderr."""
    for _, directory in checkpoints(output_dir):
        reason = fault(directory)
        if reason is None:
            return directory
        print(f"WARNING: skipping {directory}: {reason}", file=sys.stderr, flush=True)
    return None


def discard_incomplete(output_dir: Path) -> None:
    """Remove checkpoints that cannot be trusted, so that no rotation counts them."""
    for _, directory in checkpoints(output_dir):
        if fault(directory) is not None:
            shutil.rmtree(directory)


def rotate(output_dir: Path, *, keep: int, protect: Path | None = None) -> None:
    """Delete all but the newest `keep` complete checkpoints; `protect` (the best one) always stays."""
    for _, directory in checkpoints(output_dir)[keep:]:
        if directory != protect:
            shutil.rmtree(directory)


def require_model(directory: str | Path, *, written_by: str) -> Path:
    """A local model directory with config.json; InputError otherwise."""
    path = Path(directory)
    if not (path / "config.json").exists():
        raise InputError(
            f"{path} is not a model directory (no config.json) -> run {written_by} or give a local Hugging Face directory"
        )
    return path


def _digest(file: Path) -> str:
    if file.suffix == ".safetensors" and file.stat().st_size >= FULL_HASH_BELOW:
        return sha256_bytes(safetensors_header(file))
    return sha256_file(file)
