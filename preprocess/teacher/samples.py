"""What a teacher is asked about: a history of textual identifiers and the target that follows it, from prepared data.

Which rows: those of `splits`, train alone unless others are named. A row names its split in all that is written from it, so
that what was taught with a held-out target in sight can't be mistaken for train data. A row that holds the target of a later
split's row of its user is left out: published splits are kept as they are, and in some of them a train row comes after its
user's valid or test row. An item that the held-out row's own history has, or that the user chose before by its time, is a
repeat and no leak.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.artifacts import SPLITS
from data.reasoning import WITH_TEXT, placeholder, rendered
from data.rows import sample_rows
from data.tids import Tids

Terms = tuple[str, ...]
LEFT_OUT = ("leaks", "no_history", "no_target")


@dataclass(frozen=True, kw_only=True)
class TermSample:
    """A history with its target, as terms."""

    key: int
    split: str
    history: tuple[Terms, ...]
    """oldest first; items without a TID are left out"""
    target: Terms
    sample_id: str = ""
    user_id: int | None = None
    target_item: int | None = None


def data_samples(
    sequences: pa.Table, tids: Tids, *, splits: Sequence[str], max_samples: int | None, seed: int
) -> tuple[list[TermSample], dict[str, int]]:
    """(samples in the order of their rows, how many rows were left out and why); InputError where none is left.

    Of more than `max_samples` a seeded draw is taken, after rows were left out.
    """
    left_out, made = Counter(dict.fromkeys(LEFT_OUT, 0)), []
    for row, leaks in rows_of(sequences, splits):
        history = tuple(tids.terms[item] for item in row["history"] if tids.terms[item])
        if leaks:
            left_out["leaks"] += 1
        elif not tids.terms[row["target"]]:
            left_out["no_target"] += 1
        elif not history:
            left_out["no_history"] += 1
        else:
            made.append(
                TermSample(
                    key=row["example_id"],
                    split=row["split"],
                    history=history,
                    target=tids.terms[row["target"]],
                    user_id=row["user_id"],
                    target_item=row["target"],
                )  # fmt: skip
            )
    if not made:
        reasons = ", ".join(f"{count} {name}" for name, count in left_out.items())
        raise InputError(
            f"no row of {', '.join(splits)} has terms in history and target ({reasons}) -> other splits or TIDs"
        )
    return [made[place] for place in sample_rows(len(made), max_samples, seed)], dict(left_out)


def rows_of(sequences: pa.Table, splits: Sequence[str]) -> Iterator[tuple[dict[str, Any], bool]]:
    """(row of sequences, whether its items hold a target of its user's later splits) of every row of `splits`."""
    if unknown := set(splits) - set(SPLITS):
        raise InputError(f"splits: {min(unknown)!r} is none of {', '.join(SPLITS)} -> name some of these")
    later = _later_targets(sequences, splits)
    for row in sequences.filter(pc.is_in(sequences["split"], pa.array(list(splits)))).to_pylist():
        yield row, _leaks(row, later)


def taught_samples(
    table: pa.Table, *, max_samples: int | None = None, seed: int = 0
) -> tuple[list[tuple[TermSample, dict[str, Any]]], dict[str, int]]:
    """((sample, row) for every row of a teacher's table that has a text, raw again; how many have none).

    InputError where no row has one, or the table has no terms.
    """
    if missing := {"history_terms", "target_terms"} - set(table.column_names):
        raise InputError(f"these texts have no {min(missing)} -> give a directory of stage 06")
    rows = table.filter(pc.is_in(table["status"], pa.array(WITH_TEXT)))
    left_out = {"no_text": len(table) - len(rows)}
    if not len(rows):
        raise InputError(f"none of {len(table)} rows has a text -> see the statuses of calls.parquet")
    rows = rows.take(pa.array(sample_rows(len(rows), max_samples, seed)))
    return [
        (_sample(row), row | {"text": rendered(row["text"], placeholder)}) for row in rows.to_pylist()
    ], left_out


def _sample(row: dict[str, Any]) -> TermSample:
    return TermSample(
        key=row["key"], split=row["split"], history=tuple(map(tuple, row["history_terms"])),
        target=tuple(row["target_terms"]), sample_id=row.get("sample_id", ""), user_id=row.get("user_id"),
        target_item=row.get("target"),
    )  # fmt: skip


Held = tuple[int, int, set[int], int | None]


def _later_targets(sequences: pa.Table, splits: Sequence[str]) -> dict[int, list[Held]]:
    """{user: (rank of the split, target, history, time) of their rows in splits after the first of `splits`}."""
    first = min(map(SPLITS.index, splits))
    held = sequences.filter(pc.is_in(sequences["split"], pa.array(SPLITS[first + 1 :], pa.string())))
    made: dict[int, list[Held]] = defaultdict(list)
    for row in held.to_pylist():
        known = set(row["history"])
        made[row["user_id"]].append((SPLITS.index(row["split"]), row["target"], known, row.get("timestamp")))
    return made


def _leaks(row: dict[str, Any], later: dict[int, list[Held]]) -> bool:
    """Whether a row's items hold the target of a later split's row of its user that was not known before that row."""
    rank, items, time = SPLITS.index(row["split"]), {*row["history"], row["target"]}, row.get("timestamp")

    def leaks(held: Held) -> bool:
        after, target, known, when = held
        earlier = time is not None and when is not None and time < when
        return after > rank and target in items and target not in known and not earlier

    return any(map(leaks, later.get(row["user_id"], ())))
