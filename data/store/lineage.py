"""Which data set an output comes from, as the manifests on its way record it; a mixture of two is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.program import InputError
from data.store.output import read_manifest


def recorded_data_hash(directory: str | Path) -> str | None:
    """Content hash of the data set that an output was made from, followed through the manifests of its inputs.

    None where the trail ends: an input that was moved, replaced or not made here.
    """
    inputs = (read_manifest(directory) or {}).get("inputs", {})
    if "data" in inputs:
        return inputs["data"]["sha256"]
    # Examples name the rows; a model may have learned on an earlier state of the data.
    for _, record in sorted(inputs.items(), key=lambda entry: entry[0] != "examples"):
        if _unchanged(record) is not None:
            found = recorded_data_hash(record["path"])
            if found is not None:
                return found
    return None


def input_directory(directory: str | Path, name: str) -> Path | None:
    """The output that an output was made from, where it lies unchanged at the place its manifest names; else None."""
    record = (read_manifest(directory) or {}).get("inputs", {}).get(name, {})
    return None if _unchanged(record) is None else Path(record["path"])


def _unchanged(record: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a recorded input, where it still lies there with the content that was read; else None."""
    path = Path(record.get("path", ""))
    manifest = read_manifest(path) if record and path.is_dir() else None
    return manifest if manifest is not None and manifest["content_hash"] == record["sha256"] else None


def require_same_data(directory: str | Path, data: str | Path, *, again: str) -> None:
    """InputError when `directory` was made from another state of the data than `data`; `again` makes it anew."""
    recorded, current = recorded_data_hash(directory), (read_manifest(data) or {}).get("content_hash")
    if recorded is not None and recorded != current:
        raise InputError(
            f"{directory} was made from another state of the data than {data} ({recorded[:12]} against "
            f"{str(current)[:12]}) -> run {again} again"
        )


def require_common_data(first: str | Path, second: str | Path, *, again: str) -> None:
    """InputError when two outputs were made from different data sets; `again` makes the second anew."""
    hashes = recorded_data_hash(first), recorded_data_hash(second)
    if None not in hashes and hashes[0] != hashes[1]:
        raise InputError(
            f"{second} was made from another state of the data than {first} ({hashes[1][:12]} against "
            f"{hashes[0][:12]}) -> run {again} again"
        )


def require_own_space(quantizer: str | Path, embeddings: str | Path, data: str | Path, *, again: str) -> None:
    """InputError when `embeddings` are not in the space that a quantizer was trained in; `again` trains one on them.

    At home there are the vectors that it was trained on, those that extend them to a grown data set (`like`), and what the same
    stage makes of the same inputs and configuration once more (on another machine a vector differs in its last bits). Two spaces of
    one width and one data set look alike, so the data alone decide only where a quantizer does not say what it was trained on.
    """
    trained_on = (read_manifest(quantizer) or {}).get("inputs", {}).get("embeddings")
    if trained_on is not None and _extends(embeddings, trained_on):
        return
    require_same_data(quantizer, data, again=again)
    if trained_on is not None:
        raise InputError(
            f"{quantizer} was trained on {trained_on['path']} ({trained_on['sha256'][:12]}): {embeddings} is neither these vectors nor made "
            f"with rq.embed_items --like them -> pass those as embeddings, or run {again} on these"
        )


def _extends(embeddings: str | Path, trained_on: dict[str, Any]) -> bool:
    manifest = read_manifest(embeddings) or {}
    if manifest.get("content_hash") == trained_on["sha256"]:
        return True
    original, like = _unchanged(trained_on), manifest.get("inputs", {}).get("like")
    if original is not None and _recipe(original) == _recipe(manifest):
        return True
    if like is None or like["sha256"] == trained_on["sha256"]:
        return like is not None
    return _unchanged(like) is not None and _extends(like["path"], trained_on)


def _recipe(manifest: dict[str, Any]) -> tuple[Any, ...]:
    """What a stage was told and what it read."""
    read = {name: entry["sha256"] for name, entry in manifest.get("inputs", {}).items()}
    return (*(manifest.get(key) for key in ("stage", "stage_version", "config_hash")), read)
