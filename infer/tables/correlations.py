"""Which figure of quality.json goes with how good a recommender becomes: rank correlation over rows that differ in their semantic IDs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from infer.tables.comparison import Evaluation
from infer.tables.markdown import markdown_table

QUALITY = "quality.json"
LEAST_ROWS = 4


def figures_of(report: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a quality report by its path; lists by position, texts and empty figures left out.

    >>> figures_of({"assigned": {"levels": [{"used": 8, "name": "a"}], "rate": 0.5}, "purity": None})
    {'assigned/levels/1/used': 8.0, 'assigned/rate': 0.5}
    """
    found: dict[str, float] = {}
    for name, value in report.items():
        if isinstance(value, list):
            value = {str(at + 1): inner for at, inner in enumerate(value)}
        if isinstance(value, Mapping):
            found |= figures_of(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found


def ranks(values: Sequence[float]) -> np.ndarray:
    """Places from 0, ties share their mean place, float64.

    >>> ranks([0.3, 0.1, 0.3]).tolist()
    [1.5, 0.0, 1.5]
    """
    order = np.asarray(values, float)
    return np.array([(order < value).sum() + ((order == value).sum() - 1) / 2 for value in order])


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's: the correlation of the places; None where one of them is the same everywhere.

    >>> rank_correlation([1, 2, 3, 4], [10, 30, 20, 40])
    0.8
    """
    places = [ranks(values) - (len(values) - 1) / 2 for values in (one, other)]
    norms = [np.sqrt((place**2).sum()) for place in places]
    return None if min(norms) == 0 else round(float(places[0] @ places[1] / (norms[0] * norms[1])), 4)


def of_rows(
    groups: Mapping[str, Sequence[Evaluation]], keys: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """{figure: {metric: correlation, "rows": how many rows have it}}, strongest for the first metric first.

    A row's figures are those of the semantic IDs its predictions were made with; of rows with the same IDs the first one counts. InputError where fewer than four rows have some.
    """
    figures, metrics, seen = [], [], set()
    for seeds in groups.values():
        made_with = seeds[0].result.manifest["inputs"].get("sids", {}).get("path")
        values = {key: [seed.result.get(key) for seed in seeds] for key in keys}
        if (
            made_with
            and made_with not in seen
            and (Path(made_with) / QUALITY).exists()
            and all(all(value) for value in values.values())
        ):
            seen.add(made_with)
            figures.append(figures_of(json.loads((Path(made_with) / QUALITY).read_text())))
            metrics.append(
                {key: float(np.mean([one["value"] for one in found])) for key, found in values.items()}
            )
    if len(figures) < LEAST_ROWS:
        raise InputError(
            f"{len(figures)} rows have semantic IDs with a {QUALITY} -> {LEAST_ROWS} or more for a correlation"
        )
    found = {}
    for figure in dict.fromkeys(name for row in figures for name in row):
        having = [at for at, row in enumerate(figures) if figure in row]
        related = {
            key: rank_correlation([figures[at][figure] for at in having], [metrics[at][key] for at in having])
            for key in keys
        }
        if len(having) >= LEAST_ROWS and None not in related.values():
            found[figure] = {**related, "rows": len(having)}
    return dict(sorted(found.items(), key=lambda entry: -abs(entry[1][keys[0]])))


def markdown(related: Mapping[str, Mapping[str, float | int | None]]) -> str:
    """The correlations as a table."""
    keys = list(next(iter(related.values())))
    rows = [
        [name, *(f"{row[key]:.2f}" if key != "rows" else str(row[key]) for key in keys)]
        for name, row in related.items()
    ]
    title = "**Rank correlation (Spearman) of the figures of quality.json with what a row reaches**"
    chance = f"{len(rows)} figures over a few rows, the strongest first: some are strong by chance. A predictor is one that holds on another data set."
    return f"{title}\n\n{chance}\n\n" + markdown_table(["figure", *keys], rows, right=len(keys)) + "\n"
