"""What an adapter is: an options class, and a module with three functions that take the folder and those options.

    files(raw, options) -> list[Path]                           every raw file that is read, in order
    read(raw, options, funnel) -> (Loaded | None, findings)     the interactions on codes, and their items and users
    find_lines(raw, options, user=, items=) -> RawLines         where a user and items (raw ids) stand in those files

`read` counts what it leaves out in the funnel and collects what is wrong instead of raising; what a user should know of a
folder that is usable all the same goes to `funnel.facts["notes"]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from data.shaping.assemble import Coded


@dataclass(frozen=True)
class Adapter:
    """One entry of the registry.

    options: its dataclass, a group of its own in the recipe; module: where its three functions are, imported when used;
    published: it may bring a split of its own (`split.kind published`).
    """

    options: type
    module: str
    published: bool = False

    def load(self) -> ModuleType:
        """The adapter's module."""
        return importlib.import_module(self.module)


@dataclass(frozen=True)
class Loaded:
    """A folder's content on codes, before filters, split and windows.

    rows: in file order; items: item codes (int [n]) -> items.parquet without item_id, row i for the i-th code; users: one
    row per user code without user_id; num_items: number of item codes; sequences: published ones (columns of
    sequences.parquet without example_id, on the same codes), or None; keeps_codes: codes stay the ids when nothing is
    filtered, else ids are given by first appearance.
    """

    rows: Coded
    items: Callable[[np.ndarray], pa.Table]
    users: pa.Table
    num_items: int
    sequences: pa.Table | None = None
    keeps_codes: bool = False


@dataclass(frozen=True)
class RawLine:
    """One line (from 1) or table row (from 0) of a raw file; `key` is the id that was looked for.

    broken: why it was not read, "" when it was; event: (raw item id, UTC seconds) of a user's line where it has both.
    """

    file: str
    line: int
    key: str
    text: str
    fields: dict[str, Any]
    broken: str = ""
    event: tuple[str, int] | None = None


@dataclass(frozen=True)
class RawLines:
    """The user's lines and the items' lines, in file order."""

    user: list[RawLine] = field(default_factory=list)
    items: list[RawLine] = field(default_factory=list)


def first_of_each(lines: Any) -> list[RawLine]:
    """The first line of every key: that is the one which stage 01 reads."""
    found: dict[str, RawLine] = {}
    for line in lines:
        found.setdefault(line.key, line)
    return list(found.values())


MAX_TEXT = 400


def shown(line: bytes | str) -> str:
    """A raw line as it is printed, cut to MAX_TEXT characters."""
    text = (line.decode("utf-8", "replace") if isinstance(line, bytes) else line).strip()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
