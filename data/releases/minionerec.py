"""A MiniOneRec folder, read and written: pure functions, no program.

    {D}.item.json                           {"<item>": {title, description, brand, categories}}, description a printed list
    {train,valid,test}/*.csv                user_id, histories and target as titles, item ids and semantic IDs
    {D}.{train,valid,test}.inter            a tab-separated file, one (history, target) row per line
    {D}.user2id, {D}.item2id, {D}.inter.json   the source's ids; every user's items in order
    {D}.index.json, info/*.txt              semantic IDs; semantic ID, title and item, tab-separated, one item per line

`.gz` files are read as they are. Writers write in place: pass a temporary path (Output.replacing).
"""

from __future__ import annotations

import ast
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.releases.published import SPLITS, Published, PublishedItem, PublishedRows, only_file
from data.releases.text import csv_rows, read_json, read_text
from data.sid import FORMATS, SidFormat

CSV_COLUMNS = (
    "user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid",
)  # fmt: skip
INTER_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"


@dataclass(frozen=True)
class InterRows:
    """Rows of an .inter file: users (text) and targets per row, histories as lists of item numbers."""

    users: tuple[str, ...]
    histories: tuple[tuple[int, ...], ...]
    targets: tuple[int, ...]


def read_inter(path: str | Path) -> InterRows:
    """A MiniOneRec .inter file; InputError naming the first line that is not user, history and target."""
    lines = read_text(path).splitlines()
    if not lines or not lines[0].startswith(INTER_HEADER):
        raise InputError(f"{path}: the header is not {INTER_HEADER!r} -> pass an .inter file")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        parts = line.split("\t")
        try:
            rows.append((parts[0], tuple(int(item) for item in parts[1].split()), int(parts[2])))
        except (IndexError, ValueError):
            raise InputError(f"{path}:{number} is not user, history, item -> get the file again") from None
    users, histories, targets = zip(*rows, strict=True) if rows else ((), (), ())
    return InterRows(users, histories, targets)


def write_inter(path: str | Path, rows: InterRows) -> None:
    """The inverse of `read_inter`; `path` is written in place."""
    lines = [INTER_HEADER]
    for user, history, target in zip(rows.users, rows.histories, rows.targets, strict=True):
        lines.append(f"{user}\t{' '.join(map(str, history))}\t{target}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_info(
    path: str | Path, codes_NL: np.ndarray, titles: Sequence[str], *, fmt: SidFormat = FORMATS["letters"]
) -> int:
    """Write info/*.txt, item by item; returns how many titles had a tab or line break, written as a space."""
    clean = [" ".join(title.split("\t")).replace("\r", " ").replace("\n", " ") for title in titles]
    rows = zip(codes_NL.tolist(), clean, strict=True)
    text = "".join(f"{fmt.text(codes)}\t{title}\t{item}\n" for item, (codes, title) in enumerate(rows))
    Path(path).write_text(text, encoding="utf-8")
    return sum(after != before for after, before in zip(clean, titles, strict=True))


def files(folder: str | Path, name: str) -> dict[str, Path]:
    """The files that `read_folder` reads: items, the splits that are there, user2id, item2id."""
    # SIDReasoner keeps the same files in a folder of their own.
    items = [f"{name or '*'}.item.json*", f"index/{name or '*'}.item.json*"]
    found = {"items": only_file(folder, items, what="item.json")}
    for split in SPLITS:
        # The folder of the original, then files of any place that are named for their split.
        patterns = [
            f"{split}/{name or ''}*.csv*",
            f"{name or '*'}.{split}.csv*",
            f"{name or '*'}.{split}.inter*",
        ]
        if path := only_file(folder, patterns, what=f"{split} rows", needed=False):
            found[split] = path
    if not set(found) & set(SPLITS):
        raise InputError(f"{folder} has no rows: no {{train,valid,test}}/*.csv and no *.inter -> check raw")
    for table in ("user2id", "item2id"):
        patterns = [f"{name or '*'}.{table}*"]
        if path := only_file(folder, patterns, what=table, needed=False):
            found[table] = path
    return found


