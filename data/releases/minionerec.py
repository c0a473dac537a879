"""Files of a MiniOneRec folder, read and written: pure functions, no program.

    *.inter      a tab-separated file, one (history, target) row per line
    info/*.txt   semantic ID, title and item, tab-separated, one item per line

`.gz` files are read as they are. Writers write in place: pass a temporary path (Output.replacing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.program import InputError
from data.releases.text import read_text
from data.sid import FORMATS, SidFormat

INTER_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"


@dataclass(frozen=True)
class InterRows:
    """Rows of an .inter file: users (text) and targets per row, histories as lists of item numbers."""

    users: tuple[str, ...]
    histories: tuple[tuple[int, ...], ...]
    targets: tuple[int, ...]


def read_inter(path: str | Path) -> InterRows:
    """A MiniOneRec .inter file; InputError naming the first line that is not user, history and target."""
    lines = read_text(path).splitlines()
    if not lines or not lines[0].startswith(INTER_HEADER):
        raise InputError(f"{path}: the header is not {INTER_HEADER!r} -> pass an .inter file")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        parts = line.split("\t")
        try:
            rows.append((parts[0], tuple(int(item) for item in parts[1].split()), int(parts[2])))
        except (IndexError, ValueError):
            raise InputError(f"{path}:{number} is not user, history, item -> get the file again") from None
    users, histories, targets = zip(*rows, strict=True) if rows else ((), (), ())
    return InterRows(users, histories, targets)


def write_inter(path: str | Path, rows: InterRows) -> None:
    """The inverse of `read_inter`; `path` is written in place."""
    lines = [INTER_HEADER]
    for user, history, target in zip(rows.users, rows.histories, rows.targets, strict=True):
        lines.append(f"{user}\t{' '.join(map(str, history))}\t{target}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_info(path: str | Path) -> list[tuple[str, str, int]]:
    """(semantic ID, title, item) of every line of an info/*.txt; a title may hold tabs, the other two cannot."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line:
            continue
        first, _, rest = line.rstrip("\r").partition("\t")
        title, _, item = rest.rpartition("\t")
        if not first.startswith("<") or not item.isdecimal():
            raise InputError(f"{path}:{number} is not SID, title, item -> get the file again")
        rows.append((first, title, int(item)))
    return rows


def write_info(
    path: str | Path, codes_NL: np.ndarray, titles: Sequence[str], *, fmt: SidFormat = FORMATS["letters"]
) -> int:
    """Write info/*.txt, item by item; returns how many titles had a tab or line break, written as a space."""
    clean = [" ".join(title.split("\t")).replace("\r", " ").replace("\n", " ") for title in titles]
    rows = zip(codes_NL.tolist(), clean, strict=True)
    text = "".join(f"{fmt.text(codes)}\t{title}\t{item}\n" for item, (codes, title) in enumerate(rows))
    Path(path).write_text(text, encoding="utf-8")
    return sum(after != before for after, before in zip(clean, titles, strict=True))
