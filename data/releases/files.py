"""Files of MiniOneRec, MIMIGenRec, SIDReasoner and NaviGen, read and written: pure functions, no program.

    index.json        {"<item>": ["<a_12>", "<b_7>", "<c_255>"]}     MiniOneRec, LETTER, SIDReasoner
    id2sid.json       the same, indented                             MIMIGenRec
    new_tokens.json   the distinct tokens of it, sorted as strings   MIMIGenRec
    *.inter           a tab-separated file, one (history, target) row per line
    info/*.txt        semantic ID, title and item, tab-separated, one item per line

`.gz` files are read as they are. Semantic IDs of one length are our contract; an index whose last token stands on
some items only (an ordinal against collisions) gets the code 0 there, and loses it again when it is written.

Legend: N items, L levels, R rows.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data.sid import FORMATS, LETTERS, SidFormat

LAYOUTS = ("minionerec", "mimigenrec")
INTER_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"


@dataclass(frozen=True)
class PublishedIndex:
    """The semantic IDs of a published file: `codes_NL` int32, row i belongs to `keys[i]`, in the file's order.

    padded: items that had no token of the last level and got its code 0.
    """

    keys: tuple[str, ...]
    codes_NL: np.ndarray
    padded: int = 0

    @property
    def item_ids(self) -> np.ndarray:
        """The keys as integers, int64 [N]; InputError when one is no number."""
        wrong = [key for key in self.keys if not key.isdecimal()]
        if wrong:
            raise InputError(
                f"{len(wrong)} items of the index are not numbers (first: {wrong[0]!r}) -> match them by raw_id"
            )
        return np.array([int(key) for key in self.keys], np.int64)

    @property
    def largest(self) -> tuple[int, ...]:
        """The largest code of every level plus one: the smallest sizes that hold this index."""
        return tuple(int(code) + 1 for code in self.codes_NL.max(axis=0))


def read_text(path: str | Path) -> str:
    """The text of a plain or gzipped file; InputError when it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"missing file: {path} -> check the path")
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                return file.read()
        return path.read_text(encoding="utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({str(error)[:80]}) -> get the file again") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file, plain or gzipped."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}) -> get the file again") from None


def read_index(path: str | Path, *, fmt: SidFormat = FORMATS["letters"]) -> PublishedIndex:
    """An index.json or id2sid.json, plain or gzipped.

    InputError naming the item whose tokens are not one semantic ID, or whose length does not fit the others.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw or not all(isinstance(tokens, list) for tokens in raw.values()):
        raise InputError(
            f'{path} is not an index {{"item": ["<a_1>", ...]}} -> pass index.json or id2sid.json'
        )
    known = _TokenCodes(fmt)
    rows = [known.codes(tokens, where=f"{path}: item {key}") for key, tokens in raw.items()]
    levels = max(map(len, rows))
    short = [at for at, row in enumerate(rows) if len(row) < levels]
    for at in short:
        if len(rows[at]) < levels - 1:
            raise InputError(
                f"{path}: item {list(raw)[at]} has {len(rows[at])} tokens, others {levels} -> one may be missing"
            )
        rows[at] = (*rows[at], 0)
    codes_NL = np.array(rows, np.int32).reshape(len(rows), levels)
    whole = np.ones(len(rows), bool)
    whole[short] = False
    if short and (codes_NL[whole, -1] == 0).any():
        raise InputError(
            f"{path}: {len(short)} items have no token of level {levels}, and its code 0 is in use -> add one to it"
        )
    return PublishedIndex(tuple(raw), codes_NL, len(short))


def code_pattern(fmt: SidFormat, level: int) -> str:
    """Regular expression of one token of a level, the code its group."""
    text = re.escape(fmt.token.format(level=LETTERS[level], code="\0"))
    return text.replace("\0", "(0|[1-9][0-9]*)")


def find_sids(
    text: str, *, levels: int, fmt: SidFormat = FORMATS["letters"], optional_last: bool = False
) -> list[tuple[int, ...]]:
    """The codes of every semantic ID that stands somewhere in a text, in order.

    optional_last: the last token may be missing, its code is 0 then (see the padding of `read_index`).

    >>> find_sids("they took <a_1><b_2>, <a_3><b_0> and <b_4>", levels=2)
    [(1, 2), (3, 0)]
    """
    parts = [code_pattern(fmt, level) for level in range(levels)]
    if optional_last:
        parts[-1] = f"(?:{parts[-1]})?"
    pattern = re.escape("".join(fmt.prefix)) + "".join(parts) + re.escape("".join(fmt.suffix))
    return [tuple(int(code or 0) for code in found.groups()) for found in re.finditer(pattern, text)]


class _TokenCodes:
    """Codes of published tokens, each distinct token parsed once."""

    def __init__(self, fmt: SidFormat) -> None:
        self._fmt = fmt
        self._code: dict[tuple[int, str], int] = {}

    def codes(self, tokens: Sequence[str], *, where: str) -> tuple[int, ...]:
        """The codes of a token list without the format's prefix and suffix; InputError when one is not of its level."""
        front, back = len(self._fmt.prefix), len(self._fmt.suffix)
        if front and tuple(tokens[:front]) == self._fmt.prefix:
            tokens = tokens[front : len(tokens) - back]
        return tuple(self._parse(level, token, where) for level, token in enumerate(tokens))

    def _parse(self, level: int, token: str, where: str) -> int:
        if (level, token) not in self._code:
            match = re.fullmatch(code_pattern(self._fmt, level), str(token))
            if match is None:
                expected = self._fmt.code_token(level, 0)
                raise InputError(
                    f"{where}: token {token!r} at level {level + 1} is not like {expected} -> another format?"
                )
            self._code[level, token] = int(match[1])
        return self._code[level, token]


