"""What a stage reads: verified against its manifest, and known by a content hash.

A manifest records the hashes, so that a finished output is kept exactly when its inputs and its configuration are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.integrity import remembered_sha256
from configs.program import InputError
from data.store.adapters import is_adapter, recorded_base
from data.store.checkpoints import require_sound
from data.store.fingerprints import safetensors_header, sha256_bytes, sha256_json
from data.store.manifest import MANIFEST, read_manifest, require_undamaged

PIPELINE = "model_index.json"  # of diffusers: a folder per component
SMALL_FILES = {".json", ".jinja", ".model", ".txt"}


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


def fingerprint(path: str | Path, known: dict[str, Any] | None = None) -> str:
    """The content hash of an input; InputError when it is not what was written.

    A directory of ours answers with the content hash of its manifest, after a look at every file; a model directory with
    `model_fingerprint`; an adapter with that of its files and of its base; a file with its sha256 - taken from `known` ({"size", "mtime_ns", "sha256"}, an earlier manifest's
    record) where size and modification time still agree, because raw dumps are large.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"input does not exist: {path} -> check the path or run the stage that writes it")
    if path.is_file():
        stat = path.stat()
        if known and known.get("size") == stat.st_size and known.get("mtime_ns") == stat.st_mtime_ns:
            return known["sha256"]
        return remembered_sha256(path)
    manifest = read_manifest(path)
    if manifest is not None:
        require_undamaged(path, manifest)
        return manifest["content_hash"]
    if is_adapter(path):
        base_of(path)
        require_sound(path)
        return model_fingerprint(path)  # base.json among it: the hash of the base
    if (path / "config.json").exists():
        require_sound(path)
        return model_fingerprint(path)
    if (path / PIPELINE).is_file():
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
        return sha256_json(
            [model_fingerprint(path), *([folder.name, model_fingerprint(folder)] for folder in folders)]
        )
    raise InputError(
        f"{path} is neither a finished output (no {MANIFEST}) nor a model directory -> run the stage that writes it"
    )


def base_of(adapter: str | Path) -> Path:
    """The base model of an adapter directory, of which it is known that it is the one; InputError otherwise."""
    base, recorded = recorded_base(adapter)
    if fingerprint(base) != recorded:
        raise InputError(
            f"{base} is not the model that adapter {adapter} was trained on (its content is another) -> give the right one: "
            "python -m train.merge --checkpoint ADAPTER --base MODEL --output_dir DIR"
        )
    return base


def model_fingerprint(directory: Path) -> str:
    """Hash of a Hugging Face directory: its weights and its small files, all of them in full."""
    return _model_hash(directory, remembered_sha256)


def same_input(value: Any, recorded: str | None, current: str | None) -> bool:
    """Whether an input `value` (a path) with the hash `current` is the one of a record.

    Of model directories other than final/ records once held the header of the weights and their size only.
    """
    if recorded == current or recorded is None or not isinstance(value, (str, Path)):
        return recorded == current
    path = Path(value)
    if not (path / "config.json").exists() or path.name == "final":
        return False
    return recorded == _model_hash(path, lambda file: sha256_bytes(safetensors_header(file)))


def _model_hash(directory: Path, hash_weights: Callable[[Path], str]) -> str:
    parts = []
    for file in sorted(p for p in directory.iterdir() if p.is_file()):
        if file.suffix == ".safetensors":
            parts.append([file.name, file.stat().st_size, hash_weights(file)])
        elif file.suffix in SMALL_FILES and file.name != "COMPLETE.json":
            parts.append([file.name, file.stat().st_size, remembered_sha256(file)])
    return sha256_json(parts)
