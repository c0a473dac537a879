"""Coded interactions -> the tables of a prepared data set, and the funnel of counts on the way.

Both adapters end here: rows are grouped by user and put in order, split, cut into windows, and numbered.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.artifacts import INTERACTIONS, ITEMS, SEQUENCES, USERS, conform
from data.shaping.filtering import CoreResult, parse_window, widened_core
from data.shaping.splits import (
    SPLIT_NAMES,
    TRAIN,
    check_times_complete,
    global_temporal,
    in_order,
    leave_one_out,
    order_of_windows,
    positions,
    sequence_table,
    split_names,
    time_quantile,
    window_ends,
)

SplitKind = Literal["global_temporal", "leave_one_out", "time_quantile", "published"]
BY_TIME = ("global_temporal", "time_quantile")


@dataclass(frozen=True)
class FilterOptions:
    """Which interactions stay."""

    user_k: int = 5
    """least interactions per user (0 or 1 = any)"""
    item_k: int = 5
    """least interactions per item (0 or 1 = any)"""
    start: str = ""
    """first month YYYY-MM, UTC, inclusive; empty = open"""
    end: str = ""
    """last month YYYY-MM, UTC: up to the first second of that month; empty = open"""
    min_items: int = 0
    """while fewer items survive, start a year earlier (published: 3000); 0 = never"""
    min_year: int = 1996
    """the year below which the window is not widened"""

    def __post_init__(self) -> None:
        if self.user_k < 0 or self.item_k < 0:
            raise InputError(f"filters.user_k {self.user_k} and item_k {self.item_k} must not be negative")
        if self.min_items and not self.start:
            raise InputError("filters.min_items widens a window -> give filters.start, or set min_items 0")
        parse_window(self.start, self.end)

    @property
    def keeps_everything(self) -> bool:
        return self.user_k <= 1 and self.item_k <= 1 and not self.start and not self.end


@dataclass(frozen=True)
class SplitOptions:
    """How targets are split and how long histories are."""

    kind: SplitKind = "global_temporal"
    """global_temporal (80/10/10 over windows by time), leave_one_out, time_quantile (80/10/10, equal times on one side), or
    published (the tables' own split)"""
    train_share: float = 0.8
    """share of the windows that is train, by time only"""
    valid_share: float = 0.1
    """share of the windows that is valid, by time only"""
    max_history: int = 10
    """longest history of a window that is made here; shipped sequences are kept as they are"""
    stride: int = 0
    """windows of max_history + 1 rows begin at every so many rows of a user and end with their target (leave_one_out: those of
    train); 0 = a window ends at every row"""

    def __post_init__(self) -> None:
        if not (self.train_share > 0 and self.valid_share >= 0 and self.train_share + self.valid_share < 1):
            raise InputError(
                f"split.train_share {self.train_share} + valid_share {self.valid_share} leave no test share"
                " -> their sum must be below 1, train_share above 0"
            )
        if self.max_history < 1:
            raise InputError(f"split.max_history is {self.max_history} -> at least 1")
        if not 0 <= self.stride <= self.max_history:
            raise InputError(
                f"split.stride {self.stride} is not between 0 and max_history {self.max_history}: rows between two windows"
                " would be lost -> at most max_history"
            )
        if self.stride and self.kind not in ("leave_one_out", "time_quantile"):
            raise InputError(
                f"split.stride {self.stride} with split.kind {self.kind}, which takes every row -> leave_one_out or time_quantile"
            )


@dataclass(frozen=True)
class Coded:
    """Interactions on codes, any row order; arrays have one entry per row.

    user, item: int32; rating: float32, NaN = none; timestamp: int64 UTC seconds where `known`; order: position in the
    user's sequence or None (then by time); split: int8 code of SPLIT_NAMES or None; beyond: nanoseconds after the second int32,
    None where all times are whole seconds or the order is settled.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    known: np.ndarray
    order: np.ndarray | None = None
    split: np.ndarray | None = None
    beyond: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Coded:
        """The given rows."""
        optional = {
            name: None if (a := getattr(self, name)) is None else a[rows]
            for name in ("order", "split", "beyond")
        }
        return Coded(
            self.user[rows],
            self.item[rows],
            self.rating[rows],
            self.timestamp[rows],
            self.known[rows],
            **optional,
        )

    def in_sequence(self) -> Coded:
        """Rows grouped by user, in order: that is settled here, from there on times are whole seconds."""
        if self.order is not None:
            rows = np.lexsort((self.order, self.user))
        else:
            rows = in_order(self.user, self.timestamp, self.known, self.beyond)
        return replace(self, beyond=None).take(rows)


def distinct(codes: np.ndarray) -> int:
    """Number of different codes (int >= 0 [rows])."""
    return int(np.count_nonzero(np.bincount(codes)))


@dataclass
class Funnel:
    """Counts from the raw lines to the windows: what the report page draws and the manifest keeps.

    steps: [{"step", "rows", "users"?, "items"?}] from top to bottom; facts: everything else by name; notes: what a user
    should know of data that are usable all the same, one line each (said, not kept); rejects: lines that were left out, where
    they are kept (skip_bad_rows of some adapters).
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, *accounts: Any) -> None:
        """Keep what the accounts of files (data.adapters.dumps.lines) kept of their broken lines."""
        self.rejects += [line for account in accounts for line in account.rejects]

    def note(self, text: str) -> None:
        self.notes.append(text)

    def note_unread(self, name: str) -> None:
        """Say how many `ratings` or `prices` were there and could not be read, where the facts count any."""
        if count := self.facts[f"{name}_not_parsed"]:
            self.note(f"{count} {name} cannot be read and are left empty")

    def step(self, name: str, rows: int, users: int | None = None, items: int | None = None) -> None:
        counts = {"rows": rows, "users": users, "items": items}
        self.steps.append({"step": name} | {key: int(n) for key, n in counts.items() if n is not None})

    def count(self, name: str, rows: Coded) -> None:
        self.step(name, len(rows.user), distinct(rows.user), distinct(rows.item))


