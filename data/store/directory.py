"""What lies in an output directory, and how an old output steps aside for its successor.

Several files do not move in one step, and a process may be killed between any two. So what has to be done if this one does
not come to its end is written down first, in `.intent`, and `settle` - called by whoever holds the directory's lock next -
does it. Afterwards a directory is one of: empty; unfinished (pending.json); finished (manifest.json); and an output that
was set aside (`.replaced`) exists only while its successor is unfinished.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data.store.claim import HOLDER, LAUNCH, LOCK
from data.store.fingerprints import read_record
from data.store.manifest import MANIFEST

# Folders inside an output that are outputs of other stages: a rebuild leaves them, their readers compare hashes.
NESTED = {"raw", "embeddings", "tags", "quantizers", "sids", "tids", "reasoning", "examples"}
PENDING, INTENT, REPLACED = "pending.json", ".intent", ".replaced"
LOG = "log.txt"  # what the runs said, with times: no part of what they made
DISCARD, GIVE_BACK = "discard", "give back"
OURS = {LOCK, HOLDER, LAUNCH, INTENT, REPLACED}


def temporary_of(path: Path) -> Path:
    """The name under which `path` is written until it is whole."""
    return path.with_name(f".{path.name.removeprefix('.')}.tmp")


def content(path: Path) -> list[Path]:
    """What lies in an output directory apart from locks and the outputs of other stages."""
    return [p for p in path.iterdir() if p.name not in OURS and not (p.is_dir() and p.name in NESTED)]


def own_files(path: Path) -> Iterator[Path]:
    """Every file of an output, at any depth, apart from records, temporary files and other outputs inside it."""
    for entry in content(path):
        if entry.name.startswith(".") or entry.name in (PENDING, MANIFEST, LOG):
            continue
        if entry.is_file():
            yield entry
        elif not _is_output(entry):
            yield from own_files(entry)


def settle(path: Path) -> None:
    """Bring a directory whose last owner may have been killed anywhere into one of the states of the module docstring."""
    for name in (PENDING, MANIFEST, LAUNCH, INTENT):
        temporary_of(path / name).unlink(missing_ok=True)
    intent = (read_record(path / INTENT) or {}).get("do")
    if intent is not None:
        _perform(path, intent)
    pending, finished = (path / PENDING).exists(), (path / MANIFEST).exists()
    if finished:  # its manifest is written last: what comes after it may not have happened
        (path / PENDING).unlink(missing_ok=True)
        shutil.rmtree(path / REPLACED, ignore_errors=True)
    elif not pending and (path / REPLACED).exists():
        _announce(path, GIVE_BACK)
        _perform(path, GIVE_BACK)
    if pending or finished:
        _remove_temporaries(path)


def set_aside(path: Path) -> None:
    """Keep an overwritten output until its successor is finished; of several attempts the first one's is kept."""
    if (path / REPLACED).exists():
        _announce(path, DISCARD)
        _perform(path, DISCARD)
        return
    _announce(path, GIVE_BACK)
    (path / REPLACED).mkdir()
    for entry in content(path):
        os.replace(entry, path / REPLACED / entry.name)
    (path / INTENT).unlink()


def withdraw(path: Path) -> None:
    """Bad input leaves nothing behind: the files of this run go, unless work (a folder) is among them.

    What this run was to overwrite comes back.
    """
    _remove_temporaries(path)
    if any(entry.is_dir() for entry in content(path)):
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
        for entry in content(path):
            _remove(entry)
    elif aside.exists():
        for entry in aside.iterdir():
            os.replace(entry, path / entry.name)
        aside.rmdir()
    (path / INTENT).unlink()


def _remove_temporaries(path: Path) -> None:
    for entry in content(path):
        if entry.name.startswith(".") and entry.name.endswith(".tmp"):
            _remove(entry)
        elif entry.is_dir() and not _is_output(entry):
            _remove_temporaries(entry)


def _is_output(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or (folder / PENDING).exists()


def _remove(entry: Path) -> None:
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
