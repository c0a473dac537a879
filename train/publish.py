"""A finished model -> a repository of a model hub; without --dry_run false it only says what would go where.

reads   a model directory (final/ of a run, or what train.merge wrote), the manifest of its run, HF_TOKEN of the environment
writes  nothing here; with --dry_run false the files and a model card at the hub

Nothing is ever uploaded by a training. The token comes from the environment or .env, never from a flag, and is never printed.
Weights, tokenizer and configuration go; what a trainer keeps for itself, manifests (they name paths of this machine) and
pickles stay. The card says what the manifest says: settings, counts, measures, hashes of the inputs, no path.

python -m train.publish --model outputs/qwen3/sft_recommend/final --target me/qwen3-industrial
HF_HUB_OFFLINE=0 python -m train.publish --model outputs/qwen3/sft_recommend/final --target me/qwen3-industrial --dry_run false
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import program
from configs.program import EnvironmentFault, InputError, ServiceError, say
from data.store.adapters import is_adapter
from data.store.checkpoints import require_model, require_sound
from data.store.manifest import read_manifest

TOKEN = "HF_TOKEN"
CARD = "README.md"
GOES = {".safetensors", ".json", ".jinja", ".txt", ".model"}
STAYS = {"manifest.json", "trainer_state.json", "base.json", "nan_step.json", "log.txt", "COMPLETE.json"}
TARGET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHOWN = ("train_what", "tasks", "layout", "max_length", "seed", "trainer")  # settings that a card lists


@dataclass
class PublishArgs:
    """What goes where."""

    model: str
    """model directory: final/, a merged one, or a checkpoint-* that is a whole model"""
    target: str
    """repository at the hub, owner/name"""
    dry_run: bool = True
    """say what would be uploaded and stop"""
    private: bool = True
    """make the repository private where it does not exist yet"""
    license: str = "other"
    """of the weights, as the hub names it; that of the base model binds you"""

    def __post_init__(self) -> None:
        if not TARGET.fullmatch(self.target):
            raise InputError(f"target {self.target!r} is no repository -> owner/name")


def files_of(model: Path) -> tuple[list[Path], list[Path]]:
    """(files that go, files that stay) of a model directory; subdirectories stay."""
    files = sorted(file for file in model.iterdir() if file.is_file())
    goes = [file for file in files if file.suffix in GOES and file.name not in STAYS and file.name[0] != "."]
    return goes, [file for file in files if file not in goes]


def manifest_of(model: Path) -> dict[str, Any] | None:
    """The manifest of the run that a model belongs to: its own, or that of the directory it lies in."""
    return read_manifest(model) or read_manifest(model.parent)


def card_of(args: PublishArgs, manifest: dict[str, Any] | None) -> str:
    """The model card. Of paths it holds last names only."""
    lines = [
        "---",
        f"license: {args.license}",
        "library_name: transformers",
        "tags: [generative-recommendation]",
        "---",
        "",
    ]
    lines += [f"# {args.target.split('/')[1]}", ""]
    if manifest is None:
        return "\n".join([*lines, "Nothing is recorded of how this model was made.", ""])
    lines += [f"Made by stage `{manifest['stage']}` of an open framework for generative recommendation.", ""]
    for title, values in (
        ("Settings", {key: manifest["config"].get(key) for key in SHOWN if key in manifest["config"]}),
        ("Counts", manifest.get("counts", {})),
        ("Facts", manifest.get("facts", {})),
        (
            "Inputs (content hashes)",
            {name: entry["sha256"] for name, entry in manifest.get("inputs", {}).items()},
        ),
    ):
        told = [f"| {key} | {cell(value)} |" for key, value in values.items()]
        lines += [f"## {title}", "", "| | |", "| --- | --- |", *told, ""] if told else []
    return "\n".join(lines)


def cell(value: Any) -> str:
    """One cell of a table.

    >>> cell({"learning_rate": 0.001}), cell("/models/outputs/run")
    ('learning_rate 0.001', 'run')
    """
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    text = (
        str(value).replace("|", "/") if not (isinstance(value, str) and os.sep in value) else Path(value).name
    )
    return " ".join(text.split())


def upload(args: PublishArgs, files: list[Path], card: str, token: str) -> str:
    """Create the repository where it is missing and put all files there in one commit; its address."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as staged:
        for file in files:
            try:
                os.link(file, Path(staged, file.name))
            except OSError:  # another disk
                shutil.copyfile(file, Path(staged, file.name))
        Path(staged, CARD).write_text(card, encoding="utf-8")
        try:
            api = HfApi(token=token)
            address = api.create_repo(args.target, private=args.private, exist_ok=True)
            api.upload_folder(
                repo_id=args.target, folder_path=staged, commit_message="Weights and model card"
            )
        except Exception as error:
            text = " ".join(str(error).replace(token, "(token)").split())[:200]
            raise ServiceError(
                f"the hub refused {args.target}: {text} -> check {TOKEN}, its rights and the name"
            ) from None
    return str(address)


def main(args: PublishArgs) -> None:
    model = require_model(args.model)
    if is_adapter(model):
        raise InputError(f"{model} is an adapter -> python -m train.merge makes a model of it")
    require_sound(model)
    goes, stays = files_of(model)
    if not any(file.suffix == ".safetensors" for file in goes):
        raise InputError(
            f"{model} has no weights as safetensors -> a model directory, or python -m train.merge for parts"
        )
    token, card = os.environ.get(TOKEN), card_of(args, manifest_of(model))
    for file in goes:
        say(f"{file.stat().st_size / 2**20:10.2f} MiB  {file.name}")
    say(f"{len(card.encode()) / 2**20:10.2f} MiB  {CARD} (model card)")
    total = sum(file.stat().st_size for file in goes) / 2**20
    where = f"{args.target} ({'private' if args.private else 'public'})"
    say(f"stay here: {', '.join(file.name for file in stays) or 'nothing'}")
    if args.dry_run:
        say(
            f"dry run: {len(goes) + 1} files, {total:.1f} MiB would go to {where}; {TOKEN} is {'set' if token else 'not set'}"
        )
        say(card)
        return
    if not token:
        raise InputError(f"{TOKEN} is not set -> put it into the environment or .env; no flag takes it")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0", "false"):
        raise EnvironmentFault(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded -> HF_HUB_OFFLINE=0 before the command"
        )
    say(f"uploaded {total:.1f} MiB to {where}: {upload(args, goes, card, token)}")


if __name__ == "__main__":
    program.run(PublishArgs, main)
