"""A NaviGen folder, read and written: pure functions, no program.

    pid2cid2tid.parquet          pid, sid, tid                                          an item a row: the catalogue
    {split}_cid2tid.parquet      sid, tid                                               items with a TID, split at random
    {split}_tid2cid.parquet      the same
    {split}_cid2cid.parquet      uid, hist_sid, target_sid, reasoning, source_dataset   histories and the next item
    {split}_cid2ins.parquet      uid, hist_sid, target_tid, target_ins, reasoning, source_dataset, target_type
    {split}_tid2tid.parquet      uid, hist_tid, target_tid, reasoning, source_dataset   not shipped, written only

The published columns are called `sid` and hold CIDs, `<|cid_begin|><s_a_1><s_b_2><s_c_3><|cid_end|>`. A value may be a text, a list
or the text of a list; of a list of targets the first counts. Read are the catalogue (without it the CIDs of the cid2tid, tid2cid and
cid2cid files, a CID an item), the rows of cid2cid with their `reasoning`, and the texts of cid2ins, which become those of the row
with the same user, history and terms of the target: columns `instruction` and `instruction_reasoning`. `source_dataset` of cid2cid
becomes a column too, to group metrics by. A CID of several items is read as the first of them, and counted. Written they are by data/releases/writers/navigen.py.

Legend: R rows, M mentions of CIDs in them, L levels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.releases.published import SPLITS, Names, Published, PublishedItem, PublishedRows, only_file
from data.releases.text import printed_list
from data.sid import FORMATS

CID = FORMATS["navigen"]
KINDS = ("cid2tid", "tid2cid", "cid2cid", "cid2ins")
PIDS = ("pid", "raw_id", "item_id", "id")
ONE_CID = re.compile(r"<\|cid_begin\|>(?:<s_[a-z]_(?:0|[1-9]\d*)>)+<\|cid_end\|>")
BETWEEN = re.compile(r"""[\s,'"\[\]()]*""")


def files(folder: str | Path, name: str) -> dict[str, Path]:
    """The files that are there: catalogue, `{split}_{kind}`; with `name` those of that data set (`games_test_cid2cid`)."""
    found = {}
    if path := only_file(folder, ["pid2cid2tid*", "*/pid2cid2tid*"], what="pid2cid2tid", needed=False):
        found["catalogue"] = path
    for split in SPLITS:
        for kind in KINDS:
            stem = f"{name}_{split}_{kind}" if name else f"{split}_{kind}"
            patterns = [f"{stem}.parquet", f"*/{stem}.parquet"]
            if path := only_file(folder, patterns, what=stem, needed=False):
                found[f"{split}_{kind}"] = path
    if not any(key.endswith("cid2cid") for key in found):
        raise InputError(
            f"{folder} has no rows: no {{train,valid,test}}_cid2cid.parquet -> check raw and name"
        )
    return found


def read_folder(folder: str | Path, name: str = "") -> Published:
    """Items in the order of the catalogue, their TIDs as titles, and the rows of every split that is there."""
    found = files(folder, name)
    tables = {key: artifacts.read_file(path) for key, path in found.items() if not key.endswith("cid2ins")}
    catalogue = _Catalogue.of(tables, found)
    published = Published(catalogue.items, PublishedRows())
    texts = _Texts(catalogue, published.rows)
    published.has_users = all("uid" in tables[key].column_names for key in tables if key.endswith("cid2cid"))
    ambiguous = 0
    for split in SPLITS:
        key = f"{split}_cid2cid"
        if key not in found:
            continue
        offsets, items_M, shared = catalogue.mentions(tables[key], "hist_sid", found[key])
        _, targets_M, shared_targets = catalogue.mentions(tables[key], "target_sid", found[key], one=True)
        ambiguous += shared + shared_targets
        users = tables[key]["uid"].to_pylist() if published.has_users else range(len(offsets) - 1)
        targets = targets_M.tolist()
        begun = len(published.rows.users)
        for row, (user, target) in enumerate(zip(users, targets, strict=True)):
            history = items_M[offsets[row] : offsets[row + 1]].tolist()
            published.rows.add(split, str(user) if published.has_users else f"{split}-{row}", history, target)
        texts.add_thoughts(tables[key], begun)
        texts.add_sources(tables[key], begun)
        if f"{split}_cid2ins" in found:
            path = found[f"{split}_cid2ins"]
            texts.add_instructions(artifacts.read_file(path), path, begun, by_user=published.has_users)
    if not published.has_users:
        published.count(
            "rows_without_user", len(published.rows.users), "rows name no user: each is a user of its own"
        )
    published.count(
        "rows_of_one_item_twice", catalogue.repeated, "rows of the catalogue repeat an item and are left out"
    )
    published.count("items_sharing_a_cid", catalogue.shared, "items share their CID with another")
    published.count(
        "ambiguous_mentions", ambiguous, "mentions are of such a CID: read as the first of its items"
    )
    texts.count(published)
    untold = sum(not item.title for item in catalogue.items)
    published.count("items_without_tid", untold, "items have no TID here, so no title")
    return published


@dataclass
class _Catalogue:
    items: list[PublishedItem] = field(default_factory=list)
    items_of: dict[str, list[int]] = field(default_factory=dict)
    terms: list[tuple[str, ...]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    repeated: int = 0

    @classmethod
    def of(cls, tables: dict[str, pa.Table], found: dict[str, Path]) -> _Catalogue:
        """From pid2cid2tid, or from the CIDs of the other files, in order of their first mention."""
        made = cls()
        if "catalogue" in tables:
            made._add_all(tables["catalogue"], found["catalogue"])
            return made
        for kind, column in (
            ("cid2tid", "sid"),
            ("tid2cid", "sid"),
            ("cid2cid", "hist_sid"),
            ("cid2cid", "target_sid"),
        ):
            for key in (f"{split}_{kind}" for split in SPLITS if f"{split}_{kind}" in tables):
                if column == "sid":
                    made._add_all(tables[key], found[key])
                else:
                    for cid in read_cids(tables[key], column, found[key])[2]:
                        made._add(cid, cid, ())
        made.repeated = 0
        return made

    def _add_all(self, table: pa.Table, path: Path) -> None:
        _, places_M, cids = read_cids(table, "sid", path, one=True)
        key = next((name for name in PIDS if name in table.column_names), None)
        pids = map(str, table[key].to_pylist()) if key else (cids[place] for place in places_M)
        told = table["tid"].to_pylist() if "tid" in table.column_names else [()] * len(table)
        for pid, place, terms in zip(pids, places_M.tolist(), told, strict=True):
            self._add(pid, cids[place], read_terms(terms))

    def _add(self, pid: str, cid: str, terms: Sequence[str]) -> None:
        if pid in self.names:
            self.repeated += 1
            return
        self.names.add(pid)
        self.items_of.setdefault(cid, []).append(len(self.items))
        self.items.append(PublishedItem(pid, title=", ".join(terms)))
        self.terms.append(tuple(terms))

    @property
    def shared(self) -> int:
        return sum(len(items) for items in self.items_of.values() if len(items) > 1)

    @property
    def codes(self) -> list[tuple[int, ...]]:
        """Those of every item."""
        made: list[tuple[int, ...]] = [()] * len(self.items)
        for cid, items in self.items_of.items():
            for item in items:
                made[item] = tuple(CID.parse(cid, num_levels=cid.count("<s_")))
        return made

    def mentions(
        self, table: pa.Table, column: str, path: Path, *, one: bool = False
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """(offsets int64 [R + 1], items int64 [M], how many mentions may be of several items)."""
        offsets, places_M, cids = read_cids(table, column, path, one=one)
        groups = [self.items_of.get(cid, []) for cid in cids]
        unknown = next((place for place, group in enumerate(groups) if not group), None)
        if unknown is not None:
            at = int(np.flatnonzero(places_M == unknown)[0])
            row = int(np.searchsorted(offsets, at, side="right")) - 1
            raise InputError(
                f"{path}: row {row}: {column} names {cids[unknown]}, which is no item of pid2cid2tid -> another folder's?"
            )
        first = np.array([group[0] for group in groups], np.int64)
        several = np.array([len(group) > 1 for group in groups], bool)
        return offsets, first[places_M], int(several[places_M].sum())


class _Texts:
    """Texts of rows as columns of sequences, CIDs inside them as placeholders."""

    def __init__(self, catalogue: _Catalogue, rows: PublishedRows) -> None:
        self.catalogue, self.rows, self.strangers = catalogue, rows, 0
        self.named = Names(catalogue.codes, CID) if catalogue.items else None

    def add_thoughts(self, table: pa.Table, begun: int) -> None:
        """`reasoning` of cid2cid; its rows are those from `begun` on."""
        for at, text in enumerate(_column(table, "reasoning"), start=begun):
            self._set("reasoning", at, text)

    def add_sources(self, table: pa.Table, begun: int) -> None:
        """`source_dataset` of cid2cid: which of several data sets a row is of."""
        for at, text in enumerate(_column(table, "source_dataset"), start=begun):
            self._set("source_dataset", at, text)

    def add_instructions(self, table: pa.Table, path: Path, begun: int, *, by_user: bool) -> None:
        """`target_ins` and `reasoning` of cid2ins; of several rows that it may mean the first without one."""
        offsets, items_M, _ = self.catalogue.mentions(table, "hist_sid", path)
        by_user = by_user and "uid" in table.column_names
        users = map(str, table["uid"].to_pylist()) if by_user else [""] * len(table)
        rows, waiting = self.rows, {}
        for at in range(begun, len(rows.users)):
            user = rows.users[at] if by_user else ""
            waiting.setdefault((user, tuple(rows.histories[at])), []).append(at)
        columns = (_column(table, name) for name in ("target_tid", "target_ins", "reasoning"))
        for row, (user, terms, instruction, thought) in enumerate(zip(users, *columns, strict=True)):
            places = waiting.get((user, tuple(items_M[offsets[row] : offsets[row + 1]].tolist())), [])
            at = next((place for place in places if self._means(place, read_terms(terms))), None)
            if at is None:
                self.strangers += 1
                continue
            places.remove(at)
            self._set("instruction", at, instruction)
            self._set("instruction_reasoning", at, thought)

    def _means(self, at: int, terms: Sequence[str]) -> bool:
        own = self.catalogue.terms[self.rows.targets[at]]
        return not own or not terms or [t.casefold() for t in own] == [t.casefold() for t in terms]

    def _set(self, name: str, at: int, text: str | None) -> None:
        if not text or not text.strip():
            return
        texts = self.rows.texts.setdefault(name, [])
        texts += [""] * (len(self.rows.users) - len(texts))
        row = self.rows
        texts[at] = self.named(text.strip(), [*row.histories[at], row.targets[at]])

    def count(self, published: Published) -> None:
        """Complete the columns, and say what was of no row or no item."""
        for texts in self.rows.texts.values():
            texts += [""] * (len(self.rows.users) - len(texts))
        published.count(
            "texts_of_unknown_rows", self.strangers, "rows of cid2ins are of no row of cid2cid and left out"
        )
        unknown = self.named.unknown if self.named else 0
        published.count("semantic_ids_of_no_item", unknown, "CIDs inside texts are of no item and stay text")


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def read_cids(
    table: pa.Table, column: str, path: Path, *, one: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(offsets int64 [R + 1], places int64 [M], the distinct CIDs): row r names `cids[places[offsets[r] : offsets[r + 1]]]`.

    one: only the first of each row, of which there must be one. Each distinct text is read once. InputError that names file
    and row for a missing column or for what is no list of CIDs of one length.
    """
    if column not in table.column_names:
        raise InputError(
            f"{path} has no column {column} (it has {', '.join(table.column_names)}) -> another file?"
        )
    values = table[column].combine_chunks()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        offsets, texts = np.arange(len(values) + 1), values
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        offsets = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(values), 0).to_numpy())])
        texts = values.flatten()
    else:
        raise InputError(f"{path}: {column} is {values.type} -> texts or lists of texts")
    coded = texts.dictionary_encode()
    rows_M = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    place_of: dict[str, int] = {}
    parts, levels = [], 0
    for text in coded.dictionary.to_pylist():
        found = ONE_CID.findall(text)
        wrong = not BETWEEN.fullmatch(ONE_CID.sub("", text)) or any(
            CID.parse(c, num_levels=c.count("<s_")) is None for c in found
        )
        levels = levels or (found[0].count("<s_") if found else 0)
        if wrong or any(cid.count("<s_") != levels for cid in found):
            at = int(np.flatnonzero(coded.indices.fill_null(-1).to_numpy() == len(parts))[0])
            raise InputError(
                f"{path}: row {rows_M[at]}: {column} is {text[:80]!r}, no CID like {CID.text([0] * (levels or 3))} -> get the "
                "file again, or leave the row out"
            )
        parts.append([place_of.setdefault(cid, len(place_of)) for cid in found])
    lengths = np.array([*map(len, parts), 0])
    index_M = coded.indices.fill_null(len(parts)).to_numpy().astype(np.int64)
    flat = [parts[index] if index < len(parts) else [] for index in index_M.tolist()]
    counts_R = np.bincount(rows_M, weights=lengths[index_M], minlength=len(offsets) - 1).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts_R)])
    places_M = np.array([place for places in flat for place in places], np.int64)
    if one:
        _refuse_empty(offsets, column, path)
        places_M, offsets = places_M[offsets[:-1]], np.arange(len(offsets))
    return offsets, places_M, list(place_of)


def _refuse_empty(offsets: np.ndarray, column: str, path: Path) -> None:
    empty = np.flatnonzero(np.diff(offsets) == 0)
    if len(empty):
        raise InputError(f"{path}: row {empty[0]}: {column} is empty -> leave the row out")


def read_terms(value: Any) -> tuple[str, ...]:
    """The terms of a list, of the text of a list (JSON or printed) or of a text with commas.

    >>> read_terms(["nut", " bolt "]), read_terms('["nut", "bolt"]'), read_terms("['nut', 'bolt']"), read_terms("nut, bolt")
    (('nut', 'bolt'), ('nut', 'bolt'), ('nut', 'bolt'), ('nut', 'bolt'))
    """
    if isinstance(value, str):
        value = value.split(",") if (made := printed_list(value)) is None else made
    terms = (str(term).strip() for term in value or ())
    return tuple(dict.fromkeys(term for term in terms if term))


def read_terms_table(path: str | Path) -> dict[str, tuple[str, ...]]:
    """{source's id: terms} of pid2cid2tid.parquet; without ids the CIDs stand for them, as in `read_folder`."""
    table = artifacts.read_file(Path(path))
    if "tid" not in table.column_names:
        raise InputError(
            f"{path} has no column tid (it has {', '.join(table.column_names)}) -> another file?"
        )
    key = next((name for name in PIDS if name in table.column_names), None)
    if key is None:
        _, places, cids = read_cids(table, "sid", Path(path), one=True)
        keys = [cids[place] for place in places.tolist()]
    else:
        keys = list(map(str, table[key].to_pylist()))
    return dict(zip(keys, map(read_terms, table["tid"].to_pylist()), strict=True))
