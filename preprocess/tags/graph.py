"""Missing tags without a language model: the nearest tag that the co-occurrence graph of tags allows; and pseudo-tags.

A tag is represented by the mean direction of the items that have it, so it lives in the items' own vector space and no
tag needs an encoder. Levels are filled top-down: the first from the item vector alone, each further one from a mixture
of the item vector and the tags above it, among the children of the tag above.

Legend: N items, L levels, T tags of a level, D dimensions, M missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from configs.program import InputError
from data.tags import Tags, children
from rq.vectors.embeddings import unit_rows, zero_rows

# Weights of the item vector, then of the tags above from the first level down: HiD-VAE's KuaiRand builder.
PUBLISHED_WEIGHTS = ((1.0,), (0.4, 0.6), (0.2, 0.3, 0.5))


def tag_vectors(x_ND: np.ndarray, tags: Tags, *, level: int) -> tuple[list[str], np.ndarray]:
    """(names [T] sorted, unit vectors float32 [T, D]): the mean of the unit vectors of each tag's items."""
    names = sorted({row[level] for row in tags} - {None})
    number = {name: i for i, name in enumerate(names)}
    known = [item for item, row in enumerate(tags) if row[level] is not None]
    sums_TD = np.zeros((len(names), x_ND.shape[1]), np.float64)
    np.add.at(sums_TD, [number[tags[item][level]] for item in known], unit_rows(x_ND[known]))
    return names, unit_rows(sums_TD)


def complete_by_graph(
    x_ND: np.ndarray,
    tags: Tags,
    *,
    weights: Sequence[Sequence[float]] = PUBLISHED_WEIGHTS,
    outside: bool = False,
) -> tuple[Tags, np.ndarray]:
    """(tags with missing ones filled, bool [N, L] which were).

    The query of level l is weights[l][0] * item + weights[l][1] * tag of level 0 + ...; the tag with the largest cosine
    among the children of the tag above is taken, and of those only tags that lead to a known tag below, where one is
    known. An item without a vector, and one whose tag above has no children, stays unknown; `outside` then chooses among
    all tags of the level, as published.
    """
    levels = len(tags[0]) if tags else 0
    check_weights(weights, levels=levels)
    below = children(tags)
    filled = [list(row) for row in tags]
    filled_NL = np.zeros((len(tags), levels), bool)
    unit_ND = unit_rows(x_ND)
    blank_N = zero_rows(unit_ND)
    vectors: list[tuple[dict[str, int], np.ndarray]] = []
    for level in range(levels):
        names, vectors_TD = tag_vectors(x_ND, tags, level=level)
        vectors.append(({name: i for i, name in enumerate(names)}, vectors_TD))
        for (above, known_below), items in _alike(filled, tags, level, blank_N).items():
            allowed = _allowed(names, below, level, above, known_below, outside=outside)
            if not allowed:
                continue
            query_MD = weights[level][0] * unit_ND[items]
            for upper in range(level):
                number, table_TD = vectors[upper]
                rows = [number[filled[item][upper]] for item in items]
                query_MD = query_MD + weights[level][1 + upper] * table_TD[rows]
            candidates = [vectors[level][0][name] for name in allowed]
            best_M = (unit_rows(query_MD) @ vectors_TD[candidates].T).argmax(1)
            for item, best in zip(items, best_M, strict=True):
                filled[item][level] = allowed[best]
                filled_NL[item, level] = True
    return filled, filled_NL


def check_weights(weights: Sequence[Sequence[float]], *, levels: int) -> None:
    """InputError unless level l has 1 + l weights, none negative, and the item counts for something."""
    if len(weights) < levels:
        raise InputError(f"graph weights are given for {len(weights)} levels, there are {levels} -> add rows")
    for level, row in enumerate(weights[:levels]):
        if len(row) != level + 1 or min(row) < 0 or row[0] <= 0:
            raise InputError(
                f"graph weights of level {level + 1} are {list(row)}: they must be {level + 1} numbers >= 0 "
                "(item, then the levels above), the first > 0"
            )


