"""quality.json: everything that is measured on one set of semantic IDs, put together.

Definitions are in rq/quality/measures.py (codes, collisions, distortion, labels, consecutive pairs) and rq/quality/neighbours.py.

Legend: N items, L levels, D dimensions, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.cards import Cards
from data.sid import LETTERS, SidTable
from rq.quality import measures as quality
from rq.quality import neighbours
from rq.stack.residual import ResidualQuantizer
from rq.vectors.embeddings import item_texts


@dataclass(frozen=True)
class Evidence:
    """What semantic IDs are measured against. paths: category path per item; tags: the same of a tags directory, or None.

    lists: item lists whose spread over prefixes is measured, None = the neighbours by held-out behaviour.
    """

    items: pa.Table
    sequences: pa.Table
    split: str = "valid"
    neighbours: int = 10
    tags: list[list[str | None]] | None = None
    lists: list[np.ndarray] | None = None

    @property
    def paths(self) -> list[list[str]]:
        return self.items["categories"].to_pylist()

    def targets(self, split: str) -> np.ndarray:
        """Target item of every row of a split, int32."""
        return self.sequences.filter(pc.equal(self.sequences["split"], split))["target"].to_numpy()


def assess(table: SidTable, evidence: Evidence, *, x_ND: np.ndarray | None = None) -> dict[str, Any]:
    """Measures of assigned IDs; with item vectors also those on their neighbours."""
    codes_NL, texts = table.codes_NL, item_texts(evidence.items)
    pairs_P2 = quality.held_out_pairs(evidence.sequences, split=evidence.split)
    edges = neighbours.pair_neighbours(pairs_P2, num_items=table.num_items, most=evidence.neighbours)
    lists = neighbours.as_lists(edges) if evidence.lists is None else evidence.lists
    report: dict[str, Any] = {
        "items": table.num_items,
        "sizes": table.sizes,
        "assigned": quality.describe_codes(codes_NL, table.sizes, texts),
        "identical_items": quality.identical_items(texts),
        "behaviour": quality.behaviour(codes_NL, pairs_P2),
        "behaviour_in_rows": quality.behaviour(
            codes_NL, quality.pairs_in_rows(evidence.sequences, split=evidence.split)
        ),
        "neighbours": {"behaviour": neighbours.neighbour_hits(codes_NL, edges), "embedding": None},
        "list_spread": neighbours.list_spread(codes_NL, lists),
        "affected_targets": {
            split: neighbours.affected_targets(table, evidence.targets(split)) for split in ("valid", "test")
        },
        "purity": quality.purity(codes_NL, evidence.paths),
        "labels": labels(codes_NL, evidence),
    }
    if x_ND is not None:
        report["neighbours"]["embedding"] = neighbours.embedding_hits(
            codes_NL, x_ND, most=evidence.neighbours
        )
    return report


def labels(codes_NL: np.ndarray, evidence: Evidence) -> list[dict[str, Any]]:
    """Agreement with every category level and every tag level at which items differ."""
    found = []
    for name, paths in (("category", evidence.paths), ("tag", evidence.tags or [])):
        for level, label_N, count in quality.label_levels(paths):
            found.append(
                {"name": f"{name} level {level + 1}", "labels": count}
                | quality.label_agreement(codes_NL, label_N)
            )
    return found


def distortion(
    x_ND: np.ndarray, nearest_NL: np.ndarray, table: SidTable, quantizer: ResidualQuantizer, items: pa.Table
) -> dict[str, Any]:
    """The nearest codes beside the assigned ones: reconstruction errors, items that the repair moved, what that cost.

    `extra_distortion` = error of the assigned codes / error of the nearest ones - 1, all levels; null where that is 0 / 0.
    """
    depth = nearest_NL.shape[1]
    moved = int((table.codes_NL[:, :depth] != nearest_NL).any(1).sum())
    nearest_error = quality.reconstruction_error(x_ND, nearest_NL, quantizer)
    assigned_error = quality.reconstruction_error(x_ND, table.codes_NL[:, :depth], quantizer)
    extra = None
    if nearest_error and nearest_error[-1] > 0:
        extra = assigned_error[-1] / nearest_error[-1] - 1
    return {
        "nearest": quality.describe_codes(nearest_NL, quantizer.sizes, item_texts(items))
        | {"reconstruction_error": nearest_error},
        "assigned_error": assigned_error,
        "moved": moved,
        "moved_share": moved / table.num_items,
        "extra_distortion": extra,
    }


def with_distortion(report: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """`assess` and `distortion` as one report; the assigned error stands beside the assigned codes."""
    measured = dict(measured)
    report["assigned"]["reconstruction_error"] = measured.pop("assigned_error")
    return report | measured


def samples(
    codes_NL: np.ndarray, items: pa.Table, *, prefixes: int, per_prefix: int, seed: int
) -> list[dict[str, Any]]:
    """Seeded titles of `per_prefix` items below each of `prefixes` first codes: half the largest, the rest drawn at random."""
    card = Cards(items, None, None)
    rng = np.random.default_rng(seed)
    counts = np.bincount(codes_NL[:, 0])
    used = np.flatnonzero(counts)
    largest = used[np.argsort(-counts[used], kind="stable")][: (prefixes + 1) // 2]
    others = np.setdiff1d(used, largest)
    drawn = rng.permutation(others)[: prefixes - len(largest)]
    shown = []
    for code in (*largest.tolist(), *sorted(drawn.tolist())):
        members = np.flatnonzero(codes_NL[:, 0] == code)
        picked = np.sort(rng.permutation(members)[:per_prefix])
        shown.append(
            {
                "prefix": f"<{LETTERS[0]}_{code}>",
                "items": len(members),
                "titles": [card(item).title for item in picked.tolist()],
            }
        )
    return shown