@dataclass(frozen=True)
class Prepared:
    """The tables of a prepared data set (schemas in data.artifacts) and its funnel."""

    items: pa.Table
    interactions: pa.Table
    sequences: pa.Table
    users: pa.Table
    funnel: Funnel

    def counts(self) -> dict[str, int]:
        """Row counts for the manifest."""
        return {
            "items": self.items.num_rows,
            "users": self.users.num_rows,
            "interactions": self.interactions.num_rows,
            **self.funnel.facts["windows"],
        }


def filter_core(rows: Coded, options: FilterOptions, funnel: Funnel) -> Coded:
    """Time window and k-core, in file order; the counts of every round go to the funnel's facts."""
    result: CoreResult = widened_core(
        rows.user,
        rows.item,
        rows.timestamp,
        rows.known,
        user_k=options.user_k,
        item_k=options.item_k,
        window=parse_window(options.start, options.end),
        min_items=options.min_items,
        min_year=options.min_year,
        before=", ".join(f"{step['step']}: {step['rows']}" for step in funnel.steps),
    )
    if result.window is not None:
        funnel.facts["window"] = str(result.window)
        funnel.facts["out_of_window"] = result.out_of_window
        first = result.rounds[0]
        funnel.step(f"inside {result.window}", first.rows, first.users, first.items)
    last = result.rounds[-1]
    funnel.facts["core_rounds"] = [vars(counts) for counts in result.rounds]
    funnel.step(f"k-core {options.user_k}/{options.item_k}", last.rows, last.users, last.items)
    return rows if len(result.keep) == len(rows.user) else rows.take(result.keep)


