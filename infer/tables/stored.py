"""Rows of a paper's table as files: configs/<paper>/results/<dataset>.json, {name: row}, made from evaluated predictions.

A row holds

    command, commit, dirty, date, hardware, hours    how it was made; hours: training, prediction and evaluation of all its runs,
                                                     without what they start from (teachers, an SFT model, semantic IDs)
    fitted_on, looks                                 the rows behind the model; how often test was looked at with this row
    protocol                                         rows, users, and how was decoded
    runs                                             {run folder: {seed, predictions}}, predictions being their content hash
    metrics                                          {"item_level/hr@10": {value, low, high, spread?, seeds?}, ...}

A look is counted when a run that is known comes back with other predictions, and when runs take the place of others; runs that
only join are part of the look that they complete. Every number is computed from the predictions: `differences` holds a row to what they give now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data.store.fingerprints import plain
from data.store.output import read_manifest
from infer.metrics.measure import entry
from infer.tables.comparison import Evaluation, intervals_of_mean
from infer.tables.results import Result

Row = dict[str, Any]
LEVELS = ("sid_level", "item_level", "item_level_merged", "item_level_dedup", "item_level_unseen")
SHOWN = ("hr", "ndcg")
CUTS = (1, 5, 10, 20, 50)
GROUP_CUT = 10
LISTS = ("all/coverage@10", "all/gini@10")
PROTOCOL = (
    "rows",
    "users",
    "beams",
    "score_space",
    "length_penalty",
    "repetition_penalty",
    "mode",
    "temperature",
)
HELD = tuple(f"{level}/{name}@{GROUP_CUT}" for level in ("item_level", "sid_level") for name in SHOWN)


def read_stored(path: str | Path) -> dict[str, Row]:
    """The rows of a file in its order, {} where there is none; InputError when it cannot be read."""
    path = Path(path)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {name: dict(row) for name, row in found.items() if {"metrics", "runs", "looks"} <= row.keys()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path} is no file of rows ({error}) -> restore it, or remove it and record again"
        ) from error
    if known.keys() != found.keys():
        raise InputError(f"{path} has rows without metrics, runs or looks -> restore it, or record again")
    return known


def stored_text(rows: dict[str, Row]) -> str:
    """The file's text: a line per metric, so that a change of a number is one line of a diff."""
    parts = []
    for name, row in rows.items():
        facts = [
            f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items() if key != "metrics"
        ]
        metrics = ",\n".join(
            f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in row["metrics"].items()
        )
        facts.append(f'  "metrics": {{\n{metrics}\n  }}')
        parts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(facts) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def replace_text(path: Path, text: str) -> None:
    """The file's new text at once: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def run_name(evaluation: Evaluation) -> str:
    """The run folder of a prediction directory <run>/eval/<name>.<split>."""
    return evaluation.result.directory.resolve().parent.parent.name


def measured_row(seeds: Sequence[Evaluation], *, command: str, hardware: str | None) -> Row:
    """The row of one model, its seeds in the order of their run folders. InputError when two are of one run folder."""
    seeds = sorted(seeds, key=run_name)
    names = [run_name(seed) for seed in seeds]
    if len(set(names)) < len(names):
        raise InputError(
            f"two runs are called {max(names, key=names.count)} -> a run folder of its own for every seed"
        )
    made = [made_by(seed.result) for seed in seeds]
    newest = max(made, key=lambda manifests: manifests[0]["time_utc"])[0]
    stated = seeds[0].result.protocol
    return plain(
        {
            "command": command,
            "commit": (newest["git"]["commit"] or "")[:7],
            "dirty": any(manifest["git"]["dirty"] for manifests in made for manifest in manifests),
            "date": newest["time_utc"][:10],
            "hardware": hardware or this_machine(),
            "hours": round(sum(m.get("wall_seconds", 0) for manifests in made for m in manifests) / 3600, 5),
            "fitted_on": ", ".join(
                sorted({str(seed.result.protocol.get("fitted_on", "not stated")) for seed in seeds})
            ),
            "looks": 1,
            "protocol": {key: stated[key] for key in PROTOCOL if stated.get(key) is not None},
            "runs": {
                name: {"seed": seed_of(manifests), "predictions": seed.result.manifest["content_hash"]}
                for name, seed, manifests in zip(names, seeds, made, strict=True)
            },
            "metrics": measured_metrics(seeds),
        }
    )


def made_by(result: Result) -> list[Row]:
    """Manifests behind a prediction: of the prediction, of its metrics, and of the model where it is a stage's output."""
    found = [result.manifest, read_manifest(result.directory / "metrics")]
    model = result.manifest["inputs"].get("model", {}).get("path")
    if model:
        found.append(read_manifest(model) or read_manifest(Path(model).parent))
    return [manifest for manifest in found if manifest]


