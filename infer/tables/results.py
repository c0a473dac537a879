"""What a run folder holds when its stages are done: metrics of every model, training logs, manifests."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError, warn
from data import artifacts
from data.predictions import refuse_other_sids
from data.sid import read_sids
from data.store.fingerprints import sha256_bytes
from data.store.json_text import parse_json
from data.store.output import MANIFEST, read_manifest, require_manifest
from infer.metrics.levels import FILE
from infer.tables.markdown import markdown_table

Metric = dict[str, float | None]
BASELINES = (
    "pop",
    "repeat",
    "last",
    "recent",
    "itemknn",
    "itemknn_tuned",
    "itemknn_text",
    "mixture",
    "trend",
)  # in the order of a table


@dataclass(frozen=True)
class Result:
    """One evaluated model on one split. `metrics` is metrics.json without its `protocol`."""

    name: str
    split: str
    directory: Path
    metrics: dict[str, Metric]
    protocol: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def is_baseline(self) -> bool:
        return self.manifest["stage"].startswith("baseline")

    def get(self, key: str) -> Metric | None:
        return self.metrics.get(key)


@dataclass(frozen=True)
class TrainingLog:
    """metrics.jsonl of one training stage: {name: [(step, value), ...]}."""

    stage: str
    finished: bool
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def read_results(run: Path, *, data: Path, sids: Path) -> list[Result]:
    """Every run/eval/*/metrics of this data set and these semantic IDs, baselines first, then models in the order in which they were
    trained. Others, which a change of either left behind, are named by a warning.

    Raises InputError when metrics belong to older predictions, or when all of them are of another data set or other semantic IDs.
    """
    data_hash = require_manifest(data, written_by="scripts/01_prepare_data.sh")["content_hash"]
    read = [read_result(path.parent.parent) for path in sorted((run / "eval").glob("*/metrics/metrics.json"))]
    if not read:
        raise InputError(
            f"{run}/eval has no */metrics/metrics.json -> run evaluate.sh (or infer.evaluate) first"
        )
    found = [one for one in read if _measured_on(one) == data_hash]
    if not found:
        raise InputError(
            f"{read[0].directory}/metrics was computed on another data set than {data} -> pass the --data of this run"
        )
    table = read_sids(sids)
    coded = [one for one in found if one.protocol.get("sids_sha256")]
    others = [one for one in coded if one.protocol["sids_sha256"] != table.sha256]
    if others == coded:
        for one in others:
            refuse_other_sids(one.protocol, table, where=one.directory, sids=sids)
    left_out = [f"{one.directory.name} (of another data set than {data})" for one in read if one not in found]
    left_out += [f"{one.directory.name} (of other semantic IDs than {sids})" for one in others]
    if left_out:
        warn(f"left out of {run}/eval: {', '.join(left_out)} -> predict and measure again, or remove them")
    return sorted((one for one in found if one not in others), key=position)


def _measured_on(result: Result) -> str:
    """Content hash of the data set behind the metrics."""
    metrics = require_manifest(result.directory / "metrics", written_by="infer.evaluate")
    return metrics["inputs"]["data"]["sha256"]


def read_result(directory: Path) -> Result:
    """One evaluated prediction directory; InputError when its metrics belong to older predictions."""
    manifest = require_manifest(directory, written_by="evaluate.sh")
    path = directory / "metrics" / "metrics.json"
    evaluated = require_manifest(path.parent, written_by="infer.evaluate")["inputs"]
    if evaluated["predictions"]["sha256"] != manifest["content_hash"]:
        raise InputError(
            f"{path} is of older predictions -> run infer.evaluate --overwrite true on {directory}"
        )
    metrics = json.loads(path.read_text())
    protocol = metrics.pop("protocol")
    metrics = {with_cut(name, metrics): metric for name, metric in metrics.items()}
    name = directory.name.replace(f".{protocol['split']}", "", 1)
    if (manifest["stage"], manifest["stage_version"]) == ("baseline last", 1):
        name = "recent (as last)"  # version 1 of `last` is what `recent` is now
    return Result(name, protocol["split"], directory, metrics, protocol, manifest)


def with_cut(name: str, metrics: Collection[str]) -> str:
    """The name of a metric; `mrr` of older files becomes `mrr@K`, K being the longest list that its level reports.

    >>> with_cut("item_level/mrr", {"item_level/hr@1", "item_level/hr@20", "item_level/mrr"})
    'item_level/mrr@20'
    """
    part, _, metric = name.rpartition("/")
    if metric != "mrr":
        return name
    heads = [other.removeprefix(f"{part}/hr@") for other in metrics if other.startswith(f"{part}/hr@")]
    return f"{name}@{max(map(int, heads))}"


def position(result: Result) -> tuple[bool, str, int, str]:
    """The place of a model in a table: baselines first, then models in the order in which they were trained."""
    if result.is_baseline:
        name = result.name.split(" ")[0]
        return False, "", BASELINES.index(name) if name in BASELINES else len(BASELINES), result.name
    trained = result.directory.parent.parent / result.name
    return True, *_ended(trained if read_manifest(trained) else result.directory), result.name


def _ended(stage: Path) -> tuple[str, int]:
    """When a stage wrote its manifest: to the second, then by the file's time; unfinished stages come last."""
    manifest = read_manifest(stage)
    return (manifest["time_utc"], (stage / MANIFEST).stat().st_mtime_ns) if manifest else ("~", 0)


def of_split(results: Sequence[Result], split: str) -> list[Result]:
    return [result for result in results if result.split == split]


