"""What is wrong with a table: file, column, the first rows with their values, how many rows, and what to do about it.

Readers and checks collect findings instead of raising, so that `data.validate` can print them all and `data.prepare`
can stop at the first. Rows count from 0, without a csv file's header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from configs.program import InputError

FIRST_ROWS = 3
LONGEST_VALUE = 60


@dataclass(frozen=True)
class Finding:
    """One kind of violation in one column. `rows` are the first FIRST_ROWS of `count`; `values` are theirs, as text.

    Without rows it concerns the column, without a column the file.
    """

    file: str
    column: str
    what: str
    fix: str = ""
    rows: tuple[int, ...] = ()
    values: tuple[str, ...] = ()
    count: int = 0

    @property
    def where(self) -> str:
        """`file: column `c` rows 3 (-1), 8 (-5), ... (12 rows)`."""
        place = f"{self.file}: column `{self.column}`" if self.column else self.file
        if not self.rows:
            return place
        shown = [str(row) for row in self.rows]
        if self.values:
            shown = [f"{row} ({value})" for row, value in zip(shown, self.values, strict=True)]
        more = f", ... ({self.count} rows)" if self.count > len(self.rows) else ""
        return f"{place} row{'s' if self.count > 1 else ''} {', '.join(shown)}{more}"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" -> {self.fix}" if self.fix else "")


def in_rows(
    file: str, column: str, bad: np.ndarray, what: str, *, values: pa.Array | None = None, fix: str = ""
) -> list[Finding]:
    """One finding for the True rows of `bad` (bool [rows]), none when there are none; `values` has the column's cells."""
    rows = np.flatnonzero(bad)
    first = tuple(rows[:FIRST_ROWS].tolist())
    cells = () if values is None else tuple(_shown(values[row].as_py()) for row in first)
    return [Finding(file, column, what, fix, first, cells, len(rows))] if len(rows) else []


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def raise_first(findings: Sequence[Finding], *, more: str) -> None:
    """InputError of the first finding; `more` says how to see the others."""
    if findings:
        first, others = findings[0], len(findings) - 1
        rest = f" ({others} further problem{'s' if others > 1 else ''}: {more})" if others else ""
        fix = f" -> {first.fix}" if first.fix else " -> correct the table"
        raise InputError(f"{first.where}: {first.what}{rest}{fix}")
