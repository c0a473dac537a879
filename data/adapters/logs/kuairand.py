"""Adapter kuairand: KuaiRand-1K (and -Pure, -27K by the same code): logs in parts, video captions and category levels.

    log_standard_*.csv log_random_*.csv     user_id, video_id, time_ms, is_click, ...
    kuairand_video_captions.csv             final_video_id, caption, ...
    kuairand_video_categories.csv           final_video_id, {first,second,third}_level_category_name, ...

A history is what the logs say a user clicked, by time. HiD-VAE's order of filters: clicks; users with `min_clicks`, at most
`max_users`; videos with a caption and `min_levels` known levels; a sample of `max_items` that keeps the shares of the first level;
then the recipe's filters (user_k 5). An unknown level is "" in `categories` where a finer one is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.adapters.contract import Loaded, RawLine, RawLines, first_of_each
from data.adapters.item_text import clean_text
from data.adapters.logs.delimited import Layout, Log, cells, lines_with
from data.adapters.logs.options import KuaiRandOptions
from data.shaping.assemble import Coded, Funnel
from data.shaping.coding import dense_by_first_appearance
from data.shaping.findings import Finding

LAYOUT = Layout(",", quoted=True)
COLUMNS = {"user": "user_id", "item": "video_id", "time": "time_ms"}
VIDEO = "final_video_id"
LEVELS = tuple(f"{place}_level_category_name" for place in ("first", "second", "third"))
UNKNOWN = {"", "UNKNOWN", "nan", "NaN"}


def _folders(raw: str | Path) -> list[Path]:
    """The archive has its logs in data/; the supplement lies beside it or in it."""
    if not Path(raw).is_dir():
        raise InputError(f"raw folder does not exist: {raw} -> set RAW (or --raw) to the unpacked folder")
    return [Path(raw), Path(raw) / "data"]


def _logs(raw: str | Path, options: KuaiRandOptions) -> list[Path]:
    found = [
        path for pattern in options.logs for folder in _folders(raw) for path in sorted(folder.glob(pattern))
    ]
    if not found:
        raise InputError(
            f"no log file in {raw} or its data/ matches {' or '.join(options.logs)} -> check raw and kuairand.logs"
        )
    return list(dict.fromkeys(found))


def _supplement(raw: str | Path, name: str) -> list[Path]:
    if not name:
        return []
    for folder in _folders(raw):
        if (folder / name).is_file():
            return [folder / name]
    raise InputError(
        f"missing file: {Path(raw) / name} -> it is a download of its own (scripts/download.sh kuairand1k says where), or set"
        " kuairand.captions, categories and min_levels to have no text"
    )


def files(raw: str | Path, options: KuaiRandOptions) -> list[Path]:
    """Logs, captions, categories."""
    return [*_logs(raw, options), *_supplement(raw, options.captions), *_supplement(raw, options.categories)]


def read(raw: str | Path, options: KuaiRandOptions, funnel: Funnel) -> tuple[Loaded | None, list[Finding]]:
    """The folder as the contract wants it."""
    log, findings = Log(options.time_unit, "kuairand.time_unit"), []
    for path in _logs(raw, options):
        findings += log.read(path, LAYOUT, COLUMNS, keep={"is_click": 1.0} if options.clicks_only else None)
    if findings := findings + log.findings():
        return None, findings
    funnel.step("log rows", log.lines)
    rows, user_ids, video_ids = log.finish()
    funnel.count("clicks" if options.clicks_only else "rows read", rows)
    rows = _users(rows, options, funnel)
    titles = _captions(raw, options)
    paths = _paths(raw, options)
    names = video_ids.to_pylist()
    rows = _videos(rows, names, titles, paths, options, funnel)
    if not len(rows.user):
        told = ", ".join(f"{step['step']}: {step['rows']}" for step in funnel.steps)
        raise InputError(
            f"{raw}: the filters of kuairand leave no row ({told}) -> lower kuairand.min_clicks or min_levels"
        )

    def items(codes: np.ndarray) -> pa.Table:
        kept = [names[code] for code in codes.tolist()]
        return pa.table(
            {
                "raw_id": pa.array(kept, pa.string()),
                "title": pa.array([titles.get(key, "") for key in kept], pa.string()),
                "description": pa.array([""] * len(kept), pa.string()),
                "categories": pa.array([_path(paths.get(key, ())) for key in kept], pa.list_(pa.string())),
                "brand": pa.array([""] * len(kept), pa.string()),
            }
        )

    return Loaded(rows, items, pa.table({"raw_id": user_ids}), len(names)), []


def _users(rows: Coded, options: KuaiRandOptions, funnel: Funnel) -> Coded:
    """Rows of users with enough of them, at most `max_users`."""
    counts = np.bincount(rows.user)
    good = np.flatnonzero(counts >= max(1, options.min_clicks))
    if options.max_users and len(good) > options.max_users:
        drawn = np.random.default_rng(options.seed).permutation(len(good))[: options.max_users]
        good = good[np.sort(drawn)]
    keep = np.zeros(len(counts), bool)
    keep[good] = True
    rows = rows.take(np.flatnonzero(keep[rows.user]))
    funnel.count(f"users with {options.min_clicks} rows, at most {options.max_users}", rows)
    return rows


def _videos(
    rows: Coded,
    names: list[str],
    titles: dict[str, str],
    paths: dict[str, list[str]],
    options: KuaiRandOptions,
    funnel: Funnel,
) -> Coded:
    """Rows of videos with text, at most `max_items` of them."""
    seen = dense_by_first_appearance(rows.item, len(names))[1]
    good = seen
    if options.min_levels:
        described = [
            bool(titles.get(names[code])) and sum(map(bool, paths.get(names[code], ()))) >= options.min_levels
            for code in seen.tolist()
        ]
        good = seen[np.array(described, bool)]
    if options.max_items and len(good) > options.max_items:
        first = [(paths.get(names[code]) or [""])[0] for code in good.tolist()]
        good = good[stratified(first, options.max_items, np.random.default_rng(options.seed))]
    keep = np.zeros(len(names), bool)
    keep[good] = True
    rows = rows.take(np.flatnonzero(keep[rows.item]))
    funnel.count(f"videos with a caption and {options.min_levels} levels, at most {options.max_items}", rows)
    return rows


def stratified(groups: Sequence[str], size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` positions (int64, ascending) drawn so that every group keeps its share, by largest remainders.

    >>> drawn = stratified(["a"] * 6 + ["b"] * 3, 3, np.random.default_rng(0))
    >>> sorted("aaaaaabbb"[at] for at in drawn)
    ['a', 'a', 'b']
    """
    codes = np.unique(np.array(groups, object).astype(str), return_inverse=True)[1]
    counts = np.bincount(codes)
    exact = counts * size / len(codes)
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: size - quota.sum()]] += 1
    shuffled = rng.permutation(len(codes))
    shuffled = shuffled[np.argsort(codes[shuffled], kind="stable")]
    place = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(shuffled[place < quota[codes[shuffled]]])


