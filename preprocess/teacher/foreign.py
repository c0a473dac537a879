"""Samples from NaviGen's files: a list of objects, or JSON lines, each of one of three schemas.

    A   {sample_id, history_tids: [[term, ..], ..], target_tid: [term, ..]}
    B   {uid, hist_pid: "'p1','p2'" or [p1, p2], valid_pid, target_pid}      with a file of the items' terms
    C   {uid, hist_tid: [[term, ..], ..], valid_tid, target_tid}

Ids are any text. The items' terms (B) are a list of {id, tid} or a map {id: [term, ..]}. NaviGen puts the valid item into the
history whenever there is one; here only where that is asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from configs.program import InputError
from preprocess.teacher.captions import json_entries
from preprocess.teacher.samples import Terms, TermSample

SHAPES = "an entry has history_tids and target_tid (A), hist_pid and target_pid (B), or hist_tid and target_tid (C)"
LONGEST_TERM = 200
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def foreign_samples(
    path: str | Path, *, item_terms: str | Path | None, split: str, append_valid: bool
) -> tuple[list[TermSample], dict[str, int]]:
    """(samples, how many were left out and why); InputError naming the entry that is of no known schema.

    `split` is that of the targets, which the file does not say. A sample's key is its place in the file.
    """
    entries = _list(Path(path), "samples")
    known = None if item_terms is None else read_item_terms(item_terms)
    left_out, made = Counter({"no_history": 0, "no_target": 0}), []
    for key, (where, row) in enumerate(entries):
        history, target = _read(row, f"{path}: {where}", known, append_valid=append_valid)
        if not target:
            left_out["no_target"] += 1
        elif not history:
            left_out["no_history"] += 1
        else:
            name = str(row.get("sample_id", row.get("uid", key)))
            made.append(TermSample(key=key, split=split, history=history, target=target, sample_id=name))
    if not made:
        raise InputError(
            f"{path}: none of its {len(entries)} samples has terms in history and target -> check item_terms"
        )
    return made, dict(left_out)


def read_item_terms(path: str | Path) -> dict[str, Terms]:
    """{item id: terms} of a list of {id, tid} or a map."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no terms of items at {path} -> check the path")
    entries = json_entries(path)
    if isinstance(entries, dict) and not {"id", "tid"} <= entries.keys():
        return {key: _terms(terms, f"{path}: key {key!r}") for key, terms in entries.items()}
    made = {}
    for where, row in entries if isinstance(entries, list) else [("the object", entries)]:
        if not isinstance(row, dict) or not {"id", "tid"} <= row.keys():
            raise InputError(f"{path}: {where} has no id and tid -> give a list of {{id, tid}}, or a map")
        made[str(row["id"]).strip()] = _terms(row["tid"], f"{path}: {where}")
    return made


def _list(path: Path, what: str) -> list[tuple[str, Any]]:
    if not path.is_file():
        raise InputError(f"no {what} at {path} -> check the path")
    entries = json_entries(path)
    return [("the object", entries)] if isinstance(entries, dict) else entries


def _read(
    row: Any, where: str, known: dict[str, Terms] | None, *, append_valid: bool
) -> tuple[tuple[Terms, ...], Terms]:
    """(history, target) of an entry; items without terms are left out, a target without them is ()."""
    names = row.keys() if isinstance(row, dict) else set()
    if {"hist_pid", "target_pid"} <= names:
        if known is None:
            raise InputError(f"{where} names items by id -> give their terms (item_terms)")
        ids = _ids(row["hist_pid"], where) + (_ids(row.get("valid_pid"), where) if append_valid else [])
        history = [known.get(item, ()) for item in ids]
        targets = _ids(row["target_pid"], where)
        if len(targets) > 1:
            raise InputError(
                f"{where} has {len(targets)} targets, a sample has one -> an entry for each, or a list around an id with a comma"
            )
        target = known.get(targets[0], ()) if targets else ()
    elif "target_tid" in names and names & {"history_tids", "hist_tid"}:
        lists = row["history_tids" if "history_tids" in names else "hist_tid"]
        if not isinstance(lists, list):
            raise InputError(f"{where}: its history is no list of lists of terms -> {SHAPES}")
        history = [_terms(terms, where) for terms in lists]
        if append_valid and row.get("valid_tid"):
            history.append(_terms(row["valid_tid"], where))
        target = _terms(row["target_tid"], where)
    else:
        raise InputError(f"{where} is no sample -> {SHAPES}")
    return tuple(terms for terms in history if terms), target


def _ids(value: Any, where: str) -> list[str]:
    """Ids of a list, or of text: quoted ones, else what stands between commas."""
    if value is None:
        return []
    if isinstance(value, list):
        return [str(part).strip() for part in value]
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise InputError(f"{where}: item ids are text or a list, not {value!r}")
    text = str(value)
    found = [one or other for one, other in QUOTED.findall(text)] or text.strip("[] ").split(",")
    return [part.strip() for part in found if part.strip()]


def _terms(value: Any, where: str) -> Terms:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(
        isinstance(term, str) and 0 < len(term.strip()) <= LONGEST_TERM for term in value
    ):
        raise InputError(
            f"{where}: terms are a list of texts of 1 to {LONGEST_TERM} characters, not {str(value)[:60]!r} -> {SHAPES}"
        )
    return tuple(dict.fromkeys(" ".join(term.split()) for term in value))
