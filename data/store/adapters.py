"""Adapter directories: what a training changed, in PEFT's format, and base.json, which says in what.

    adapter_config.json  adapter_model.safetensors     PEFT's; any program that reads PEFT reads them
    base.json            {"path", "beside", "sha256"}  the base model: where it was, seen from the adapter too, and its content

An adapter counts as a model wherever a model is read: its base is found, verified by its content hash, and the adapter is
merged into it in memory. A base that is gone, or another one, is refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from configs.program import InputError
from data.store.fingerprints import read_record

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"


def is_adapter(directory: str | Path) -> bool:
    """Whether a folder holds the adapter of a model in place of the model."""
    return (Path(directory) / CONFIG).exists()


def write_base(directory: Path, base: str | Path, *, sha256: str) -> None:
    """Record which model the adapter in `directory` belongs to."""
    beside = os.path.relpath(Path(base).resolve(), directory.resolve())
    record = {"path": str(base), "beside": beside, "sha256": sha256}
    (directory / BASE).write_text(json.dumps(record, indent=1) + "\n")


def recorded_base(directory: str | Path) -> tuple[Path, str]:
    """(the base model of an adapter, the content hash that it must have); InputError where there is no record, or no base."""
    directory = Path(directory)
    record = read_record(directory / BASE)
    if record is None or not {"path", "beside", "sha256"} <= record.keys():
        raise InputError(
            f"{directory} holds a LoRA adapter, not a model, and does not say of which model ({BASE}) -> merge the adapter "
            "into its base model: python -m train.merge --checkpoint ADAPTER --base MODEL --output_dir DIR"
        )
    for place in (Path(record["path"]), directory / record["beside"]):
        if place.is_dir():
            return place, record["sha256"]
    raise InputError(
        f"the base model of adapter {directory} is gone: {record['path']} -> put it back, or name it: "
        "python -m train.merge --checkpoint ADAPTER --base MODEL --output_dir DIR"
    )
