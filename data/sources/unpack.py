"""Take files out of a zip or tar archive by their names alone: no path of the archive is ever followed."""

from __future__ import annotations

import fnmatch
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zlib import error as ZlibError

from configs.program import InputError


def unpack(archive: Path, folder: Path, members: Sequence[str]) -> list[Path]:
    """Write every regular file whose name matches one of `members` into `folder`, flat; returns them in the archive's order.

    InputError for an archive that is damaged, lacks a pattern, has a name twice, or whose paths leave it.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                entries = [(info.filename, info) for info in zipped.infolist() if not info.is_dir()]
                chosen = _chosen(archive, [name for name, _ in entries], members)
                made = [_write(zipped.open(entries[at][1]), folder / name) for at, name in chosen]
        else:
            with tarfile.open(archive) as tar:
                files = [info for info in tar if info.isreg()]
                chosen = _chosen(archive, [info.name for info in files], members)
                made = [_write(tar.extractfile(files[at]), folder / name) for at, name in chosen]
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ZlibError, OSError) as error:
        raise InputError(f"{archive} is damaged ({error}) -> remove it and fetch it again") from None
    return made


def _chosen(archive: Path, names: Sequence[str], members: Sequence[str]) -> list[tuple[int, str]]:
    """(position, file name) of what is taken."""
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
            raise InputError(f"{archive} holds a path that leads out of it ({name!r}) -> do not use it")
    chosen = [
        (at, PurePosixPath(name).name)
        for at, name in enumerate(names)
        if any(fnmatch.fnmatchcase(PurePosixPath(name).name, pattern) for pattern in members)
        and not PurePosixPath(name).name.startswith("._")
    ]
    taken = [name for _, name in chosen]
    for pattern in members:
        if not fnmatch.filter(taken, pattern):
            raise InputError(f"{archive} has no {pattern} -> another release? it has {', '.join(names[:5])}")
    if len(set(taken)) < len(taken):
        raise InputError(f"{archive} has a file twice: {', '.join(sorted(taken)[:5])} -> unpack it by hand")
    return chosen


def _write(source: BinaryIO | None, target: Path) -> Path:
    assert source is not None, "regular files can be read"
    temporary = target.with_name(f"{target.name}.part")
    with source, open(temporary, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    temporary.replace(target)
    return target
