"""Adapter mind: Microsoft's news data, two tables without a header line, cut by tabs.

    behaviors.tsv    impression id, user id, time ("11/13/2019 8:36:57 AM"), history (news ids), impressions ("N12-1 N7-0")
    news.tsv         news id, category, subcategory, title, abstract, url, entities of the title, entities of the abstract

A user's sequence is the history of the first impression, oldest first and without times, then what was clicked (`-1`) in the order of the
impressions; articles that an impression shows and nobody clicks are no interactions. Later histories of the same user repeat the first
one and are not read again. Since histories have no times, `split.kind leave_one_out` is the split that fits.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.adapters.contract import Loaded, RawLine, RawLines, first_of_each, shown
from data.adapters.dumps.amazon import find_files
from data.adapters.item_text import clean_label, clean_text
from data.adapters.logs.options import MindOptions
from data.shaping.assemble import Coded, Funnel
from data.shaping.coding import Coder
from data.shaping.findings import Finding

TIME = "%m/%d/%Y %I:%M:%S %p"
FIRST = 5  # findings that are told in full


class Impression(NamedTuple):
    """One line of behaviors.tsv."""

    user: str
    seconds: int
    history: list[str]
    clicked: list[str]


def files(raw: str | Path, options: MindOptions) -> list[Path]:
    """Behaviors, then news."""
    behaviors = find_files(raw, options.behaviors, what="behaviors", group="mind")
    return [*behaviors, *find_files(raw, options.news, what="news", group="mind")]


def lines_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number from 1, cells) of every line that is not empty; InputError where the file cannot be read."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            for number, cells in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
                if cells:
                    yield number, cells
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} ({error}) -> get the file again") from None


def impression(cells: list[str]) -> Impression | str:
    """A line of behaviors.tsv, or what is wrong with it.

    >>> impression(["1", "U1", "11/13/2019 8:36:57 AM", "N3 N4", "N5-0 N6-1"])
    Impression(user='U1', seconds=1573634217, history=['N3', 'N4'], clicked=['N6'])
    """
    if len(cells) != 5 or not cells[1]:
        return f"has {len(cells)} cells, not 5, or no user"
    try:
        seconds = int(datetime.strptime(cells[2], TIME).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return f"time is {cells[2][:40]!r}"
    shown_ids = [part.rpartition("-") for part in cells[4].split()]
    if wrong := [name or tail for name, _, tail in shown_ids if tail not in ("0", "1") or not name]:
        return f"impression {wrong[0][:40]!r} is no news id with -0 or -1 (a test part has no clicks)"
    return Impression(
        cells[1], seconds, cells[3].split(), [name for name, _, tail in shown_ids if tail == "1"]
    )


def read_behaviors(paths: Sequence[Path]) -> tuple[list[Impression], list[Finding]]:
    """(impressions in the order of their times, equal ones as they stand; what is wrong, the first lines of each file)."""
    found: list[Impression] = []
    findings: list[Finding] = []
    for path in paths:
        wrong = 0
        for number, cells in lines_of(path):
            made = impression(cells)
            if isinstance(made, Impression):
                found.append(made)
            else:
                wrong += 1
                if wrong <= FIRST:
                    findings.append(
                        Finding(
                            path.name, "", f"line {number} {made}", "correct the line, or get the file again"
                        )
                    )
    return sorted(found, key=lambda one: one.seconds), findings


def sequences_of(impressions: Sequence[Impression]) -> Iterator[tuple[str, str, int | None]]:
    """(user, article, UTC seconds or None) in every user's order: the first history, then clicks."""
    known: set[str] = set()
    for one in impressions:
        if one.user not in known:
            known.add(one.user)
            yield from ((one.user, article, None) for article in one.history)
        yield from ((one.user, article, one.seconds) for article in one.clicked)