def split_rows(rows: Coded, options: SplitOptions) -> np.ndarray:
    """Split code int8 of every row; `rows` are in sequence."""
    if options.kind == "leave_one_out":
        return leave_one_out(rows.user)
    if options.kind == "published":
        if rows.split is None:
            raise InputError(
                "split.kind published, but the interactions have no split column -> map one, or choose another kind"
            )
        return rows.split
    check_times_complete(rows.known, kind=options.kind, where="interactions")
    # As written: .7 + .1 is .7999... as floats, and a product with it cuts one row early.
    shares = [Fraction(str(share)) for share in (options.train_share, options.valid_share)]
    fractions = (shares[0], sum(shares))
    if options.kind == "time_quantile":
        ends = window_ends(rows.user, max_history=options.max_history, stride=options.stride)
        return time_quantile(rows.user, rows.timestamp, ends, fractions=fractions)
    return global_temporal(rows.user, rows.timestamp, fractions=fractions)


def times(rows: Coded) -> pa.Array:
    """Timestamps int64, null where unknown."""
    return pa.array(rows.timestamp, mask=~rows.known)


def windows(rows: Coded, split: np.ndarray, options: SplitOptions) -> pa.Table:
    """All windows (target at position >= 1, split train, valid or test) as a sequence table without example_id."""
    longest, stride = options.max_history, options.stride
    one_out = stride > 0 and options.kind == "leave_one_out"
    # Those of train end where a user's train rows end, not where his rows do.
    grouped = rows.user * 2 + (split != TRAIN) if one_out else rows.user
    ends = window_ends(grouped, max_history=longest, stride=stride)
    by_time = rows.timestamp if options.kind in BY_TIME else None
    targets = order_of_windows(split, ends, by_time, only_train=one_out)
    timestamp = times(rows) if rows.known.any() else None
    strides = np.where(split[targets] == TRAIN, stride, 0) if one_out else stride
    return sequence_table(
        rows.user, rows.item, split, targets, max_history=longest, stride=strides, timestamp=timestamp
    )


def finish(
    *, items: pa.Table, rows: Coded, split: np.ndarray, sequences: pa.Table, users: pa.Table, funnel: Funnel
) -> Prepared:
    """Check the schemas, number the sequences, complete the funnel. `rows` are in sequence, ids dense."""
    interactions = pa.table(
        {
            "user_id": pa.array(rows.user, pa.int32()),
            "item_id": pa.array(rows.item, pa.int32()),
            "rating": pa.array(rows.rating, pa.float32(), mask=np.isnan(rows.rating)),
            "timestamp": times(rows),
            "order": pa.array(positions(rows.user), pa.int32()),
            "split": split_names(split),
        }
    )
    numbered = sequences.add_column(0, "example_id", pa.array(np.arange(sequences.num_rows), pa.int64()))
    by_split = {entry["values"]: entry["counts"] for entry in pc.value_counts(sequences["split"]).to_pylist()}
    funnel.step("final", len(rows.user), users.num_rows, items.num_rows)
    funnel.facts |= {
        "windows": {name: by_split.get(name, 0) for name in SPLIT_NAMES[:3]},
        "share_with_time": float(rows.known.mean()),
        "months": months(rows),
        "items_without_title": pc.sum(pc.equal(items["title"], "")).as_py() or 0,
        "items_without_interactions": items.num_rows - distinct(rows.item),
    }
    return Prepared(
        conform(items, ITEMS, where="items"),
        conform(interactions, INTERACTIONS, where="interactions"),
        conform(numbered, SEQUENCES, where="sequences"),
        conform(users, USERS, where="users"),
        funnel,
    )


def months(rows: Coded) -> dict[str, int]:
    """Interactions per UTC month, "YYYY-MM" -> count, of the rows that have a time."""
    month = rows.timestamp[rows.known].astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)
    # By hash, not by an array over all months: a single date far out of range would make that array huge.
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(pa.array(month)).to_pylist()}
    return {str(np.datetime64(number, "M")): counts[number] for number in sorted(counts)}
