"""Where the embedding rows of new codes point: to their codebook vectors, to the words or the vectors of the items that have them.

A source gives directions: per level the codes it knows and a row for each, centred over them, of root mean square 1. What is
far apart in the source stays far apart in the table; `preprocess.model.vocabulary` adds the mean of the old rows and the scale. Codes
without a vector or without words are left to mean and noise.

Legend: N items, K codes of a level, E width of a codebook, V rows of the table, D its width, W the
smaller of both widths.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data.sid import SidTable
from rq.stack import residual

Directions = dict[int, tuple[np.ndarray, np.ndarray]]  # level -> (codes int64 [k], rows float64 [k, D])
RowSource = Callable[[Any, np.random.Generator], Directions]  # of an embedding table float [V, D]
WORD = re.compile(r"[^\W\d_]{3,}")


def unit(rows: np.ndarray) -> np.ndarray:
    """Centred and scaled to a root mean square of 1; zeros where all rows are the same."""
    centred = rows - rows.mean(0)
    scale = np.sqrt(np.mean(centred**2))
    return centred / scale if scale > 0 else centred


def project(codebook_KE: np.ndarray, width: int, generator: np.random.Generator) -> np.ndarray:
    """A codebook float64 [K, width], centred, of root mean square 1, seen through a random projection.

    Where the width allows it the projection has orthonormal rows, so distances between codes keep their proportions;
    into fewer dimensions it is Gaussian (Johnson-Lindenstrauss). Every level has a projection of its own: tokens of
    different levels stand at different places of a semantic ID and must not look alike.
    """
    centred_KE = codebook_KE.astype(np.float64) - codebook_KE.mean(0, dtype=np.float64)
    gaussian_WE = generator.normal(size=(width, codebook_KE.shape[1]))
    if codebook_KE.shape[1] <= width:
        gaussian_WE = np.linalg.qr(gaussian_WE)[0]
    return unit(centred_KE @ gaussian_WE.T)


def from_codebooks(codebooks: Mapping[int, np.ndarray]) -> RowSource:
    """Codes get their own vectors, projected; `codebooks` float [K, E] by level."""

    def source(table_VD: Any, generator: np.random.Generator) -> Directions:
        width = table_VD.shape[1]
        return {
            level: (np.arange(len(codebook_KE)), project(codebook_KE, width, generator))
            for level, codebook_KE in sorted(codebooks.items())
        }

    return source


def from_item_vectors(sids: SidTable, vectors_NE: np.ndarray) -> RowSource:
    """Codes get the mean vector of the items that have them, reduced to the table's width by an SVD of all items.

    In a layout with tags a tag gets that of its items, so what is said of the tags reaches the generator too. Codes that no
    item has are left out. InputError for vectors of other items.
    """
    if len(vectors_NE) != sids.num_items:
        raise InputError(
            f"the embeddings are of {len(vectors_NE)} items, the semantic IDs of {sids.num_items} -> embed this data set"
        )

    def source(table_VD: Any, generator: np.random.Generator) -> Directions:
        centred_NE = vectors_NE.astype(np.float64) - vectors_NE.mean(0, dtype=np.float64)
        values, axes_EE = np.linalg.eigh(centred_NE.T @ centred_NE)
        reduced_NW = centred_NE @ axes_EE[:, np.argsort(-values)[: table_VD.shape[1]]]
        found: Directions = {}
        for level in range(sids.num_levels):
            codes, code_N = np.unique(sids.codes_NL[:, level], return_inverse=True)
            sums_KW = np.zeros((len(codes), reduced_NW.shape[1]))
            np.add.at(sums_KW, code_N, reduced_NW)
            means_KW = sums_KW / np.bincount(code_N)[:, None]
            found[level] = (codes.astype(np.int64), project(means_KW, table_VD.shape[1], generator))
        return found

    return source


def from_words(tokenizer: Any, words: Mapping[int, Mapping[int, Sequence[str]]]) -> RowSource:
    """Codes get the mean of the table's own rows of their texts, each text the mean of its tokens.

    words: level -> code -> texts. Each table (input, output) is read by itself.
    """
    texts = sorted({text for codes in words.values() for listed in codes.values() for text in listed})
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    ids = {text: tokens for text, tokens in zip(texts, encoded, strict=True) if tokens}

    def source(table_VD: Any, generator: np.random.Generator) -> Directions:
        rows = {text: table_VD[tokens].double().mean(0).numpy() for text, tokens in ids.items()}
        found: Directions = {}
        for level, codes in sorted(words.items()):
            known = {
                code: kept
                for code, listed in codes.items()
                if (kept := [text for text in listed if text in rows])
            }
            if len(known) > 1:
                means = np.stack([np.mean([rows[text] for text in kept], 0) for kept in known.values()])
                found[level] = (np.array(list(known)), unit(means))
        return found

    return source


def code_titles(sids: SidTable, titles: Sequence[str]) -> dict[int, dict[int, list[str]]]:
    """level -> code -> the titles of the items that have it, in the order of the items; empty titles are left out."""
    found: dict[int, dict[int, list[str]]] = {level: {} for level in range(sids.num_levels)}
    for title, codes in zip(titles, sids.codes_NL.tolist(), strict=True):
        if title:
            for level, code in enumerate(codes):
                found[level].setdefault(code, []).append(title)
    return found


def code_keywords(
    titles: Mapping[int, Mapping[int, Sequence[str]]], *, count: int
) -> dict[int, dict[int, list[str]]]:
    """level -> code -> the `count` words that tell its titles from those of the level's other codes, best first.

    A word w of code c scores n(w, c) / n(c) * log(K / k(w)): in how many of the code's titles it is, and in how few of the K
    codes. Ties in the order of the alphabet. (The idea of TS-Rec, arXiv 2602.22632, which asks a language model for them.)

    >>> code_keywords({0: {0: ["Steel nut", "Brass nut"], 1: ["Steel bolt"]}}, count=1)
    {0: {0: [' nut'], 1: [' bolt']}}
    """
    result: dict[int, dict[int, list[str]]] = {}
    for level, codes in titles.items():
        counts = {
            code: Counter(word for title in listed for word in set(WORD.findall(title.lower())))
            for code, listed in codes.items()
        }
        spread = Counter(word for counted in counts.values() for word in counted)
        result[level] = {
            code: [
                f" {word}"
                for word in sorted(
                    counted,
                    key=lambda word: (
                        -counted[word] / len(codes[code]) * np.log(len(codes) / spread[word]),
                        word,
                    ),
                )[:count]
            ]
            for code, counted in counts.items()
        }
    return result


def read_codebooks(sids: str | Path, sizes: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Codebook float32 [K, E] of each level, from the quantizer beside the semantic IDs.

    A level that no quantizer made (a collision digit) has none.
    """
    quantizer, _ = residual.load(sids)
    if quantizer.sizes != sizes[: len(quantizer.sizes)]:
        raise InputError(
            f"{sids}: the quantizer has {quantizer.sizes} codes per level, the semantic IDs {sizes} "
            "-> run scripts/04_build_sids.sh again"
        )
    return dict(enumerate(quantizer.codebooks))
