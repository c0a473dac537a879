"""Several evaluations side by side: the same rows of the same data set, seeds of one recipe merged, paired tests.

Legend: R rows, C metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data import artifacts
from data.store.configuration import configuration
from data.store.output import read_manifest, require_manifest
from infer.metrics.levels import FILE, Level, levels_of
from infer.metrics.significance import Clusters, paired_differences
from infer.tables.published import PublishedRow
from infer.tables.results import Result, position, read_result

KINDS = ("baseline", "published", "model")
NOT_A_RECIPE = {"seed", "data_seed", "run_name", "logging_dir", "device", "overwrite", "output_dir"}
SHOWN_OF_PROTOCOL = ("beams", "score_space", "length_penalty", "repetition_penalty", "mode")
# Shown where they are not so: the numbers are then of another task, or of another search.
USUAL_PROTOCOL = {
    "temperature": 1.0,
    "terminator": False,
    "strategy": "beam",
    "think_thoughts": 1,
    "allowed": None,
    "max_rows": None,
}
RESAMPLES = 1000
UNTESTED = "not tested: fewer than two users have rows that count at this level"


@dataclass(frozen=True)
class Evaluation:
    """One evaluated prediction directory with the places of its targets, sorted by example."""

    result: Result
    levels: dict[str, Level]
    example_ids_R: np.ndarray
    users_R: np.ndarray
    data_hash: str


@dataclass
class Cell:
    """One number of a table. spread: sample standard deviation over seeds; p_value: against the reference."""

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    seeds: list[float] = field(default_factory=list)
    difference: float | None = None
    p_value: float | None = None
    note: str | None = None


@dataclass
class TableRow:
    """One model of a table; cells: {"item_level/hr@10": ...}. counts: what a hit is, for a published row."""

    name: str
    kind: str
    fitted_on: str
    source: str
    seeds: int = 1
    counts: str | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)


def find_evaluations(paths: Sequence[str | Path], *, split: str) -> list[Evaluation]:
    """Every evaluated prediction directory of a split in run folders, eval folders, or named itself.

    InputError when a path holds none, when a named one is of another split, or when two are of other data or rows.
    """
    found: dict[Path, Evaluation] = {}
    for path in map(Path, paths):
        named = (path / "metrics" / "metrics.json").exists()
        directories = (
            [path] if named else sorted(p.parent.parent for p in path.glob("**/metrics/metrics.json"))
        )
        read = {directory: read_result(directory) for directory in directories}
        of_split = {directory: result for directory, result in read.items() if result.split == split}
        if not of_split:
            there = (
                ", ".join(sorted({result.split for result in read.values()})) or "no */metrics/metrics.json"
            )
            raise InputError(
                f"{path} has no evaluation of split {split!r} ({there}) -> run infer.evaluate on it"
            )
        found |= {
            directory.resolve(): read_evaluation(directory, result) for directory, result in of_split.items()
        }
    evaluations = list(found.values())
    for other in evaluations[1:]:
        refuse_mixture(evaluations[0], other)
    return evaluations


def read_evaluation(directory: Path, result: Result) -> Evaluation:
    """The places behind a metrics.json."""
    metrics = directory / "metrics"
    if not (metrics / FILE).exists():
        raise InputError(
            f"{metrics} has no {FILE} (an older version wrote it) -> infer.evaluate --overwrite true"
        )
    table = artifacts.read_file(metrics / FILE).sort_by("example_id")
    inputs = require_manifest(metrics, written_by="infer.evaluate")["inputs"]
    return Evaluation(
        result,
        levels_of(table),
        table["example_id"].to_numpy(),
        table["user_id"].to_numpy(),
        inputs["data"]["sha256"],
    )


def refuse_mixture(one: Evaluation, other: Evaluation) -> None:
    """InputError when two evaluations are not of the same rows of the same data set."""
    names = f"{one.result.directory} and {other.result.directory}"
    if one.data_hash != other.data_hash:
        raise InputError(
            f"{names} are of different data sets ({one.data_hash[:12]} against {other.data_hash[:12]}) "
            "-> compare runs on one data set"
        )
    if not np.array_equal(one.example_ids_R, other.example_ids_R):
        raise InputError(
            f"{names} answer different rows ({len(one.example_ids_R)} and {len(other.example_ids_R)}) "
            "-> predict both with the same max_rows and seed"
        )


def recipe(result: Result) -> dict[str, Any]:
    """What makes runs seeds of one recipe: configuration of prediction and training, without seeds and paths."""
    manifests = {"prediction": result.manifest}
    model = result.manifest["inputs"].get("model", {}).get("path")
    if model and (trained := read_manifest(Path(model).parent)):
        manifests["training"] = trained
    flat: dict[str, Any] = {}
    for name, manifest in manifests.items():
        _flatten(configuration(manifest["config"], set(manifest["inputs"])), f"{name}.", flat)
    return flat


def _flatten(value: dict[str, Any], prefix: str, into: dict[str, Any]) -> None:
    for key, inner in value.items():
        if key in NOT_A_RECIPE:
            continue
        if isinstance(inner, dict):
            _flatten(inner, f"{prefix}{key}.", into)
        else:
            into[prefix + key] = inner


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Keys of two recipes that make them two. One that a recipe lacks, made before there was such an option, counts as switched off.

    >>> differing({"rate": 1, "thoughts": 0}, {"rate": 2})
    ['rate']
    """
    both = [key for key in one.keys() & other.keys() if one[key] != other[key]]
    alone = [key for key in one.keys() ^ other.keys() if one.get(key) or other.get(key)]
    return sorted(both + alone)


