"""Content hashes of everything a stage reads: files, artifact directories, model directories.

A manifest records them, so that a finished output is kept exactly when its inputs and its configuration are unchanged.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from configs.integrity import sha256 as sha256_file
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


def fingerprint(path: str | Path, known: dict[str, Any] | None = None) -> str:
    """The content hash of an input.

    A directory of ours answers with the content hash of its manifest; a model directory with `model_fingerprint`; a
    file with its sha256 - taken from `known` ({"size", "mtime_ns", "sha256"}, an earlier manifest's record) where size
    and modification time still agree, because raw dumps are large.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"input does not exist: {path} -> check the path or run the stage that writes it")
    if path.is_file():
        stat = path.stat()
        if known and known.get("size") == stat.st_size and known.get("mtime_ns") == stat.st_mtime_ns:
            return known["sha256"]
        return sha256_file(path)
    manifest = path / "manifest.json"
    if manifest.exists():
        return read_record(manifest)["content_hash"]
    refuse_adapter(path)
    if (path / "config.json").exists():
        return model_fingerprint(path)
    raise InputError(
        f"{path} is neither a finished output (no manifest.json) nor a model directory -> run the stage that writes it"
    )


def refuse_adapter(directory: Path) -> None:
    """InputError for a folder with the adapter of a model in place of the model."""
    if (directory / "adapter_config.json").exists():
        raise InputError(
            f"{directory} holds a LoRA adapter, not a model -> merge the adapter into its base model first"
        )


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
            f"{path} is damaged (no JSON object) -> delete its directory and run that stage again"
        )
    return record


def model_fingerprint(directory: Path) -> str:
    """Hash of a Hugging Face directory: its small files in full, and of each safetensors file its header and size.

    In a directory called `final` the weights are hashed in full: two runs of one architecture differ in nothing else.
    """
    parts = []
    for file in sorted(p for p in directory.iterdir() if p.is_file()):
        size = file.stat().st_size
        if file.suffix == ".safetensors":
            digest = (
                sha256_file(file) if directory.name == "final" else sha256_bytes(safetensors_header(file))
            )
        elif file.suffix in {".json", ".jinja", ".model", ".txt"} and file.name != "COMPLETE.json":
            digest = sha256_file(file)
        else:
            continue
        parts.append([file.name, size, digest])
    return sha256_json(parts)


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
