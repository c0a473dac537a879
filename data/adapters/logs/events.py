"""Logs of JSON lines: events of users with items in some files, what the items are in others.

A publisher's adapter says which fields hold what (`JsonLog`) and how an item's line becomes text; reading, counting of broken lines and
of repeated items, and finding lines again are the same for all of them. Of several lines of an item the first counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.adapters.contract import Loaded, RawLine, RawLines, first_of_each, shown
from data.adapters.dumps.lines import Lines, parse_object, read_blocks
from data.adapters.dumps.parse import Parsed, parse_blocks, parse_lines
from data.adapters.item_text import parse_rating
from data.shaping.assemble import Coded, Funnel
from data.shaping.coding import Coder
from data.shaping.findings import Finding

ITEMS = pa.schema(
    [("raw_id", pa.string()), ("title", pa.string()), ("description", pa.string()), ("categories", pa.list_(pa.string())),
     ("brand", pa.string())]
)  # fmt: skip


@dataclass(frozen=True)
class JsonLog:
    """Where a publisher writes what. user, item, date, rating: fields of an event; seconds: dates (text) -> UTC seconds int64, null
    where a text is no date; describe: an item's line -> (raw id, its text columns), or why there is none; events, things: what the
    publisher calls the two kinds of lines, each singular and plural; flag: a field that must be true, other lines are left out."""

    user: str
    item: str
    date: str
    rating: str
    seconds: Callable[[pa.Array], pa.Array]
    describe: Callable[[dict[str, Any]], tuple[str, dict[str, Any]] | str]
    events: tuple[str, str]
    things: tuple[str, str]
    flag: str | None = None

    @property
    def text(self) -> tuple[str, str, str]:
        """The fields that must be texts."""
        return self.user, self.item, self.date

    @property
    def schema(self) -> pa.Schema:
        """The columns that are read."""
        flag = [] if self.flag is None else [(self.flag, pa.bool_())]
        return pa.schema([*((name, pa.string()) for name in self.text), (self.rating, pa.float64()), *flag])

    def pick(self, event: dict[str, Any]) -> tuple | str:
        """(user, item, date, rating, the flag where there is one, seconds) of one line, or why it is none."""
        for key in self.text:
            if not isinstance(event.get(key), str) or not event[key]:
                return f"no {key}; keys: {', '.join(list(event)[:6])}"
        seconds = self.seconds(pa.array([event[self.date]]))[0].as_py()
        if seconds is None:
            return f"{self.date} is {event[self.date][:40]!r}"
        flag = [] if self.flag is None else [event.get(self.flag) is True]
        return *(event[key] for key in self.text), parse_rating(event.get(self.rating)), *flag, seconds


def read_log(
    log: JsonLog, events: Sequence[Path], things: Sequence[Path], options: Any, funnel: Funnel
) -> tuple[Loaded, list[Finding]]:
    """The files as the contract wants it; broken lines are counted or fatal, so there are no findings."""
    (event, plural), (thing, several) = log.events, log.things
    rows, user_ids, item_ids, accounts = _read_events(log, events, options)
    funnel.step(f"{event} lines", sum(account.total for account in accounts))
    funnel.count(f"{plural} read", rows)
    known, repeats, more = _read_things(log, things, options)
    broken = [sum(account.broken for account in kind) for kind in (accounts, more)]
    funnel.reject(*accounts, *more)
    funnel.facts |= {
        f"{event}_lines_broken": broken[0],
        f"{thing}_lines_broken": broken[1],
        f"repeated_{several}": repeats,
    }
    if any(broken):
        funnel.note(f"{broken[0]} broken {event} lines and {broken[1]} broken {thing} lines are left out")
    if repeats:
        funnel.note(f"{repeats} further lines of {several} that are listed already: the first line counts")
    listed = np.array([key in known for key in item_ids.to_pylist()], bool)
    rows = rows.take(np.flatnonzero(listed[rows.item]))
    funnel.count(f"{several} that are listed", rows)

    def items(codes: np.ndarray) -> pa.Table:
        ids = item_ids.take(pa.array(codes))
        return pa.Table.from_pylist([{"raw_id": key} | known[key] for key in ids.to_pylist()], schema=ITEMS)

    return Loaded(rows, items, pa.table({"raw_id": user_ids}), len(item_ids)), []


def _read_events(
    log: JsonLog, paths: Sequence[Path], options: Any
) -> tuple[Coded, pa.Array, pa.Array, list[Lines]]:
    """(rows in file order, user ids, item ids, accounts of the lines)."""
    users, items, accounts = Coder(), Coder(), []
    ratings, times = [], []
    for path in paths:
        account = Lines(path, options.skip_bad_rows)
        accounts.append(account)
        for parsed in parse_blocks(path, account, log.schema, list(log.text), literals=False):
            table, seconds = _event_rows(log, parsed, account)
            if log.flag is not None:
                wanted = pc.fill_null(table[log.flag], False).combine_chunks()
                table, seconds = table.filter(wanted), seconds[wanted.to_numpy(zero_copy_only=False)]
            users.add(table[log.user])
            items.add(table[log.item])
            ratings.append(table[log.rating].to_numpy().astype(np.float32))
            times.append(seconds)
            account.check(options, at_end=False)
        account.check(options, at_end=True)
    user, user_ids = users.finish()
    item, item_ids = items.finish()
    if not len(user):
        raise InputError(
            f"{paths[0]}: no {log.events[1]} in {len(paths)} file(s) -> check raw and the file patterns of the recipe"
        )
    known = np.ones(len(user), bool)
    return (
        Coded(user, item, np.concatenate(ratings), np.concatenate(times), known),
        user_ids,
        item_ids,
        accounts,
    )


def _event_rows(log: JsonLog, parsed: Parsed, account: Lines) -> tuple[pa.Table, np.ndarray]:
    """(the block's good rows as `log.schema`, their UTC seconds int64)."""
    if parsed.table is not None:
        table = parsed.table.select(log.schema.names)
        seconds = log.seconds(table[log.date].combine_chunks())
        if not seconds.null_count:
            return table, seconds.to_numpy()
        # Counted as good by the parser: those whose date is none are broken after all.
        bad = seconds.is_null().to_numpy(zero_copy_only=False)
        rows, starts = np.delete(np.arange(parsed.lines), list(parsed.left_out)), parsed.starts()
        for at in np.flatnonzero(bad).tolist():
            account.add_broken(
                account.passed + int(rows[at]) + 1,
                f"{log.date} is {table[log.date][at].as_py()[:40]!r}",
                parsed.block.line(int(starts[at])),
            )
        good = pa.array(~bad)
        return table.filter(good), seconds.filter(good).to_numpy()
    rows = [fields for _, fields in parse_lines(parsed.block, account, log.pick, literals=False)]
    columns = list(zip(*rows, strict=True)) if rows else [()] * (len(log.schema) + 1)
    arrays = [pa.array(column, kind) for column, kind in zip(columns[:-1], log.schema.types, strict=True)]
    return pa.table(arrays, schema=log.schema), np.array(columns[-1], np.int64)


def _read_things(
    log: JsonLog, paths: Sequence[Path], options: Any
) -> tuple[dict[str, dict[str, Any]], int, list[Lines]]:
    """(text by item id, further lines of one that is there already, accounts of the lines)."""
    known: dict[str, dict[str, Any]] = {}
    repeats, accounts = 0, []
    for path in paths:
        account = Lines(path, options.skip_bad_rows)
        accounts.append(account)
        for block in read_blocks(path, account):
            for _, fields in parse_lines(block, account, log.describe, literals=False):
                key, text = fields
                repeats += key in known
                known.setdefault(key, text)
            account.passed += len(block.line_starts())
        account.check(options, at_end=True)
    return known, repeats, accounts


def find_log_lines(
    log: JsonLog, events: Sequence[Path], things: Sequence[Path], *, user: str | None, items: Sequence[str]
) -> RawLines:
    """The user's lines and the first line of every item."""
    mine = list(_lines(log, events, log.user, [] if user is None else [user]))
    return RawLines(mine, first_of_each(_lines(log, things, log.item, items)))


def _lines(log: JsonLog, paths: Sequence[Path], key: str, wanted: Sequence[str]) -> Iterator[RawLine]:
    for path in paths if wanted else ():
        passed = 0
        for block in read_blocks(path, label=f"searching {path.name}"):
            for number, line in enumerate(block.data.split(b"\n"), passed + 1):
                if any(name.encode() in line for name in wanted):
                    fields = parse_object(line, literals=False)
                    if isinstance(fields, dict) and fields.get(key) in wanted:
                        seconds = log.seconds(pa.array([str(fields.get(log.date))]))[0].as_py()
                        event = None if seconds is None else (str(fields.get(log.item)), seconds)
                        yield RawLine(path.name, number, fields[key], shown(line), fields, event=event)
            passed += len(block.line_starts())
