"""What lies in an output directory, and how an old output steps aside for its successor.

Several files do not move in one step, and a process may be killed between any two. So what has to be done if this one does
not come to its end is written down first, in `.intent`, and `settle` - called by whoever holds the directory's lock next -
does it. Afterwards a directory is one of: empty; unfinished (pending.json); finished (manifest.json); and an output that
was set aside (`.replaced`) exists only while its successor is unfinished.

Only what a stage wrote is set aside or removed. Of a finished output its manifest names that; an unfinished one's pending.json
names the files that were there before it and stay (`kept`). Outputs inside an output stay too, but for its own measures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.program import InputError
from data.store.claim import HOLDER, LAUNCH, LOCK
from data.store.fingerprints import read_record
from data.store.manifest import MANIFEST

# Folders inside an output that are outputs of other stages: a rebuild leaves them, their readers compare hashes.
NESTED = {"raw", "embeddings", "tags", "quantizers", "sids", "tids", "reasoning", "examples"}
MEASURES = (
    "metrics"  # the output inside an output that goes with it: it would say something untrue of the next one
)
PENDING, INTENT, REPLACED = "pending.json", ".intent", ".replaced"
LOG = "log.txt"  # what the runs said, with times: no part of what they made
KEPT = "kept"  # of a pending record
DISCARD, GIVE_BACK = "discard", "give back"
OURS = {LOCK, HOLDER, LAUNCH, INTENT, REPLACED}


def temporary_of(path: Path) -> Path:
    """The name under which `path` is written until it is whole."""
    return path.with_name(f".{path.name.removeprefix('.')}.tmp")


def content(path: Path) -> list[Path]:
    """What lies in an output directory apart from locks and the outputs of other stages."""
    return [p for p in path.iterdir() if p.name not in OURS and not (p.is_dir() and p.name in NESTED)]


def require_place(path: Path) -> None:
    """InputError where no output can be: a file, below a file, a folder of code."""
    if path.exists() and not path.is_dir():
        raise InputError(f"output_dir {path} is a file -> choose another directory")
    blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if blocking is not None:
        raise InputError(
            f"output_dir {path} is below {blocking}, which is a file -> choose another directory"
        )
    if (path / "__init__.py").exists():
        raise InputError(f"output_dir {path} holds code (__init__.py) -> choose another directory")


def own_files(path: Path) -> Iterator[Path]:
    """Every file of an output that is being written, at any depth, apart from records, temporary files, other outputs inside it and
    what was there before it."""
    kept = set(kept_files(path))
    return (file for file in _visible_files(path) if str(file.relative_to(path)) not in kept)


def _visible_files(folder: Path) -> Iterator[Path]:
    for entry in content(folder):
        if entry.name.startswith(".") or entry.name in (PENDING, MANIFEST, LOG):
            continue
        if entry.is_file():
            yield entry
        elif not _is_output(entry):
            yield from _visible_files(entry)


def kept_files(path: Path) -> list[str]:
    """What was in the directory of an unfinished output before it, by its record."""
    return (read_record(path / PENDING) or {}).get(KEPT, [])


def files_of_others(path: Path) -> list[str]:
    """What lies in a directory and neither its stage nor another one wrote."""
    own = _ownership(path)
    return sorted(str(leaf.relative_to(path)) for leaf in _leaves(path, _passed) if not own(leaf))


def _own_leaves(path: Path) -> list[Path]:
    """What the stage of a directory wrote, records last: while they are there it is known what that is."""
    own = _ownership(path)
    found = [leaf for leaf in _leaves(path, _passed) if own(leaf)]
    measures = path / MEASURES
    if _is_output(
        measures
    ):  # whole, or where somebody's files are in it not at all: its readers compare hashes
        measured = _ownership(measures)
        if all(measured(leaf) for leaf in _leaves(measures, lambda entry: entry.name in OURS)):
            found.append(measures)
    records = (path / PENDING, path / MANIFEST)
    return sorted(found, key=lambda leaf: leaf in records)


def _ownership(path: Path) -> Callable[[Path], bool]:
    """Whether a leaf is of the stage that wrote a directory. Where a damaged manifest does not say so, all of them are."""
    recorded = (path / MANIFEST).exists() or (path / PENDING).exists()
    listed, kept = _listed(path), set(kept_files(path))

    def own(leaf: Path) -> bool:
        name = str(leaf.relative_to(path))
        named = name not in kept if listed is None else name in listed
        return recorded and (named or name in (LOG, PENDING, MANIFEST))

    return own


def _listed(path: Path) -> set[str] | None:
    """The files that a manifest names, and the folders that they are in (one may be a link); None where none can be read."""
    try:
        names = [Path(name) for name in (read_record(path / MANIFEST) or {})["files"]]
    except (InputError, KeyError, TypeError):
        return None
    return {str(part) for name in names for part in (name, *name.parents)}


def _leaves(folder: Path, passed: Callable[[Path], bool]) -> Iterator[Path]:
    """Files, links and empty folders at any depth, but for what is `passed` by and what is in it."""
    for entry in folder.iterdir():
        if passed(entry):
            continue
        if entry.is_dir() and not entry.is_symlink() and any(entry.iterdir()):
            yield from _leaves(entry, passed)
        else:
            yield entry


def _passed(entry: Path) -> bool:
    """Locks, and the outputs of other stages."""
    return entry.name in OURS or (entry.is_dir() and (entry.name in NESTED or _is_output(entry)))


def settle(path: Path) -> None:
    """Bring a directory whose last owner may have been killed anywhere into one of the states of the module docstring."""
    for name in (PENDING, MANIFEST, LAUNCH, INTENT):
        temporary_of(path / name).unlink(missing_ok=True)
    intent = (read_record(path / INTENT) or {}).get("do")
    if intent is not None:
        _perform(path, intent)
    pending, finished = (path / PENDING).exists(), (path / MANIFEST).exists()
    if pending:
        _remove_temporaries(path)
    if finished:  # its manifest is written last: what comes after it may not have happened
        (path / PENDING).unlink(missing_ok=True)
        shutil.rmtree(path / REPLACED, ignore_errors=True)
    elif not pending and (path / REPLACED).exists():
        _announce(path, GIVE_BACK)
        _perform(path, GIVE_BACK)


def set_aside(path: Path) -> None:
    """Keep an overwritten output until its successor is finished; of several attempts the first one's is kept."""
    if (path / REPLACED).exists():
        _announce(path, DISCARD)
        _perform(path, DISCARD)
        return
    _announce(path, GIVE_BACK)
    aside = path / REPLACED
    aside.mkdir()
    for leaf in _own_leaves(path):
        _move(leaf, aside / leaf.relative_to(path))
        _remove_emptied(leaf.parent, path)
    (path / INTENT).unlink()


