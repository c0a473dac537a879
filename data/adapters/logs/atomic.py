"""Adapter recbole: a folder of RecBole's atomic files (data/releases/atomic.py), each plain or as .gz.

One interaction a line: in file order where there are no times. Files of a split keep it. Files with `item_id_list` are windows:
they stay word for word, and the users' sequences are rebuilt from them as from other published folders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.adapters.contract import Loaded, RawLines, first_of_each
from data.adapters.item_text import clean_text
from data.adapters.logs.delimited import Layout, Log, cells, cells_with, header, lines_with
from data.adapters.logs.options import AtomicOptions
from data.adapters.releases import interactions, sequence_rows
from data.releases.atomic import HISTORY, field_names
from data.releases.published import SPLITS, PublishedRows
from data.shaping.assemble import Funnel
from data.shaping.findings import Finding
from data.shaping.splits import CONTEXT, SPLIT_NAMES, TRAIN

LAYOUT = Layout("\t")
FIELDS = {"user": "user_id", "item": "item_id", "rating": "rating", "time": "timestamp"}


@dataclasses.dataclass(frozen=True)
class AtomicFolder:
    """The files of one data set: logs by split ("" = one file without a split), items, users."""

    logs: dict[str, Path]
    items: Path | None
    users: Path | None


def folder_of(raw: str | Path, name: str) -> AtomicFolder:
    """The files in a folder; InputError when there is no log, or several data sets and no name."""
    root = Path(raw)
    if not root.is_dir():
        raise InputError(
            f"raw folder does not exist: {root} -> set RAW (or --raw) to the folder of the atomic files"
        )
    files_there = sorted(
        (path for path in root.iterdir() if path.is_file()), reverse=True
    )  # plain before .gz
    found = {path.name.removesuffix(".gz"): path for path in files_there}
    stems = {
        file.removesuffix(".inter")
        for file in found
        if file.endswith(".inter") and not file.startswith("topk.")
    }
    names = {
        stem.rsplit(".", 1)[0] if stem.endswith(tuple(f".{split}" for split in SPLITS)) else stem
        for stem in stems
    }
    if not name and len(names) == 1:
        name = names.pop()
    logs = {split: found[f"{name}.{split}.inter"] for split in SPLITS if f"{name}.{split}.inter" in found}
    if not logs and f"{name}.inter" in found:
        logs = {"": found[f"{name}.inter"]}
    if not logs:
        have = ", ".join(sorted(names)) or "none"
        raise InputError(
            f"no {name or '*'}.inter (or .gz) in {root} (data sets there: {have}) -> name one: recbole.name"
        )
    return AtomicFolder(logs, found.get(f"{name}.item"), found.get(f"{name}.user"))


def files(raw: str | Path, options: AtomicOptions) -> list[Path]:
    """Logs, items, users."""
    folder = folder_of(raw, options.name)
    return [*folder.logs.values(), *(path for path in (folder.items, folder.users) if path is not None)]


def read(raw: str | Path, options: AtomicOptions, funnel: Funnel) -> tuple[Loaded | None, list[Finding]]:
    """The folder as the contract wants it."""
    folder = folder_of(raw, options.name)
    listed = _items(folder.items, options)
    names = {split: field_names(header(path, LAYOUT), path) for split, path in folder.logs.items()}
    for split, fields in names.items():
        for field in ("user_id", "item_id"):
            if field not in fields:
                return None, [
                    Finding(folder.logs[split].name, field, "missing column", f"it has {', '.join(fields)}")
                ]
    if all(HISTORY in fields for fields in names.values()):
        return _windows(folder, names, listed, funnel), []
    log = Log(options.time_unit, "recbole.time_unit")
    findings: list[Finding] = []
    for split, path in folder.logs.items():
        columns = {ours: names[split][theirs] for ours, theirs in FIELDS.items() if theirs in names[split]}
        findings += log.read(path, LAYOUT, columns, split=SPLIT_NAMES.index(split) if split else None)
    if findings := findings + log.findings():
        return None, findings
    rows, user_ids, item_ids = log.finish()
    funnel.count("interactions read", rows)
    table, place = _with_unlisted(listed, item_ids, funnel)
    rows = dataclasses.replace(rows, item=place[rows.item])
    return _loaded(table, rows, _users(folder.users, user_ids)), []


def _loaded(table: pa.Table, rows: object, users: pa.Table, sequences: pa.Table | None = None) -> Loaded:
    return Loaded(
        rows, lambda codes: table.take(pa.array(codes)), users, table.num_rows, sequences, keeps_codes=True
    )


def _windows(
    folder: AtomicFolder, names: dict[str, dict[str, str]], listed: pa.Table, funnel: Funnel
) -> Loaded:
    """Published windows, and the sequences behind them."""
    users: list[str] = []
    tokens: list[list[str]] = []
    splits: list[str] = []
    for split, path in folder.logs.items():
        fields = names[split]
        for row in cells(path, LAYOUT)[0]:
            users.append(row[fields["user_id"]])
            tokens.append([*row[fields[HISTORY]].split(), row[fields["item_id"]]])
            splits.append(split or "train")
    ids = pa.array(list(dict.fromkeys(token for row in tokens for token in row)), pa.string())
    table, place = _with_unlisted(listed, ids, funnel)
    number = dict(zip(ids.to_pylist(), place.tolist(), strict=True))
    windows = [[number[token] for token in row] for row in tokens]
    rows = PublishedRows(users, [row[:-1] for row in windows], [row[-1] for row in windows], splits)
    codes = {name: code for code, name in enumerate(dict.fromkeys(users))}
    log = interactions(_oldest_first(rows), codes, history_only=CONTEXT if "train" in folder.logs else TRAIN)
    funnel.count("interactions rebuilt", log)
    people = _users(folder.users, pa.array(list(codes), pa.string()))
    return _loaded(table, log, people, sequence_rows(rows, codes))


def _oldest_first(rows: PublishedRows) -> PublishedRows:
    """The rows of every split as they came about: some files list a user's windows from the longest to the shortest."""
    ordered = PublishedRows()
    for split in dict.fromkeys(rows.splits):
        own = [at for at, name in enumerate(rows.splits) if name == split]
        growth = sum(
            np.sign(len(rows.histories[b]) - len(rows.histories[a]))
            for a, b in zip(own, own[1:], strict=False)
            if rows.users[a] == rows.users[b]
        )
        for at in reversed(own) if growth < 0 else own:
            ordered.add(split, rows.users[at], rows.histories[at], rows.targets[at])
    return ordered