def by_rows(results: Sequence[Result], *, first: Result) -> list[list[Result]]:
    """The results apart by the rows that they are about: those of the rows of `first` (a result of this or another split) before
    all others, then by their number. Numbers of other rows do not belong into one table."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_rows_of(result), []).append(result)

    def place(group: list[Result]) -> tuple[bool, int]:
        return all(one.name != first.name for one in group), -group[0].protocol["rows"]

    return sorted(groups.values(), key=place)


def _rows_of(result: Result) -> str:
    """What the same rows have in common: the examples behind the metrics; in older files their number."""
    path = result.directory / "metrics" / FILE
    if not path.exists():
        return f"{result.protocol['rows']} rows of {result.protocol['users']} users"
    ids = artifacts.read_file(path, columns=["example_id"])["example_id"].to_numpy()
    return sha256_bytes(np.sort(ids).tobytes())


def marks(
    results: Sequence[Result], valid: Sequence[Result], *, by: str = "item_level/ndcg@10"
) -> dict[str, list[str]]:
    """{model: what it is called}: the newest is the one trained last, the best the one with the largest NDCG@10 on valid.

    Models that were not measured on valid cannot be called best, nor can the only one of these models that was: others there
    (floors, a teacher) are not compared with it.
    """
    called: dict[str, list[str]] = {}
    models = [result for result in results if not result.is_baseline]
    names = {result.name for result in models}
    on_valid = [result for result in valid if result.name in names]
    measured = [result for result in on_valid if result.get(by)]
    if len(measured) > 1:
        best = max(measured, key=lambda result: result.get(by)["value"])
        called[best.name] = ["best on valid"]
    elif measured and len(on_valid) == 1:
        called[measured[0].name] = ["the only trained one of these measured on valid"]
    if models:
        called.setdefault(models[-1].name, []).append("newest")
    return called


def fitted_to_valid(valid: Sequence[Result]) -> list[str]:
    """The models whose weights or settings were fitted to the very rows that they are measured on."""
    return [result.name for result in valid if result.protocol.get("tuned_on") == "valid"]


def final_model(results: Sequence[Result], split: str, name: str | None) -> Result:
    """The named model, or the one trained last; a baseline only where there is nothing else."""
    candidates = of_split(results, split)
    if name is not None:
        candidates = [result for result in candidates if result.name == name]
    if not candidates:
        known = ", ".join(sorted({result.name for result in results}))
        raise InputError(
            f"no metrics of model {name or '(any)'} on split {split} -> evaluated so far: {known}"
        )
    return candidates[-1]


def read_logs(run: Path) -> list[TrainingLog]:
    """The training logs of a run, in the order in which the stages ended."""
    paths = sorted(run.glob("*/metrics.jsonl"), key=lambda path: _ended(path.parent))
    return [_read_log(path) for path in paths]


def _read_log(path: Path) -> TrainingLog:
    """Numbers by name; a last line that is being written is left out, any other broken line is an error."""
    series: dict[str, list[tuple[float, float]]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = lines[:-1] if lines[-1:] == [""] else lines
    for at, line in enumerate(lines):
        try:
            values = parse_json(line, where=path)
            step = float(values.pop("step"))
        except (InputError, KeyError, AttributeError, TypeError, ValueError):
            if at == len(lines) - 1:
                break
            raise InputError(f"{path}:{at + 1} is not a log line -> remove it or train again") from None
        for name, value in values.items():
            if isinstance(value, (int, float)):
                series.setdefault(name, []).append((step, float(value)))
    return TrainingLog(path.parent.name, read_manifest(path.parent) is not None, series)


def manifests(run: Path, data: Path, sids: Path) -> list[tuple[str, dict[str, Any]]]:
    """(directory, manifest) of every finished stage behind a page, in the order of their end."""
    directories = [data, sids, *(path.parent for path in run.glob("*/manifest.json"))]
    directories += [path.parent for path in run.glob("baselines/*/manifest.json")]
    directories += [path.parent for path in run.glob("eval/*/manifest.json")]
    directories += [path.parent for path in run.glob("eval/*/metrics/manifest.json")]
    made_from = require_manifest(sids, written_by="scripts/04_build_sids.sh")["inputs"]
    directories += [
        Path(made_from[name]["path"]) for name in ("embeddings", "quantizer") if name in made_from
    ]
    known = {str(directory): read_manifest(directory) for directory in directories}
    made = [(path, found) for path, found in known.items() if found and found["stage"] != "report"]
    return sorted(made, key=lambda entry: entry[1]["time_utc"])


def one_row(metrics: dict[str, Metric]) -> str:
    """A header and one row, tab-separated, 4 decimals: every metric of every level, groups left out."""
    shown = {name: metric for name, metric in metrics.items() if name.count("/") == 1}
    values = [f"{metric['value']:.4f}" for metric in shown.values()]
    return "\t".join(shown) + "\n" + "\t".join(values) + "\n"


def summary_table(results: Sequence[Result], *, k: int) -> str:
    """Models and baselines with HR and NDCG at k in Markdown, item level with intervals, SID level without."""
    header = ["model", "rows", *(f"{level}{name}@{k}" for level in ("", "SID ") for name in ("HR", "NDCG"))]
    rows = []
    for result in results:
        item = [_with_interval(result.get(f"item_level/{name}@{k}")) for name in ("hr", "ndcg")]
        sid = [_plain(result.get(f"sid_level/{name}@{k}")) for name in ("hr", "ndcg")]
        rows.append([result.name, str(result.protocol["rows"]), *item, *sid])
    return markdown_table(header, rows, right=5)


def _with_interval(metric: Metric | None) -> str:
    return "-" if metric is None else f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"


def _plain(metric: Metric | None) -> str:
    return "-" if metric is None else f"{metric['value']:.4f}"
