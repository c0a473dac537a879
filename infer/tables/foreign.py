"""Answers of other systems as our predictions: which example each row is, which item each text names.

Legend: R rows of the split, E answers of all rows, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts
from data.releases.answers import ForeignRow
from data.rows import Rows
from data.sid import SidFormat, SidTable

UNREADABLE = -1


@dataclass
class Reading:
    """How the answers were read. Shares of `answers`: strict texts are exactly one semantic ID, repaired ones hold
    one among other text, the rest is unreadable; invalid ones are readable or not but no item of the catalogue."""

    answers: int = 0
    strict: int = 0
    repaired: int = 0
    invalid: int = 0
    duplicates_dropped: int = 0

    def facts(self) -> dict[str, int | float]:
        """Counts and parse rates for a manifest."""
        total = max(self.answers, 1)
        return {
            "parse_rate_strict": round(self.strict / total, 6),
            "parse_rate_repaired": round((self.strict + self.repaired) / total, 6),
            "invalid_answers": self.invalid,
            "duplicates_dropped": self.duplicates_dropped,
        }


@dataclass
class Reader:
    """Texts to codes. ordinal_last: the last token is an ordinal that only colliding items carry, else it is 0."""

    sids: SidTable
    fmt: SidFormat
    repair: bool = False
    ordinal_last: bool = False
    _codes: dict[str, tuple[tuple[int, ...] | None, bool]] = field(default_factory=dict, repr=False)

    def codes(self, text: str) -> tuple[tuple[int, ...] | None, bool]:
        """(the codes that a text names or None, whether the text is nothing but them); each text is read once."""
        if text not in self._codes:
            inside = self.all_in(text)
            only = inside[0] if len(inside) == 1 else None
            self._codes[text] = only, only is not None and text.strip() in self._written(only)
        return self._codes[text]

    def all_in(self, text: str) -> list[tuple[int, ...]]:
        """Every semantic ID inside a text, in order."""
        return self.fmt.find(text, num_levels=self.sids.num_levels, optional_last=self.ordinal_last)

    def _written(self, codes: tuple[int, ...]) -> set[str]:
        """How a semantic ID may be written."""
        whole = {self.fmt.text(codes)}
        return whole | {self.fmt.text(codes[:-1])} if self.ordinal_last and codes[-1] == 0 else whole


def match_rows(foreign: Sequence[ForeignRow], rows: Rows, reader: Reader, *, where: str) -> np.ndarray:
    """The position in `rows` of every foreign row, int64 [R].

    A row is known by the semantic IDs of its history and target; in the same order, else as a permutation (rows
    alike in both are interchangeable). InputError when there are more or fewer, or when some fit none.
    """
    if len(foreign) != len(rows):
        raise InputError(
            f"{where} has {len(foreign)} rows, the split {len(rows)} -> pass all shards, and the split they answer"
        )
    sids = reader.sids
    given = [(reader.codes(row.target)[0], tuple(reader.all_in(row.history))) for row in foreign]
    codes = [tuple(row) for row in sids.codes_NL.tolist()]
    histories = np.split(rows.history_H, rows.offsets[1:-1])
    wanted = [
        (codes[target], tuple(codes[item] for item in history.tolist()))
        for target, history in zip(rows.target_R.tolist(), histories, strict=True)
    ]
    if not any(history for _, history in given):
        given, wanted = [(target, ()) for target, _ in given], [(target, ()) for target, _ in wanted]
        if given != wanted:
            at = next(at for at in range(len(given)) if given[at] != wanted[at])
            raise InputError(
                f"{where}: row {at} names another target than example {rows.example_ids_R[at]}, and no history is given "
                "-> pass the --data, --split and --sids of that system"
            )
    free: dict[object, list[int]] = {}
    for at in range(len(wanted) - 1, -1, -1):
        free.setdefault(wanted[at], []).append(at)
    positions = []
    for at, key in enumerate(given):
        if not free.get(key):
            raise InputError(
                f"{where}: row {at} (target {foreign[at].target.strip()!r}) is no example of this split "
                "-> pass the --data, --split and --sids of that system"
            )
        positions.append(free[key].pop())
    return np.array(positions, np.int64)


def prediction_table(
    foreign: Sequence[ForeignRow], example_ids_R: np.ndarray, reader: Reader
) -> tuple[pa.Table, Reading]:
    """Predictions of rows whose examples are `example_ids_R`, in ascending example order, and how they were read.

    A second mention of the same semantic ID in a row is dropped and its place stays empty, as in the published protocol: later
    answers do not move up. What names no item has no items, so that the evaluation fails on it. There are no scores in
    these files: score = -rank.
    """
    reading, sids = Reading(), reader.sids
    ids, ranks, codes, texts = [], [], [], []
    for at in np.argsort(example_ids_R, kind="stable").tolist():
        seen: set[object] = set()
        for place, text in enumerate(foreign[at].answers, start=1):
            found, strict = reader.codes(text)
            reading.answers += 1
            reading.strict += strict
            reading.repaired += found is not None and not strict
            key = found if strict or reader.repair else None
            if (key or text) in seen:
                reading.duplicates_dropped += 1
                continue
            seen.add(key or text)
            ids.append(int(example_ids_R[at]))
            ranks.append(place)
            codes.append(key or (UNREADABLE,) * sids.num_levels)
            texts.append(text.strip())
    codes_EL = np.array(codes, np.int32)
    sid_E = sids.find(codes_EL)
    reading.invalid = int((sid_E < 0).sum())
    items = [sids.items_of_sid(sid).tolist() for sid in range(len(sids.sids_SL))]
    table = {
        "example_id": pa.array(ids, pa.int64()),
        "rank": pa.array(ranks, pa.float32()),
        "codes": artifacts.int_rows(codes_EL),
        "item_ids": pa.array([items[sid] if sid >= 0 else [] for sid in sid_E], artifacts.INT_LIST),
        "score": pa.array(-np.array(ranks), pa.float32()),
        "text": texts,
    }
    return pa.table(table), reading


def item_table(
    answers: dict[int, list[int]], rows: Rows, num_items: int, *, where: str
) -> tuple[pa.Table, Reading]:
    """Predictions of a system that names examples and items, best first, and how they were read.

    InputError when an example of the split is missing, when one is of another, or when an item is none of the catalogue. A
    second mention of an item is dropped and its place stays empty, as for texts. score = -rank: the files hold none.
    """
    examples = rows.example_ids_R.tolist()
    if strange := answers.keys() - set(examples):
        raise InputError(
            f"{where}: example {min(strange)} is not of this split -> pass the --data and --split it answers"
        )
    if missing := set(examples) - answers.keys():
        raise InputError(
            f"{where}: {len(missing)} of {len(examples)} examples have no answer (first: {min(missing)}) -> pass all shards"
        )
    ids, ranks, items, reading = [], [], [], Reading()
    for example in sorted(examples):
        seen: set[int] = set()
        for rank, item in enumerate(answers[example], 1):
            if not 0 <= item < num_items:
                raise InputError(
                    f"{where}: example {example} names item {item}, the data has {num_items} -> its own --data"
                )
            reading.answers += 1
            reading.strict += 1
            reading.duplicates_dropped += item in seen
            if item not in seen:
                ids.append(example)
                ranks.append(rank)
                items.append([item])
            seen.add(item)
    table = {
        "example_id": pa.array(ids, pa.int64()),
        "rank": pa.array(ranks, pa.float32()),
        "item_ids": pa.array(items, artifacts.INT_LIST),
        "score": pa.array(-np.array(ranks), pa.float32()),
    }
    return pa.table(table), reading
