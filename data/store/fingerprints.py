"""Hashes of bytes, of JSON values and of files, and the JSON records that hold them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from configs.program import InputError


def sha256_bytes(*parts: bytes) -> str:
    """Hex sha256 of the concatenation of `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON (keys sorted); dataclasses count as their fields."""
    return sha256_bytes(json.dumps(plain(value), sort_keys=True, ensure_ascii=False).encode())


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def read_record(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no file; InputError for a damaged one."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InputError(
            f"{path} is damaged (no JSON object) -> run the stage that wrote it again with --overwrite, or restore it"
        )
    return record


def safetensors_header(file: Path) -> bytes:
    """The JSON header of a safetensors file; InputError when the file is not one."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(size - 8, 100 << 20):
            raise InputError(
                f"{file} is truncated or not safetensors (header of {length} bytes in a file of {size}) -> copy it again"
            )
        return handle.read(length)
