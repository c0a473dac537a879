"""How good semantic IDs are: use of the codes, collisions, distortion, agreement with behaviour and with categories.

A single number can look good for a bad reason - a collapsed first level agrees with every pair of items - so each
measure stands beside what chance or the majority would give. rq/quality/neighbours.py has the measures on neighbours and lists,
rq/quality/assessment.py puts all of them together.

Legend: N items, L levels, K codes of a level, D dimensions, P pairs, G collision groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts import ragged
from rq.ids.collisions import groups
from rq.stack.residual import ResidualQuantizer
from rq.stack.streams import row_blocks

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
    entropy = _entropy(counts_K)
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

    `surplus` = items - distinct, of which `surplus_of_other_text` remains when items of the same text (`text_ids`) count
    once per group. `groups_of_identical_text`: groups whose items all have the same text; telling these apart has no
    content.
    """
    text_N = text_ids(texts)
    clashing = list(groups(codes_NL))
    kinds = [len(np.unique(text_N[members])) for members in clashing]
    in_groups = sum(map(len, clashing))
    distinct = len(codes_NL) - in_groups + len(clashing)
    return {
        "rate": 1 - distinct / len(codes_NL),
        "distinct": distinct,
        "surplus": len(codes_NL) - distinct,
        "surplus_of_other_text": sum(kinds) - len(kinds),
        "items": in_groups,
        "groups": len(clashing),
        "largest_group": max(map(len, clashing), default=1),
        "groups_of_identical_text": kinds.count(1),
    }


