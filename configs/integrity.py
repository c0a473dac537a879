"""Are the files of a finished output still those that were written? Standard library only.

Every output directory has a manifest.json with the size and sha256 of each of its files and a content hash over them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 1 << 22
LARGE = 64 << 20  # bytes from which a hash is remembered between processes
FRESH_SECONDS = 2.0
_known: dict[str, str] = {}


@dataclass
class Check:
    """What is known of a data set's files: how many, bytes listed, bytes hashed, and what is wrong."""

    outputs: int = 0
    files: int = 0
    bytes: int = 0
    hashed: int = 0
    faults: list[str] = field(default_factory=list)


def verify_outputs(directory: Path, *, hash_budget: int) -> Check:
    """Compare the outputs in `directory` and up to two folders below it with their manifests.

    Sizes are always compared; a file is hashed while the bytes hashed so far and its own fit into `hash_budget`.
    """
    check = Check()
    for depth in ("manifest.json", "*/manifest.json", "*/*/manifest.json"):
        for manifest in sorted(directory.glob(depth)):
            _verify_output(manifest, check, hash_budget)
    return check


def _verify_output(manifest: Path, check: Check, hash_budget: int) -> None:
    try:
        record = json.loads(manifest.read_text())
        if "stage" not in record:
            return  # a manifest of somebody else's, beside raw files
        listed = {name: (int(entry["bytes"]), entry["sha256"]) for name, entry in record["files"].items()}
        recorded = record["content_hash"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check.faults.append(f"{manifest} is damaged ({type(error).__name__})")
        return
    check.outputs += 1
    if content_hash({name: digest for name, (_, digest) in listed.items()}) != recorded:
        check.faults.append(f"{manifest} was edited (content_hash)")
    for name, (size, digest) in listed.items():
        check.files += 1
        check.bytes += size
        fault = file_fault(
            manifest.parent / name, size, digest if check.hashed + size <= hash_budget else None
        )
        if fault:
            check.faults.append(fault)
        elif check.hashed + size <= hash_budget:
            check.hashed += size


def file_fault(file: Path, size: int, digest: str | None) -> str | None:
    """Why `file` is not the one that was written; without `digest` its content is not read."""
    if not file.is_file():
        return f"{file} is missing"
    if file.stat().st_size != size:
        return f"{file} has {file.stat().st_size} bytes, not {size}"
    if digest is not None and remembered_sha256(file) != digest:
        return f"{file} does not match its hash"
    return None


def content_hash(digests: dict[str, str]) -> str:
    """The content hash of a manifest: sha256 over the canonical JSON of {file: sha256}."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """`sha256`, read once: by this process for every file, by any later one for files of LARGE bytes or more.

    A file counts as unchanged while device, inode, size and the times of its last write and last change of status agree
    (one changed within the last seconds is never remembered: another write might leave the same times).
    """
    stat = path.stat()
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    key = f"{path.resolve()} {state}"
    if key in _known:
        return _known[key]
    note = _notes() / f"{hashlib.sha256(key.encode()).hexdigest()}.sha256" if stat.st_size >= LARGE else None
    digest = _noted(note) or sha256(path)
    if time.time() - max(stat.st_mtime, stat.st_ctime) > FRESH_SECONDS:
        _known[key] = digest
        if note is not None:
            _write_note(note, digest)
    return digest


def _notes() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "generative-recommendation"


def _noted(note: Path | None) -> str | None:
    try:
        text = note.read_text().strip() if note else ""
    except OSError:
        return None
    return text if len(text) == 64 else None


def _write_note(note: Path, digest: str) -> None:
    with suppress(OSError):  # a home without room or rights: the file is read again next time
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(digest + "\n")
        os.replace(temporary, note)
