"""Where a user and items stand in the raw files: the lines, and what became of them.

The data set's manifest says how it was made (adapter, files, names of the columns), so the same folder is searched in the
same way, by the adapter's own `find_lines`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from configs.program import InputError
from data.adapters import ADAPTERS
from data.adapters.contract import RawLines


def find_raw_lines(
    raw: str | Path, config: Mapping[str, Any], *, user: str | None, items: Sequence[str]
) -> RawLines:
    """Lines of `user` and `items` (raw ids) in the folder; `config` is that of the data set's manifest."""
    name = config.get("adapter")
    if name not in ADAPTERS:
        raise InputError(
            f"the data set's manifest names adapter {name!r}, whose raw files this program cannot search -> leave out --raw"
        )
    entry = ADAPTERS[name]
    return entry.load().find_lines(raw, rebuilt(entry.options, config[name]), user=user, items=items)


def rebuilt(kind: type, recorded: Mapping[str, Any]) -> Any:
    """An options class from what a manifest recorded of it; keys that it does not know are of another version."""
    types = get_type_hints(kind)
    known = {entry.name: recorded[entry.name] for entry in fields(kind) if entry.name in recorded}
    return kind(
        **{
            k: rebuilt(types[k], v) if is_dataclass(types[k]) and isinstance(v, Mapping) else v
            for k, v in known.items()
        }
    )
