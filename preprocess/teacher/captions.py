"""Captions of items in the shapes in which they come: a list, a map, one object, or JSON lines.

    [{"id": "B001", "caption": "..."}]        text under caption, item_caption, description or text; id under id, item_id or raw_id
    {"B001": "..."}                           {"id": "B001", "caption": "..."} is one object, not a map
    {"id": "B001", "caption": "..."}          JSON lines: one such object a line

Ids are those of the raw data (`raw_id`), any text or number. A caption that is a refusal of the model that wrote it is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.program import InputError
from data.store.json_text import parse_json
from infer.chat.refusals import is_refusal

IDS = ("id", "item_id", "raw_id")
TEXTS = ("caption", "item_caption", "description", "text")


@dataclass
class Captions:
    """{raw id: caption}, and the ids whose caption is empty or a refusal."""

    texts: dict[str, str] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def add(self, key: str, text: str) -> None:
        text = text.strip()
        if not text:
            self.empty.add(key)
        elif is_refusal(text):
            self.refused.add(key)
        else:
            self.texts[key] = text


def read_captions(path: str | Path) -> Captions:
    """The captions of a file; InputError naming the entry that is of no known shape, or comes twice."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no captions at {path} -> check the path")
    made, seen = Captions(), set()
    for where, key, text in _entries(path):
        if key in seen:
            raise InputError(f"{path}: {where}: {key!r} has two captions -> keep one of them")
        seen.add(key)
        made.add(key, text)
    if not seen:
        raise InputError(f"{path} holds no captions -> give a list, a map, one object or JSON lines")
    return made


def json_entries(path: Path) -> list[tuple[str, Any]] | dict[str, Any]:
    """(place, value) of every entry of a list or of JSON lines; an object as it is."""
    raw = path.read_bytes()
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]
    try:
        whole = parse_json(raw, where=path, fix="give JSON or JSON lines")
    except InputError:
        if len(lines) < 2:
            raise
        return [(f"line {number}", _loaded(path, number, line)) for number, line in lines]
    if isinstance(whole, dict):
        return whole
    return [
        (f"entry {number}", row) for number, row in enumerate(whole if isinstance(whole, list) else [whole])
    ]


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, id, caption) of every entry."""
    entries = json_entries(path)
    if isinstance(entries, list):
        for where, row in entries:
            yield _entry(path, where, row)
    elif _is_entry(entries):
        yield _entry(path, "the object", entries)
    else:
        for key, text in entries.items():
            if not isinstance(text, str):
                raise InputError(f"{path}: the caption of {key!r} is no text -> {_SHAPES}")
            yield f"key {key!r}", key, text


_SHAPES = f"an entry has {' or '.join(IDS)}, and {', '.join(TEXTS[:-1])} or {TEXTS[-1]}"


def _loaded(path: Path, number: int, line: bytes) -> Any:
    return parse_json(line, where=f"{path}: line {number}", fix="give JSON or JSON lines")


def _is_entry(row: dict[str, Any]) -> bool:
    """True for an object with an id field and a text field of its own."""
    return any(name in row for name in IDS) and any(name in row for name in TEXTS)


def _entry(path: Path, where: str, row: Any) -> tuple[str, str, str]:
    if not isinstance(row, dict) or not _is_entry(row):
        raise InputError(f"{path}: {where} is no caption -> {_SHAPES}")
    key = next(row[name] for name in IDS if name in row)
    text = next(row[name] for name in TEXTS if name in row)
    if isinstance(key, bool) or not isinstance(key, (str, int)) or not str(key).strip():
        raise InputError(f"{path}: {where} has an id that is no text or number: {key!r} -> {_SHAPES}")
    if text is not None and not isinstance(text, str):
        raise InputError(f"{path}: {where} ({key}) has a caption that is no text -> {_SHAPES}")
    return where, str(key).strip(), text or ""
