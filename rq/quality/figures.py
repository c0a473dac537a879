"""Charts of semantic IDs on a page: how evenly codes are used, and the items coloured by first code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data import artifacts
from data.sid import LETTERS, SidTable
from rq.quality import charts
from rq.quality.charts import Figure
from rq.vectors.embedding_map import FILE, code_colours

CURVE_POINTS = 512


def sid_figures(directory: Path, table: SidTable) -> list[Figure]:
    """Codebook usage, and the embedding map where the directory has one that fits."""
    levels = zip(LETTERS, table.codes_NL.T, table.sizes, strict=False)
    figures = [usage_figure("Items per code, by level", levels)]
    path = directory / FILE
    if path.exists():
        found = artifacts.read_file(path, columns=["x", "y"])
        xy_N2 = np.stack([found[axis].to_numpy().astype(np.float64) for axis in ("x", "y")], axis=1)
        if len(xy_N2) == table.num_items and np.isfinite(xy_N2).all(1).any():
            figures.append(map_figure("Embedding map", xy_N2, table.codes_NL[:, 0]))
    return figures


def usage_curve(codes_N: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(share of the codes in 0..1, items per code), most used first; at most CURVE_POINTS points of a large codebook."""
    counts = np.sort(np.bincount(codes_N, minlength=size))[::-1]
    at = np.unique(np.linspace(0, size - 1, min(size, CURVE_POINTS)).round().astype(int))
    return at / max(size - 1, 1), counts[at]


def usage_figure(caption: str, curves: Iterable[tuple[str, np.ndarray, int]]) -> Figure:
    """Items per code, most used first, a line per curve: (name, codes int [N] of one level, its size)."""
    lines, names = [], []
    for name, codes_N, size in curves:
        share, counts = usage_curve(codes_N, size)
        names.append(f"{name}: {len(np.unique(codes_N)):,} of {size:,} codes used")
        lines.append(charts.Line(names[-1], list(zip((share * 100).tolist(), counts.tolist(), strict=True))))
    return Figure(
        caption, charts.line_chart(lines, label=caption, x_label="codes, most used first (%)"), names
    )


def map_figure(caption: str, xy_N2: np.ndarray, first_N: np.ndarray) -> Figure:
    """One dot per item where the map places it (items without a place left out), coloured by first code int [N]."""
    shown_N, groups = np.isfinite(xy_N2).all(1), []
    for code, rgb in code_colours(xy_N2, first_N).items():
        members = xy_N2[shown_N & (first_N == code)]
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
        groups.append((colour, [(float(x), float(y)) for x, y in members]))
    words = f"{caption}: {int(shown_N.sum()):,} items, coloured by first code"
    return Figure(words, charts.point_map(groups, label=words))
