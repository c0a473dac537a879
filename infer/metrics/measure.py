"""All metrics of one set of predictions, with intervals: arrays in, the flat mapping of metrics.json out.

`<level>/<metric>@<k>` over all rows and `<level>/<group>=<value>/<metric>@<k>` over the rows of a group, each
{"value", "low", "high"} (95 %, bootstrap over users). The levels are those of infer/metrics/levels.py, `prefix=1` and
`position=1` under `prefix_level`; item_level and sid_level have groups. `all` describes the lists as a whole: coverage,
Gini, novelty, popularity, diversity, invalid rate; coverage and Gini are no means over users and have no interval
(low and high are null).

Legend: R rows, H rows with a hit, E entries, N items of the catalogue, G groups of rows, V values, C = G * V columns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from configs.program import InputError, NumericError
from data.predictions import Predictions
from data.rows import Rows
from data.sid import SidTable
from infer.metrics import ranking
from infer.metrics.groups import group_masks
from infer.metrics.legality import invalid_entries
from infer.metrics.levels import Level, Placed, levels_of_blocks, place_rows
from infer.metrics.lists import ShownPlaces, joined, show
from infer.metrics.significance import Clusters, Ratios

KS = (1, 3, 5, 10, 20, 50)
LIST_K = 10
GROUPED = ("item_level", "sid_level")
BLOCK_ROWS = 4096
MAX_THREADS = 4


@dataclass(frozen=True)
class Settings:
    """How to measure. ks: list lengths; resamples (0: no intervals) and seed of the bootstrap."""

    ks: tuple[int, ...] = KS
    resamples: int = 1000
    seed: int = 0


class Measured(NamedTuple):
    """metrics: the flat metrics; facts: about the rows; levels: the places that the ranking metrics came from."""

    metrics: dict[str, dict[str, float | None]]
    facts: dict[str, Any]
    levels: dict[str, Level]


class Columns:
    """Averages over rows, collected per user so that one bootstrap serves them all."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._names: list[str] = []
        self._values: list[np.ndarray] = []
        self._parts: list[Ratios] = []

    def add(
        self,
        names: Sequence[str],
        values_HV: np.ndarray,
        weights_RG: np.ndarray,
        *,
        rows_H: np.ndarray | None = None,
        weighted: bool = True,
    ) -> None:
        """Report the weighted means of V values under every name: all V with the first weights, then with the second, ...

        rows_H: the rows of the values where others have 0. weighted False: the values are sums already, one set of
        weights divides them. Nothing with any weight (lists that show nothing) has mean 0.
        """
        weights_HG = weights_RG if rows_H is None else weights_RG[rows_H]
        sums_GV = weights_HG.T @ values_HV if weighted else values_HV.sum(0)[None]
        weights_RG = np.where(weights_RG.any(0), weights_RG, 1.0)
        self._names += names
        self._values.append((sums_GV / weights_RG.sum(0)[:, None]).ravel())
        if self._clusters.resamples:
            numerators_HGV = weights_HG[:, :, None] * values_HV[:, None, :] if weighted else values_HV
            group_C = np.repeat(np.arange(weights_RG.shape[1]), values_HV.shape[1])
            numerators_HC = numerators_HGV.reshape(len(values_HV), len(group_C))
            self._parts.append(self._clusters.collect(numerators_HC, weights_RG, group_C, rows_H=rows_H))

    def summary(self) -> dict[str, dict[str, float | None]]:
        """{name: {"value", "low", "high"}}; without resamples low and high are null."""
        values = np.concatenate(self._values)
        if not self._parts:
            return {name: entry(value) for name, value in zip(self._names, values, strict=True)}
        low, high = self._clusters.interval(self._parts)
        return {name: entry(values[c], low[c], high[c]) for c, name in enumerate(self._names)}


