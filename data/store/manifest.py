"""manifest.json: what a finished output holds, and whether it still does.

Its `files` list every file with size and sha256; its `seal` is the hash of all its other keys, so that a flipped bit in a
recorded number is found like one in a table. Manifests written before there was a seal are read as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.integrity import content_hash, file_fault
from configs.program import InputError
from data.store.fingerprints import plain, read_record, sha256_json

MANIFEST, SEAL = "manifest.json", "seal"


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the hash of its content."""
    record = plain({key: value for key, value in record.items() if key != SEAL})
    return record | {SEAL: sha256_json(record)}


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """The manifest of a finished output; None where there is none, or that of another program. InputError when damaged."""
    path = Path(directory) / MANIFEST
    record = read_record(path)
    if record is None or "stage" not in record:
        return None
    try:
        listed = {name: (int(entry["bytes"]), entry["sha256"]) for name, entry in record["files"].items()}
        whole = content_hash({name: digest for name, (_, digest) in listed.items()}) == record["content_hash"]
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole or record.get(SEAL, sealed(record)[SEAL]) != sealed(record)[SEAL]:
        raise InputError(
            f"{path} is damaged or was edited -> run the stage that wrote it again with --overwrite, or restore it"
        )
    return record


def faults(directory: str | Path, manifest: dict[str, Any]) -> dict[str, str]:
    """{file: what is wrong with it} of the listed files that are missing or not those that were written."""
    path = Path(directory)
    found = {
        name: file_fault(path / name, entry["bytes"], entry["sha256"])
        for name, entry in manifest["files"].items()
    }
    return {name: fault for name, fault in found.items() if fault is not None}


def require_undamaged(directory: str | Path, manifest: dict[str, Any]) -> None:
    """InputError naming the first file of a finished output that is not the one that was written."""
    for fault in faults(directory, manifest).values():
        raise InputError(
            f"{fault}: it is not what stage {manifest['stage']} wrote -> run that stage again, or restore the file"
        )
