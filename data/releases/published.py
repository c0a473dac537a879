"""A data set as another system publishes it: items, and rows of (user, history, target, split), on the positions of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.program import InputError
from data.reasoning import escaped, placeholder
from data.sid import SidFormat

SPLITS = ("train", "valid", "test")


@dataclass
class PublishedItem:
    """One item; texts as they stand in the file (a description may be a printed list), a narrative with placeholders."""

    raw_id: str
    title: str = ""
    description: Any = ""
    brand: str = ""
    categories: Any = ""
    source_id: str = ""
    narrative: str = ""


@dataclass
class PublishedRows:
    """Rows in file order, split after split: users as text, histories and targets as positions in the item list.

    texts: by name, a text of every row, with placeholders (data/reasoning.py) of positions in the item list.
    """

    users: list[str] = field(default_factory=list)
    histories: list[list[int]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def add(self, split: str, user: str, history: Sequence[int], target: int) -> None:
        self.users.append(user)
        self.histories.append(list(history))
        self.targets.append(target)
        self.splits.append(split)


@dataclass
class Published:
    """A folder's content. unknown: what the folder cannot tell, by name, counted; notes: the same in words.

    has_users: rows say whose they are; where they do not, histories of test rows may hold targets of valid rows.
    """

    items: list[PublishedItem]
    rows: PublishedRows
    has_users: bool = True
    unknown: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, name: str, number: int, words: str) -> None:
        """Keep a number; say it when it is not 0."""
        self.unknown[name] = number
        if number:
            self.notes.append(f"{number} {words}")


class Names:
    """From texts with semantic IDs to texts with placeholders; `unknown` counts semantic IDs of no item, which stay text."""

    def __init__(self, codes: Sequence[tuple[int, ...]], form: SidFormat) -> None:
        """codes: those of every item; form: how they are spelt."""
        self.pattern = form.pattern(len(codes[0]))
        self.codes, self.unknown = codes, 0
        self.first: dict[tuple[int, ...], int] = {}
        for item, row in enumerate(codes):
            self.first.setdefault(row, item)

    def __call__(self, text: str, meant: Sequence[int] = ()) -> str:
        """meant: the items that the text is about; they go before others of the same semantic ID."""
        own = self.first | {self.codes[item]: item for item in reversed(meant)}
        parts, end = [], 0
        for match in self.pattern.finditer(text):
            item = own.get(tuple(int(code) for code in match.groups()))
            self.unknown += item is None
            parts += [escaped(text[end : match.start()]), match[0] if item is None else placeholder(item)]
            end = match.end()
        return "".join([*parts, escaped(text[end:])])


def only_file(folder: str | Path, patterns: Sequence[str], *, what: str, needed: bool = True) -> Path | None:
    """The one file below `folder` that the first matching pattern names; InputError when there are several or none."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"raw folder does not exist: {root} -> set RAW (or --raw) to the published folder")
    for pattern in patterns:
        found = sorted(path for path in root.glob(pattern) if path.is_file())
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in found[:3])
            raise InputError(
                f"{root} has {len(found)} files for {what} ({names}) -> name the data set: `name`"
            )
        if found:
            return found[0]
    if needed:
        raise InputError(
            f"no {what} in {root} matches {' or '.join(patterns)} -> is it a folder of that system?"
        )
    return None
