"""Textual identifiers (TIDs): per item an ordered list of English terms, and what is to be known of a catalogue of them.

Two items may have one TID: `groups` names the items of each, and whoever decodes a TID gets all of them. An item without
a TID has no terms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.program import InputError
from data import artifacts

MOST_TERMS = 10
# Where a TID comes from, and why an item has none.
WITH_TERMS = ("chat", "keywords", "given")
WITHOUT = ("no_caption", "caption_refused", "refused", "unusable")
SOURCES = (*WITH_TERMS, *WITHOUT)


@dataclass(frozen=True)
class Tids:
    """terms: per item its terms, () for none; groups: {terms: items that have them, ascending} in order of first item."""

    terms: list[tuple[str, ...]]
    sources: list[str]

    @property
    def groups(self) -> dict[tuple[str, ...], list[int]]:
        made: dict[tuple[str, ...], list[int]] = {}
        for item, terms in enumerate(self.terms):
            if terms:
                made.setdefault(terms, []).append(item)
        return made


def tid_table(terms: Sequence[Sequence[str]], sources: Sequence[str]) -> pa.Table:
    """The table of `artifacts.TIDS`; InputError for a row that is none."""
    for item, (row, source) in enumerate(zip(terms, sources, strict=True)):
        if problem := _problem(row, source):
            raise InputError(f"item {item}: {problem}")
    return pa.table(
        {
            "item_id": pa.array(range(len(terms)), pa.int32()),
            "terms": pa.array([list(row) for row in terms], artifacts.TEXT_LIST),
            "source": pa.array(list(sources), pa.string()),
        }
    )


def read_tids(directory: str | Path, *, num_items: int | None = None) -> Tids:
    """The TIDs of a finished directory; InputError where they are not those of `num_items` items in order."""
    table = artifacts.read(directory, artifacts.TIDS)
    ids = table["item_id"].to_pylist()
    if ids != list(range(len(ids))) or (num_items is not None and len(ids) != num_items):
        raise InputError(
            f"{directory} has TIDs of {len(ids)} items, not of 0..{(num_items or len(ids)) - 1} in order -> run "
            f"{artifacts.TIDS.written_by} on this data"
        )
    terms = [tuple(row) for row in table["terms"].to_pylist()]
    sources = table["source"].to_pylist()
    for item, (row, source) in enumerate(zip(terms, sources, strict=True)):
        if problem := _problem(row, source):
            raise InputError(f"{directory}: item {item}: {problem} -> run {artifacts.TIDS.written_by} again")
    return Tids(terms, sources)


def tid_report(tids: Tids) -> dict[str, Any]:
    """Coverage and collisions.

    [("bolt",), ("bolt",), ("nut", "steel"), ()]: coverage .75; 2 distinct TIDs; 2 items share theirs (collision rate 2/3
    of the items with one), the largest group has 2; 3 distinct terms.
    """
    groups = tids.groups
    having = sum(map(len, groups.values()))
    shared = {terms: items for terms, items in groups.items() if len(items) > 1}
    lengths = Counter(len(terms) for terms in tids.terms if terms)
    uses = Counter(term for terms in tids.terms for term in terms)
    largest = sorted(shared.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:10]
    sources = Counter(tids.sources)
    return {
        "items": len(tids.terms),
        "sources": {name: sources[name] for name in SOURCES},
        "coverage": having / max(len(tids.terms), 1),
        "distinct_tids": len(groups),
        "items_that_share": sum(map(len, shared.values())),
        "collision_rate": sum(map(len, shared.values())) / max(having, 1),
        "largest_groups": [{"terms": list(terms), "items": items} for terms, items in largest],
        "terms_per_item": {str(length): lengths[length] for length in sorted(lengths)},
        "distinct_terms": len(uses),
        "terms_of_one_item": sum(count == 1 for count in uses.values()),
        "most_frequent_terms": dict(uses.most_common(20)),
    }


def _problem(terms: Sequence[str], source: str) -> str:
    """What is wrong with a row, "" where nothing is."""
    if source not in SOURCES:
        return f"source {source!r} is none of {', '.join(SOURCES)}"
    if bool(terms) != (source in WITH_TERMS):
        return f"source {source} with {len(terms)} terms"
    if len(terms) > MOST_TERMS or len(set(terms)) < len(terms) or not all(terms):
        return f"terms {list(terms)} are not 1 to {MOST_TERMS} different ones"
    return ""