def means_of_known(
    columns: Mapping[str, np.ndarray], users_R: np.ndarray, *, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    """Means of columns float64 [R] over the rows where each is finite, with intervals over users; those of no row are left out."""
    means = Columns(Clusters(users_R, resamples=resamples, seed=seed))
    known = {name: np.isfinite(values_R) for name, values_R in columns.items()}
    kept = [name for name in columns if known[name].any()]
    for name in kept:
        means.add([name], np.nan_to_num(columns[name])[:, None], known[name].astype(np.float64)[:, None])
    return means.summary() if kept else {}


def entry(value: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    """One number of metrics.json, rounded to 6 digits after the point."""
    return {
        key: None if number is None else round(float(number), 6)
        for key, number in (("value", value), ("low", low), ("high", high))
    }


def measure(
    predictions: Predictions,
    rows: Rows,
    *,
    popularity_N: np.ndarray,
    sids: SidTable | None,
    settings: Settings,
    depth: int | None = None,
    product_N: np.ndarray | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    restricted: bool = False,
    where: str,
) -> Measured:
    """Everything about predictions whose example r is row r of `rows`.

    popularity_N: train rows of every item; depth: the declared list length (None: as found); product_N: the product
    of every item (None: no merged and no dedup level); groups: more masks {"dataset=games": bool [R]} beside those
    of infer/metrics/groups.py; restricted: the lists are from a part of the catalogue (--allowed). NumericError when a
    prediction is not in the catalogue: the decoder is wrong then, and no other number can be trusted.
    """
    depth = list_length(predictions) if depth is None else depth
    ks = [k for k in settings.ks if k <= depth]
    if not ks:
        raise InputError(f"{where}: lists of {depth} are shorter than every k of {settings.ks} -> smaller ks")
    masks = group_masks(rows, popularity_N) | {
        name: mask for name, mask in (groups or {}).items() if mask.any()
    }
    columns = Columns(Clusters(rows.users_R, resamples=settings.resamples, seed=settings.seed))
    against = Against(popularity_N, sids, product_N, restricted, min(LIST_K, depth))
    seen = see_blocks(predictions, rows, against, where=where)
    exposure = add_lists(columns, joined([block.shown for block in seen]), against.shown)
    levels = levels_of_blocks([block.placed for block in seen], rows, ks=ks, product_N=product_N)
    add_levels(columns, {name: level for name, level in levels.items() if name in GROUPED}, masks)
    for name, level in levels.items():
        if name not in GROUPED:
            add_levels(columns, {name: level}, {})
    unseen = levels.get("item_level_unseen")
    facts = {
        "rows": len(rows),
        "users": len(np.unique(rows.users_R)),
        "rows_unseen": int(unseen.weight_R.sum()) if unseen else 0,
        "rows_dedup": float(levels["item_level_dedup"].weight_R.sum()) if product_N is not None else None,
        "merged_items": len(product_N) - len(np.unique(product_N)) if product_N is not None else None,
        "group_rows": {name: int(mask.sum()) for name, mask in masks.items()},
        "list_length": depth,
        "ks": ks,
    }
    found = columns.summary() | {"all/invalid_rate": entry(0.0, 0.0, 0.0)} | exposure
    return Measured(dict(sorted(found.items(), key=lambda item: item[0].startswith("all/"))), facts, levels)


@dataclass(frozen=True)
class Against:
    """What predictions are measured against (see `measure`); shown: the first places that describe a list."""

    popularity_N: np.ndarray
    sids: SidTable | None
    product_N: np.ndarray | None
    restricted: bool
    shown: int

    def see(self, predictions: Predictions, rows: Rows) -> BlockSeen:
        """Places and lists of a block of rows, unless some of its entries are not in the catalogue."""
        num_items = len(self.popularity_N)
        invalid_E = invalid_entries(predictions, self.sids, num_items=num_items, restricted=self.restricted)
        if invalid_E.any():
            first = predictions.example_ids_R[predictions.row_E[np.argmax(invalid_E)]]
            return BlockSeen(int(invalid_E.sum()), int(first))
        placed = place_rows(predictions, rows, sids=self.sids, num_items=num_items, product_N=self.product_N)
        return BlockSeen(0, None, placed, show(predictions, rows, self.popularity_N, self.sids, self.shown))


@dataclass(frozen=True)
class BlockSeen:
    """A block of rows: entries that are not in the catalogue and the first example with one, else places and lists."""

    invalid: int
    first_invalid: int | None
    placed: Placed | None = None
    shown: ShownPlaces | None = None


def see_blocks(predictions: Predictions, rows: Rows, against: Against, *, where: str) -> list[BlockSeen]:
    """All rows, a block at a time: its arrays stay in the processor's cache, and every core takes the next one.

    NumericError when any entry is not in the catalogue.
    """
    # What a block costs however few rows it has grows with the catalogue.
    size = max(BLOCK_ROWS, len(against.popularity_N) // 8)

    def see(first: int) -> BlockSeen:
        last = min(first + size, len(rows))
        return against.see(predictions.between(first, last), rows.between(first, last))

    # numpy works without the interpreter's lock
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        seen = list(pool.map(see, range(0, len(rows), size)))
    if invalid := sum(block.invalid for block in seen):
        example = next(block.first_invalid for block in seen if block.invalid)
        raise NumericError(
            f"{where}: {invalid} of {len(predictions.rank_E)} predictions are not in the catalogue "
            f"(first: example {example}) -> invalid rate must be 0: decode with the trie of these semantic IDs"
        )
    return seen


def add_levels(columns: Columns, levels: Mapping[str, Level], masks: Mapping[str, np.ndarray]) -> None:
    """Every metric of levels with the same row weights, over all rows that count and over those of each mask."""
    first = next(iter(levels.values()))
    weights_RG = np.stack([first.weight_R, *(first.weight_R * mask for mask in masks.values())]).T
    # Rows without a hit have 0 in every metric.
    hits = np.flatnonzero(
        np.any([np.isfinite(level.placement.before_R) for level in levels.values()], axis=0)
    )
    values_HV = np.stack(
        [values for level in levels.values() for values in level.take(hits).values()], axis=1
    )
    named = [
        (f"prefix_level/{name}" if name.startswith(("prefix=", "position=")) else name, metric)
        for name, level in levels.items()
        for metric in level.metrics
    ]
    columns.add(
        [
            f"{name}/{part}{metric}"
            for part in ("", *(f"{mask}/" for mask in masks))
            for name, metric in named
        ],
        values_HV,
        weights_RG,
        rows_H=hits,
    )


def add_lists(columns: Columns, lists: ShownPlaces, k: int) -> dict[str, dict[str, float | None]]:
    """Novelty, popularity and diversity of the first k places into `columns`; returns coverage and Gini.

    novelty: self-information of what is shown, in bits; popularity: its train rows; popularity_lift: the mean
    popularity of a row's list over that of its history, both averaged over the rows (1 = as popular as what the
    users chose before); diversity_1, diversity_2: distinct first code, or first two, per entry (1: a list never repeats
    one; 1/k: all its semantic IDs share it).
    """

    def add(names: Sequence[str], sums_RV: np.ndarray, weights_R: np.ndarray) -> None:
        columns.add([f"all/{name}@{k}" for name in names], sums_RV, weights_R[:, None], weighted=False)

    add(["novelty", "popularity"], np.stack([lists.novelty_R, lists.popularity_R], axis=1), lists.shown_R)
    if lists.history_R.any():
        listed_R = lists.popularity_R / np.maximum(lists.shown_R, 1e-9)
        add(["popularity_lift"], listed_R[:, None], lists.history_R)
    if lists.distinct_RD is not None:
        names = [f"diversity_{level + 1}" for level in range(lists.distinct_RD.shape[1])]
        add(names, lists.distinct_RD, lists.places_R)
    return {
        f"all/coverage@{k}": entry(ranking.coverage(lists.exposure_N)),
        f"all/gini@{k}": entry(ranking.gini(lists.exposure_N)),
    }


def list_length(predictions: Predictions) -> int:
    """The length up to which lists are complete: the beams of a SID model, else the last place at which an entry, or its tie, begins."""
    if predictions.codes_EL is not None:
        return int(np.diff(predictions.offsets).max())
    return int(predictions.before(np.arange(len(predictions.rank_E))).max(initial=-1)) + 1
