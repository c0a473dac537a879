"""Semantic IDs: which item has which codes (SidTable), which token each code is (SidVocab), how both look as text.

A semantic ID is a fixed number of codes, one per level, e.g. (12, 7, 255), written `<a_12><b_7><c_255>`. A collision
digit, where one is used, is a level like any other. All codes of all levels are in the vocabulary, each level as one
contiguous block of token ids where we add them; a foreign checkpoint may list scattered ids instead.

Legend: N items, L levels, S distinct semantic IDs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts
from data.store.fingerprints import sha256_bytes
from data.store.json_text import parse_json
from data.store.output import Output, read_manifest, require_manifest

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class SidFormat:
    """How a semantic ID is written: one token per level between optional fixed tokens.

    `token` is formatted with `level` (a, b, c, ...) and `code`; `prefix` and `suffix` are whole tokens.
    """

    token: str = "<{level}_{code}>"
    prefix: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()

    def code_token(self, level: int, code: int) -> str:
        return self.token.format(level=LETTERS[level], code=code)

    def text(self, codes: Sequence[int]) -> str:
        """`<a_12><b_7><c_255>` for codes (12, 7, 255)."""
        body = (self.code_token(level, code) for level, code in enumerate(codes))
        return "".join((*self.prefix, *body, *self.suffix))

    def level_tokens(self, sizes: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
        """(level, its tokens in code order) for every level."""
        for level, size in enumerate(sizes):
            yield level, [self.code_token(level, code) for code in range(size)]

    def parse(self, text: str, *, num_levels: int) -> tuple[int, ...] | None:
        """The codes of a text that is exactly one semantic ID, else None: level letters and order must be right."""
        match = self.pattern(num_levels).fullmatch(text.strip())
        return tuple(int(code) for code in match.groups()) if match else None

    def find(self, text: str, *, num_levels: int, optional_last: bool = False) -> list[tuple[int, ...]]:
        """The codes of every semantic ID that stands somewhere in a text, in order.

        optional_last: the last token may be missing, its code is 0 then (published ordinals against collisions).

        >>> SidFormat().find("they took <a_1><b_2>, <a_3><b_0> and <b_4>", num_levels=2)
        [(1, 2), (3, 0)]
        """
        found = self.pattern(num_levels, optional_last=optional_last).finditer(text)
        return [tuple(int(code or 0) for code in match.groups()) for match in found]

    def code_pattern(self, level: int) -> str:
        """Regular expression of one token of a level, its group the code, without leading zeros."""
        token = re.escape(self.token.format(level=LETTERS[level], code="\0"))
        return token.replace("\0", r"(0|[1-9][0-9]*)")

    def pattern(self, num_levels: int, *, optional_last: bool = False) -> re.Pattern[str]:
        """Regular expression of a whole semantic ID, a group per level; with `optional_last` the last token may be missing."""
        parts = [self.code_pattern(level) for level in range(num_levels)]
        if optional_last:
            parts[-1] = f"(?:{parts[-1]})?"
        return re.compile(re.escape("".join(self.prefix)) + "".join(parts) + re.escape("".join(self.suffix)))


FORMATS = {
    "letters": SidFormat(),
    "navigen": SidFormat("<s_{level}_{code}>", ("<|cid_begin|>",), ("<|cid_end|>",)),
}


def sid_format(name: str) -> SidFormat:
    """A named format; InputError for an unknown name."""
    if name not in FORMATS:
        raise InputError(f"unknown semantic-ID format {name!r} -> one of {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class SidTable:
    """The codes of every item. codes_NL int32, row i is item i; sizes: codes per level, L of them."""

    codes_NL: np.ndarray
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.codes_NL.ndim != 2 or self.codes_NL.shape[1] != len(self.sizes):
            raise InputError(
                f"semantic IDs have shape {self.codes_NL.shape}, but there are {len(self.sizes)} level sizes"
            )
        if len(self.codes_NL) and (
            (self.codes_NL < 0).any() or (self.codes_NL >= np.array(self.sizes)).any()
        ):
            item, level = np.argwhere((self.codes_NL < 0) | (self.codes_NL >= np.array(self.sizes)))[0]
            code = self.codes_NL[item, level]
            raise InputError(
                f"item {item} has code {code} at level {level}, outside 0..{self.sizes[level] - 1}"
            )

    @property
    def num_items(self) -> int:
        return len(self.codes_NL)

    @property
    def num_levels(self) -> int:
        return len(self.sizes)

    @cached_property
    def sha256(self) -> str:
        """Identity of the assignment; examples and models carry it, so that a mixture is refused."""
        return sha256_bytes(str(self.sizes).encode(), np.ascontiguousarray(self.codes_NL, np.int32).tobytes())

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(sids_SL sorted lexicographically, sid_of_item_N, offsets_S+1, items grouped by sid)."""
        order = np.lexsort(self.codes_NL.T[::-1])  # stable: items that share a semantic ID stay ascending
        sorted_NL = self.codes_NL[order]
        first_N = np.ones(len(sorted_NL), bool)
        first_N[1:] = (sorted_NL[1:] != sorted_NL[:-1]).any(1)
        inverse_N = np.empty(len(sorted_NL), np.int64)
        inverse_N[order] = np.cumsum(first_N) - 1
        sids_SL, offsets = sorted_NL[first_N], np.append(np.flatnonzero(first_N), len(sorted_NL))
        return sids_SL.astype(np.int32), inverse_N, offsets, order.astype(np.int32)

    @property
    def sids_SL(self) -> np.ndarray:
        """Distinct semantic IDs int32 [S, L], sorted: row s is the s-th leaf of the trie."""
        return self._groups[0]

    @property
    def sid_of_item_N(self) -> np.ndarray:
        """Row of `sids_SL` of every item, int64 [N]."""
        return self._groups[1]

    @property
    def group_sizes_S(self) -> np.ndarray:
        """Number of items of each distinct semantic ID, int64 [S]."""
        return np.diff(self._groups[2])

    @property
    def items_by_sid(self) -> np.ndarray:
        """All item ids int32 [N], those of one semantic ID together, in the order of `sids_SL`."""
        return self._groups[3]

    def items_of_sid(self, sid: int) -> np.ndarray:
        """Item ids int32 of the `sid`-th distinct semantic ID, ascending."""
        _, _, offsets, items = self._groups
        return items[offsets[sid] : offsets[sid + 1]]

    def items_of(self, codes: Sequence[int]) -> np.ndarray:
        """Item ids int32 that share `codes`, ascending; empty when no item has them."""
        sid = self.find(np.asarray(codes, np.int32)[None])[0]
        return self.items_of_sid(sid) if sid >= 0 else np.empty(0, np.int32)

    def find(self, codes_BL: np.ndarray) -> np.ndarray:
        """Row of `sids_SL` of each query int64 [B], -1 where no item has these codes."""
        keys = self._keys(self.sids_SL)
        inside = ((codes_BL >= 0) & (codes_BL < np.array(self.sizes))).all(1)
        wanted = self._keys(np.where(inside[:, None], codes_BL, 0))
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(inside & (keys[at] == wanted), at, -1)

    def _keys(self, codes: np.ndarray) -> np.ndarray:
        if np.prod([float(size) for size in self.sizes]) >= 2**62:
            raise InputError(
                f"level sizes {self.sizes} give more than 2^62 semantic IDs -> fewer levels or codes"
            )
        return np.ravel_multi_index(tuple(codes.astype(np.int64).T), self.sizes)

    def text(self, item: int, fmt: SidFormat) -> str:
        return fmt.text(self.codes_NL[item].tolist())


