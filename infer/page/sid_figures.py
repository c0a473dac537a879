"""Charts of the semantic IDs on the results page: how evenly codes are used, and the items coloured by first code."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data import artifacts
from data.sid import LETTERS, SidTable
from infer.page import charts
from infer.page.sections import Figure
from rq.quality.page import usage_curve
from rq.vectors.embedding_map import FILE, code_colours

SERIES = 5  # line colours of the page


def sid_figures(directory: Path, table: SidTable) -> list[Figure]:
    """Codebook usage, and the embedding map where the directory has one that fits."""
    figures = [usage_figure(table)]
    path = directory / FILE
    if path.exists():
        found = artifacts.read_file(path, columns=["x", "y"])
        xy_N2 = np.stack([found[axis].to_numpy().astype(np.float64) for axis in ("x", "y")], axis=1)
        if len(xy_N2) == table.num_items and np.isfinite(xy_N2).all(1).any():
            figures.append(map_figure(xy_N2, table))
    return figures


def usage_figure(table: SidTable) -> Figure:
    """Items per code, most used first, a line per level."""
    lines, names = [], []
    for level, size in enumerate(table.sizes[:SERIES]):
        share, counts = usage_curve(table.codes_NL[:, level], size)
        points = list(zip((share * 100).tolist(), counts.tolist(), strict=True))
        used = len(np.unique(table.codes_NL[:, level]))
        names.append(f"{LETTERS[level]}: {used:,} of {size:,} codes used")
        lines.append(charts.Line(names[-1], points))
    chart = charts.line_chart(lines, label="items per code, by level", x_label="codes, most used first (%)")
    return Figure("Items per code, by level", chart, names)


def map_figure(xy_N2: np.ndarray, table: SidTable) -> Figure:
    """One dot per item where the map places it, coloured by first code."""
    first_N, shown_N = table.codes_NL[:, 0], np.isfinite(xy_N2).all(1)
    groups = []
    for code, rgb in code_colours(xy_N2, first_N).items():
        members = xy_N2[shown_N & (first_N == code)]
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
        groups.append((colour, [(float(x), float(y)) for x, y in members]))
    caption = f"Embedding map: {int(shown_N.sum()):,} items, coloured by first code"
    return Figure(caption, charts.point_map(groups, label="items by embedding, coloured by first code"))