def _captions(raw: str | Path, options: KuaiRandOptions) -> dict[str, str]:
    """Video -> its first caption that is not empty."""
    titles: dict[str, str] = {}
    for row in _rows(raw, options.captions, (VIDEO, "caption")):
        text = clean_text(row["caption"])
        if text not in UNKNOWN:
            titles.setdefault(row[VIDEO], text)
    return titles


def _paths(raw: str | Path, options: KuaiRandOptions) -> dict[str, list[str]]:
    """Video -> its three levels, "" where unknown; of several lines the first that knows a level."""
    paths: dict[str, list[str]] = {}
    for row in _rows(raw, options.categories, (VIDEO, *LEVELS)):
        path = paths.setdefault(row[VIDEO], ["", "", ""])
        for level, name in enumerate(LEVELS):
            label = clean_text(row[name])
            if not path[level] and label not in UNKNOWN:
                path[level] = label
    return paths


def _path(levels: Sequence[str]) -> list[str]:
    """The levels down to the finest known one."""
    known = [at for at, label in enumerate(levels) if label]
    return list(levels[: known[-1] + 1]) if known else []


def _rows(raw: str | Path, name: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    for path in _supplement(raw, name):
        rows = cells(path, LAYOUT)[0]
        missing = [column for column in columns if rows and column not in rows[0]]
        if missing:
            raise InputError(f"{path}: no column {missing[0]} -> is it the supplement of KuaiRand?")
        yield from rows


def find_lines(
    raw: str | Path, options: KuaiRandOptions, *, user: str | None, items: Sequence[str]
) -> RawLines:
    """The user's log rows and the first caption line of every video."""
    event = (COLUMNS["item"], COLUMNS["time"], 1000 if options.time_unit == "ms" else 1)
    users = [] if user is None else [user]
    mine: list[RawLine] = []
    for path in _logs(raw, options):
        mine += [
            line
            if not options.clicks_only or line.fields["is_click"] == "1"
            else dataclasses.replace(line, event=None)
            for line in lines_with(path, LAYOUT, COLUMNS["user"], users, event=event)
        ]
    found = [
        line for path in _supplement(raw, options.captions) for line in lines_with(path, LAYOUT, VIDEO, items)
    ]
    return RawLines(mine, first_of_each(found))
