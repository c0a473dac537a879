"""How good semantic IDs are: use of the codes, collisions, distortion, agreement with behaviour and with categories.

A single number can look good for a bad reason - a collapsed first level agrees with every pair of items - so each
measure stands beside what chance or the majority would give.

Legend: N items, L levels, K codes of a level, D dimensions, P pairs, G collision groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts import ragged
from rq.collisions import groups
from rq.residual import ResidualQuantizer

DEPTHS = (1, 2)


def describe_codes(codes_NL: np.ndarray, sizes: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """Use of every level and collisions of one assignment."""
    return {
        "levels": [code_use(codes_N, size) for codes_N, size in zip(codes_NL.T, sizes, strict=True)],
        "items_per_2_prefix": len(codes_NL) / len(np.unique(codes_NL[:, :2], axis=0)),
        "collisions": collisions(codes_NL, texts),
    }


def code_use(codes_N: np.ndarray, size: int) -> dict[str, float]:
    """Used codes, entropy (nats), perplexity exp(entropy) and Gini of the items per code, unused codes included.

    Gini = sum_ij |n_i - n_j| / (2 K sum n), 0 for equal counts.
    """
    counts_K = np.sort(np.bincount(codes_N, minlength=size))
    share = counts_K[counts_K > 0] / counts_K.sum()
    entropy = float(-(share * np.log(share)).sum())
    rank_K = np.arange(1, size + 1)
    gini = float(((2 * rank_K - size - 1) * counts_K).sum() / (size * counts_K.sum()))
    return {
        "size": size,
        "used": int((counts_K > 0).sum()),
        "entropy_nats": entropy,
        "perplexity": float(np.exp(entropy)),
        "gini": gini,
    }


def collisions(codes_NL: np.ndarray, texts: Sequence[str]) -> dict[str, Any]:
    """Items whose codes are not theirs alone. `rate` = 1 - distinct / items, the published definition.

    `groups_of_identical_text`: groups whose items all have the same text; telling these apart has no content.
    """
    clashing = list(groups(codes_NL))
    same_text = sum(len({texts[item] for item in members}) == 1 for members in clashing)
    in_groups = sum(map(len, clashing))
    distinct = len(codes_NL) - in_groups + len(clashing)
    return {
        "rate": 1 - distinct / len(codes_NL),
        "distinct": distinct,
        "items": in_groups,
        "groups": len(clashing),
        "largest_group": max(map(len, clashing), default=1),
        "groups_of_identical_text": same_text,
    }


def reconstruction_error(
    x_ND: np.ndarray, codes_NL: np.ndarray, quantizer: ResidualQuantizer
) -> list[float] | None:
    """sum |x - decode|^2 / sum |x - mean|^2 with the first 1, 2, ... levels; None when all vectors are equal."""
    spread = float(((x_ND - x_ND.mean(0, dtype=np.float64)) ** 2).sum())
    if spread == 0:
        return None
    errors = []
    for depth in range(1, len(quantizer.codebooks) + 1):
        rest_ND = x_ND - quantizer.decode(codes_NL[:, :depth])
        errors.append(float((rest_ND.astype(np.float64) ** 2).sum() / spread))
    return errors


def held_out_pairs(sequences: pa.Table, *, split: str) -> np.ndarray:
    """(last history item, target) of every row of a split with a history, int32 [P, 2]."""
    rows = sequences.filter(pc.equal(sequences["split"], split))
    offsets, items = ragged(rows["history"])
    has_history = np.diff(offsets) > 0
    last = items[offsets[1:][has_history] - 1]
    return np.stack([last, rows["target"].to_numpy()[has_history]], axis=1)


def prefix_ids(codes_NL: np.ndarray, depth: int) -> np.ndarray:
    """int64 [N]: a number for the first `depth` codes of each item, equal exactly where those are."""
    _, ids_N = np.unique(codes_NL[:, :depth], axis=0, return_inverse=True)
    return ids_N.reshape(-1)


def behaviour(codes_NL: np.ndarray, pairs_P2: np.ndarray) -> dict[str, Any] | None:
    """Share of pairs whose items share a prefix, beside the share when the second items are shuffled, and their ratio.

    The shuffled share is the exact mean over all shuffles, sum_p share(first in p) * share(second in p). `repeats` are
    pairs of an item with itself; they agree whatever the codes are. None without pairs.
    """
    if not len(pairs_P2):
        return None
    out: dict[str, Any] = {"pairs": len(pairs_P2), "repeats": int((pairs_P2[:, 0] == pairs_P2[:, 1]).sum())}
    for depth in DEPTHS[: codes_NL.shape[1]]:
        ids_N = prefix_ids(codes_NL, depth)
        first_P, second_P = ids_N[pairs_P2[:, 0]], ids_N[pairs_P2[:, 1]]
        shares = [np.bincount(side, minlength=ids_N.max() + 1) / len(side) for side in (first_P, second_P)]
        agreement, shuffled = float((first_P == second_P).mean()), float((shares[0] * shares[1]).sum())
        lift = agreement / shuffled if shuffled else None
        out[f"depth_{depth}"] = {"agreement": agreement, "shuffled": shuffled, "lift": lift}
    return out


def top_categories(categories: Sequence[Sequence[str]]) -> tuple[np.ndarray, int] | None:
    """(category number int64 [N] or -1 for unknown, level) at the first level of the paths where items differ.

    A path often starts with the store's own name, which tells nothing. None when no level differs.
    """
    for level in range(max(map(len, categories), default=0)):
        names = [path[level] if len(path) > level else None for path in categories]
        known = sorted({name for name in names if name is not None})
        if len(known) > 1:
            number = {name: i for i, name in enumerate(known)}
            return np.array([-1 if name is None else number[name] for name in names]), level
    return None


def purity(codes_NL: np.ndarray, categories: Sequence[Sequence[str]]) -> dict[str, Any] | None:
    """Share of items in the majority category of their prefix, beside the share of the largest category overall."""
    found = top_categories(categories)
    if found is None:
        return None
    category_N, level = found
    known = category_N >= 0
    category, codes = category_N[known], codes_NL[known]
    out: dict[str, Any] = {
        "category_level": level,
        "items": int(known.sum()),
        "largest_category": float(np.bincount(category).max() / len(category)),
    }
    for depth in DEPTHS[: codes_NL.shape[1]]:
        cells, counts = np.unique(np.stack([prefix_ids(codes, depth), category]), axis=1, return_counts=True)
        majority = np.zeros(cells[0].max() + 1, np.int64)
        np.maximum.at(majority, cells[0], counts)
        out[f"depth_{depth}"] = float(majority.sum() / len(category))
    return out
