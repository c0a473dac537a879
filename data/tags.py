"""Hierarchical item tags: category paths as levels, rare tags folded, class numbers per level.

A tag set gives every item one tag per level, coarse to fine; None is "unknown". On disk it is `tags.parquet` (item_id,
tags list<string> with one entry per level, source list<string> likewise, split of the item) and `tag_vocab.json`, the
classes that a model predicts: per level a bijection between class numbers 0..C-1 and names, with the tags that were too
rare to learn folded into one last class.

Legend: N items, L levels, C classes of a level.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts
from data.store.output import require_manifest

UNKNOWN = -1
OTHER = "(other)"
VOCAB = "tag_vocab.json"
SOURCES = ("given", "padding", "graph", "llm", "cluster")
Tags = list[list[str | None]]
Root = Literal["shared", "always", "keep"]
Overflow = Literal["cut", "join"]
Unseen = Literal["fold", "keep"]
_WORD = re.compile(r"[A-Za-z]{3,}")


def path_levels(
    paths: Sequence[Sequence[str]], *, levels: int, root: Root = "shared", overflow: Overflow = "cut"
) -> Tags:
    """Category paths as exactly `levels` tags per item, [N][L], None where a path is too short.

    Repeats within a path are dropped, the first occurrence stays. `root` "always" drops the first entry of every path,
    "shared" drops it when all paths begin with the same one, "keep" never. A longer path is cut, or with "join" its rest
    becomes one last tag (HiD-VAE's builder: five levels, "always", "join").
    """
    clean = [list(dict.fromkeys(name for part in path if (name := part.strip()))) for path in paths]
    first = {path[0] for path in clean if path}
    if root == "always" or root == "shared" and len(first) == 1 and any(len(path) > 1 for path in clean):
        clean = [path[1:] for path in clean]
    tags: Tags = []
    for path in clean:
        if len(path) > levels and overflow == "join":
            path = [*path[: levels - 1], " ".join(path[levels - 1 :])]
        tags.append([*path[:levels], *[None] * (levels - len(path))])
    return tags


def pad_published(
    tags: Tags,
    *,
    titles: Sequence[str],
    brands: Sequence[str],
    stop_words: Collection[str],
    seed: int,
) -> tuple[Tags, np.ndarray]:
    """(tags without None, bool [N, L] that says which were padded), in the manner of HiD-VAE's Amazon builder.

    Missing levels take words of the title (three letters or more, no stop words, in random order, seeded per item), then
    the brand, then GenericTag1, GenericTag2, ... Such a tag says nothing about a hierarchy: an option for comparisons.
    """
    padded_NL = np.array([[tag is None for tag in row] for row in tags], bool).reshape(len(tags), -1)
    filled: Tags = []
    for item, row in enumerate(tags):
        known = [tag for tag in row if tag is not None]
        words = [word for word in _WORD.findall(titles[item]) if word.lower() not in stop_words]
        order = np.random.default_rng((seed, item)).permutation(len(words))
        spare = [*dict.fromkeys(words[i] for i in order), brands[item].strip()]
        spare = [word for word in spare if word and word not in known]
        spare += [f"GenericTag{number + 1}" for number in range(len(row))]
        supply = iter(spare)
        filled.append([next(supply) if tag is None else tag for tag in row])
    return filled, padded_NL


def split_items(num_items: int, *, valid: float, test: float, seed: int) -> np.ndarray:
    """`train`, `valid` or `test` for every item, str [N]: independent draws with these shares."""
    draw_N = np.random.default_rng(seed).random(num_items)
    return np.where(draw_N < test, "test", np.where(draw_N < test + valid, "valid", "train"))


def children(tags: Tags) -> list[dict[str, list[str]]]:
    """For every level but the last: tag -> the tags seen directly under it in some item, sorted."""
    levels = len(tags[0]) if tags else 0
    below: list[dict[str, set[str]]] = [defaultdict(set) for _ in range(levels - 1)]
    for row in tags:
        for level, (parent, child) in enumerate(zip(row, row[1:], strict=False)):
            if parent is not None and child is not None:
                below[level][parent].add(child)
    return [{parent: sorted(names) for parent, names in level.items()} for level in below]


@dataclass(frozen=True)
class TagVocab:
    """Classes per level. The tags in `folded` share the last class of their level, called OTHER."""

    names: tuple[tuple[str, ...], ...]
    folded: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for level, (names, folded) in enumerate(zip(self.names, self.folded, strict=True)):
            if len(set(names)) != len(names) or len(set(folded)) != len(folded) or set(names) & set(folded):
                raise InputError(f"tag vocabulary: level {level + 1} names a tag twice")
            if folded and (not names or names[-1] != OTHER):
                raise InputError(
                    f"tag vocabulary: level {level + 1} folds tags, but its last class is not {OTHER}"
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Classes per level."""
        return tuple(len(names) for names in self.names)

    @cached_property
    def _numbers(self) -> list[dict[str, int]]:
        numbers = []
        for names, folded in zip(self.names, self.folded, strict=True):
            number = {name: i for i, name in enumerate(names)}
            numbers.append(number | dict.fromkeys(folded, len(names) - 1))
        return numbers

    def encode(self, tags: Tags) -> np.ndarray:
        """Class numbers int32 [N, L]; UNKNOWN (-1) for None and for a tag that the vocabulary does not have."""
        rows = [
            [number.get(tag, UNKNOWN) for number, tag in zip(self._numbers, row, strict=True)] for row in tags
        ]
        return np.array(rows, np.int32).reshape(len(tags), len(self.names))

    def decode(self, classes_NL: np.ndarray) -> Tags:
        """Names of class numbers [N, L], None for UNKNOWN; a folded tag comes back as OTHER."""
        return [
            [None if c == UNKNOWN else names[c] for names, c in zip(self.names, row, strict=True)]
            for row in classes_NL.tolist()
        ]

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"classes": list(names), "folded": list(folded)}
            for names, folded in zip(self.names, self.folded, strict=True)
        ]

    @staticmethod
    def from_json(raw: list[dict[str, Any]]) -> TagVocab:
        return TagVocab(
            tuple(tuple(level["classes"]) for level in raw), tuple(tuple(level["folded"]) for level in raw)
        )