def seed_of(manifests: Sequence[Row]) -> int | None:
    """Of the model among `made_by`; None where nothing was trained: the seed of a prediction or of a bootstrap is none of a row."""
    return manifests[2].get("seed") if len(manifests) > 2 else None


def this_machine() -> str:
    """`2 CPU cores, 23 GiB`, as the system says."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB"


def measured_metrics(seeds: Sequence[Evaluation]) -> dict[str, Row]:
    """Every metric of a row: of one run as it was evaluated; of several the mean, its interval over users, spread and values.

    The interval of a mean is that of the mean of the seeds on every example (bootstrap over users); groups of rows and
    properties of the lists have none there.
    """
    found: dict[str, Row] = {}
    for level in LEVELS:
        found |= whole_level(seeds, level)
    grouped = [key for key in seeds[0].result.metrics if key.count("/") == 2 and key.split("/")[0] in LEVELS]
    wanted = [key for key in grouped if key.split("/")[2] in {f"{name}@{GROUP_CUT}" for name in SHOWN}]
    for key in [*wanted, *LISTS]:
        if all(seed.result.get(key) is not None for seed in seeds):
            found[key] = one_metric([seed.result.get(key) for seed in seeds])
    return found


def whole_level(seeds: Sequence[Evaluation], level: str) -> dict[str, Row]:
    """{"item_level/hr@1": ...} over all rows of one level."""
    names = [f"{name}@{cut}" for name in SHOWN for cut in CUTS]
    names = [n for n in names if all(seed.result.get(f"{level}/{n}") is not None for seed in seeds)]
    found = {f"{level}/{n}": one_metric([seed.result.get(f"{level}/{n}") for seed in seeds]) for n in names}
    if len(seeds) > 1:
        for key, (low, high) in intervals_of_mean(seeds, list(found)).items():
            found[key] |= {"low": low, "high": high}
    return found


def one_metric(values: Sequence[Row]) -> Row:
    """A metric of one run as it is; of several {value: mean, spread: sample standard deviation, seeds: the values}.

    >>> one_metric([{"value": 0.1, "low": 0, "high": 1}, {"value": 0.3, "low": 0, "high": 1}])["value"]
    0.2
    """
    if len(values) == 1:
        return dict(values[0])
    numbers = [value["value"] for value in values]
    spread = round(float(np.std(numbers, ddof=1)), 6)
    return entry(float(np.mean(numbers))) | {"spread": spread, "seeds": numbers}


def with_row(rows: dict[str, Row], name: str, row: Row) -> dict[str, Row]:
    """The rows with one more, or with one measured again: its looks go on counting.

    A row that is measured with fewer runs keeps what the others were (`earlier`), so that one of them made anew is another look.
    """
    before = rows.get(name)
    if before:
        known, runs = before.get("earlier", {}) | before["runs"], row["runs"]
        other = any(runs.get(run, made) != made for run, made in known.items())
        exchanged = bool(runs.keys() - before["runs"].keys()) and bool(before["runs"].keys() - runs.keys())
        earlier = {run: made for run, made in known.items() if run not in runs}
        row = (
            row
            | {"looks": before["looks"] + (other or exchanged)}
            | ({"earlier": earlier} if earlier else {})
        )
    return rows | {name: row}


def differences(stored: Row, seeds: Sequence[Evaluation]) -> dict[str, tuple[float, float]]:
    """{"run: item_level/hr@10": (stored, measured now)} of every run of `seeds` that the row has; InputError without any."""
    names = list(stored["runs"])
    found = {}
    for seed in seeds:
        if (run := run_name(seed)) not in names:
            continue
        for key in HELD:
            metric, now = stored["metrics"].get(key), seed.result.get(key)
            if metric is not None and now is not None:
                before = metric["seeds"][names.index(run)] if "seeds" in metric else metric["value"]
                found[f"{run}: {key}"] = (before, now["value"])
    if not found:
        raise InputError(
            f"none of the runs {', '.join(map(run_name, seeds))} is one of the stored row ({', '.join(names)}) "
            "-> use the same run folders"
        )
    return found
