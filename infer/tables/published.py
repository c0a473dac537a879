"""Published numbers: configs/<paper>/published.csv, one metric of one model on one data set per line.

dataset, split, rows    name of the data set here, split, and how many rows that split has
model, backbone         as the source names them
level                   what counts as a hit there: sid, item, title, or not stated
fitted_on               rows the model was fitted on: train, train+valid, not stated
metric, value           hr@10, ndcg@10, ... as a share
source, provenance      where it stands; quoted from there, or reported by a third party
note                    what a reader must know of this number
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.program import InputError

COLUMNS = ("dataset", "split", "rows", "model", "backbone", "level", "fitted_on", "metric", "value", "source",
           "provenance", "note")  # fmt: skip
LEVELS = ("sid", "item", "title", "not stated")
METRIC = re.compile(r"(hr|ndcg|mrr)@[1-9]\d*")


@dataclass(frozen=True)
class PublishedRow:
    """One published model: {metric: value} and what is known of it. notes: {metric: text}."""

    model: str
    backbone: str
    source: str
    provenance: str
    level: str
    fitted_on: str
    rows: int
    values: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def read_published(path: str | Path, *, dataset: str, split: str) -> list[PublishedRow]:
    """The models of one data set and split in the order of the file; none where it has no such rows.

    InputError naming the line that is malformed or double.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"missing file: {path} -> published numbers are in configs/<paper>/published.csv")
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        header, lines = reader.fieldnames, list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no csv file ({error}) -> get it again") from None
    if tuple(header or ()) != COLUMNS:
        raise InputError(f"{path}: the columns are not {', '.join(COLUMNS)} -> write them in this order")
    found: dict[tuple[str, str], PublishedRow] = {}
    for number, line in enumerate(lines, start=2):
        _check(line, f"{path}:{number}")
        if (line["dataset"], line["split"]) != (dataset, split):
            continue
        facts = {name: line[name] for name in ("backbone", "provenance", "level", "fitted_on")}
        made = PublishedRow(model=line["model"], source=line["source"], rows=int(line["rows"]), **facts)
        row = found.setdefault((line["model"], line["source"]), made)
        if line["metric"] in row.values:
            raise InputError(f"{path}:{number}: {line['model']} has {line['metric']} twice -> keep one")
        row.values[line["metric"]] = float(line["value"])
        if line["note"]:
            row.notes[line["metric"]] = line["note"]
    return list(found.values())


def known_data(path: str | Path) -> str:
    """The data sets and splits of a file of published numbers: `industrial (test), office (test)`."""
    with open(path, encoding="utf-8", newline="") as file:
        return ", ".join(sorted({f"{line['dataset']} ({line['split']})" for line in csv.DictReader(file)}))


def _check(line: dict[str, str | None], where: str) -> None:
    """InputError when a line lacks a field or a value is not what its column holds."""
    if None in line or None in line.values():
        raise InputError(f"{where} has not {len(COLUMNS)} fields -> quote texts with commas")
    try:
        good = int(line["rows"]) > 0 and 0 <= float(line["value"]) <= 1
    except ValueError:
        good = False
    if not good:
        raise InputError(
            f"{where}: rows {line['rows']!r} or value {line['value']!r} -> a count and a share in 0..1"
        )
    if line["level"] not in LEVELS:
        raise InputError(f"{where}: unknown level {line['level']!r} -> one of {', '.join(LEVELS)}")
    if not METRIC.fullmatch(line["metric"]):
        raise InputError(f"{where}: unknown metric {line['metric']!r} -> hr@K, ndcg@K or mrr@K")


def refuse_other_rows(published: Sequence[PublishedRow], rows: int, *, where: str) -> None:
    """InputError when published numbers were computed on another number of rows than ours."""
    other = [row for row in published if row.rows != rows]
    if other:
        raise InputError(
            f"{where}: {other[0].model} ({other[0].source}) was measured on {other[0].rows} rows, these runs on {rows} "
            "-> evaluate the whole published split, or choose its --dataset"
        )
