"""Published semantic IDs: the index files of MiniOneRec, LETTER, SIDReasoner and MIMIGenRec, and their tokens.

    index.json        {"<item>": ["<a_12>", "<b_7>", "<c_255>"]}     MiniOneRec, LETTER, SIDReasoner
    id2sid.json       the same, indented                             MIMIGenRec
    new_tokens.json   the distinct tokens of it, sorted as strings   MIMIGenRec

Semantic IDs of one length are our contract; an index whose last token stands on some items only (an ordinal against
collisions) gets the code 0 there, and loses it again when it is written.

Legend: N items, L levels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.program import InputError
from data.releases.text import read_json
from data.sid import FORMATS, SidFormat

LAYOUTS = ("minionerec", "mimigenrec")


@dataclass(frozen=True)
class PublishedIndex:
    """The semantic IDs of a published file: `codes_NL` int32, row i belongs to `keys[i]`, in the file's order.

    padded: items that had no token of the last level and got its code 0; key: what the file calls its keys.
    """

    keys: tuple[str, ...]
    codes_NL: np.ndarray
    padded: int = 0
    key: str = "item"

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
    if short:
        _require_reasons(path, tuple(raw), codes_NL, whole)
    return PublishedIndex(tuple(raw), codes_NL, len(short))


def _require_reasons(
    path: str | Path, keys: tuple[str, ...], codes_NL: np.ndarray, whole_N: np.ndarray
) -> None:
    """InputError unless every item with the last token shares the others with another item: it tells apart what collides, and an item
    that has it alone says that tokens of others are missing."""
    _, group_N, size_G = np.unique(codes_NL[:, :-1], axis=0, return_inverse=True, return_counts=True)
    alone = np.flatnonzero(whole_N & (size_G[group_N.ravel()] == 1))
    if len(alone):
        levels = codes_NL.shape[1]
        raise InputError(
            f"{path}: {int((~whole_N).sum())} items have {levels - 1} tokens, and item {keys[alone[0]]} has {levels} though no other "
            f"item has its first {levels - 1} -> tokens are missing, or items: give the whole index"
        )


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
            match = re.fullmatch(self._fmt.code_pattern(level), str(token))
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
