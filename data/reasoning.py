"""What a teacher wrote for a data set: reasoning about rows of it, narratives, instructions, distilled thoughts; one text a row.

A directory `<data>/reasoning/<name>` holds texts of one kind per row of sequences (`key` is its example_id), or per item:

    identifier      a paragraph that reads the terms of a history and ends in those of the target
    instruction     the prompt for an image or video that an evolutionary search ended with
    reasoning       a paragraph that leads from the history to such a prompt
    item            what is known of an item, told without its name (`key` and `target` are the item)
    history         where a history leads, without a word about the target
    narrative       a paragraph that recites history and target and keeps that reasoning
    preference      what the user of a row prefers

A published folder's texts (data/releases) are columns of the data set's own sequences instead, RELEASED, among them those of kind
`narrative`. `texts_of_rows` joins both to rows: a text belongs to the row of sequences whose example_id is its key, in the split that
the teacher was told, and to no other.

Items inside a text are placeholders, `[[item:123]]`, which become semantic IDs or titles when examples are built: a new set of
semantic IDs leaves the texts as they are. `escaped` keeps what only looks like one; `rendered` undoes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from configs.program import InputError, warn
from data import artifacts

ITEM, NARRATIVE = "item", "narrative"
OF_TERMS = ("identifier", "instruction", "reasoning")  # NaviGen's, which name items by their terms
OF_ITEMS = (ITEM, "history", NARRATIVE)  # SIDReasoner's, which name them by semantic IDs
KINDS = (*OF_TERMS, *OF_ITEMS, "preference")
# kind -> column of sequences with what a published folder brought
RELEASED = {
    "identifier": "reasoning",
    "instruction": "instruction",
    "reasoning": "instruction_reasoning",
    NARRATIVE: NARRATIVE,
}
WITH_TEXT = ("ok", "repaired")
STATUSES = (*WITH_TEXT, "rejected", "refused", "failed")
PLACEHOLDER = re.compile(r"\[\[item:(\d+)\]\]")
_LOOKALIKE, _ESCAPED = re.compile(r"\[\[(\\*)item:"), re.compile(r"\[\[\\(\\*)item:")


@dataclass(frozen=True, kw_only=True)
class TaughtText:
    """One row. A text is there exactly where `status` is ok (the first answer) or repaired (asked for again)."""

    key: int
    """example_id of the row of sequences; of a foreign file the place of the sample"""
    kind: str
    split: str
    """of the row whose history and target the teacher saw"""
    text: str
    teacher: str
    """backend and model; `heuristic:...` is a rule in place of a model"""
    prompt_sha256: str
    """of all calls that led to the text"""
    status: str
    """ok, repaired, or why there is no text: rejected (by a check of its content), refused, failed"""
    attempts: int
    """calls made for the sample, in this and earlier runs"""
    history_terms: Sequence[Sequence[str]] = ()
    """the TIDs of the history, oldest first"""
    target_terms: Sequence[str] = ()
    sample_id: str = ""
    """of a foreign file"""
    user_id: int | None = None
    target: int | None = None
    """item"""


def placeholder(item: int) -> str:
    """How a text names an item."""
    return f"[[item:{item}]]"


def escaped(text: str) -> str:
    r"""Raw text in which nothing is a placeholder: escaped("see [[item:7]]") is "see [[\item:7]]"."""
    return _LOOKALIKE.sub(r"[[\\\1item:", text)


def rendered(text: str, named: Callable[[int], str]) -> str:
    r"""`text` with every placeholder replaced by `named(item)` and what was escaped as it was.

    rendered(escaped(x), named) == x, and rendered("[[item:7]] or [[\\item:7]]", str) is "7 or [[item:7]]".
    """
    parts = PLACEHOLDER.split(text)
    parts[::2] = [_ESCAPED.sub(r"[[\1item:", part) for part in parts[::2]]
    parts[1::2] = [named(int(item)) for item in parts[1::2]]
    return "".join(parts)


def named_items(text: str) -> list[int]:
    """The items of the placeholders in a text, in order: named_items("[[item:7]] and [[item:2]]") is [7, 2]."""
    return [int(item) for item in PLACEHOLDER.findall(text)]


def replaced(text: str, named: Callable[[int], str]) -> str:
    """`text` with other placeholders, or text, in place of its own; what was escaped stays so."""
    return PLACEHOLDER.sub(lambda match: named(int(match[1])), text)


def reasoning_table(rows: Iterable[TaughtText]) -> pa.Table:
    """The table of `artifacts.REASONING`; InputError for a row that is none."""
    rows = list(rows)
    columns = {
        name: pa.array([getattr(row, name) for row in rows], kind)
        for name, kind in (artifacts.REASONING.required | artifacts.REASONING.optional).items()
    }
    return _checked(pa.table(columns), "reasoning", None)


def read_reasoning(
    directory: str | Path, *, kind: str | None = None, num_items: int | None = None
) -> pa.Table:
    """The texts of a finished directory, in the order of its rows; InputError for another kind or a faulty row.

    With `num_items` every placeholder must name an item of 0..N-1.
    """
    table = _checked(artifacts.read(directory, artifacts.REASONING), str(directory), num_items)
    if kind is not None and (other := set(table["kind"].to_pylist()) - {kind}):
        raise InputError(
            f"{directory} holds texts of kind {', '.join(sorted(other))}, not {kind} -> give a directory of that kind"
        )
    return table


@dataclass(frozen=True)
class RowTexts:
    """texts: by kind, {example_id: text with placeholders}; left_out: rows of a teacher's tables that are none, by kind and reason."""

    texts: dict[str, dict[int, str]]
    left_out: dict[str, Counter[str]]