def _alike(
    filled: Tags, tags: Tags, level: int, blank_N: np.ndarray
) -> dict[tuple[str | None, str | None], list[int]]:
    """Items to fill at a level, grouped by (tag above, known tag below): each group has the same candidates.

    An item whose own tags above are not all known is left out, a gap cannot be bridged.
    """
    groups: dict[tuple[str | None, str | None], list[int]] = defaultdict(list)
    for item, row in enumerate(filled):
        if row[level] is None and not blank_N[item] and None not in row[:level]:
            below = tags[item][level + 1] if level + 1 < len(row) else None
            groups[row[level - 1] if level else None, below].append(item)
    return groups


def _allowed(
    names: list[str],
    below: list[dict[str, list[str]]],
    level: int,
    above: str | None,
    known_below: str | None,
    *,
    outside: bool,
) -> list[str]:
    """Tags that may stand between the tag above and the known tag below."""
    allowed = names if level == 0 else below[level - 1].get(above, [])
    if known_below is not None:
        leading = [name for name in allowed if known_below in below[level].get(name, [])]
        allowed = leading or allowed
    return allowed or (names if outside else [])


def pseudo_tags(
    x_ND: np.ndarray, titles: Sequence[str], *, clusters: Sequence[int], min_items: int, seed: int
) -> Tags:
    """Tags from k-means when a data set has none: clusters[0] groups, each split into clusters[1], and so on; [N][L].

    A group of fewer than 2 * min_items items is not split further: its items have None below. A tag is a number path and
    the words that are most typical of its titles, e.g. `3.1 duct tape`; names are unique within a level.
    """
    paths: list[list[int]] = [[] for _ in range(len(x_ND))]
    unit_ND = unit_rows(x_ND)
    tags: Tags = [[None] * len(clusters) for _ in range(len(x_ND))]
    groups = {(): np.arange(len(x_ND))}
    for level, wanted in enumerate(clusters):
        finer: dict[tuple[int, ...], np.ndarray] = {}
        for path, items in groups.items():
            count = min(wanted, len(items) // min_items)
            if count < 2:
                continue
            codes = _cluster(unit_ND[items], count, seed=seed)
            for code in np.unique(codes):
                finer[*path, int(code)] = items[codes == code]
        words = _typical_words(titles, finer)
        for path, items in finer.items():
            name = " ".join([".".join(str(code + 1) for code in path), *words[path]])
            for item in items:
                tags[item][level] = name
                paths[item].append(path[-1])
        groups = finer
    return tags


def _cluster(x_ND: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    from rq.stack.vq import nearest_codes, train_codebook

    codebook = train_codebook(x_ND, count, iterations=25, restarts=3, seed=seed)
    return nearest_codes(x_ND, codebook)[0]


def _typical_words(
    titles: Sequence[str], groups: dict[tuple[int, ...], np.ndarray], *, words: int = 2
) -> dict[tuple[int, ...], list[str]]:
    """Per group the words most of its titles have and other groups' titles have not; none where titles are empty."""
    from sklearn.feature_extraction.text import CountVectorizer

    keys = list(groups)
    if not any(titles[item].strip() for items in groups.values() for item in items):
        return {key: [] for key in keys}
    vectorizer = CountVectorizer(binary=True, stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
    try:
        counts = vectorizer.fit_transform(titles)
    except ValueError:
        return {key: [] for key in keys}
    vocabulary = vectorizer.get_feature_names_out()
    share_GW = np.stack([np.asarray(counts[items].mean(0)).reshape(-1) for items in groups.values()])
    score_GW = share_GW * (share_GW / np.maximum(share_GW.sum(0), 1e-12))
    best_GW = np.argsort(-score_GW, axis=1, kind="stable")[:, :words]
    return {
        key: [str(vocabulary[w]) for w in best if score_GW[group, w] > 0]
        for group, (key, best) in enumerate(zip(keys, best_GW, strict=True))
    }