def read_news(paths: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], int, list[Finding]]:
    """(text by news id, further lines of one that is there already, what is wrong)."""
    known: dict[str, dict[str, Any]] = {}
    repeats, findings = 0, []
    for path in paths:
        for number, cells in lines_of(path):
            if len(cells) < 5 or not cells[0]:
                if len(findings) < FIRST:
                    told = f"line {number} has {len(cells)} cells, not 8, or no news id"
                    findings.append(Finding(path.name, "", told, "correct the line, or get the file again"))
                continue
            repeats += cells[0] in known
            labels = [label for part in cells[1:3] if (label := clean_label(part))]
            text = {
                "title": clean_text(cells[3]),
                "description": clean_text(cells[4]),
                "categories": labels,
                "brand": "",
            }
            known.setdefault(cells[0], text)
    return known, repeats, findings


def read(raw: str | Path, options: MindOptions, funnel: Funnel) -> tuple[Loaded | None, list[Finding]]:
    """The folder as the contract wants it."""
    impressions, findings = read_behaviors(find_files(raw, options.behaviors, what="behaviors", group="mind"))
    known, repeats, more = read_news(find_files(raw, options.news, what="news", group="mind"))
    if findings := findings + more:
        return None, findings
    funnel.step("impressions", len(impressions))
    rows = list(sequences_of(impressions))
    kept = [row for row in rows if row[1] in known]
    if not kept:
        raise InputError(
            f"{raw}: no click on an article of news.tsv -> check raw, and that both files are of one part"
        )
    users, items = Coder(), Coder()
    users.add(pa.array([row[0] for row in kept], pa.string()))
    items.add(pa.array([row[1] for row in kept], pa.string()))
    user, user_ids = users.finish()
    item, item_ids = items.finish()
    times = np.array([-1 if row[2] is None else row[2] for row in kept], np.int64)
    coded = Coded(
        user,
        item,
        np.full(len(kept), np.nan, np.float32),
        np.maximum(times, 0),
        times >= 0,
        order=place_in_sequence(user),
    )
    funnel.count("clicks and histories", coded)
    funnel.facts |= {"articles_not_in_news": len(rows) - len(kept), "repeated_articles": repeats}
    if len(rows) > len(kept):
        funnel.note(f"{len(rows) - len(kept)} clicks of articles that news.tsv does not list are left out")

    def of_items(codes: np.ndarray) -> pa.Table:
        return pa.Table.from_pylist(
            [{"raw_id": key} | known[key] for key in item_ids.take(pa.array(codes)).to_pylist()]
        )

    return Loaded(coded, of_items, pa.table({"raw_id": user_ids}), len(item_ids)), []


def place_in_sequence(user_R: np.ndarray) -> np.ndarray:
    """int32 [R]: how many rows of the same user stand before.

    >>> place_in_sequence(np.array([4, 7, 4, 4])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(user_R, kind="stable")
    starts = np.flatnonzero(np.diff(user_R[order], prepend=-1))
    places = np.arange(len(user_R)) - np.repeat(starts, np.diff(np.append(starts, len(user_R))))
    out_R = np.empty(len(user_R), np.int32)
    out_R[order] = places
    return out_R


def find_lines(raw: str | Path, options: MindOptions, *, user: str | None, items: Sequence[str]) -> RawLines:
    """The user's impressions and the first line of every article."""

    def lines(patterns: list[str], what: str, column: int, wanted: Sequence[str]) -> Iterator[RawLine]:
        for path in find_files(raw, patterns, what=what, group="mind") if wanted else []:
            for number, cells in lines_of(path):
                if len(cells) > column and cells[column] in wanted:
                    made = impression(cells) if what == "behaviors" else ""
                    event = (
                        (made.clicked[0], made.seconds)
                        if isinstance(made, Impression) and made.clicked
                        else None
                    )
                    fields = dict(enumerate(cells))
                    broken = made if isinstance(made, str) else ""
                    yield RawLine(
                        path.name,
                        number,
                        cells[column],
                        shown("\t".join(cells)),
                        fields,
                        broken=broken,
                        event=event,
                    )

    mine = list(lines(options.behaviors, "behaviors", 1, [] if user is None else [user]))
    return RawLines(mine, first_of_each(lines(options.news, "news", 0, items)))
