"""Text and JSON files of others, plain or gzipped: missing, cut or damaged ones are refused in one line."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

from configs.program import InputError


def read_text(path: str | Path) -> str:
    """The text of a plain or gzipped file; InputError when it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"missing file: {path} -> check the path")
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                return file.read()
        return path.read_text(encoding="utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({str(error)[:80]}) -> get the file again") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file, plain or gzipped; InputError when an object has a key twice."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in value if names.count(name) > 1)
            raise InputError(f"{path} has the key {twice!r} twice -> keep one")
        return value

    try:
        return json.loads(read_text(path), object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}) -> get the file again") from None


def printed_list(text: str) -> list[Any] | None:
    """The list that a text prints, as JSON or as Python writes it, never run as code; None where it prints none.

    >>> printed_list('["a", 1]'), printed_list("['a', None]"), printed_list("('a', 'b')"), printed_list("a, b"), printed_list("[" * 9999)
    (['a', 1], ['a', None], ['a', 'b'], None, None)
    """
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, (list, tuple)):
            return list(found)
    return None
