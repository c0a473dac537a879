"""Stage 03: one tag per level for every item, from category paths, with missing ones completed if you ask for it.

reads   <data>/items.parquet; an embeddings directory (stage 02) where `complete` names a method
writes  <output_dir>/tags.parquet (item_id; tags and source, one entry per level; split of the item), tag_vocab.json (the
        classes of every level and the rare tags folded into the last one), coverage.json, answers/answers.jsonl (llm), manifest.json

Without `complete`, what the category paths do not say stays unknown: a model leaves it out of its loss. Methods run in the
order given, each fills what is still missing:
  graph     the nearest tag among the children of the tag above (mean item vectors as tag vectors); no language model
  llm       the few nearest tags of the level go to a chat model, which chooses; answers are cached
  cluster   names of k-means groups, where an item has no tag at all: for data sets without categories
Items are drawn into train, valid and test: classes are counted on train items, and a tag model is judged on the others.

python -m preprocess.complete_tags --data data/toystore --output_dir data/toystore/tags/categories
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data import tags as tagging
from data.store import output
from data.tags import Overflow, Root, Tags, Unseen
from preprocess.tags import graph as tag_graph
from preprocess.tags.classify import TagChat, complete_by_chat
from rq.vectors import embeddings

if TYPE_CHECKING:
    from collections.abc import Collection

STAGE, VERSION = "complete_tags", 1
ANSWERS = "answers/answers.jsonl"  # in a folder: paid work, which an error of the run does not take away


@dataclass
class Paths:
    """How category paths become tags."""

    levels: int = 3
    """Tags per item."""
    root: Root = "shared"
    """First entry of a path: `shared` drops it when all paths have the same, `always` drops it, `keep` keeps it."""
    overflow: Overflow = "cut"
    """What becomes of a longer path: `cut`, or `join` its rest into the last tag."""
    padding: Literal["none", "published"] = "none"
    """`published` fills missing levels with title words, the brand and GenericTag numbers; `none` leaves them unknown."""

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise InputError(f"paths.levels {self.levels} must be >= 1")


@dataclass
class Classes:
    """Which tags become classes that a model predicts, and which items judge it."""

    rare_threshold: int = 30
    """Tags of fewer train items share one class `(other)`; 0 or 1 folds none. Published: 30 for Amazon, 400 for KuaiRand."""
    unseen: Unseen = "fold"
    """A tag without a train item: `fold` it into `(other)`, or `keep` it as a class that nothing can learn (published)."""
    valid_share: float = 0.05
    """Share of items on which a tag model is chosen."""
    test_share: float = 0.05
    """Share of items on which it is reported. Published: 0.05, and no valid part."""

    def __post_init__(self) -> None:
        if self.rare_threshold < 0 or min(self.valid_share, self.test_share) < 0:
            raise InputError(f"classes: rare_threshold {self.rare_threshold} and shares must be >= 0")
        if self.valid_share + self.test_share >= 1:
            raise InputError(
                f"classes: valid_share {self.valid_share} + test_share {self.test_share} leave no train items"
            )


@dataclass
class Graph:
    """Options of `graph`."""

    weights: list[list[float]] = field(default_factory=lambda: [list(w) for w in tag_graph.PUBLISHED_WEIGHTS])
    """Per level: weight of the item vector, then of the tags above from the first level down."""
    outside: bool = False
    """Where the tag above has no children, choose among all tags of the level (published); else it stays unknown."""


@dataclass
class ClusterOptions:
    """Options of `cluster`."""

    sizes: list[int] = field(default_factory=lambda: [16, 8, 4])
    """Groups at the first level, and parts of each group at every further one."""
    min_items: int = 10
    """No group is split into parts of fewer items on average."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 2 or self.min_items < 1:
            raise InputError(f"clusters: sizes {self.sizes} must be >= 2, min_items {self.min_items} >= 1")


@dataclass
class CompleteTagsArgs:
    """Arguments of stage 03."""

    data: str
    """Prepared data set (stage 01)."""
    output_dir: str
    """Where to write, e.g. data/<set>/tags/<name>."""
    embeddings: str | None = None
    """Embeddings directory (stage 02) that measures which tag is near an item; only `complete` reads it."""
    complete: list[Literal["graph", "llm", "cluster"]] = field(default_factory=list)
    """Methods that fill missing tags, in order."""
    paths: Paths = field(default_factory=Paths)
    """Category paths to tags."""
    classes: Classes = field(default_factory=Classes)
    """Tags to classes, items to parts."""
    graph: Graph = field(default_factory=Graph)
    """Options of `graph`."""
    llm: TagChat = field(default_factory=TagChat)
    """Options of `llm`."""
    clusters: ClusterOptions = field(default_factory=ClusterOptions)
    """Options of `cluster`."""
    seed: int = 42
    """Seed of the item split, the padding and k-means."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        if bool(self.complete) != (self.embeddings is not None):
            raise InputError("complete and embeddings go together -> give both, or neither")
        if len(set(self.complete)) != len(self.complete):
            raise InputError(f"complete {self.complete} names a method twice")
        if self.complete and self.paths.padding != "none":
            raise InputError("padding published leaves nothing to complete -> padding none, or no complete")
        if "graph" in self.complete:
            tag_graph.check_weights(self.graph.weights, levels=self.paths.levels)
        if "llm" in self.complete and self.llm.client.backend == "none":
            raise InputError("complete: llm needs a chat model -> set llm.client.backend")
        if "cluster" in self.complete and len(self.clusters.sizes) != self.paths.levels:
            raise InputError(
                f"clusters.sizes {self.clusters.sizes} must have one number per level ({self.paths.levels})"
            )
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options of methods that complete nothing."""
        options = {"graph": "graph", "llm": "llm", "cluster": "clusters"}
        return [
            Need((group,), method in self.complete, f"complete [{method}]")
            for method, group in options.items()
        ]