def grouped(evaluations: Sequence[Evaluation], *, separate: bool) -> dict[str, list[Evaluation]]:
    """{name of a table row: its seeds}: runs whose prediction directories have one name, or each alone.

    The same predictions twice (a baseline that several run folders hold) count once. InputError when directories of
    one name differ in more than seeds.
    """
    rows: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        result = evaluation.result
        run = result.directory.resolve().parent.parent.name
        seeds = rows.setdefault(f"{run}/{result.name}" if separate else result.name, [])
        if all(result.manifest["content_hash"] != other.result.manifest["content_hash"] for other in seeds):
            seeds.append(evaluation)
    for name, (first, *others) in rows.items():
        for other in others:
            differ = differing(recipe(first.result), recipe(other.result))
            if differ:
                raise InputError(
                    f"{first.result.directory} and {other.result.directory} are both called {name}, but are no seeds of "
                    f"one recipe ({', '.join(differ[:3])} differ) -> pass --separate true"
                )
    return rows


def our_rows(groups: dict[str, list[Evaluation]], keys: Sequence[str]) -> list[TableRow]:
    """A table row per group, baselines first; keys: `item_level/hr@10`, ..."""
    rows = []
    for name, seeds in sorted(groups.items(), key=lambda entry: position(entry[1][0].result)):
        result = seeds[0].result
        stated = result.protocol
        protocol = {key: stated[key] for key in SHOWN_OF_PROTOCOL if key in stated}
        protocol |= {
            key: stated[key] for key, usual in USUAL_PROTOCOL.items() if stated.get(key, usual) != usual
        }
        kind = "baseline" if result.is_baseline else "model"
        fitted = sorted({str(seed.result.protocol.get("fitted_on", "not stated")) for seed in seeds})
        row = TableRow(name, kind, ", ".join(fitted), "ours", seeds=len(seeds), protocol=protocol)
        for key in keys:
            if (cell := _cell([seed.result for seed in seeds], key)) is not None:
                row.cells[key] = cell
        if len(seeds) > 1:
            for key, (low, high) in intervals_of_mean(seeds, list(row.cells)).items():
                row.cells[key].low, row.cells[key].high = low, high
        rows.append(row)
    return rows


def intervals_of_mean(seeds: Sequence[Evaluation], keys: Sequence[str]) -> dict[str, tuple[float, float]]:
    """95 % intervals of the means of several seeds, of `<level>/<metric>` over all rows: bootstrap over users of what every row has
    as the mean of its seeds. They say nothing of other seeds; the spread does."""
    found: dict[str, tuple[float, float]] = {}
    clusters = Clusters(seeds[0].users_R, resamples=RESAMPLES, seed=0)
    for level in dict.fromkeys(key.partition("/")[0] for key in keys):
        names = [key.partition("/")[2] for key in keys if key.startswith(f"{level}/") and key.count("/") == 1]
        names = [name for name in names if _has(seeds, level, name)]
        if not names:
            continue
        weight_R1 = seeds[0].levels[level].weight_R[:, None]
        sums_RC = values_of(seeds, level, names) * weight_R1
        low_C, high_C = clusters.interval(
            [clusters.collect(sums_RC, weight_R1, np.zeros(len(names), np.int64))]
        )
        for name, low, high in zip(names, low_C, high_C, strict=True):
            found[f"{level}/{name}"] = (round(float(low), 6), round(float(high), 6))
    return found