def index_tokens(
    codes_NL: np.ndarray, *, fmt: SidFormat = FORMATS["letters"], drop_last_zero: bool = False
) -> list[list[str]]:
    """The tokens of every item; with `drop_last_zero` a last code 0 is not written (the inverse of the padding)."""
    width = codes_NL.shape[1]
    sizes = codes_NL.max(axis=0, initial=0) + 1
    table = [tokens for _, tokens in fmt.level_tokens(sizes.tolist())]
    rows = [[table[level][code] for level, code in enumerate(row)] for row in codes_NL.tolist()]
    if drop_last_zero:
        rows = [
            row[: width - 1] if last == 0 else row for row, last in zip(rows, codes_NL[:, -1], strict=True)
        ]
    return [[*fmt.prefix, *row, *fmt.suffix] for row in rows]


def write_index(
    path: str | Path,
    codes_NL: np.ndarray,
    *,
    keys: Sequence[str] | None = None,
    layout: str = "minionerec",
    fmt: SidFormat = FORMATS["letters"],
    drop_last_zero: bool = False,
) -> None:
    """index.json (layout minionerec) or id2sid.json (mimigenrec), byte for byte as those systems write it.

    keys: names of the items; None = 0..N-1. `path` is written in place: pass a temporary one (Output.replacing).
    """
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r} -> one of {', '.join(LAYOUTS)}")
    names = [str(item) for item in range(len(codes_NL))] if keys is None else list(keys)
    tokens = index_tokens(codes_NL, fmt=fmt, drop_last_zero=drop_last_zero)
    value = dict(zip(names, tokens, strict=True))
    if len(value) != len(names):
        raise InputError(
            f"{len(names) - len(value)} items of the index share their name -> names must be distinct"
        )
    text = json.dumps(value) if layout == "minionerec" else json.dumps(value, indent=4) + "\n"
    Path(path).write_text(text, encoding="utf-8")


def new_tokens(codes_NL: np.ndarray, *, fmt: SidFormat = FORMATS["letters"]) -> list[str]:
    """The distinct tokens of an index, sorted as strings as MIMIGenRec lists them.

    >>> new_tokens(np.array([[2, 0], [10, 0]]))
    ['<a_10>', '<a_2>', '<b_0>']
    """
    used = [
        fmt.code_token(level, code)
        for level in range(codes_NL.shape[1])
        for code in set(codes_NL[:, level].tolist())
    ]
    return sorted({*used, *fmt.prefix, *fmt.suffix})


