"""The items of a data set as a person looks for them: by words of the title, by category, as somebody's history.

Legend: N items, R rows of sequences.parquet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.cards import Cards
from data.rows import sequence_row
from data.sid import SidFormat, SidTable

# Whose histories "a random user" comes from: the first that has rows.
SHOWN_SPLITS = ("test", "valid", "train")
MAX_CATEGORIES = 500


class ServedCatalogue:
    """Items with titles, categories and semantic IDs. InputError when the SIDs are of another data set."""

    def __init__(self, items: pa.Table, sequences: pa.Table, sids: SidTable, fmt: SidFormat) -> None:
        if items.num_rows != sids.num_items:
            raise InputError(
                f"the data set has {items.num_rows} items, the semantic IDs {sids.num_items} -> pass the --sids of this --data"
            )
        self.sids, self.fmt = sids, fmt
        self._cards, self._raw_ids = Cards(items, sids, fmt), items["raw_id"]
        self._folded = pc.utf8_lower(items["title"].combine_chunks())
        self._categories = items["categories"].combine_chunks()
        split = next(
            (name for name in SHOWN_SPLITS if pc.any(pc.equal(sequences["split"], name)).as_py()), None
        )
        self._rows = sequences.filter(pc.equal(sequences["split"], split)) if split else sequences
        self.split = split

    def __len__(self) -> int:
        return self.sids.num_items

    def card(self, item: int) -> dict[str, Any]:
        """{item_id, title, category, sid} of one item."""
        card = self._cards(item)
        return {"item_id": card.item_id, "title": card.title, "category": card.category, "sid": card.sid}

    def search(self, query: str, limit: int) -> list[dict[str, Any]]:
        """Cards of the items whose title has every word of `query`, shortest titles first; a raw id or an item id is found too."""
        words = query.lower().split()
        if not words:
            return []
        found = np.ones(len(self), bool)
        for word in words:
            found &= pc.match_substring(self._folded, word).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(found)
        lengths = pc.utf8_length(self._folded.take(pa.array(rows))).to_numpy(zero_copy_only=False)
        ranked = self._by_id(query.strip()) + rows[np.argsort(lengths, kind="stable")][:limit].tolist()
        return [self.card(item) for item in list(dict.fromkeys(ranked))[:limit]]

    def _by_id(self, text: str) -> list[int]:
        """The item whose raw id is `text`, and the item with that number."""
        raw = pc.index(self._raw_ids, text).as_py()
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else len(self)
        return [item for item in (raw, number) if 0 <= item < len(self)]

    def of_category(self, category: str | Sequence[str]) -> np.ndarray:
        """Item ids int64, ascending, of a label at any level, or of a path from the coarsest level; empty when unknown."""
        parents = pc.list_parent_indices(self._categories).to_numpy(zero_copy_only=False)
        labels = self._categories.flatten()
        if isinstance(category, str):
            return np.unique(parents[pc.equal(labels, category).to_numpy(zero_copy_only=False)])
        offsets = _starts(self._categories)
        found = np.diff(offsets) >= len(category)
        for depth, label in enumerate(category):
            here = np.flatnonzero(found)
            named = pc.equal(labels.take(pa.array(offsets[here] + depth)), label)
            found[here] = named.to_numpy(zero_copy_only=False)
        return np.flatnonzero(found)

    @cached_property
    def categories(self) -> list[dict[str, Any]]:
        """{path, items} of every category of the first three levels, in the order of a tree; the largest 500 of them."""
        counts: Counter[tuple[str, ...]] = Counter()
        for path in self._categories.to_pylist():
            counts.update({tuple(path[:depth]) for depth in range(1, min(len(path), 3) + 1)})
        kept = sorted(path for path, _ in counts.most_common(MAX_CATEGORIES))
        return [{"path": list(path), "items": counts[path]} for path in kept]

    def random_user(self, rng: np.random.Generator) -> dict[str, Any]:
        """{user_id, history: cards, next: card, split} of a random row with a history; InputError when there is none."""
        rows = np.flatnonzero(pc.list_value_length(self._rows["history"]).to_numpy() > 0)
        if not len(rows):
            raise InputError("no user of this data set has a history -> type one")
        row = sequence_row(self._rows, int(rng.choice(rows)))
        return {
            "user_id": row.user_id,
            "history": [self.card(item) for item in row.history],
            "next": self.card(row.target),
            "split": self.split,
        }


def _starts(lists: pa.ListArray) -> np.ndarray:
    """Offsets int64 [rows + 1] into the flattened values, whatever the slicing of the array."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def read_catalogue(data: str | Path, sids: SidTable, fmt: SidFormat) -> ServedCatalogue:
    """The ServedCatalogue of a prepared data set."""
    items = artifacts.read_items(data)
    return ServedCatalogue(items, artifacts.read_sequences(data, num_items=items.num_rows), sids, fmt)
