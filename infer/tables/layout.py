"""Comparison tables as text: Markdown, LaTeX (booktabs), JSON. One table per level; the best value is bold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from infer.tables.comparison import Cell, TableRow
from infer.tables.markdown import markdown_table

LEVEL_TITLES = {
    "sid_level": "SID level: a hit on a semantic ID counts for every item that shares it (the published protocol)",
    "item_level": "Item level: items of one semantic ID stand in random order",
    "item_level_unseen": "Item level without the items of the history",
    "item_level_merged": "Item level, items with the same text merged",
    "item_level_dedup": "Item level, same text merged, each product once per user",
    "all": "The lists as a whole",
}
ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
                        "^": r"\textasciicircum{}"})  # fmt: skip


def rows_of_level(rows: Sequence[TableRow], level: str) -> list[TableRow]:
    """The rows that have a number at this level."""
    return [row for row in rows if any(key.startswith(f"{level}/") for key in row.cells)]


def best_of(rows: Sequence[TableRow], key: str) -> float:
    """The largest value of a column as it is printed; none is best of what describes the lists."""
    if key.startswith("all/"):
        return float("nan")
    return max((round(row.cells[key].value, 4) for row in rows if key in row.cells), default=float("nan"))


def cell_text(cell: Cell | None, *, best: float, intervals: bool, bold: str, plus_minus: str) -> str:
    """`0.1234`, `[low, high]` where asked for, `± 0.0010` over seeds, `p=0.012` where tested."""
    if cell is None:
        return "-"
    number = f"{cell.value:.4f}"
    text = bold.format(number) if round(cell.value, 4) == best else number
    if intervals and cell.low is not None:
        text += f" [{cell.low:.4f}, {cell.high:.4f}]"
    if cell.spread is not None:
        text += f" {plus_minus} {cell.spread:.4f}"
    if cell.p_value is not None:
        text += f" (p={cell.p_value:.3f})" if cell.p_value >= 0.001 else " (p<0.001)"
    return text


def facts_of(row: TableRow) -> list[str]:
    """The columns before the numbers: name, whose number, what it was fitted on, what counts, seeds."""
    counts = {"sid": "SID", None: "both"}.get(row.counts, row.counts)
    return [row.name, row.source, row.fitted_on, counts, str(row.seeds) if row.kind != "published" else "-"]


HEADER = ("model", "source", "fitted on", "counts", "seeds")


def markdown(rows: Sequence[TableRow], columns: Mapping[str, Sequence[str]], *, intervals: bool) -> str:
    """One table per level; columns: the metrics of each."""
    parts = []
    for level, metrics in columns.items():
        shown = rows_of_level(rows, level)
        cells = [
            [
                cell_text(
                    row.cells.get(key),
                    best=best_of(shown, key),
                    intervals=intervals,
                    bold="**{}**",
                    plus_minus="±",
                )
                for key in (f"{level}/{metric}" for metric in metrics)
            ]
            for row in shown
        ]
        table = markdown_table(
            [*HEADER, *map(str.upper, metrics)],
            [[*facts_of(row), *values] for row, values in zip(shown, cells, strict=True)],
            right=1 + len(metrics),
        )
        parts.append(f"**{LEVEL_TITLES.get(level, level)}**\n\n{table}")
    return "\n\n".join(parts) + "\n"


def latex(rows: Sequence[TableRow], columns: Mapping[str, Sequence[str]], *, intervals: bool) -> str:
    """One tabular per level; needs the package booktabs."""
    parts = []
    for level, metrics in columns.items():
        shown = rows_of_level(rows, level)
        lines = [
            f"% {LEVEL_TITLES.get(level, level)}",
            rf"\begin{{tabular}}{{lllll{'r' * len(metrics)}}}",
            r"\toprule",
        ]
        lines.append(" & ".join([*HEADER, *(name.upper().translate(ESCAPES) for name in metrics)]) + r" \\")
        kind = None
        for row in shown:
            lines += [r"\midrule"] if row.kind != kind else []
            kind = row.kind
            cells = [
                cell_text(
                    row.cells.get(key), best=best_of(shown, key), intervals=intervals, bold=r"\textbf{{{}}}",
                    plus_minus=r"$\pm$",
                )
                for key in (f"{level}/{metric}" for metric in metrics)
            ]  # fmt: skip
            cells = [cell.replace("(p<", "(p$<$") for cell in cells]
            lines.append(" & ".join([*(text.translate(ESCAPES) for text in facts_of(row)), *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_json(table: Sequence[TableRow], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that the tables were made from."""
    return facts | {"table": [asdict(row) for row in table]}


def remarks(
    rows: Sequence[TableRow], *, reference: str | None, resamples: int, num_rows: int, users: int
) -> list[str]:
    """What a reader must know beside the numbers, one sentence each."""
    said = [
        f"{num_rows:,} rows of {users:,} users; every number of ours is computed on all of them but those of item_level_unseen."
    ]
    if any(row.seeds > 1 for row in rows):
        said.append("a ± b: mean and sample standard deviation over seeds.")
    few = [row.name for row in rows if row.kind == "model" and row.seeds < 3]
    if few:
        said.append(f"Fewer than three seeds, no claim: {', '.join(few)}.")
    if reference is not None:
        said.append(
            f"p: paired bootstrap over users against {reference} ({resamples} resamples, two-sided, not corrected for "
            "the number of tests)."
        )
    if any(row.kind == "published" for row in rows):
        said.append("Published rows are other people's numbers; `counts` says what a hit is there.")
    notes: dict[str, list[str]] = {}
    for row in rows:
        for key, cell in row.cells.items():
            if cell.note:
                columns = notes.setdefault(f"{row.name} ({row.source}): {cell.note}", [])
                columns += [metric] if (metric := key.rpartition("/")[2]) not in columns else []
    decoded = [
        f"{row.name}: " + ", ".join(f"{name} {value}" for name, value in row.protocol.items())
        for row in rows
        if row.protocol
    ]
    said += [f"Decoding: {'; '.join(decoded)}."] if decoded else []
    return [*said, *(f"{note} ({', '.join(columns)})." for note, columns in notes.items())]
