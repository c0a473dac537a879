"""Adapter p5: Amazon 2014 as P5's archive and S3-Rec ship it, with the order of a day's reviews that the benchmark has.

  sequential_data.txt (Beauty.txt)                     `user item item ...`, oldest first, no times
  datamaps.json                                        id2user, id2item (or user2id, item2id): names of the numbers
  meta.json.gz                                         an item a line, as in the dump of 2014: text by ASIN
  item2attributes.json (Beauty_item2attributes.json)   {item: [attribute, ...]}

Items keep their numbers, which begin at 1 there and at 0 here, as long as nothing is filtered; so do users. The archive's pickles
are not read. The published split is leave-one-out: `split.kind leave_one_out`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.adapters.amazon import lines_of
from data.adapters.contract import Loaded, RawLine, RawLines, first_of_each, shown
from data.adapters.dumps import amazon as dump
from data.adapters.logs.delimited import decoded
from data.adapters.logs.options import P5Options
from data.artifacts import INT_LIST
from data.shaping.assemble import Coded, Funnel
from data.shaping.findings import Finding, in_rows


@dataclass(frozen=True)
class P5Folder:
    """The files of a folder; None, or no metadata, where there is none."""

    sequences: Path
    maps: Path | None
    metadata: list[Path]
    attributes: Path | None


def folder_of(raw: str | Path, options: P5Options) -> P5Folder:
    """The files in a folder; InputError without sequences, or where several files match."""
    sequences = dump.find_files(raw, options.sequences, what="sequences", group=options.GROUP)
    maps, metadata, attributes = (
        next((found for pattern in patterns if (found := sorted(Path(raw).glob(pattern)))), [])
        for patterns in (options.maps, options.metadata, options.attributes)
    )
    for name, found in (("sequences", sequences), ("maps", maps), ("attributes", attributes)):
        if len(found) > 1:
            raise InputError(
                f"{found[0]} and {found[1].name} both match p5.{name} -> name the one that is meant"
            )
    return P5Folder(sequences[0], next(iter(maps), None), metadata, next(iter(attributes), None))


def files(raw: str | Path, options: P5Options) -> list[Path]:
    """Sequences, names, metadata, attributes."""
    folder = folder_of(raw, options)
    return [
        path
        for path in (folder.sequences, folder.maps, *folder.metadata, folder.attributes)
        if path is not None
    ]


def read(raw: str | Path, options: P5Options, funnel: Funnel) -> tuple[Loaded | None, list[Finding]]:
    """The folder as the contract wants it."""
    folder = folder_of(raw, options)
    users, histories = _sequences(folder.sequences)
    names = _names(folder.maps)
    findings = _check(folder, users, histories, names)
    if findings:
        return None, findings
    numbers = _in_order(names["item"] or chain.from_iterable(histories))
    code = {number: at for at, number in enumerate(numbers)}
    lengths = np.array([len(history) for history in histories])
    count = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    rows = Coded(
        np.repeat(np.arange(len(users), dtype=np.int32), lengths),
        np.fromiter((code[number] for history in histories for number in history), np.int32, count),
        np.full(count, np.nan, np.float32),
        np.zeros(count, np.int64),
        np.zeros(count, bool),
        order=np.arange(count) - np.repeat(starts, lengths),
    )
    funnel.count("sequences read", rows)
    raw_ids = pa.array([names["item"].get(number, number) for number in numbers], pa.string())
    attributes = _attributes(folder.attributes, numbers, funnel)
    items = partial(_items, folder.metadata, raw_ids, attributes, options, funnel)
    people = pa.table({"raw_id": pa.array([names["user"].get(user, user) for user in users], pa.string())})
    return Loaded(rows, items, people, len(numbers), keeps_codes=True), []


def _sequences(path: Path) -> tuple[list[str], list[list[str]]]:
    """(user of every line, his items)."""
    lines = [line.split() for line in decoded(path)[0].splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path}: no sequences -> lines of a user and his items are expected")
    return [line[0] for line in lines], [line[1:] for line in lines]


def _check(
    folder: P5Folder, users: list[str], histories: list[list[str]], names: dict[str, dict[str, str]]
) -> list[Finding]:
    """Users who come twice, users without items, numbers without a name; rows count the lines that are not empty, from 0."""
    file, first = (
        folder.sequences.name,
        dict(zip(reversed(users), range(len(users) - 1, -1, -1), strict=True)),
    )
    again = np.array([first[user] != at for at, user in enumerate(users)])
    empty = np.array([not history for history in histories])
    shown_users = pa.array(users, pa.string())
    findings = in_rows(file, "user", again, "a user of an earlier line", values=shown_users)
    findings += in_rows(file, "user", empty, "a user without items", values=shown_users)
    if folder.maps is None:
        return findings
    fix = f"is {folder.maps.name} of the same archive?"
    lost = np.array([user not in names["user"] for user in users])
    findings += in_rows(file, "user", lost, f"not in {folder.maps.name}", values=shown_users, fix=fix)
    strangers = [[item for item in history if item not in names["item"]] for history in histories]
    unknown = np.array([bool(found) for found in strangers])
    values = pa.array([", ".join(found) for found in strangers], pa.string())
    return findings + in_rows(file, "item", unknown, f"not in {folder.maps.name}", values=values, fix=fix)


def _names(path: Path | None) -> dict[str, dict[str, str]]:
    """{"user", "item"}: {number as in the sequences: raw id}; {} without a file."""
    if path is None:
        return {"user": {}, "item": {}}
    record = _object(path)
    return {kind: _names_of(record, kind, path) for kind in ("user", "item")}


def _names_of(record: dict[str, Any], kind: str, path: Path) -> dict[str, str]:
    there, back = record.get(f"id2{kind}"), record.get(f"{kind}2id")
    if there is None and isinstance(back, dict):
        there = {number: name for name, number in back.items()}
    if not isinstance(there, dict):
        keys = ", ".join(list(record)[:6])
        raise InputError(f"{path}: neither id2{kind} nor {kind}2id; keys: {keys} -> name the file: p5.maps")
    found = {str(number): str(name) for number, name in there.items()}
    if len(set(found.values())) < len(found):
        raise InputError(f"{path}: id2{kind} gives two numbers one name -> get the file again")
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(decoded(path)[0])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}) -> get the file again") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: a {type(value).__name__}, not an object -> check p5.maps and p5.attributes"
        )
    return value


def _in_order(numbers: Any) -> list[str]:
    """Distinct item numbers, ascending; text by first appearance."""
    distinct = list(dict.fromkeys(numbers))
    return sorted(distinct, key=int) if all(text.isdecimal() for text in distinct) else distinct


def _attributes(path: Path | None, numbers: list[str], funnel: Funnel) -> pa.Array | None:
    """Attribute numbers of every item, list<int32>, or None without a file."""
    if path is None:
        return None
    known = _object(path)
    funnel.facts["items_without_attributes"] = sum(not known.get(number) for number in numbers)
    try:
        return pa.array([known.get(number, []) for number in numbers], INT_LIST)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"{path}: no lists of attribute numbers ({error}) -> check p5.attributes") from None


def _items(
    metadata: list[Path],
    raw_ids: pa.Array,
    attributes: pa.Array | None,
    options: P5Options,
    funnel: Funnel,
    codes: np.ndarray,
) -> pa.Table:
    """items.parquet without item_id of the items that are left."""
    found = dump.scan_metadata(metadata, raw_ids, options)
    text, unparsed = dump.read_items(metadata, found, codes, year=options.format, title_filter="none")
    broken = sum(account.broken for account in found.lines)
    funnel.reject(*found.lines)
    funnel.facts |= {
        "metadata_lines": sum(account.total for account in found.lines),
        "metadata_lines_broken": broken,
        "prices_not_parsed": unparsed,
        "items_without_metadata": int((found.file[codes] < 0).sum()),
    }
    funnel.note_unread("prices")
    if broken:
        first = next(account.first_broken for account in found.lines if account.broken)
        funnel.note(f"{broken} broken metadata lines are left out, first: {Path(first).name}")
    if not metadata:
        funnel.note(f"no file is {' or '.join(options.metadata) or 'named by p5.metadata'}: no item has text")
    table = text.add_column(0, "raw_id", raw_ids.take(pa.array(codes)))
    return (
        table
        if attributes is None
        else table.append_column("attribute_ids", attributes.take(pa.array(codes)))
    )


def find_lines(raw: str | Path, options: P5Options, *, user: str | None, items: Sequence[str]) -> RawLines:
    """The user's line, and the first metadata line of every item."""
    folder = folder_of(raw, options)
    names = _names(folder.maps)["user"]
    mine = [
        RawLine(folder.sequences.name, number, user, shown(line), {})
        for number, line in enumerate(decoded(folder.sequences)[0].splitlines(), 1)
        if user is not None and line.strip() and names.get(key := line.split()[0], key) == user
    ]
    fields = dump.FIELDS[options.format]
    return RawLines(mine, first_of_each(lines_of(folder.metadata, items, fields.item, fields)))
