"""JSON that somebody else wrote, or that was damaged: a value, or one line that says where it is wrong.

The library alone raises four kinds of errors (bad bytes, bad syntax, numbers of thousands of digits, nesting beyond the stack) and
lets halves of characters through, which no file can be written with later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from configs.program import InputError

HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    content: str | bytes,
    *,
    where: str | Path,
    fix: str = "get the file again",
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value in `content`; InputError naming `where` and what to do. pairs: what becomes of an object, as `object_pairs_hook`.

    >>> parse_json('{"a": [1]}', where="x.json")
    {'a': [1]}
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=pairs)
        if HALF.search(text):
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = "half a character" if isinstance(error, UnicodeEncodeError) else str(error)[:120]
        raise InputError(f"{where} is not valid JSON ({reason}) -> {fix}") from None
    return value


def json_lines(text: str, path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line that holds anything. A line ends at a newline: JSON may hold other breaks as they are."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, where=f"{path}:{number}")
