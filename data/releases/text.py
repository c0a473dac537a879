"""Text and JSON files of others, plain or gzipped: missing, cut or damaged ones are refused in one line."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.program import InputError
from data.store.json_text import parse_json


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

    return parse_json(read_text(path), where=path, pairs=distinct)


def csv_rows(path: str | Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a csv file that has `columns`, plain or gzipped; InputError where it has not, or is none."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        names = reader.fieldnames or ()
        if missing := [name for name in columns if name not in names]:
            raise InputError(
                f"{path} has no column {missing[0]} (it has {', '.join(names)[:200]}) -> another file?"
            )
        yield from reader
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is no csv ({error}) -> get the file again"
        ) from None


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