def main(args: CompleteTagsArgs) -> None:
    """Read, level, complete, fold, write."""
    with output.open_output(
        args, STAGE, version=VERSION, inputs={"data": args.data, "embeddings": args.embeddings}
    ) as out:
        items = artifacts.read_items(args.data)
        tags, sources = given_tags(items, args.paths, seed=args.seed)
        if args.complete:
            x_ND = embeddings.read_embeddings(args.embeddings)
            if len(x_ND) != len(items):
                raise InputError(
                    f"{args.embeddings} has {len(x_ND)} rows, {args.data} has {len(items)} items "
                    "-> run scripts/02_embed_items.sh on this data"
                )
            for method in args.complete:
                tags, filled_NL, facts = fill(method, x_ND, tags, items, args)
                mark(sources, filled_NL, method)
                out.facts |= facts
        shares = {"valid": args.classes.valid_share, "test": args.classes.test_share}
        split_N = tagging.split_items(len(items), **shares, seed=args.seed)
        threshold = args.classes.rare_threshold
        vocab = tagging.build_vocab(
            tags, split_N == "train", rare_threshold=threshold, unseen=args.classes.unseen
        )
        covered = tagging.coverage(sources)
        out.write_table(artifacts.TAGS.file, tagging.tag_table(tags, sources, split_N))
        out.write_json(tagging.VOCAB, vocab.to_json())
        out.write_json("coverage.json", covered)
        out.counts["items"] = len(items)
        out.counts |= {name: sum(level[name] for level in covered) for name in (*tagging.SOURCES, "unknown")}
        out.facts |= {"levels": args.paths.levels, "classes": list(vocab.sizes), "coverage": covered}
        program.say(f"complete_tags: {summary(covered, vocab, len(items))}")


def given_tags(items: pa.Table, paths: Paths, *, seed: int) -> tuple[Tags, Tags]:
    """(tags, sources) of the category paths, [N][L]."""
    tags = tagging.path_levels(
        items["categories"].to_pylist(), levels=paths.levels, root=paths.root, overflow=paths.overflow
    )
    sources: Tags = [[None if tag is None else "given" for tag in row] for row in tags]
    if paths.padding == "published":
        titles, brands = items["title"].to_pylist(), items["brand"].to_pylist()
        tags, padded_NL = tagging.pad_published(
            tags, titles=titles, brands=brands, stop_words=stop_words(), seed=seed
        )
        mark(sources, padded_NL, "padding")
    return tags, sources


def stop_words() -> Collection[str]:
    """English words that name nothing."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS


def mark(sources: Tags, filled_NL: np.ndarray, source: str) -> None:
    """Write `source` where a tag was filled."""
    for item, level in np.argwhere(filled_NL):
        sources[item][level] = source


def fill(
    method: str, x_ND: np.ndarray, tags: Tags, items: pa.Table, args: CompleteTagsArgs
) -> tuple[Tags, np.ndarray, dict[str, dict[str, int]]]:
    """(tags, bool [N, L] filled by this method, facts for the manifest)."""
    if method == "graph":
        filled, filled_NL = tag_graph.complete_by_graph(
            x_ND, tags, weights=args.graph.weights, outside=args.graph.outside
        )
        return filled, filled_NL, {}
    if method == "llm":
        texts = [text[: args.llm.text_chars] for text in embeddings.item_texts(items)]
        ask = args.llm.asker(Path(args.output_dir) / ANSWERS)
        filled, filled_NL, counts = complete_by_chat(
            x_ND, tags, texts, ask, candidates=args.llm.candidates, attempts=args.llm.attempts
        )
        return filled, filled_NL, {"llm": counts}
    return *pseudo(x_ND, tags, items["title"].to_pylist(), args.clusters, seed=args.seed), {}


def pseudo(
    x_ND: np.ndarray, tags: Tags, titles: list[str], clusters: ClusterOptions, *, seed: int
) -> tuple[Tags, np.ndarray]:
    """Pseudo-tags for the items that have no tag at all; items without a vector keep none."""
    bare = np.array([item for item, row in enumerate(tags) if not any(row)], np.int64)
    bare = bare[~embeddings.zero_rows(x_ND[bare])]
    filled, filled_NL = [list(row) for row in tags], np.zeros((len(tags), len(clusters.sizes)), bool)
    made = tag_graph.pseudo_tags(
        x_ND[bare],
        [titles[item] for item in bare],
        clusters=clusters.sizes,
        min_items=clusters.min_items,
        seed=seed,
    )
    for item, row in zip(bare, made, strict=True):
        filled[item] = row
        filled_NL[item] = [tag is not None for tag in row]
    return filled, filled_NL


def summary(covered: list[dict[str, int]], vocab: tagging.TagVocab, num_items: int) -> str:
    """One line per run: known share and classes of every level."""
    parts = []
    for level, (counts, classes, folded) in enumerate(
        zip(covered, vocab.sizes, vocab.folded, strict=True), start=1
    ):
        share = 1 - counts["unknown"] / max(num_items, 1)
        parts.append(f"level {level}: {share:.1%} known, {classes} classes ({len(folded)} tags folded)")
    return "; ".join(parts)


if __name__ == "__main__":
    program.run(CompleteTagsArgs, main)
