"""What a fusion is made of: saved item models, and models that are known by their predictions.

Predictions of one model on several splits are one member: directories that differ in the split in their name
(outputs/run/eval/grpo.valid and outputs/run/eval/grpo.test).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data import artifacts
from data.predictions import STEM, align, read_predictions
from data.rows import read_rows
from data.store.inputs import fingerprint
from data.store.lineage import require_same_data
from data.store.output import read_manifest, require_manifest
from infer.models import contract, listed
from infer.models.cache import ScoreCache

RANKS_ONLY = "import_predictions"  # a stage whose scores are minus the rank


@dataclass(frozen=True)
class FusionMember:
    """name: its directory, without the split where it is predictions. splits: those that were answered, None for a model,
    which answers any row."""

    name: str
    directories: tuple[Path, ...]
    splits: tuple[str, ...] | None = None

    def open(self, num_items: int) -> contract.ItemModel:
        """The model; InputError where it ranks another number of items."""
        if self.splits is not None:
            return listed.read(self.directories, num_items=num_items)
        model = contract.load(self.directories[0])
        if model.num_items != num_items:
            raise InputError(
                f"{self.name} scores {model.num_items} items, the others {num_items} -> members of one catalogue"
            )
        return model

    @property
    def sha256(self) -> list[str]:
        """Content hashes of the directories."""
        return [fingerprint(directory) for directory in self.directories]

    @property
    def has_probabilities(self) -> bool:
        """Whether its scores are log-probabilities; those of imported predictions are ranks, those of grounded titles distances."""
        made = [read_manifest(directory) for directory in self.directories]
        return all(one["stage"] != RANKS_ONLY and one["facts"].get("answers") != "written" for one in made)


def members_of(directories: Sequence[str | Path]) -> list[FusionMember]:
    """Members in the order of their first directory; InputError for what is neither model nor predictions, or named twice."""
    found: dict[str, FusionMember] = {}
    for directory in map(Path, directories):
        manifest = require_manifest(directory, written_by="the stage that fits or answers it")
        if (directory / contract.FILE).is_file():
            one = FusionMember(str(directory), (directory,))
        else:
            _require_predictions(directory)
            split = manifest["facts"]["split"]
            name = directory.with_name(directory.name.replace(f".{split}", "", 1))
            one = FusionMember(str(name), (directory,), (split,))
        other = found.get(one.name)
        if other is not None:
            if not other.splits or not one.splits or set(other.splits) & set(one.splits):
                raise InputError(f"{directory} is a member twice -> name it once and give it a weight")
            _refuse_two_models(other.directories[0], directory)
            one = FusionMember(one.name, other.directories + one.directories, other.splits + one.splits)
        found[one.name] = one
    return list(found.values())


def opened_for(
    members: Sequence[FusionMember], data: str | Path, splits: Sequence[str], *, num_items: int
) -> list[contract.ItemModel]:
    """The members' models; InputError where one ranks other items, or is a cache that lacks a row of `splits`."""
    models = [member.open(num_items) for member in members]
    caches = [model for model in models if isinstance(model, ScoreCache)]
    for split in splits if caches else ():
        rows = read_rows(data, split, num_items=num_items)
        for cache in caches:
            cache.score(rows, np.zeros((len(rows), 1), np.int64))
    return models


def require_fusable(
    members: Sequence[FusionMember], data: str | Path, splits: Sequence[str], *, num_items: int
) -> str:
    """The rows that all members were fitted on; InputError where members do not rank the same items for the rows of `splits`.

    That is: another state of the data, predictions of other rows or without one of the splits, members that were fitted on
    different rows. What fitted a member may be unknown.
    """
    fitted: dict[str, str] = {}
    for member in members:
        for directory in member.directories:
            require_same_data(directory, data, again="the stage that wrote it")
            known = fitted_on(directory)
            if known not in (None, "unknown"):
                fitted[member.name] = known
        if member.splits is not None:
            _require_answers(member, data, splits, num_items=num_items)
    if len(set(fitted.values())) > 1:
        said = ", ".join(f"{name} on {rows}" for name, rows in fitted.items())
        raise InputError(f"members were fitted on different rows ({said}) -> members of one split")
    return next(iter(fitted.values()), "unknown")


def fitted_on(directory: str | Path) -> str | None:
    """What a manifest says a model was fitted on; a cache says it through its model, None where the trail ends."""
    manifest = read_manifest(directory) or {}
    if "fitted_on" in manifest.get("facts", {}):
        return manifest["facts"]["fitted_on"]
    source: dict[str, Any] = manifest.get("inputs", {}).get("model", {})
    path = Path(source.get("path", ""))
    known = read_manifest(path) if source and path.is_dir() else None
    return fitted_on(path) if known and known["content_hash"] == source["sha256"] else None


def _require_answers(
    member: FusionMember, data: str | Path, splits: Sequence[str], *, num_items: int
) -> None:
    """InputError unless the predictions of a member hold every row of `splits`, and no others."""
    if missing := [split for split in splits if split not in member.splits]:
        raise InputError(
            f"{member.name} has answered {' and '.join(member.splits)}, not {missing[0]} -> name its predictions of {missing[0]} "
            "too, or leave that split out"
        )
    for directory, split in zip(member.directories, member.splits, strict=True):
        predictions, manifest = read_predictions(directory)
        if manifest["facts"].get("allowed") is not None:
            raise InputError(
                f"{directory} was restricted to {manifest['facts']['allowed']} -> predictions of the whole catalogue"
            )
        expected = read_rows(data, split, num_items=num_items).example_ids_R
        align(predictions, expected, max_rows=None, where=str(directory))


def _require_predictions(directory: Path) -> None:
    if not artifacts.found_parts(directory, STEM):
        raise InputError(
            f"{directory} holds neither an item model nor predictions -> a directory of infer.run_baselines, "
            "infer.recommend, ..."
        )


def _refuse_two_models(first: Path, second: Path) -> None:
    hashes = [read_manifest(one)["facts"].get("model_hash") for one in (first, second)]
    if hashes[0] != hashes[1]:
        raise InputError(f"{first} and {second} are answers of two models -> answers of one")