def text_ids(texts: Sequence[str]) -> np.ndarray:
    """int64 [N]: a number per text, equal exactly where two texts differ in case and whitespace only."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(" ".join(text.split()).casefold(), len(number)) for text in texts])


def identical_items(texts: Sequence[str], *, listed: int = 50) -> dict[str, Any]:
    """Groups of items with the same normalised text, the first `listed` of them by item id.

    No quantizer of texts can tell these apart; only a repair can.
    """
    found = [members.tolist() for members in groups(text_ids(texts)[:, None])]
    found.sort()
    items = sum(map(len, found))
    return {
        "groups": len(found),
        "items": items,
        "surplus": items - len(found),
        "first_groups": found[:listed],
    }


def reconstruction_error(
    x_ND: np.ndarray, codes_NL: np.ndarray, quantizer: ResidualQuantizer
) -> list[float] | None:
    """sum |x - decode|^2 / sum |x - mean|^2 with the first 1, 2, ... levels; None when all vectors are equal."""
    depths = range(1, len(quantizer.codebooks) + 1)
    mean_D = sum(x_ND[rows].sum(0, dtype=np.float64) for rows in row_blocks(x_ND)) / len(x_ND)
    spread, left = 0.0, np.zeros(len(depths))
    for rows in row_blocks(x_ND):
        spread += float(((x_ND[rows] - mean_D) ** 2).sum())
        for place, depth in enumerate(depths):
            rest_ND = x_ND[rows] - quantizer.decode(codes_NL[rows, :depth])
            left[place] += float((rest_ND.astype(np.float64) ** 2).sum())
    return (left / spread).tolist() if spread else None


def held_out_pairs(sequences: pa.Table, *, split: str) -> np.ndarray:
    """(last history item, target) of every row of a split with a history, int32 [P, 2]."""
    rows = sequences.filter(pc.equal(sequences["split"], split))
    offsets, items = ragged(rows["history"])
    has_history = np.diff(offsets) > 0
    last = items[offsets[1:][has_history] - 1]
    return np.stack([last, rows["target"].to_numpy()[has_history]], axis=1)


def pairs_in_rows(sequences: pa.Table, *, split: str) -> np.ndarray:
    """All consecutive pairs inside the rows of a split, histories included, int32 [P, 2].

    Sliding windows repeat a pair and histories reach back into train, so these pairs are not held out; published IDs have
    been measured on them.
    """
    rows = sequences.filter(pc.equal(sequences["split"], split))
    offsets, items = ragged(rows["history"])
    row_of_item = np.repeat(np.arange(len(rows)), np.diff(offsets))
    inside = row_of_item[1:] == row_of_item[:-1]
    history = np.stack([items[:-1][inside], items[1:][inside]], axis=1)
    return np.concatenate([history, held_out_pairs(sequences, split=split)])


def prefix_ids(codes_NL: np.ndarray, depth: int) -> np.ndarray:
    """int64 [N]: a number for the first `depth` codes of each item, equal exactly where those are."""
    _, ids_N = np.unique(codes_NL[:, :depth], axis=0, return_inverse=True)
    return ids_N.reshape(-1)


def behaviour(codes_NL: np.ndarray, pairs_P2: np.ndarray) -> dict[str, Any] | None:
    """Share of pairs whose items share a prefix, beside the share when the second items are shuffled, and their ratio.

    Pairs of an item with itself agree whatever the codes are: they are counted as `repeats` and left out of all but
    `lift_with_repeats`, the published measure; out of the shuffled pairs too, so that random codes have a lift of 1. None
    without other pairs.
    """
    apart = pairs_P2[pairs_P2[:, 0] != pairs_P2[:, 1]]
    if not len(apart):
        return None
    out: dict[str, Any] = {"pairs": len(pairs_P2), "repeats": len(pairs_P2) - len(apart)}
    for depth in range(1, codes_NL.shape[1] + 1):
        ids_N = prefix_ids(codes_NL, depth)
        agreement, shuffled, lift = _agreement(ids_N, apart, repeats=False)
        out[f"depth_{depth}"] = {
            "agreement": agreement,
            "shuffled": shuffled,
            "lift": lift,
            "lift_with_repeats": _agreement(ids_N, pairs_P2, repeats=True)[2],
        }
    return out


def _agreement(
    ids_N: np.ndarray, pairs_P2: np.ndarray, *, repeats: bool
) -> tuple[float, float, float | None]:
    """(share of pairs with equal prefix ids, the same over all shuffles, their ratio).

    A pair of shuffled sides is any first item beside any second one. Without `repeats` those of an item with itself are no pairs:
    (sum_p F_p G_p - sum_i A_i B_i) / (P^2 - sum_i A_i B_i), A_i, B_i: how often item i is first, second; F_p, G_p: prefix p.
    """

    def equal(names_N: np.ndarray) -> int:
        """How many of the P^2 shuffled pairs have the same name on both sides."""
        first, second = (np.bincount(names_N[side], minlength=len(ids_N)) for side in pairs_P2.T)
        return int(first @ second)

    own = 0 if repeats else equal(np.arange(len(ids_N)))
    agreement = float((ids_N[pairs_P2[:, 0]] == ids_N[pairs_P2[:, 1]]).mean())
    shuffled = (equal(ids_N) - own) / (len(pairs_P2) ** 2 - own)
    return agreement, shuffled, agreement / shuffled if shuffled else None


def label_levels(
    paths: Sequence[Sequence[str | None]], *, most: int = 3
) -> list[tuple[int, np.ndarray, int]]:
    """(level, label number int64 [N] or -1 where unknown, labels) of the first `most` levels at which items differ.

    `paths` are category paths or tags, coarse to fine. A path often starts with the store's own name, which tells nothing.
    """
    found = []
    for level in range(max(map(len, paths), default=0)):
        names = [path[level] if len(path) > level else None for path in paths]
        known = sorted({name for name in names if name is not None})
        if len(known) > 1:
            number = {name: i for i, name in enumerate(known)}
            labels = np.array([-1 if name is None else number[name] for name in names])
            found.append((level, labels, len(known)))
    return found[:most]


def label_agreement(codes_NL: np.ndarray, label_N: np.ndarray) -> dict[str, Any]:
    """How far prefixes are of one label, over the items whose label is known.

    `purity`: share of items with the majority label of their prefix; `largest_label` is what one prefix for all would
    reach. `nmi`: mutual information over the mean of both entropies. Both rise with the number of prefixes.
    """
    known = label_N >= 0
    label, codes = label_N[known], codes_NL[known]
    out: dict[str, Any] = {
        "items": int(known.sum()),
        "largest_label": float(np.bincount(label).max() / len(label)),
    }
    for depth in DEPTHS[: codes_NL.shape[1]]:
        prefix = prefix_ids(codes, depth)
        cells, counts = np.unique(np.stack([prefix, label]), axis=1, return_counts=True)
        majority = np.zeros(cells[0].max() + 1, np.int64)
        np.maximum.at(majority, cells[0], counts)
        joint, apart = _entropy(counts), [_entropy(np.bincount(side)) for side in (prefix, label)]
        out[f"depth_{depth}"] = {
            "prefixes": len(majority),
            "purity": float(majority.sum() / len(label)),
            "nmi": (sum(apart) - joint) / (sum(apart) / 2) if sum(apart) else 1.0,
        }
    return out


def _entropy(counts: np.ndarray) -> float:
    """In nats, of counts that may hold zeros."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def purity(codes_NL: np.ndarray, categories: Sequence[Sequence[str]]) -> dict[str, Any] | None:
    """`label_agreement` with the first category level at which items differ, in short; None when none does."""
    for level, label_N, _ in label_levels(categories, most=1):
        found = label_agreement(codes_NL, label_N)
        short = {f"depth_{d}": found[f"depth_{d}"]["purity"] for d in DEPTHS if f"depth_{d}" in found}
        return {
            "category_level": level,
            "items": found["items"],
            "largest_category": found["largest_label"],
        } | short
    return None