def read_sids(directory: str | Path) -> SidTable:
    """The SidTable of a finished sids/<name>/ directory."""
    manifest = require_manifest(directory, written_by=artifacts.SIDS.written_by)
    table = artifacts.read(directory, artifacts.SIDS)
    sizes = tuple(manifest["facts"]["sizes"])
    ids = table["item_id"].to_numpy()
    if not np.array_equal(ids, np.arange(len(ids))):
        raise InputError(
            f"{directory}/sids.parquet: item_id is not 0..{len(ids) - 1} in order -> assign the SIDs again"
        )
    offsets, values = artifacts.ragged(table["codes"])
    lengths = np.diff(offsets)
    if len(lengths) and (lengths != len(sizes)).any():
        item = int(np.argmax(lengths != len(sizes)))
        raise InputError(f"{directory}/sids.parquet: item {item} has {lengths[item]} codes, not {len(sizes)}")
    return SidTable(values.reshape(-1, len(sizes)), sizes)


def write_sids(out: Output, table: SidTable) -> None:
    """sids.parquet of an output, and what its manifest says of it: what `read_sids` reads."""
    columns = {
        "item_id": np.arange(table.num_items, dtype=np.int32),
        "codes": artifacts.int_rows(table.codes_NL),
    }
    out.write_table(artifacts.SIDS.file, pa.table(columns))
    out.counts |= {"items": table.num_items, "distinct": len(table.sids_SL)}
    out.facts |= {"sizes": list(table.sizes), "levels": table.num_levels, "sids_sha256": table.sha256}