def texts_of_rows(
    directories: Sequence[str], rows: Mapping[int, tuple[str, int]], *, num_items: int
) -> RowTexts:
    """The texts of `rows`, {example_id: (split, target)}, and of items, of one directory per kind; InputError for two of a kind.

    One of the directories may be the data set itself, whose release brought texts; InputError where it brought none.
    """
    made = RowTexts({}, {})
    for directory in directories:
        if (Path(directory) / artifacts.SEQUENCES.file).is_file():
            found = released_texts(directory, num_items=num_items)
            found = {
                kind: {key: text for key, text in own.items() if key in rows} for kind, own in found.items()
            }
        else:
            found = _written_texts(directory, rows, made.left_out, num_items=num_items)
        if twice := sorted(found.keys() & made.texts.keys()):
            raise InputError(
                f"{directory} has texts of kind {twice[0]}, of which there are some already -> one directory per kind "
                f"({', '.join(KINDS)})"
            )
        made.texts.update(found)
    return made


def _written_texts(
    directory: str,
    rows: Mapping[int, tuple[str, int]],
    left_out: dict[str, Counter[str]],
    *,
    num_items: int,
) -> dict[str, dict[int, str]]:
    table = read_reasoning(directory, num_items=num_items)
    columns = [table[name].to_pylist() for name in ("key", "kind", "split", "target", "text", "status")]
    texts: dict[str, dict[int, str]] = {kind: {} for kind in set(columns[1])}
    for key, kind, split, target, text, status in zip(*columns, strict=True):
        if status not in WITH_TEXT:
            left_out.setdefault(kind, Counter())[status] += 1
        elif kind != ITEM and rows.get(key) != (
            split,
            target,
        ):  # of a foreign file: its key is a place in it, its target unknown
            left_out.setdefault(kind, Counter())["of_another_row"] += 1
        else:
            texts[kind][key] = text
    if not any(texts.values()) and (written := sum(status in WITH_TEXT for status in columns[-1])):
        warn(
            f"{directory}: none of its {written} texts is of a row of this data -> give texts of these rows and splits"
        )
    return texts


def released_texts(data: str, *, num_items: int) -> dict[str, dict[int, str]]:
    """By kind, {example_id: text} of what a data set's release brought with its rows; InputError where that is nothing."""
    table = artifacts.read_sequences(data, num_items=num_items)
    keys, where = table["example_id"].to_pylist(), f"{data}/{artifacts.SEQUENCES.file}"
    found = {}
    for kind, name in RELEASED.items():
        texts = column_texts(table, name, num_items=num_items, where=where)
        if any(texts):
            found[kind] = {key: text for key, text in zip(keys, texts, strict=True) if text}
    if not found:
        raise InputError(
            f"{data} has no texts of rows -> leave it out of reasoning, or prepare it from a folder that has them"
        )
    return found


def column_texts(table: pa.Table, name: str, *, num_items: int, where: str) -> list[str]:
    """A column of texts that a published folder brought, "" for null; [] without it, or where it is a user's own of another type.

    InputError naming the first row whose text names an item outside 0..N-1.
    """
    if name not in table.column_names or table[name].type not in (pa.string(), pa.large_string()):
        return []
    texts = [text or "" for text in table[name].to_pylist()]
    for row, text in enumerate(texts):
        if problem := _far(text, num_items):
            raise InputError(f"{where}: {name} of row {row}: {problem} -> correct the text")
    return texts


def _checked(table: pa.Table, where: str, num_items: int | None) -> pa.Table:
    keys = table["key"].to_pylist()
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise InputError(f"{where}: key {twice} comes twice -> one text per row and kind")
    columns = (table[name].to_pylist() for name in ("key", "kind", "split", "status", "text"))
    for key, kind, split, status, text in zip(*columns, strict=True):
        if kind == ITEM and num_items is not None and not 0 <= key < num_items:
            raise InputError(
                f"{where}: key {key}: a narrative of an item that is not among 0..{num_items - 1} -> write the texts of this data "
                "set's items: preprocess.enrich_items"
            )
        if problem := _problem(kind, split, status, text, num_items):
            raise InputError(f"{where}: key {key}: {problem} -> run {artifacts.REASONING.written_by} again")
    return table


def _problem(kind: str, split: str, status: str, text: str, num_items: int | None) -> str:
    """What is wrong with a row, "" where nothing is."""
    for name, value, known in (
        ("kind", kind, KINDS),
        ("split", split, artifacts.SPLITS),
        ("status", status, STATUSES),
    ):
        if value not in known:
            return f"{name} {value!r} is none of {', '.join(known)}"
    if bool(text.strip()) != (status in WITH_TEXT):
        return f"status {status} with a text of {len(text)} characters"
    return "" if num_items is None else _far(text, num_items)


def _far(text: str, num_items: int) -> str:
    """What is wrong with a text that names an item outside 0..N-1, "" where it names none."""
    far = next((item for item in named_items(text) if item >= num_items), None)
    return "" if far is None else f"its text names item {far}, outside 0..{num_items - 1}"