def build_vocab(
    tags: Tags, counted_N: np.ndarray, *, rare_threshold: int, unseen: Unseen = "fold"
) -> TagVocab:
    """Classes of every level, alphabetical, then OTHER where tags were folded.

    Folded is what occurs in 1..rare_threshold-1 of the counted items (those a model learns from), and what occurs only
    in others unless `unseen` keeps it: a class of its own that nothing can learn, as published. Without such tags a level
    has no OTHER. Published thresholds: 30 for Amazon, 400 for KuaiRand.
    """
    levels = len(tags[0]) if tags else 0
    names, folds = [], []
    for level in range(levels):
        seen = {row[level] for row in tags} - {None}
        counts = Counter(row[level] for row, counted in zip(tags, counted_N, strict=True) if counted)
        rare = {
            tag for tag in seen if 0 < counts[tag] < rare_threshold or not counts[tag] and unseen == "fold"
        }
        rare |= seen & {OTHER}
        kept = sorted(seen - rare)
        names.append((*kept, OTHER) if rare else tuple(kept))
        folds.append(tuple(sorted(rare - {OTHER})))
    return TagVocab(tuple(names), tuple(folds))


@dataclass(frozen=True)
class TagSet:
    """A finished tags directory: per item its tags [N][L], their sources [N][L], its split str [N]; and the classes."""

    tags: Tags
    sources: Tags
    split_N: np.ndarray
    vocab: TagVocab

    @cached_property
    def classes_NL(self) -> np.ndarray:
        """Class numbers int32 [N, L], UNKNOWN where there is no tag."""
        return self.vocab.encode(self.tags)

    @cached_property
    def given_NL(self) -> np.ndarray:
        """bool [N, L]: tags that the data set itself has; only these can judge a prediction."""
        return np.array([[source == "given" for source in row] for row in self.sources], bool)

    @property
    def num_levels(self) -> int:
        return len(self.vocab.names)


def tag_table(tags: Tags, sources: Tags, split_N: np.ndarray) -> pa.Table:
    """The table of `artifacts.TAGS`."""
    return pa.table(
        {
            "item_id": pa.array(range(len(tags)), pa.int32()),
            "tags": pa.array(tags, artifacts.TEXT_LIST),
            "source": pa.array(sources, artifacts.TEXT_LIST),
            "split": pa.array(split_N.tolist(), pa.string()),
        }
    )


def read_tags(directory: str | Path, *, num_items: int | None = None) -> TagSet:
    """The TagSet of a finished tags/<name>/ directory; InputError unless it is whole and, where told, of `num_items` items."""
    require_manifest(directory, written_by=artifacts.TAGS.written_by)
    table = artifacts.read(directory, artifacts.TAGS)
    path = Path(directory) / VOCAB
    try:
        vocab = TagVocab.from_json(json.loads(path.read_text()))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is not a readable tag vocabulary ({error!r}) -> run {artifacts.TAGS.written_by} again"
        ) from None
    ids, tags, sources = table["item_id"].to_numpy(), table["tags"].to_pylist(), table["source"].to_pylist()
    if not np.array_equal(ids, np.arange(len(ids))):
        raise InputError(f"{directory}/tags.parquet: item_id is not 0..{len(ids) - 1} in order")
    if num_items not in (None, len(ids)):
        raise InputError(
            f"{directory} has tags of {len(ids)} items, here are {num_items} -> run {artifacts.TAGS.written_by} on this data"
        )
    for item, row in enumerate(zip(tags, sources, strict=True)):
        if {len(part) for part in row} != {len(vocab.names)}:
            raise InputError(
                f"{directory}/tags.parquet: item {item} has {len(row[0])} tags and {len(row[1])} sources, "
                f"not {len(vocab.names)} each"
            )
    return TagSet(tags, sources, np.array(table["split"].to_pylist()), vocab)


def coverage(sources: Tags) -> list[dict[str, int]]:
    """Per level: how many items have a tag from each source, and how many have none."""
    levels = len(sources[0]) if sources else 0
    counts = [Counter(row[level] for row in sources) for level in range(levels)]
    return [{name: level[name] for name in SOURCES} | {"unknown": level[None]} for level in counts]
