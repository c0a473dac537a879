"""All metrics of one set of predictions, with intervals: arrays in, the flat mapping of metrics.json out.

`<level>/<metric>@<k>` over all rows and `<level>/<group>=<value>/<metric>@<k>` over the rows of a group, each
{"value", "low", "high"} (95 %, bootstrap over users). Levels:

  item_level          the items that are recommended, colliding items of one SID in random order
  sid_level           a recommended SID counts for every item that shares it (the published protocol)
  item_level_unseen   without the items of the history, and without rows whose target is in the history
  all                 the lists as a whole: coverage, Gini, novelty, popularity, invalid rate; coverage and Gini
                      are no means over users and have no interval (low and high are null)

Legend: R rows, E entries, M items of all entries, N items of the catalogue, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.program import InputError, NumericError
from data.sid import SidTable
from infer import metrics
from infer.groups import group_masks
from infer.placement import Placement, entries_before, place_items, place_sids, place_unseen
from infer.predictions import Predictions
from infer.rows import Rows
from infer.significance import Clusters

KS = (1, 3, 5, 10, 20, 50)
LIST_K = 10


@dataclass(frozen=True)
class Settings:
    """How to measure. ks: list lengths; resamples and seed of the bootstrap."""

    ks: tuple[int, ...] = KS
    resamples: int = 1000
    seed: int = 0


class Columns:
    """Averages over rows, collected per user so that one bootstrap serves them all."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._names: list[str] = []
        self._groups: list[int] = []
        self._sums: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(self, values: dict[str, np.ndarray], weight_R: np.ndarray) -> None:
        """Report sum(value) / sum(weight) for every named value; `weight_R` is 1 for the rows that count."""
        self._weights.append(self._clusters.sums(weight_R[:, None].astype(np.float64)))
        self._sums.append(self._clusters.sums(np.stack(list(values.values()), axis=1)))
        self._groups += [len(self._weights) - 1] * len(values)
        self._names += list(values)

    def summary(self) -> dict[str, dict[str, float | None]]:
        """{name: {"value", "low", "high"}}."""
        sums_UC, weights_UG = np.concatenate(self._sums, axis=1), np.concatenate(self._weights, axis=1)
        groups = np.array(self._groups)
        value = sums_UC.sum(0) / weights_UG.sum(0)[groups]
        low, high = self._clusters.interval(sums_UC, weights_UG, groups)
        return {name: entry(value[c], low[c], high[c]) for c, name in enumerate(self._names)}


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
    where: str,
) -> tuple[dict[str, dict[str, float | None]], dict[str, Any]]:
    """(the flat metrics, facts about the rows) of predictions whose example r is row r of `rows`.

    popularity_N: train rows of every item; depth: the declared list length (None: as found). NumericError when
    a prediction is not in the catalogue: the decoder is wrong then, and no other number can be trusted.
    """
    refuse_invalid(predictions, sids, num_items=len(popularity_N), where=where)
    depth = list_length(predictions) if depth is None else depth
    ks = [k for k in settings.ks if k <= depth]
    if not ks:
        raise InputError(f"{where}: lists of {depth} are shorter than every k of {settings.ks} -> smaller ks")
    masks = group_masks(rows, popularity_N)
    columns = Columns(Clusters(rows.users_R, resamples=settings.resamples, seed=settings.seed))
    levels = {"item_level": place_items(predictions, rows.target_R)}
    if predictions.codes_EL is not None or sids is not None:
        levels["sid_level"] = place_sids(predictions, rows.target_R, sids.sid_of_item_N if sids else None)
    for level, placement in levels.items():
        values = ranking_values(placement, ks)
        add_level(columns, level, values, np.ones(len(rows), bool))
        for name, mask in masks.items():
            add_level(columns, f"{level}/{name}", values, mask)
    unseen, counts_R, left = place_unseen(
        predictions, rows.target_R, rows.history_row_H, rows.history_H, len(popularity_N)
    )
    # A list that lost items is complete only up to what is left of it.
    complete = [k for k in ks if k <= left]
    if complete and counts_R.any():
        add_level(columns, "item_level_unseen", ranking_values(unseen, complete), counts_R)
    catalogue = add_lists(columns, predictions, rows, popularity_N, min(LIST_K, depth))
    facts = {
        "rows": len(rows),
        "users": len(np.unique(rows.users_R)),
        "rows_unseen": int(counts_R.sum()),
        "group_rows": {name: int(mask.sum()) for name, mask in masks.items()},
        "list_length": depth,
        "ks": ks,
    }
    return columns.summary() | {"all/invalid_rate": entry(0.0, 0.0, 0.0)} | catalogue, facts


