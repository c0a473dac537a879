"""Are the files of a finished output still those that were written? Standard library only.

Every output directory has a manifest.json with the size and sha256 of each of its files and a content hash over them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 1 << 22


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
        fault = _fault(manifest.parent / name, size, digest if check.hashed + size <= hash_budget else None)
        if fault:
            check.faults.append(fault)
        elif check.hashed + size <= hash_budget:
            check.hashed += size


def _fault(file: Path, size: int, digest: str | None) -> str | None:
    """Why `file` is not the one that was written; without `digest` its content is not read."""
    if not file.is_file():
        return f"{file} is missing"
    if file.stat().st_size != size:
        return f"{file} has {file.stat().st_size} bytes, not {size}"
    if digest is not None and sha256(file) != digest:
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