def read_folder(folder: str | Path, name: str = "") -> Published:
    """Items in the order of item.json, and the rows of every split that is there."""
    found = files(folder, name)
    items = read_items(found["items"], read_map(found["item2id"]) if "item2id" in found else {})
    place = {item.raw_id: at for at, item in enumerate(items)}
    users = read_map(found["user2id"]) if "user2id" in found else {}
    published = Published(items, PublishedRows())
    lost = 0
    for split in SPLITS:
        if split not in found:
            continue
        read = read_csv_rows if ".csv" in found[split].name else _inter_rows
        for user, history, target in read(found[split]):
            known = [place[str(item)] for item in history if str(item) in place]
            lost += len(history) - len(known)
            if str(target) not in place:
                raise InputError(
                    f"{found[split]}: target {target} is not in {found['items'].name} -> another folder's?"
                )
            published.rows.add(split, users.get(user.removeprefix("A"), user), known, place[str(target)])
    published.count("history_items_unknown", lost, "items of histories are not in item.json and left out")
    missing = [split for split in SPLITS if split not in found]
    if missing:
        published.notes.append(
            f"no rows of {', '.join(missing)} are published; train windows are made from histories"
        )
    return published


def read_items(path: Path, source_ids: dict[str, str]) -> list[PublishedItem]:
    """The items of an item.json; `source_ids`: item number -> the source's id."""
    raw = read_json(path)
    if not isinstance(raw, dict) or not all(isinstance(item, dict) for item in raw.values()):
        raise InputError(f'{path} is not {{"item": {{title, ...}}}} -> pass a folder with an item.json')
    names = ("title", "description", "brand", "categories")
    return [
        PublishedItem(key, *(item.get(name) or "" for name in names), source_id=source_ids.get(key, ""))
        for key, item in raw.items()
    ]


def item_json(items: pa.Table, numbers: Sequence[int]) -> str:
    """item.json by item number, ascending: descriptions and categories as printed lists, as the original has them."""
    value = {
        numbers[item["item_id"]]: {
            "title": item["title"],
            "description": str([item["description"]]) if item["description"] else "",
            "brand": item["brand"],
            "categories": str(item["categories"]) if item["categories"] else "",
        }
        for item in items.select(["item_id", "title", "description", "brand", "categories"]).to_pylist()
    }
    return json.dumps({str(key): value[key] for key in sorted(value)}, indent=2, ensure_ascii=False) + "\n"


def read_map(path: Path) -> dict[str, str]:
    """number -> the source's id, of a user2id or item2id file (id, tab, number)."""
    pairs = (line.rsplit("\t", 1) for line in read_text(path).splitlines() if line)
    try:
        return {number: key for key, number in pairs}
    except ValueError:
        raise InputError(f"{path} is not id, tab, number -> get the file again") from None


def _inter_rows(path: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    rows = read_inter(path)
    return zip(rows.users, rows.histories, rows.targets, strict=True)


def read_csv_rows(path: Path) -> Iterator[tuple[str, list[int], int]]:
    """(user, history, target) of every row of a split file; the other columns repeat what item.json and the index say."""
    for number, row in enumerate(csv_rows(path, ("user_id", "history_item_id", "item_id"))):
        try:
            history = ast.literal_eval(row["history_item_id"])
            yield row["user_id"], [int(item) for item in history], int(row["item_id"])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise InputError(
                f"{path}: row {number} is not user, history, item -> get the file again"
            ) from None


def csv_text(
    rows: Sequence[tuple[str, Sequence[int], int]], titles: Sequence[str], sids: Sequence[str]
) -> str:
    """A split file of (user, history, target) rows; histories are printed lists, all three of the same length."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for user, history, target in rows:
        cells = [str([values[item] for item in history]) for values in (titles, sids)]
        writer.writerow([user, cells[0], titles[target], str(list(history)), target, cells[1], sids[target]])
    return out.getvalue()
