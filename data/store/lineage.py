"""Which data set an output comes from, as the manifests on its way record it; a mixture of two is refused."""

from __future__ import annotations

from pathlib import Path

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
        path = Path(record.get("path", ""))
        source = read_manifest(path) if path.is_dir() else None
        if source is not None and source["content_hash"] == record["sha256"]:
            found = recorded_data_hash(path)
            if found is not None:
                return found
    return None


def data_directory(directory: str | Path) -> Path | None:
    """The data set that an output was made from, where it lies unchanged at the place its manifest names; else None."""
    record = (read_manifest(directory) or {}).get("inputs", {}).get("data", {})
    path = Path(record.get("path", ""))
    manifest = read_manifest(path) if record and path.is_dir() else None
    return path if manifest is not None and manifest["content_hash"] == record["sha256"] else None


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
    """InputError when a quantizer comes from another data set than `data`.

    One that was trained on the vectors which `embeddings` extend to a grown data set (`like`) is at home in their space.
    """
    trained_on = (read_manifest(quantizer) or {}).get("inputs", {}).get("embeddings", {}).get("sha256")
    if trained_on is None or not _extends(embeddings, trained_on):
        require_same_data(quantizer, data, again=again)


def _extends(embeddings: str | Path, content_hash: str) -> bool:
    manifest = read_manifest(embeddings) or {}
    like = manifest.get("inputs", {}).get("like")
    if manifest.get("content_hash") == content_hash or (like and like["sha256"] == content_hash):
        return True
    return bool(like) and _extends(like["path"], content_hash)
