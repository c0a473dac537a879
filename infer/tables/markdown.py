"""A table in Markdown: the one place that knows its bars, its alignment and what must be escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: int) -> str:
    """The last `right` columns stand at the right; a bar inside a cell is escaped.

    >>> print(markdown_table(["model", "HR"], [["a|b", ".5"]], right=1))
    | model | HR |
    | --- | ---: |
    | a\\|b | .5 |
    """
    rule = ["---"] * (len(header) - right) + ["---:"] * right
    cells = [header, rule, *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in cells)