def prefix_levels(
    codes_SL: np.ndarray, roots_S: np.ndarray | None, num_roots: int, lengths_S: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per level (ptr int32 [M + 1], codes int32 of its children) of rows that are sorted within ascending roots.

    Rows of length `lengths_S` (default: all L) take part in their first levels only.
    """
    rows = codes_SL
    node_S = np.zeros(len(rows), np.int32) if roots_S is None else roots_S.astype(np.int32)
    parents = num_roots
    for level in range(codes_SL.shape[1]):
        if lengths_S is not None:
            keep = lengths_S > level
            rows, node_S, lengths_S = rows[keep], node_S[keep], lengths_S[keep]
        column = rows[:, level]
        first = np.ones(len(rows), bool)
        first[1:] = (node_S[1:] != node_S[:-1]) | (column[1:] != column[:-1])
        starts = np.flatnonzero(first)
        ptr = np.zeros(parents + 1, np.int32)
        np.cumsum(np.bincount(node_S[starts], minlength=parents), out=ptr[1:])
        yield ptr, column[starts].astype(np.int32)
        node_S, parents = np.cumsum(first, dtype=np.int32) - 1, len(starts)


@dataclass(frozen=True)
class LevelTokens:
    """Token ids of one level: a contiguous block (`first`) or an explicit list (`ids`), in code order."""

    name: str
    size: int
    first: int | None = None
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.first is None) == (self.ids is None):
            raise InputError(f"level {self.name}: give either a first token id or a list of ids")
        if self.ids is not None and len(self.ids) != self.size:
            raise InputError(f"level {self.name}: {len(self.ids)} token ids for {self.size} codes")

    @cached_property
    def token_ids(self) -> np.ndarray:
        """Token id of every code, int64 [size]."""
        return (
            np.arange(self.first, self.first + self.size)
            if self.ids is None
            else np.array(self.ids, np.int64)
        )


@dataclass(frozen=True)
class SidVocab:
    """Codes <-> token ids of one model directory (`sid_vocab.json`)."""

    format: SidFormat
    levels: tuple[LevelTokens, ...]
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    sids_sha256: str = ""
    _lookup: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for number, level in enumerate(self.levels):
            for code, token in enumerate(level.token_ids.tolist()):
                if token in self._lookup:
                    raise InputError(
                        f"token id {token} belongs to two codes: {self._lookup[token]} and {(number, code)}"
                    )
                self._lookup[token] = (number, code)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(level.size for level in self.levels)

    def token_ids(self, codes_BL: np.ndarray) -> np.ndarray:
        """Token ids int64 [B, L] of codes [B, L]."""
        return np.stack([level.token_ids[codes_BL[:, i]] for i, level in enumerate(self.levels)], axis=1)

    def encode(self, codes: Sequence[int]) -> list[int]:
        """Token ids of one semantic ID with its prefix and suffix tokens."""
        body = [int(level.token_ids[code]) for level, code in zip(self.levels, codes, strict=True)]
        return [*self.prefix_ids, *body, *self.suffix_ids]

    def parse(self, ids: Sequence[int]) -> tuple[int, ...] | None:
        """Codes of token ids that are exactly one semantic ID in this vocabulary, else None."""
        front, back = len(self.prefix_ids), len(self.suffix_ids)
        if len(ids) != front + len(self.levels) + back:
            return None
        if tuple(ids[:front]) != self.prefix_ids or tuple(ids[len(ids) - back :]) != self.suffix_ids:
            return None
        pairs = [self._lookup.get(int(token), (-1, -1)) for token in ids[front : len(ids) - back]]
        return (
            tuple(code for _, code in pairs)
            if [level for level, _ in pairs] == list(range(len(pairs)))
            else None
        )

    def within(self, before: Sequence[int], behind: Sequence[int]) -> SidVocab:
        """The same codes with further fixed tokens around every semantic ID."""
        prefix, suffix = (*before, *self.prefix_ids), (*self.suffix_ids, *behind)
        return SidVocab(self.format, self.levels, prefix, suffix, self.sids_sha256)

    def check(self, table: SidTable, *, model: str | Path, sids: str | Path) -> None:
        """Refuse semantic IDs that this model was not expanded with, unless they are those with new items appended."""
        earlier = (read_manifest(sids) or {}).get("facts", {}).get("extends", [])
        if self.sids_sha256 not in (table.sha256, *earlier):
            raise InputError(
                f"model {model} was expanded with other semantic IDs than {sids} "
                f"({self.sids_sha256[:12]} against {table.sha256[:12]}) -> run scripts/08_expand_vocab.sh with these SIDs"
            )

    def to_json(self) -> dict[str, Any]:
        levels = []
        for level in self.levels:
            ids = list(level.ids) if level.ids is not None else {"first": level.first, "size": level.size}
            levels.append({"name": level.name, "size": level.size, "ids": ids})
        return {
            "format": {
                "token": self.format.token,
                "prefix": self.format.prefix,
                "suffix": self.format.suffix,
            },
            "levels": levels,
            "prefix_ids": list(self.prefix_ids),
            "suffix_ids": list(self.suffix_ids),
            "sids_sha256": self.sids_sha256,
        }


def read_vocab(model_dir: str | Path) -> SidVocab:
    """The SidVocab of a model directory; InputError when the model has no SID tokens."""
    path = Path(model_dir) / "sid_vocab.json"
    if not path.exists():
        raise InputError(
            f"model {model_dir} has no SID tokens (no sid_vocab.json) -> run scripts/08_expand_vocab.sh on it"
        )
    try:
        raw = parse_json(path.read_bytes(), where=path, fix="run scripts/08_expand_vocab.sh again")
        fmt = SidFormat(
            raw["format"]["token"], tuple(raw["format"]["prefix"]), tuple(raw["format"]["suffix"])
        )
        levels = tuple(_level_from_json(level) for level in raw["levels"])
        return SidVocab(fmt, levels, tuple(raw["prefix_ids"]), tuple(raw["suffix_ids"]), raw["sids_sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a valid sid_vocab.json ({error!r}) -> run scripts/08_expand_vocab.sh again"
        ) from None


def write_vocab(model_dir: str | Path, vocab: SidVocab) -> None:
    """The file that `read_vocab` reads, in a model directory that is being written."""
    Path(model_dir, "sid_vocab.json").write_text(json.dumps(vocab.to_json(), indent=1) + "\n")


def _level_from_json(level: dict[str, Any]) -> LevelTokens:
    ids = level["ids"]
    if isinstance(ids, dict):
        return LevelTokens(level["name"], level["size"], first=ids["first"])
    return LevelTokens(level["name"], level["size"], ids=tuple(ids))
