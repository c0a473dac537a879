"""All metrics of one set of predictions, with intervals: arrays in, the flat mapping of metrics.json out.

`<level>/<metric>@<k>` over all rows and `<level>/<group>=<value>/<metric>@<k>` over the rows of a group, each
{"value", "low", "high"} (95 %, bootstrap over users). The levels are those of infer/metrics/levels.py, `prefix=1` and
`position=1` under `prefix_level`; item_level and sid_level have groups. `all` describes the lists as a whole: coverage,
Gini, novelty, popularity, diversity, invalid rate; coverage and Gini are no means over users and have no interval
(low and high are null).

Legend: R rows, E entries, M items of all entries, N items of the catalogue, C columns, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from configs.program import InputError, NumericError
from data.predictions import Predictions
from data.rows import Rows
from data.sid import SidTable
from infer.metrics import ranking as metrics
from infer.metrics.groups import group_masks
from infer.metrics.levels import Level, place_levels
from infer.metrics.significance import Clusters, Ratios

KS = (1, 3, 5, 10, 20, 50)
LIST_K = 10
GROUPED = ("item_level", "sid_level")
DIVERSITY_LEVELS = 2


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
        numerators_HC: np.ndarray,
        weights_RG: np.ndarray,
        *,
        group_C: np.ndarray | None = None,
        rows_H: np.ndarray | None = None,
    ) -> None:
        """Report sum(numerators[:, c]) / sum(weights[:, group[c]]) under every name.

        group_C: None = the first column of the weights for all; rows_H: the rows of the numerators where others have 0.
        """
        group_C = np.zeros(len(names), np.int64) if group_C is None else group_C
        self._names += names
        self._values.append(numerators_HC.sum(0) / weights_RG.sum(0)[group_C])
        if self._clusters.resamples:
            self._parts.append(self._clusters.collect(numerators_HC, weights_RG, group_C, rows_H=rows_H))

    def summary(self) -> dict[str, dict[str, float | None]]:
        """{name: {"value", "low", "high"}}; without resamples low and high are null."""
        values = np.concatenate(self._values)
        if not self._parts:
            return {name: entry(value) for name, value in zip(self._names, values, strict=True)}
        low, high = self._clusters.interval(self._parts)
        return {name: entry(values[c], low[c], high[c]) for c, name in enumerate(self._names)}


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
    num_items, shown = len(popularity_N), min(LIST_K, depth)
    columns = Columns(Clusters(rows.users_R, resamples=settings.resamples, seed=settings.seed))
    with ThreadPoolExecutor(1) as pool:  # numpy works without the interpreter's lock: one core each
        placed = pool.submit(
            place_levels, predictions, rows, ks=ks, sids=sids, num_items=num_items, product_N=product_N
        )
        # Raised before anything that placing made of illegal ids.
        refuse_invalid(predictions, sids, num_items=num_items, restricted=restricted, where=where)
        catalogue = add_lists(columns, predictions, rows, popularity_N, shown)
        add_diversity(columns, predictions, sids, shown)
        levels = placed.result()
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
    found = columns.summary() | {"all/invalid_rate": entry(0.0, 0.0, 0.0)} | catalogue
    return Measured(dict(sorted(found.items(), key=lambda item: item[0].startswith("all/"))), facts, levels)


def refuse_invalid(
    predictions: Predictions, sids: SidTable | None, *, num_items: int, restricted: bool, where: str
) -> None:
    """NumericError when any entry is not in the catalogue."""
    invalid_E = invalid_entries(predictions, sids, num_items=num_items, restricted=restricted)
    if invalid_E.any():
        example = predictions.example_ids_R[predictions.row_E[np.argmax(invalid_E)]]
        raise NumericError(
            f"{where}: {int(invalid_E.sum())} of {len(invalid_E)} predictions are not in the catalogue "
            f"(first: example {example}) -> invalid rate must be 0: decode with the trie of these semantic IDs"
        )


def add_levels(columns: Columns, levels: Mapping[str, Level], masks: Mapping[str, np.ndarray]) -> None:
    """Every metric of levels with the same row weights, over all rows that count and over those of each mask."""
    first = next(iter(levels.values()))
    weights_RG = np.stack([first.weight_R, *(first.weight_R * mask for mask in masks.values())]).T
    # Rows without a hit have 0 in every metric.
    hits = np.flatnonzero(
        np.any([np.isfinite(level.placement.before_R) for level in levels.values()], axis=0)
    )
    values_HC = np.stack(
        [level.take(hits).value_R(metric) for level in levels.values() for metric in level.metrics], axis=1
    )
    numerators_HGC = weights_RG[hits][:, :, None] * values_HC[:, None, :]
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
        numerators_HGC.reshape(len(hits), numerators_HGC.shape[1] * len(named)),
        weights_RG,
        group_C=np.repeat(np.arange(weights_RG.shape[1]), len(named)),
        rows_H=hits,
    )


def add_lists(
    columns: Columns, predictions: Predictions, rows: Rows, popularity_N: np.ndarray, k: int
) -> dict[str, dict[str, float | None]]:
    """Novelty and popularity of the first k places into `columns`; returns coverage and Gini.

    novelty: self-information of what is shown, in bits; popularity: its train rows; popularity_lift: the mean
    popularity of a row's list over that of its history, both averaged over the rows (1 = as popular as what the
    users chose before).
    """

    def per_row(row: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.bincount(row, weights, minlength=len(rows))

    # Ties of a ranking can reach beyond its first k entries, a list of SIDs shows no more than k of them.
    ranked = predictions.codes_EL is None
    shown_E = np.flatnonzero(predictions.rank_E - 1 < k) if ranked else predictions.first_entries(k)
    before_E = predictions.before(shown_E)
    sizes = predictions.sizes_E[shown_E]
    first = np.cumsum(sizes) - sizes
    members = np.arange(int(sizes.sum())) + np.repeat(predictions.item_offsets[shown_E] - first, sizes)
    row, items = np.repeat(predictions.row_E[shown_E], sizes), predictions.items_M[members]
    exposure = np.repeat(metrics.exposure_at_k(before_E, sizes, k), sizes)
    shown_R = per_row(row, exposure)
    novelty_R = per_row(row, exposure * metrics.self_information(popularity_N)[items])
    popularity_R = per_row(row, exposure * popularity_N[items])
    names = [f"all/novelty@{k}", f"all/popularity@{k}"]
    columns.add(names, np.stack([novelty_R, popularity_R], axis=1), shown_R[:, None])
    lengths = np.maximum(np.diff(rows.offsets), 1)
    history_R = per_row(rows.history_row_H, popularity_N[rows.history_H]) / lengths
    if history_R.any():
        listed_R1 = (popularity_R / np.maximum(shown_R, 1e-9))[:, None]
        columns.add([f"all/popularity_lift@{k}"], listed_R1, history_R[:, None])
    exposure_N = np.bincount(items, exposure, minlength=len(popularity_N))
    return {
        f"all/coverage@{k}": entry(metrics.coverage(exposure_N)),
        f"all/gini@{k}": entry(metrics.gini(exposure_N)),
    }


def add_diversity(columns: Columns, predictions: Predictions, sids: SidTable | None, k: int) -> None:
    """`all/diversity_1@10`, `all/diversity_2@10`: distinct first code, or first two, per entry of the first k.

    1: the list never repeats one; 1/k: all its semantic IDs share it. Needs codes, or items and a SID table.
    """
    if predictions.codes_EL is None and sids is None:
        return
    lengths = np.minimum(np.diff(predictions.offsets), k)
    place_K1 = np.arange(k)[:, None]
    # Places that a shorter list does not have repeat its first entry; every repeat is taken off below.
    entry_KR = predictions.offsets[:-1] + np.where(place_K1 < lengths, place_K1, 0)
    codes = (
        predictions.codes_EL[entry_KR]
        if predictions.codes_EL is not None
        else sids.codes_NL[predictions.items_M[predictions.item_offsets[entry_KR]]]
    )
    key_KR, names, distinct = np.zeros(entry_KR.shape, np.int64), [], []
    for level in range(min(DIVERSITY_LEVELS, codes.shape[2])):
        key_KR = key_KR * (int(codes[:, :, level].max()) + 1) + codes[:, :, level]
        fresh = [(key_KR[:at] != key_KR[at]).all(axis=0) for at in range(k)]
        names.append(f"all/diversity_{level + 1}@{k}")
        distinct.append(np.sum(fresh, axis=0).astype(np.float64))
    columns.add(names, np.stack(distinct, axis=1), lengths[:, None].astype(np.float64))


def invalid_entries(
    predictions: Predictions, sids: SidTable | None, *, num_items: int, restricted: bool = False
) -> np.ndarray:
    """Entries without items, with unknown items, or with codes that are not those of just these items; bool [E].

    restricted: only some of the items that share a semantic ID may be recommended, so an entry may hold a part of them.
    """
    sizes_E, items_M = predictions.sizes_E, predictions.items_M
    bad = sizes_E == 0
    if items_M.min(initial=0) < 0 or items_M.max(initial=0) >= num_items:
        unknown = np.flatnonzero((items_M < 0) | (items_M >= num_items))
        bad[predictions.entry_M[unknown]] = True
        items_M = items_M.copy()
        items_M[unknown] = 0
    if sids is None or predictions.codes_EL is None or not len(items_M):
        return bad
    if predictions.codes_EL.shape[1] != sids.num_levels:
        return np.ones(len(bad), bool)
    # The items of an entry differ (a double is refused before): all those of one SID, and no other, is its group.
    first_E = items_M[np.minimum(predictions.item_offsets[:-1], len(items_M) - 1)]
    bad |= _other_codes(predictions.codes_EL, sids, first_E)
    sid_N = sids.sid_of_item_N
    if not restricted:
        bad |= sizes_E != sids.group_sizes_S[sid_N].take(first_E)
    several = np.flatnonzero(sizes_E > 1)
    entry = np.repeat(several, sizes_E[several])
    first = np.cumsum(sizes_E[several]) - sizes_E[several]
    members = np.arange(len(entry)) + np.repeat(predictions.item_offsets[several] - first, sizes_E[several])
    bad[entry[sid_N[items_M[members]] != sid_N[first_E[entry]]]] = True
    return bad


def _other_codes(codes_EL: np.ndarray, sids: SidTable, item_E: np.ndarray) -> np.ndarray:
    """Entries whose codes are not those of the item, bool [E]."""
    sizes = np.array(sids.sizes)
    inside = codes_EL.min(initial=0) >= 0
    inside &= codes_EL.max(initial=0) < sizes.min() or (codes_EL.max(axis=0, initial=0) < sizes).all()
    if not inside or sizes.astype(float).prod() >= 2**31:
        return (sids.codes_NL[item_E] != codes_EL).any(axis=1)

    def key(codes: np.ndarray) -> np.ndarray:  # one number per row: a third of the memory traffic
        packed = codes[:, 0].astype(np.int32)
        for level in range(1, len(sizes)):
            packed *= np.int32(sizes[level])
            packed += codes[:, level]
        return packed

    return key(sids.codes_NL).take(item_E) != key(codes_EL)


def list_length(predictions: Predictions) -> int:
    """The length up to which lists are complete: the beams of a SID model, else the deepest whole rank."""
    if predictions.codes_EL is not None:
        return int(np.diff(predictions.offsets).max())
    return int(predictions.rank_E.max())