def write_new_tokens(path: str | Path, codes_NL: np.ndarray, *, fmt: SidFormat = FORMATS["letters"]) -> None:
    """new_tokens.json; `path` is written in place."""
    Path(path).write_text(json.dumps(new_tokens(codes_NL, fmt=fmt), indent=2) + "\n", encoding="utf-8")


def read_new_tokens(path: str | Path) -> list[str]:
    """The tokens of a new_tokens.json; InputError when it is no list of texts or names one twice."""
    tokens = read_json(path)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{path} is not a list of tokens -> pass new_tokens.json")
    if len(set(tokens)) != len(tokens):
        raise InputError(f"{path} names {len(tokens) - len(set(tokens))} tokens twice -> make it again")
    return tokens


@dataclass(frozen=True)
class ForeignRow:
    """One answered row of another system: texts as they stand there, answers best first.

    history: the text that names the history (a prompt or a list of semantic IDs), "" where there is none.
    """

    history: str
    target: str
    answers: tuple[str, ...]


def read_answers(path: str | Path) -> list[ForeignRow]:
    """The rows of a prediction file, plain or gzipped.

    JSON list   MiniOneRec and MIMIGenRec {input, output, predict}, SIDReasoner {history, output, predict, ...}
    JSON lines  NaviGen {prompt_text, gold_target_cid, candidates: [{rank, parsed_target_cid, raw_text}]}

    InputError naming the first row without these fields, or with no answer at all.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        raw = read_json(path)
    else:
        raw = list(_json_lines(text, path))
    if not raw:
        raise InputError(f"{path} has no rows -> was the prediction finished?")
    return [_foreign_row(row, f"{path}: row {at}") for at, row in enumerate(raw)]


def _json_lines(text: str, path: str | Path) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}:{number} is not valid JSON ({error}) -> get the file again"
                ) from None


def _foreign_row(row: Any, where: str) -> ForeignRow:
    """The texts of one row, whatever system wrote it."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is no object -> pass a prediction file")
    target = row.get("output", row.get("gold_target_cid"))
    answers = row.get("predict")
    if answers is None and isinstance(row.get("candidates"), list):
        for candidate in row["candidates"]:
            if not isinstance(candidate, dict) or not isinstance(candidate.get("rank"), int | float):
                raise InputError(f"{where}: a candidate has no rank -> decode that row again")
        ranked = sorted(row["candidates"], key=lambda candidate: candidate["rank"])
        answers = [
            candidate.get("parsed_target_cid") or candidate.get("raw_text", "") for candidate in ranked
        ]
    if not isinstance(target, str) or not isinstance(answers, list):
        raise InputError(
            f"{where} has no output and predict (or gold_target_cid and candidates) -> another file?"
        )
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise InputError(f"{where}: predictions must be one text or more -> decode that row again")
    history = row.get("history", row.get("input", row.get("prompt_text", "")))
    return ForeignRow(history if isinstance(history, str) else json.dumps(history), target, tuple(answers))


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


def read_info(path: str | Path) -> list[tuple[str, str, int]]:
    """(semantic ID, title, item) of every line of an info/*.txt; a title may hold tabs, the other two cannot."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line:
            continue
        first, _, rest = line.rstrip("\r").partition("\t")
        title, _, item = rest.rpartition("\t")
        if not first.startswith("<") or not item.isdecimal():
            raise InputError(f"{path}:{number} is not SID, title, item -> get the file again")
        rows.append((first, title, int(item)))
    return rows


def write_info(
    path: str | Path, codes_NL: np.ndarray, titles: Sequence[str], *, fmt: SidFormat = FORMATS["letters"]
) -> int:
    """Write info/*.txt, item by item; returns how many titles had a tab or line break, written as a space."""
    clean = [" ".join(title.split("\t")).replace("\r", " ").replace("\n", " ") for title in titles]
    rows = zip(codes_NL.tolist(), clean, strict=True)
    text = "".join(f"{fmt.text(codes)}\t{title}\t{item}\n" for item, (codes, title) in enumerate(rows))
    Path(path).write_text(text, encoding="utf-8")
    return sum(after != before for after, before in zip(clean, titles, strict=True))