def refuse_invalid(predictions: Predictions, sids: SidTable | None, *, num_items: int, where: str) -> None:
    """NumericError when any entry is not in the catalogue."""
    invalid_E = invalid_entries(predictions, sids, num_items=num_items)
    if invalid_E.any():
        example = predictions.example_ids_R[predictions.row_E[np.argmax(invalid_E)]]
        raise NumericError(
            f"{where}: {int(invalid_E.sum())} of {len(invalid_E)} predictions are not in the catalogue "
            f"(first: example {example}) -> invalid rate must be 0: decode with the trie of these semantic IDs"
        )


def ranking_values(placement: Placement, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """{"hr@10": float64 [R], ...} for every k, and "mrr", the reciprocal rank cut at the largest k."""
    values: dict[str, np.ndarray] = {}
    named: tuple[tuple[str, Callable[..., np.ndarray]], ...] = (
        ("hr", metrics.hr_at_k),
        ("ndcg", metrics.ndcg_at_k),
    )
    for name, function in named:
        for k in ks:
            values[f"{name}@{k}"] = function(placement.before_R, placement.group_R, k)
    values["mrr"] = metrics.rr_at_k(placement.before_R, placement.group_R, max(ks))
    return values


def add_level(columns: Columns, level: str, values: dict[str, np.ndarray], mask_R: np.ndarray) -> None:
    """Every value of `values` averaged over the rows of the mask."""
    columns.add({f"{level}/{name}": value_R * mask_R for name, value_R in values.items()}, mask_R)


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

    row_M, items_M = predictions.row_M, predictions.items_M
    exposure_E = metrics.exposure_at_k(entries_before(predictions), predictions.sizes_E, k)
    exposure_M = exposure_E[predictions.entry_M]
    shown_R = per_row(row_M, exposure_M)
    novelty_R = per_row(row_M, exposure_M * metrics.self_information(popularity_N)[items_M])
    popularity_R = per_row(row_M, exposure_M * popularity_N[items_M])
    columns.add({f"all/novelty@{k}": novelty_R, f"all/popularity@{k}": popularity_R}, shown_R)
    lengths = np.maximum(np.diff(rows.offsets), 1)
    history_R = per_row(rows.history_row_H, popularity_N[rows.history_H]) / lengths
    if history_R.any():
        columns.add({f"all/popularity_lift@{k}": popularity_R / np.maximum(shown_R, 1e-9)}, history_R)
    exposure_N = np.bincount(items_M, exposure_M, minlength=len(popularity_N))
    return {
        f"all/coverage@{k}": entry(metrics.coverage(exposure_N)),
        f"all/gini@{k}": entry(metrics.gini(exposure_N)),
    }


def invalid_entries(predictions: Predictions, sids: SidTable | None, *, num_items: int) -> np.ndarray:
    """Entries without items, with unknown items, or with codes the SID table lacks; bool [E]."""
    bad = predictions.sizes_E == 0
    bad[predictions.entry_M[(predictions.items_M < 0) | (predictions.items_M >= num_items)]] = True
    if sids is not None and predictions.codes_EL is not None:
        if predictions.codes_EL.shape[1] != sids.num_levels:
            return np.ones(len(bad), bool)
        found = sids.find(predictions.codes_EL)
        bad |= (found < 0) | (predictions.sizes_E != sids.group_sizes_S[found])
    return bad


def list_length(predictions: Predictions) -> int:
    """The length up to which lists are complete: the beams of a SID model, else the deepest whole rank."""
    if predictions.codes_EL is not None:
        return int(np.diff(predictions.offsets).max())
    return int(predictions.rank_E.max())