def withdraw(path: Path) -> None:
    """Bad input leaves nothing behind: the files of this run go, unless work (a folder) is among them.

    What this run was to overwrite comes back.
    """
    _remove_temporaries(path)
    if any(leaf.parent != path or leaf.is_dir() for leaf in _own_leaves(path)):
        return
    for intent in (DISCARD, GIVE_BACK):
        _announce(path, intent)
        _perform(path, intent)


def _announce(path: Path, intent: str) -> None:
    temporary = temporary_of(path / INTENT)
    temporary.write_text(f'{{"do": "{intent}"}}\n')
    os.replace(temporary, path / INTENT)


def _perform(path: Path, intent: str) -> None:
    """Do, or go on with, what was announced."""
    aside = path / REPLACED
    if intent == DISCARD:
        for leaf in _own_leaves(path):
            _remove(leaf)
            _remove_emptied(leaf.parent, path)
    elif aside.exists():
        for leaf in list(_leaves(aside, lambda entry: False)):
            _move(leaf, path / leaf.relative_to(aside))
        shutil.rmtree(aside)
    (path / INTENT).unlink()


def _move(leaf: Path, place: Path) -> None:
    if leaf.is_dir() and place.is_dir():  # what a kill left of a folder whose files were moved
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(leaf, place)


def _remove_emptied(folder: Path, path: Path) -> None:
    """Remove the folders below `path` whose last file was taken from them."""
    while folder != path and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _remove_temporaries(path: Path) -> None:
    for entry in content(path):
        if entry.name.startswith(".") and entry.name.endswith(".tmp"):
            _remove(entry)
        elif entry.is_dir() and not _is_output(entry):
            _remove_temporaries(entry)


def _is_output(folder: Path) -> bool:
    return any((folder / record).exists() for record in (MANIFEST, PENDING, REPLACED))


def _remove(entry: Path) -> None:
    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
