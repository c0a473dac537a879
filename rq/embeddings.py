"""Item vectors: the text of an item, TF-IDF + SVD of it, parts side by side, and reading an embeddings directory.

Every row of a part has length 1, so a part's weight alone says how much it counts in a distance. A zero row means
"nothing known here" (an item without train rows has no co-occurrence): it is counted, and can be filled from the item's
neighbours in the other parts.

Legend: N items, D dimensions, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.output import require_manifest

if TYPE_CHECKING:
    from scipy.sparse import spmatrix

EMPTY_TEXT = "no text available"
WRITTEN_BY = "scripts/02_embed_items.sh"
FILE = "embeddings.npy"
# A row this much shorter than the median is rounding noise of the SVD (measured: 1e-8 against 0.16 for the shortest
# real row on Amazon Industrial); scaled to length 1 it would be a random direction.
NOISE_FLOOR = 1e-3


@dataclass
class Tfidf:
    """Which terms of the item text count."""

    min_df: int = 2
    """A term must occur in at least this many items."""
    max_df: float = 0.3
    """A term may occur in at most this share of the items."""
    max_ngram: int = 2
    """Terms are runs of 1 to this many words."""
    stop_words: str | None = "english"
    """Words left out: `english`, or null for none."""

    def __post_init__(self) -> None:
        if self.min_df < 1 or not 0 < self.max_df <= 1 or self.max_ngram < 1:
            raise InputError(
                f"tfidf: min_df {self.min_df} and max_ngram {self.max_ngram} must be >= 1, "
                f"max_df {self.max_df} a share in (0, 1]"
            )
        if self.stop_words not in (None, "english"):
            raise InputError(f"tfidf.stop_words {self.stop_words!r} is unknown -> english or null")


def item_texts(items: pa.Table) -> list[str]:
    """Title, brand, category path and description of every item, one per line; EMPTY_TEXT where all are empty.

    Lists are joined with spaces, never printed; nothing is cut or blanked for its length.
    """
    columns = [items[name].to_pylist() for name in ("title", "brand", "categories", "description")]
    texts = []
    for title, brand, categories, description in zip(*columns, strict=True):
        fields = (title, brand, " ".join(part for part in categories if part), description)
        texts.append("\n".join(field for field in map(str.strip, fields) if field) or EMPTY_TEXT)
    return texts


def tfidf_svd(texts: list[str], *, dim: int, tfidf: Tfidf, seed: int) -> np.ndarray:
    """Sublinear TF-IDF of 1..n-grams, its `dim` leading singular directions, rows of length 1: float32 [N, dim]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        min_df=tfidf.min_df,
        max_df=tfidf.max_df,
        ngram_range=(1, tfidf.max_ngram),
        stop_words=tfidf.stop_words,
        dtype=np.float32,
    )
    try:
        terms = vectorizer.fit_transform(texts)
    except ValueError:
        raise InputError(
            f"no term occurs in at least {tfidf.min_df} and at most {tfidf.max_df:.0%} of {len(texts)} item texts "
            "-> lower --tfidf.min_df or raise --tfidf.max_df"
        ) from None
    return unit_rows(truncated_svd(terms, dim=dim, power=1.0, seed=seed))


def truncated_svd(matrix: spmatrix, *, dim: int, power: float, seed: int) -> np.ndarray:
    """U S^power of the `dim` leading singular directions, float32 [N, dim]; columns beyond the rank bound are zero.

    Source: Halko, Martinsson, Tropp 2011 (randomised SVD), scikit-learn's implementation.
    """
    from sklearn.utils.extmath import randomized_svd

    rank = min(dim, *matrix.shape)
    out = np.zeros((matrix.shape[0], dim), np.float32)
    left, values, _ = randomized_svd(matrix, rank, n_iter=7, random_state=seed)
    out[:, :rank] = left * values**power
    return out


def unit_rows(x_ND: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32 [N, D]; rows shorter than NOISE_FLOOR times the median length become zero."""
    length_N = np.linalg.norm(x_ND, axis=1)
    known_N = length_N > 0
    if known_N.any():
        known_N = length_N > NOISE_FLOOR * np.median(length_N[known_N])
    scale_N = np.divide(1.0, length_N, out=np.zeros_like(length_N), where=known_N)
    return (x_ND * scale_N[:, None]).astype(np.float32)


def zero_rows(x_ND: np.ndarray) -> np.ndarray:
    """bool [N]: rows that are zero throughout."""
    return ~x_ND.any(axis=1)


def fill_zero_rows(x_ND: np.ndarray, guide_NE: np.ndarray, *, neighbours: int) -> np.ndarray:
    """`x_ND` with its zero rows replaced by what the nearest known items have there, at length 1.

    Nearest by cosine of the unit rows `guide_NE` (another part, e.g. text); the mean is weighted by that cosine. A row
    without a guide, or whose neighbours all have cosine <= 0, stays zero. Returns a new array float32 [N, D].
    """
    import faiss

    filled_ND = x_ND.astype(np.float32)
    unknown_N = zero_rows(x_ND)
    wanted, known = np.flatnonzero(unknown_N & ~zero_rows(guide_NE)), np.flatnonzero(~unknown_N)
    if not len(wanted) or not len(known):
        return filled_ND
    cosine_WK, near_WK = faiss.knn(
        np.ascontiguousarray(guide_NE[wanted], np.float32),
        np.ascontiguousarray(guide_NE[known], np.float32),
        min(neighbours, len(known)),
        metric=faiss.METRIC_INNER_PRODUCT,
    )
    weight_WK = np.maximum(cosine_WK, 0)
    filled_ND[wanted] = unit_rows(np.einsum("wk,wkd->wd", weight_WK, x_ND[known[near_WK]]))
    return filled_ND


def side_by_side(parts: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Parts of unit rows, each times its weight, as columns of one float32 [N, sum of D]."""
    return np.concatenate(
        [weight * x_ND for x_ND, weight in zip(parts, weights, strict=True)], axis=1
    ).astype(np.float32)


def read_embeddings(directory: str | Path) -> np.ndarray:
    """The memory-mapped float32 [N, D] of a finished embeddings directory; InputError naming rows that are not finite."""
    require_manifest(directory, written_by=WRITTEN_BY)
    path = Path(directory) / FILE
    try:
        x_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable .npy array ({error}) -> run {WRITTEN_BY} again") from None
    if x_ND.ndim != 2 or x_ND.dtype != np.float32 or 0 in x_ND.shape:
        raise InputError(
            f"{path} is {x_ND.dtype} {x_ND.shape}, not float32 [items, dimensions] -> embed again"
        )
    require_finite(x_ND, where=str(path))
    return x_ND


def require_finite(x_ND: Any, *, where: str) -> None:
    """InputError that lists the first rows with NaN or infinite values."""
    bad = np.flatnonzero(~np.isfinite(x_ND).all(axis=1))
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise InputError(
            f"{where}: {len(bad)} rows are not finite (items {shown}) -> embed these items again"
        )
