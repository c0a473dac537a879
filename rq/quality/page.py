"""Quality of semantic IDs as a table, a picture and a page; one set of IDs or several side by side.

Legend: N items, L levels, K codes of a level, S sets of semantic IDs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from data.sid import LETTERS
from data.store.output import Output
from rq.quality import frame
from rq.quality.charts import Figure
from rq.quality.figures import map_figure, usage_curve, usage_figure
from rq.vectors.embedding_map import code_colours

GROUND, INK, QUIET, RULE = "#ffffff", "#1b1f24", "#5b6673", "#dfe3e8"
LINES = ("#1f5fd1", "#d9660b", "#17905a", "#8a4fc4", "#6f7b88", "#b3324e")


@dataclass(frozen=True)
class Shown:
    """One set of IDs: name, quality report, codes int [N, L], map coordinates [N, 2] or None, sample items per prefix."""

    name: str
    report: dict[str, Any]
    codes_NL: np.ndarray
    xy_N2: np.ndarray | None = None
    samples: Sequence[dict[str, Any]] = ()


def table_rows(shown: Sequence[Shown]) -> list[tuple[str, list[str]]]:
    """(measure, its words for every set); measures that no set has are left out."""
    rows: list[tuple[str, list[str]]] = []

    def add(name: str, words: Callable[[dict[str, Any]], str | None]) -> None:
        cells = [words(one.report) for one in shown]
        if any(cell is not None for cell in cells):
            rows.append((name, ["-" if cell is None else cell for cell in cells]))

    add("items", lambda r: f"{r['items']:,}")
    for level in range(max(len(one.report["sizes"]) for one in shown)):
        add(f"level {LETTERS[level]}: used / size", lambda r, i=level: _level(r, i, "used", "size"))
        add(f"level {LETTERS[level]}: perplexity", lambda r, i=level: _level(r, i, "perplexity"))
        add(f"level {LETTERS[level]}: Gini", lambda r, i=level: _level(r, i, "gini"))
    add("items per 2-prefix", lambda r: f"{r['assigned']['items_per_2_prefix']:.2f}")
    add("collision rate, nearest codes", lambda r: _at(r, "nearest", "collisions", "rate", form="{:.4f}"))
    add("collision rate", lambda r: _at(r, "assigned", "collisions", "rate", form="{:.4f}"))
    add("  groups, largest", lambda r: "{groups:,}, {largest_group}".format(**r["assigned"]["collisions"]))
    add("  items in collision", lambda r: f"{r['assigned']['collisions']['items'] / r['items']:.2%}")
    add(
        "  groups of identical text",
        lambda r: f"{r['assigned']['collisions']['groups_of_identical_text']:,}",
    )
    for split in ("valid", "test"):
        add(
            f"affected {split} targets",
            lambda r, s=split: _affected(r["affected_targets"][s]),
        )
    add("moved off the nearest code", lambda r: _at(r, "moved_share", form="{:.2%}"))
    add("  extra distortion", lambda r: _at(r, "extra_distortion", form="{:.2%}"))
    add("relative reconstruction error", _error)
    for depth in (1, 2, 3):
        add(
            f"behaviour lift, depth {depth} (agreement)",
            lambda r, d=depth: _lift(r["behaviour"], d, "agreement"),
        )
        add(
            f"  with repeats of an item, depth {depth}",
            lambda r, d=depth: _lift_with_repeats(r["behaviour"], d),
        )
    for depth in (1, 2):
        add(
            f"  over all pairs in the rows, depth {depth}",
            lambda r, d=depth: _lift(r["behaviour_in_rows"], d, "agreement"),
        )
    for kind in ("behaviour", "embedding"):
        for depth in (1, 2):
            add(
                f"{kind} neighbours sharing a {depth}-prefix (lift)",
                lambda r, k=kind, d=depth: _hits((r["neighbours"].get(k) or {}).get(f"depth_{d}")),
            )
    for depth in (1, 2):
        add(
            f"distinct {depth}-prefixes in a list (share)",
            lambda r, d=depth: _spread(r["list_spread"], d),
        )
    for name in dict.fromkeys(label["name"] for one in shown for label in one.report["labels"]):
        for depth in (1, 2):
            add(
                f"{name}: purity / NMI, depth {depth}",
                lambda r, n=name, d=depth: _label(r["labels"], n, d),
            )
    return rows


def _at(report: dict[str, Any], *path: str, form: str) -> str | None:
    value: Any = report
    for key in path:
        value = (value or {}).get(key)
    return None if value is None else form.format(value)


def _level(report: dict[str, Any], level: int, *keys: str) -> str | None:
    levels = report["assigned"]["levels"]
    if level >= len(levels):
        return None
    values = [levels[level][key] for key in keys]
    return " / ".join(
        f"{v:,}" if isinstance(v, int) else f"{v:.1f}" if v >= 1 else f"{v:.2f}" for v in values
    )


def _affected(found: dict[str, Any]) -> str | None:
    return f"{found['affected']:,} ({found['share']:.2%})" if found["rows"] else None


def _error(report: dict[str, Any]) -> str | None:
    errors = report["assigned"].get("reconstruction_error")
    return " / ".join(f"{error:.3f}" for error in errors) if errors else None


def _lift(found: dict[str, Any] | None, depth: int, beside: str) -> str | None:
    at = (found or {}).get(f"depth_{depth}")
    if at is None:
        return None
    lift = "-" if at["lift"] is None else f"{at['lift']:.1f}x"
    return f"{lift} ({at[beside]:.3f})"


def _lift_with_repeats(found: dict[str, Any] | None, depth: int) -> str | None:
    lift = (found or {}).get(f"depth_{depth}", {}).get("lift_with_repeats")
    return None if lift is None else f"{lift:.1f}x"


def _hits(at: dict[str, Any] | None) -> str | None:
    if at is None:
        return None
    return f"{at['rate']:.3f}" + ("" if at["lift"] is None else f" ({at['lift']:.1f}x)")


def _spread(found: dict[str, Any] | None, depth: int) -> str | None:
    at = (found or {}).get(f"depth_{depth}")
    return None if at is None else f"{at['distinct']:.2f} ({at['share']:.0%})"


def _label(labels: list[dict[str, Any]], name: str, depth: int) -> str | None:
    at = next((label.get(f"depth_{depth}") for label in labels if label["name"] == name), None)
    return None if at is None else f"{at['purity']:.3f} / {at['nmi']:.3f}"


def text_table(shown: Sequence[Shown]) -> str:
    """The table as aligned text."""
    rows = [("", [one.name for one in shown]), *table_rows(shown)]
    first = max(len(name) for name, _ in rows)
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(shown))]
    return "\n".join(
        name.ljust(first) + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for name, cells in rows
    )


def write_png(out: Output, name: str, shown: Sequence[Shown]) -> None:
    """`picture` as a file of an output."""
    with out.replacing(name) as temporary:
        temporary.write_bytes(picture(shown))


def picture(shown: Sequence[Shown]) -> bytes:
    """PNG: codebook usage level by level, and the map of every set that has one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = max(len(one.report["sizes"]) for one in shown)
    maps = with_map(shown)
    alone = len(maps) == 1  # beside the usage; several stand below it
    columns = levels + alone
    rows = 0 if alone else -(-len(maps) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.9 + 4.3 * rows), facecolor=GROUND, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[3.9, *[4.3] * rows])
    for level in range(levels):
        _usage(figure.add_subplot(grid[0, level]), shown, level)
    for number, one in enumerate(maps):
        row, column = (0, levels) if alone else (1 + number // columns, number % columns)
        _map(figure.add_subplot(grid[row, column]), one)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _usage(axes: Any, shown: Sequence[Shown], level: int) -> None:
    for number, one in enumerate(shown):
        if level >= one.codes_NL.shape[1]:
            continue
        share, counts = usage_curve(one.codes_NL[:, level], one.report["sizes"][level])
        found = one.report["assigned"]["levels"][level]
        axes.plot(
            share * 100,
            counts,
            color=LINES[number % len(LINES)],
            linewidth=1.7,
            label=f"{one.name}: {found['used']} of {found['size']}, perplexity {found['perplexity']:.0f}",
        )
    axes.set_title(f"Level {LETTERS[level]}: items per code", fontsize=11, color=INK, loc="left")
    axes.set_xlabel("codes, most used first (%)", fontsize=9, color=QUIET)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8.5, colors=QUIET)
    axes.grid(color=RULE, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.legend(fontsize=8, frameon=False)


def _map(axes: Any, one: Shown) -> None:
    colours = code_colours(one.xy_N2, one.codes_NL[:, 0])
    points = np.flatnonzero(np.isfinite(one.xy_N2).all(1))
    rgb = [colours[code] for code in one.codes_NL[points, 0].tolist()]
    size = float(np.clip(9000 / len(points), 1.0, 14.0))
    axes.scatter(*one.xy_N2[points].T, s=size, c=rgb, linewidths=0, alpha=0.85)
    axes.set_title(f"{one.name}: items, coloured by first code", fontsize=11, color=INK, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(RULE)


def html_page(shown: Sequence[Shown], *, title: str) -> str:
    """One self-contained page: figures, table, sample items per prefix in words."""
    head = "".join(f"<th>{escape(one.name)}</th>" for one in shown)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in table_rows(shown)
    )
    body = (
        f"<section><h2>Codes and items</h2>{frame.figure_block(figures_of(shown))}</section>\n"
        f'<section><h2>Measures</h2><div class="scroll"><table class="numbers measures"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>\n"
        + "\n".join(_samples(one) for one in shown if one.samples)
    )
    lead = (
        "Lift compares consecutive held-out choices with shuffled ones, repeats of the same item left out. Agreement alone "
        "rises when a codebook collapses. Purity and NMI rise with the number of prefixes."
    )
    return frame.document(title, eyebrow="Quality of semantic IDs", lead=lead, body=body)


def figures_of(shown: Sequence[Shown]) -> list[Figure]:
    """Codebook usage level by level, a line per set, and the map of every set that has one."""
    figures = []
    for level in range(max(len(one.report["sizes"]) for one in shown)):
        deep = [one for one in shown if level < len(one.report["sizes"])]
        curves = [(one.name, one.codes_NL[:, level], one.report["sizes"][level]) for one in deep]
        figures.append(usage_figure(f"Level {LETTERS[level]}: items per code", curves))
    return figures + [map_figure(one.name, one.xy_N2, one.codes_NL[:, 0]) for one in with_map(shown)]


def with_map(shown: Sequence[Shown]) -> list[Shown]:
    """The sets with at least one item on their map."""
    return [one for one in shown if one.xy_N2 is not None and np.isfinite(one.xy_N2).all(1).any()]


def _samples(one: Shown) -> str:
    blocks = "".join(
        f"<div><h3><code>{escape(sample['prefix'])}</code> · {sample['items']:,} items</h3>"
        f"<ul class=items>{''.join(f'<li>{escape(title)}</li>' for title in sample['titles'])}</ul></div>"
        for sample in one.samples
    )
    return f'<section><h2>{escape(one.name)}: items below a first code</h2><div class="figures three">{blocks}</div></section>'
