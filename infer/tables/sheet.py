"""The tables of a paper's README: published numbers, independent reproductions and ours, from three kinds of files.

configs/<paper>/rows.csv                  which rows a table has, one a line:
    dataset, row        the table, and the name of the row in results/<dataset>.json (the name of its prediction directories)
    model               what the table calls it
    published           the published row that it stands beside: [paper:]model of published.csv, or [paper:]model|backbone
    reproduced          the same of independent reproductions, separated by semicolons
    needs               what a run needs beyond two CPU cores; empty: nothing
    command             how the row is made
configs/<paper>/published.csv             infer/tables/published.py
configs/<paper>/results/<dataset>.json    infer/tables/stored.py; a cell without a row there is empty

A README holds the table between `<!-- rows of <dataset> -->` and `<!-- end of rows -->`, and, where it has the place for it, the same rows by
groups of targets and histories (cold and warm, head, torso and tail, categories) between `<!-- groups of <dataset> -->` and `<!-- end of groups -->`.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from configs.program import ROOT, InputError
from infer.tables.markdown import markdown_table
from infer.tables.published import PublishedRow, read_published
from infer.tables.stored import Row, read_stored

COLUMNS = ("dataset", "row", "model", "published", "reproduced", "needs", "command")
HEADER = (
    "model", "published", "reproduced", "HR@10", "NDCG@10", "SID level", "seeds", "looks", "fitted on", "hours", "hardware", "made",
)  # fmt: skip
BLOCK = re.compile(
    r"<!-- (?P<kind>rows|groups) of (?P<dataset>[\w-]+) -->\n.*?<!-- end of (?P=kind) -->", re.DOTALL
)
GROUP = re.compile(r"item_level/(?P<group>.+)/hr@10")
PAPERS = ROOT / "configs"


@dataclass(frozen=True)
class PlannedRow:
    """A line of rows.csv."""

    dataset: str
    row: str
    model: str
    published: str
    reproduced: str
    needs: str
    command: str


def read_plan(paper: Path) -> dict[str, list[PlannedRow]]:
    """{dataset: its rows in order}; InputError naming the line that is malformed or double."""
    path = paper / "rows.csv"
    if not path.is_file():
        raise InputError(f"missing file: {path} -> which rows a table has: infer/tables/sheet.py")
    found: dict[str, list[PlannedRow]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            header, lines = reader.fieldnames, list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no csv file ({error}) -> write it again") from None
    if tuple(header or ()) != COLUMNS:
        raise InputError(f"{path}: the columns are not {', '.join(COLUMNS)} -> write them in this order")
    for number, line in enumerate(lines, start=2):
        if (
            None in line
            or None in line.values()
            or not all((line["dataset"], line["row"], line["model"], line["command"]))
        ):
            raise InputError(f"{path}:{number} lacks a field -> dataset, row, model and command are needed")
        made = PlannedRow(**line)
        rows = found.setdefault(made.dataset, [])
        if any(row.row == made.row for row in rows):
            raise InputError(f"{path}:{number}: {made.dataset} has {made.row} twice -> keep one")
        rows.append(made)
    return found


def tables_of(paper: Path) -> dict[str, str]:
    """{dataset: its table and the commands behind it, Markdown} of one folder of configs/."""
    plan = read_plan(paper)
    unplanned = []
    found = {}
    for dataset, rows in plan.items():
        stored = read_stored(paper / "results" / f"{dataset}.json")
        unplanned += [f"{dataset}: {name}" for name in stored if name not in {row.row for row in rows}]
        cells = [cells_of(row, stored.get(row.row), paper) for row in rows]
        table = markdown_table(HEADER, cells, right=0)
        commands = dict.fromkeys(row.command for row in rows)
        found[dataset] = table + "\n\n" + "".join(f"    {command}\n" for command in commands)
    if unplanned:
        raise InputError(
            f"{paper}/rows.csv lacks rows that have results ({', '.join(unplanned)}) -> add their lines"
        )
    return found


def group_tables_of(paper: Path) -> dict[str, str]:
    """{dataset: HR@10 at item level of its measured rows by group, Markdown} of one folder of configs/.

    A group without rows, or that not all measured rows know, has an empty cell.
    """
    found = {}
    for dataset, rows in read_plan(paper).items():
        stored = read_stored(paper / "results" / f"{dataset}.json")
        made = [(row.model, stored[row.row]["metrics"]) for row in rows if row.row in stored]
        keys = dict.fromkeys(key for _, metrics in made for key in metrics if GROUP.fullmatch(key))
        names = [GROUP.fullmatch(key)["group"].replace("=", " ") for key in keys]
        cells = [[model, *(plain_number(metrics.get(key)) for key in keys)] for model, metrics in made]
        found[dataset] = markdown_table(["HR@10", *names], cells, right=len(names)) + "\n"
    return found


def cells_of(row: PlannedRow, stored: Row | None, paper: Path) -> list[str]:
    """One line of a table. Ours: value, 95 % interval, and ± the spread over seeds."""
    theirs = ", ".join(quoted(name, row.dataset, paper) for name in row.published.split(";") if name)
    others = ", ".join(quoted(name, row.dataset, paper) for name in row.reproduced.split(";") if name)
    if stored is None:
        ours = [""] * 8 + [f"not run: needs {row.needs}" if row.needs else "not run"]
        return [row.model, theirs, others, *ours]
    metrics = stored["metrics"]
    seeds = len(stored["runs"])
    made = f"{stored['date']}, {stored['commit']}{' and changes' if stored['dirty'] else ''}"
    return [
        row.model, theirs, others, number(metrics.get("item_level/hr@10")), number(metrics.get("item_level/ndcg@10")),
        pair(metrics, "sid_level"), str(seeds), str(stored["looks"]), stored["fitted_on"], f"{stored['hours']:.2f}",
        stored["hardware"], made,
    ]  # fmt: skip


def quoted(name: str, dataset: str, paper: Path) -> str:
    """`.1586 / .1167` of one model of a file of published numbers, test split; InputError when it has no such model."""
    where, colon, model = name.strip().rpartition(":")
    path = PAPERS / where / "published.csv" if colon else paper / "published.csv"
    model, _, backbone = model.partition("|")
    rows = [
        one
        for one in read_published(path, dataset=dataset, split="test")
        if one.model == model and backbone in ("", one.backbone)
    ]
    if not rows:
        raise InputError(f"{path} has no {name!r} on {dataset} -> name a model of its column `model`")
    return short_pair(rows[0])


def short_pair(row: PublishedRow) -> str:
    """HR@10 / NDCG@10 as a table shows them; `-` for one that was not published.

    >>> short_pair(PublishedRow("m", "", "s", "quoted", "sid", "train", 9, {"hr@10": 0.1586}))
    '.1586 / -'
    """
    values = [row.values.get(name) for name in ("hr@10", "ndcg@10")]
    return " / ".join("-" if value is None else f"{value:.4f}".lstrip("0") for value in values)


def number(metric: Row | None) -> str:
    """`.1661 [.1520, .1800] ± .0013`; the interval is over users, the spread over seeds."""
    if metric is None:
        return ""
    text = f"{metric['value']:.4f}".lstrip("0")
    if metric["low"] is not None:
        text += " [" + ", ".join(f"{metric[end]:.4f}".lstrip("0") for end in ("low", "high")) + "]"
    return text + (f" ± {metric['spread']:.4f}".replace("0.", ".") if "spread" in metric else "")


def plain_number(metric: Row | None) -> str:
    """`.1661`; empty where it was not measured."""
    return "" if metric is None or metric["value"] is None else f"{metric['value']:.4f}".lstrip("0")


def pair(metrics: dict[str, Row], level: str) -> str:
    """HR@10 / NDCG@10 of a level, with their intervals, or empty."""
    found = [number(metrics.get(f"{level}/{name}@10")) for name in ("hr", "ndcg")]
    return " / ".join(found) if all(found) else ""


def with_tables(text: str, tables: dict[str, str], groups: dict[str, str], *, where: str) -> str:
    """A README with its tables made anew; InputError when it has a block of a data set without rows."""
    made = {"rows": tables, "groups": groups}

    def block(match: re.Match[str]) -> str:
        kind, dataset = match["kind"], match["dataset"]
        if dataset not in made[kind]:
            raise InputError(
                f"{where} has a table of {dataset}, rows.csv has no row of it -> add the rows, or remove the block"
            )
        return f"<!-- {kind} of {dataset} -->\n{made[kind][dataset]}<!-- end of {kind} -->"

    return BLOCK.sub(block, text)