def _with_unlisted(listed: pa.Table, ids: pa.Array, funnel: Funnel) -> tuple[pa.Table, np.ndarray]:
    """(the items, those at the end that only the logs name; the row int32 of every id)."""
    lost = ids.filter(pc.invert(pc.is_in(ids, value_set=listed["raw_id"].combine_chunks())))
    if len(lost):
        if listed.num_rows:
            funnel.note(f"{len(lost)} items of the logs are not in the .item file: they have no text")
        funnel.facts["items_without_a_line"] = len(lost)
        listed = pa.concat_tables([listed, _empty_items(lost)], promote_options="default")
    place = pc.index_in(ids, value_set=listed["raw_id"].combine_chunks())
    return listed, place.to_numpy().astype(np.int32)


def _empty_items(ids: pa.Array) -> pa.Table:
    blank = pa.array([""] * len(ids), pa.string())
    lists = pa.array([[]] * len(ids), pa.list_(pa.string()))
    return pa.table(
        {"raw_id": ids, "title": blank, "description": blank, "categories": lists, "brand": blank}
    )


def _items(path: Path | None, options: AtomicOptions) -> pa.Table:
    """items.parquet without item_id, in the file's order, the first line of an item counting."""
    if path is None:
        return _empty_items(pa.array([], pa.string()))
    rows, _ = cells(path, LAYOUT)
    names = field_names(list(rows[0]) if rows else header(path, LAYOUT), path)
    if "item_id" not in names:
        raise InputError(f"{path}: no field item_id -> it has {', '.join(names)}")
    first = {row[names["item_id"]]: row for row in reversed(rows)}
    rows = [first[key] for key in dict.fromkeys(row[names["item_id"]] for row in rows)]

    def texts(field: str | None) -> list[str]:
        return [clean_text(row[names[field]]) if field in names else "" for row in rows]

    title = next((name for name in options.title if name in names), None)
    labels = next((name for name in options.categories if name in names), None)
    columns = {
        "raw_id": pa.array([row[names["item_id"]] for row in rows], pa.string()),
        "title": texts(title),
        "description": texts("description"),
        "categories": pa.array([_labels(text) for text in texts(labels)], pa.list_(pa.string())),
        "brand": texts("brand"),
    }
    told = {"item_id", title, labels, "description", "brand"}
    columns |= {
        name: [row[column] for row in rows]
        for name, column in names.items()
        if name not in told and name not in columns
    }
    return pa.table(columns)


def _labels(text: str) -> list[str]:
    return [part.strip() for part in (text.split(",") if "," in text else text.split()) if part.strip()]


def _users(path: Path | None, ids: pa.Array) -> pa.Table:
    """users.parquet without user_id."""
    columns: dict[str, object] = {"raw_id": ids}
    if path is not None:
        rows, _ = cells(path, LAYOUT)
        names = field_names(header(path, LAYOUT), path)
        known = {row[names["user_id"]]: row for row in rows}
        told = [known.get(key, {}) for key in ids.to_pylist()]
        columns |= {
            name: pa.array([row.get(column) for row in told], pa.string())
            for name, column in names.items()
            if name not in ("user_id", "raw_id")
        }
    return pa.table(columns)


def find_lines(
    raw: str | Path, options: AtomicOptions, *, user: str | None, items: Sequence[str]
) -> RawLines:
    """The user's lines of every log, and the first line of every item."""
    folder = folder_of(raw, options.name)
    users, mine = [] if user is None else [user], []
    for path in folder.logs.values():
        names = field_names(header(path, LAYOUT), path)
        event = None
        if "timestamp" in names:
            event = (names["item_id"], names["timestamp"], 1000 if options.time_unit == "ms" else 1)
        mine += list(lines_with(path, LAYOUT, names["user_id"], users, event=event))
    found = [] if folder.items is None else cells_with(folder.items, LAYOUT, _id_field(folder.items), items)
    return RawLines(mine, first_of_each(found))


def _id_field(path: Path) -> str:
    return field_names(header(path, LAYOUT), path)["item_id"]
