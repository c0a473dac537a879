"""What the report page shows, section by section, and the page itself: one file, no scripts, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.artifacts import SPLITS
from data.sid import LETTERS
from infer.page.showcase import Story
from infer.tables.results import Metric, Result, TrainingLog
from rq.quality import charts, frame
from rq.quality.charts import Figure

TABLE_KS = (1, 5, 10, 20, 50)
MONTH_BARS = 120
# (caption, series of metrics.jsonl) in the order of the page; what a stage did not log is left out.
CURVES = (
    ("Loss", ("loss", "eval_loss")),
    ("Loss on items that were taught (fit)", ("eval_fit_loss/",)),
    ("Loss on items that were held out", ("eval_held_out_loss/",)),
    ("Reward", ("reward",)),
    ("Rewards by name", ("reward/",)),
    ("Groups with a hit, groups without signal", ("hit_rate", "zero_variance_share")),
    ("Target's first codes among the rollouts", ("first_code_survival", "second_code_survival")),
    ("Variety of the rollouts", ("diversity",)),
    ("Distinct items in the rollouts of a log", ("distinct_items",)),
    ("KL to the reference", ("kl",)),
    ("KL to the reference, 99th percentile", ("kl_p99",)),
    ("Entropy of the legal codes", ("entropy",)),
    ("Log probability of the legal codes", ("log_mass",)),
    ("Valid ranking", ("eval_ndcg@10", "eval_hr@10", "eval_hr@50", "eval_pass@")),
    ("Gradient norm", ("grad_norm",)),
    ("Learning rate", ("learning_rate",)),
)


@dataclass(frozen=True)
class ShownFunnel:
    """What stage 01 counted. steps: {"step", "rows", "users"?, "items"?} in their order; facts: (name, words)."""

    steps: list[dict[str, Any]]
    facts: list[tuple[str, str]]


def read_funnel(data: Path) -> ShownFunnel:
    """funnel.json of a prepared data set; facts that are zero, empty or drawn elsewhere are left out."""
    path = data / "funnel.json"
    if not path.exists():
        raise InputError(f"missing file: {path} -> run scripts/01_prepare_data.sh again")
    raw = json.loads(path.read_text())
    facts = [
        (name.replace("_", " "), _words(value))
        for name, value in raw.items()
        if value and name not in {"steps", "months", "months_read", "share_with_time"}
    ]
    return ShownFunnel(raw["steps"], facts)


def _words(value: Any) -> str:
    """12,000 · text · a, b · train 5, valid 1."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def reviews_over_time(data: Path) -> tuple[Figure | None, int, int]:
    """(chart by month and split, rows with a time, rows) of interactions.parquet."""
    table = artifacts.read(data, artifacts.INTERACTIONS)
    if "timestamp" not in table.column_names:
        return None, 0, table.num_rows
    timed = table.filter(pc.is_valid(table["timestamp"]))
    if not timed.num_rows:
        return None, 0, table.num_rows
    month = timed["timestamp"].to_numpy().astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)
    width = max(1, -(-int(month.max() - month.min() + 1) // MONTH_BARS))
    bins = (month - month.min()) // width
    names = [str(np.datetime64(int(month.min()) + bin_ * width, "M")) for bin_ in range(int(bins.max()) + 1)]
    split = (
        np.array(timed["split"].to_pylist()) if "split" in table.column_names else np.full(len(bins), "all")
    )
    present = [name for name in (*SPLITS, "context", "all") if (split == name).any()]
    stacks = [np.bincount(bins[split == name], minlength=len(names)).tolist() for name in present]
    chart = charts.stacked_bars(
        names, stacks, label="reviews by month and split", every=max(1, -(-len(names) // 6))
    )
    unit = "month" if width == 1 else f"{width} months"
    return Figure(f"Reviews per {unit}, by split", chart, present), timed.num_rows, table.num_rows


def reviews_read(data: Path) -> Figure | None:
    """Chart by month of the raw reviews, those that the filters kept and those that they left out; None where nothing was
    filtered or no time is known."""
    raw = json.loads((data / "funnel.json").read_text()) if (data / "funnel.json").exists() else {}
    read, kept = raw.get("months_read"), raw.get("months", {})
    if not read:
        return None
    number = {name: int(np.datetime64(name, "M").astype(np.int64)) for name in read}
    first, last = min(number.values()), max(number.values())
    width = max(1, -(-(last - first + 1) // MONTH_BARS))
    stacks = np.zeros((2, (last - first) // width + 1), np.int64)
    for name, count in read.items():
        place = (number[name] - first) // width
        stacks[0, place] += kept.get(name, 0)
        stacks[1, place] += count - kept.get(name, 0)
    names = [str(np.datetime64(first + place * width, "M")) for place in range(stacks.shape[1])]
    label = "raw reviews by month, kept and left out"
    chart = charts.stacked_bars(names, stacks.tolist(), label=label, every=max(1, -(-len(names) // 6)))
    unit = "month" if width == 1 else f"{width} months"
    return Figure(f"Raw reviews per {unit}, before any filter", chart, ["kept", "left out"])


def training_figures(log: TrainingLog) -> list[Figure]:
    """The charts of one training stage."""
    figures = []
    for caption, wanted in CURVES:
        names = [
            name
            for name in log.series
            if any(name == want or (want.endswith(("/", "@")) and name.startswith(want)) for want in wanted)
        ]
        if names and max(len(log.series[name]) for name in names) > 0:
            lines = [charts.Line(name, log.series[name], dots=name.startswith("eval_")) for name in names]
            figures.append(Figure(caption, charts.line_chart(lines, label=f"{log.stage}: {caption}"), names))
    return figures


def metric_columns(results: Sequence[Result], level: str) -> list[str]:
    """`hr@1` ... of a level that any result has, HR before NDCG."""
    return [
        f"{name}@{k}"
        for name in ("hr", "ndcg")
        for k in TABLE_KS
        if any(result.get(f"{level}/{name}@{k}") for result in results)
    ]


def best_in_column(results: Sequence[Result], level: str, columns: Sequence[str]) -> dict[str, float]:
    """The largest value of every column, to be set in bold."""
    return {
        column: max(m["value"] for result in results if (m := result.get(f"{level}/{column}")))
        for column in columns
    }


def interval_figures(results: Sequence[Result]) -> list[Figure]:
    """HR@10 and NDCG@10 of all rows at item level with their intervals."""
    figures = []
    for key, caption in (
        ("item_level/hr@10", "HR@10, item level"),
        ("item_level/ndcg@10", "NDCG@10, item level"),
    ):
        rows = [(result, metric) for result in results if (metric := result.get(key))]
        if rows:
            bars = [
                charts.Interval(r.name, m["value"], m["low"], m["high"], not r.is_baseline) for r, m in rows
            ]
            figures.append(Figure(caption, charts.interval_chart(bars, label=caption)))
    return figures


def group_rows(results: Sequence[Result], key: str = "hr@10") -> list[tuple[str, int, list[Metric | None]]]:
    """(group, its rows, the metric of every result) at item level."""
    if not results:
        return []
    sizes = results[-1].protocol["group_rows"]
    table = [
        (name, rows, [result.get(f"item_level/{name}/{key}") for result in results])
        for name, rows in sizes.items()
    ]
    return [row for row in table if any(row[2])]


def catalogue_rows(results: Sequence[Result]) -> list[tuple[str, list[Metric | None]]]:
    """(measure, its value per result) of what belongs to the lists as a whole."""
    names = dict.fromkeys(name for result in results for name in result.metrics if name.startswith("all/"))
    return [(name.removeprefix("all/"), [result.get(name) for result in results]) for name in names]


@dataclass(frozen=True)
class Quality:
    """The semantic IDs in numbers: a table row per level, then (what, value, beside what) lines."""

    levels: list[dict[str, Any]]
    lines: list[tuple[str, str, str]]


def read_quality(sids: Path) -> Quality | None:
    """The parts of quality.json that the page shows; None where semantic IDs came without one."""
    path = sids / "quality.json"
    if not path.exists():
        return None
    raw = json.loads(path.read_text())
    final, nearest = raw["assigned"], raw.get("nearest", raw["assigned"])
    errors = final.get("reconstruction_error") or []
    levels = [
        level | {"name": LETTERS[at], "error": errors[at] if at < len(errors) else None}
        for at, level in enumerate(final["levels"])
    ]
    before, after, repaired = nearest["collisions"], final["collisions"], "nearest" in raw

    def earlier(key: str) -> str:
        return f"{before[key]:,} before repair" if repaired else ""

    lines = [
        ("Distinct semantic IDs", f"{after['distinct']:,}", f"of {raw['items']:,} items"),
        ("Items that share one", f"{after['items']:,}", earlier("items")),
        ("Largest group", f"{after['largest_group']:,}", earlier("largest_group")),
    ]
    if repaired:
        lines.append(("Moved off the nearest code", f"{raw.get('moved_share', 0):.1%}", "by the repair"))
    lines.append(("Items per 2-prefix", f"{final['items_per_2_prefix']:.2f}", ""))
    for depth in (1, 2):
        if found := (raw.get("behaviour") or {}).get(f"depth_{depth}"):
            lift = "no lift" if found["lift"] is None else f"lift {found['lift']:.1f}"
            beside = f"{found['shuffled']:.1%} when shuffled, {lift}"
            lines.append((f"Consecutive choices agree in {depth} codes", f"{found['agreement']:.1%}", beside))
    for depth in (1, 2):
        if raw.get("purity") and f"depth_{depth}" in raw["purity"]:
            beside = f"{raw['purity']['largest_category']:.1%} without semantic IDs"
            value = f"{raw['purity'][f'depth_{depth}']:.1%}"
            lines.append((f"Category purity of {depth}-prefixes", value, beside))
    return Quality(levels, lines)


def protocol_line(result: Result) -> str:
    """How the final numbers were made, in one sentence."""
    p = result.protocol
    parts = [f"full ranking, split {p['split']}, {p['rows']:,} rows of {p['users']:,} users"]
    if p.get("max_rows"):
        parts[0] += " (a seeded sample)"
    if p.get("beams"):
        parts.append(f"{p['beams']} beams, score space {p.get('score_space')}")
    parts.append(f"fitted on {p.get('fitted_on', 'unknown rows')}, history not masked")
    parts.append(f"95 % intervals from {p['resamples']:,} bootstrap resamples of users")
    return "; ".join(parts)


@dataclass(frozen=True)
class Page:
    """Everything the template shows."""

    title: str
    data: str
    protocol: str
    counts: list[tuple[str, int]]
    funnel: ShownFunnel
    months: Figure | None
    raw_months: Figure | None
    timed: int
    rows: int
    quality: Quality | None
    sid_figures: list[Figure]
    training: list[tuple[TrainingLog, list[Figure]]]
    final: Result
    results: list[Result]
    others: list[list[Result]]
    valid: list[Result]
    fitted_to_valid: list[str]
    marks: dict[str, list[str]]
    stories: list[Story]
    stages: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]


def render(page: Page) -> str:
    """The page as HTML; every text from data is escaped by the template engine."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figures": _four,
        "short": charts.number,
        "thousands": lambda n: f"{n:,}",
        "percent": lambda x: f"{x:.1%}",
    }
    template = environment.get_template("report.html.j2")
    return template.render(
        page=page,
        head=frame.head(f"{page.title} · results"),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        levels=[
            (level, words, metric_columns(page.results, level))
            for level, words in (
                (
                    "item_level",
                    "Item level: colliding items of one semantic ID are told apart (expected value)",
                ),
                (
                    "item_level_unseen",
                    "Masked: items of the history are taken out of every list, rows whose target is in it do not count",
                ),
                (
                    "sid_level",
                    "SID level: a semantic ID counts for every item that shares it (published protocol)",
                ),
            )
        ],
        best=best_in_column,
        intervals=interval_figures(page.results),
        groups=group_rows(page.results),
        catalogue=catalogue_rows(page.results),
    )


def _four(metric: Metric | None) -> str:
    """`.1017`, or a dash."""
    return "–" if metric is None else f"{metric['value']:.4f}".removeprefix("0")


def check_items(items: pa.Table, num_items: int, *, data: Path, sids: Path) -> None:
    """InputError when the semantic IDs are of another data set."""
    if items.num_rows != num_items:
        raise InputError(
            f"{sids} has {num_items} items, {data} {items.num_rows} -> pass the --sids made from this data"
        )