def list_columns(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[str]:
    """The metrics of lists that any evaluation has, in the order of `names`: coverage becomes coverage@10, as they were evaluated."""
    found = {key for one in evaluations for key in one.result.metrics if key.startswith("all/")}
    return [
        key.removeprefix("all/")
        for name in names
        for key in sorted(found)
        if key.partition("@")[0] == f"all/{name}"
    ]


def _cell(seeds: Sequence[Result], key: str) -> Cell | None:
    """The metric of one run with its interval, or the mean of several with their spread."""
    found = [result.get(key) for result in seeds]
    if any(metric is None for metric in found):
        return None
    if len(found) == 1:
        return Cell(found[0]["value"], found[0]["low"], found[0]["high"])
    values = [metric["value"] for metric in found]
    return Cell(float(np.mean(values)), spread=float(np.std(values, ddof=1)), seeds=values)


def published_rows(published: Sequence[PublishedRow], keys: Sequence[str]) -> list[TableRow]:
    """Published models as table rows, those of `keys` that they have.

    All stand in the table of `sid_level`, the published protocol, whatever they count (the row says it); those that
    count items also in that of `item_level`.
    """
    rows = []
    for one in published:
        name = f"{one.model} ({one.backbone})" if one.backbone else one.model
        row = TableRow(name, "published", one.fitted_on, f"{one.source}, {one.provenance}", counts=one.level)
        shown = {"sid_level", "item_level"} if one.level == "item" else {"sid_level"}
        for key in keys:
            level, _, metric = key.rpartition("/")
            if level in shown and metric in one.values:
                row.cells[key] = Cell(one.values[metric], note=one.notes.get(metric))
        rows.append(row)
    return rows


def add_tests(
    rows: Sequence[TableRow],
    groups: dict[str, list[Evaluation]],
    keys: Sequence[str],
    *,
    reference: str,
    resamples: int,
    seed: int,
) -> None:
    """Differences to the row `reference` and their p-values, into the cells of our rows.

    A row of several seeds enters with the mean of its seeds on every example: the test is about other users, not
    about other seeds (the spread shows those).
    """
    if reference not in groups:
        raise InputError(f"no row is called {reference!r} -> one of {', '.join(sorted(groups))}")
    users_R = groups[reference][0].users_R
    clusters = Clusters(users_R, resamples=resamples, seed=seed)
    by_level: dict[str, list[str]] = {}
    for key in keys:
        level, _, metric = key.rpartition("/")
        by_level.setdefault(level, []).append(metric)
    for row in rows:
        if row.kind == "published" or row.name == reference:
            continue
        for level, metrics in by_level.items():
            ours, theirs = groups[row.name], groups[reference]
            both = [metric for metric in metrics if _has(ours, level, metric) and _has(theirs, level, metric)]
            if not both:
                continue
            weight_R = theirs[0].levels[level].weight_R
            if clusters.users_with_weight(weight_R) < 2:
                for metric in both:
                    row.cells[f"{level}/{metric}"].note = UNTESTED
                continue
            compared = paired_differences(
                values_of(ours, level, both), values_of(theirs, level, both), weight_R, clusters
            )
            for metric, found in zip(both, compared, strict=True):
                cell = row.cells[f"{level}/{metric}"]
                cell.difference, cell.p_value = found.value, found.p_value


def _has(seeds: Sequence[Evaluation], level: str, metric: str) -> bool:
    return all(level in seed.levels and metric in seed.levels[level].metrics for seed in seeds)


def values_of(seeds: Sequence[Evaluation], level: str, metrics: Sequence[str]) -> np.ndarray:
    """Metrics of every row, mean over seeds, float64 [R, C]."""
    per_seed = [[seed.levels[level].value_R(metric) for metric in metrics] for seed in seeds]
    return np.mean(per_seed, axis=0).T
