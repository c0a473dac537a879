"""Item vectors: the text of an item, TF-IDF + SVD of it, parts side by side, PCA, and reading an embeddings directory.

Unless a part says otherwise its rows have length 1, so that its weight alone says how much it counts in a distance. A zero
row means "nothing known here" (an item without train rows has no co-occurrence): it is counted, stays zero in PCA, and
can be filled from the item's neighbours in the other parts.

Legend: N items, D dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.store.output import require_manifest
from rq.stack.streams import row_blocks

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix, spmatrix

EMPTY_TEXT = "no text available"
TEXT_FIELDS = ("title", "brand", "categories", "description")
WRITTEN_BY = "scripts/02_embed_items.sh"
FILE = "embeddings.npy"
# A row this much shorter than the median is rounding noise of the SVD (measured: 1e-8 against 0.16 for the shortest
# real row on Amazon Industrial); scaled to length 1 it would be a random direction.
NOISE_FLOOR = 1e-3
# Squares of larger values overflow in float32 once they are added up: faiss then ends the whole process.
LARGEST = 1e15


class NoTerms(InputError):
    """No term of the texts is in enough and not too many of them, so TF-IDF says nothing. `said`: that, without a remedy."""

    def __init__(self, said: str) -> None:
        super().__init__(f"{said} -> lower --tfidf.min_df or raise --tfidf.max_df")
        self.said = said


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


def require_text(texts: Sequence[str], fields: Sequence[str], *, needed_by: str, remedy: str) -> None:
    """InputError where no item has text; `remedy` is what to do about it."""
    if all(text == EMPTY_TEXT for text in texts):
        raise InputError(f"no item has text in {', '.join(fields)}, which {needed_by} needs -> {remedy}")


def item_texts(items: pa.Table, fields: Sequence[str] = TEXT_FIELDS) -> list[str]:
    """The given columns of every item, one per line; EMPTY_TEXT where all are empty.

    Lists are joined with spaces, never printed; nothing is cut or blanked for its length. InputError for a column that the
    items lack or that holds no text.
    """
    columns = []
    for name in fields:
        if name not in items.column_names:
            raise InputError(
                f"items have no column `{name}` -> text_fields of {', '.join(items.column_names)}"
            )
        values = items[name].to_pylist()
        if any(value is not None and not isinstance(value, (str, list)) for value in values):
            raise InputError(f"item column `{name}` holds no text -> leave it out of text_fields")
        columns.append([_words(value) for value in values])
    return ["\n".join(field for field in row if field) or EMPTY_TEXT for row in zip(*columns, strict=True)]


def _words(value: str | list[str] | None) -> str:
    """A text or a list of texts as one stripped text."""
    return (" ".join(part for part in value if part) if isinstance(value, list) else value or "").strip()


@dataclass(frozen=True)
class TfidfSpace:
    """A fitted TF-IDF + SVD: `terms` T of them with their inverse document frequency, directions float32 [T, D]. Without a term
    every text is a zero row."""

    terms: list[str]
    idf_T: np.ndarray
    directions_TD: np.ndarray
    options: Tfidf

    def vectors(self, texts: list[str]) -> np.ndarray:
        """Unit rows float32 [N, D] of texts in this space; a text without a known term is a zero row."""
        if not self.terms:
            return np.zeros((len(texts), self.directions_TD.shape[1]), np.float32)
        vectorizer = _vectorizer(self.options, vocabulary=self.terms)
        vectorizer.idf_ = self.idf_T
        return unit_rows(vectorizer.transform(_written(texts)) @ self.directions_TD)


def _written(texts: Sequence[str]) -> list[str]:
    """Texts as TF-IDF reads them: the placeholder of an item without text is no text."""
    return ["" if text == EMPTY_TEXT else text for text in texts]


def _vectorizer(tfidf: Tfidf, *, vocabulary: list[str] | None = None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        sublinear_tf=True,
        min_df=tfidf.min_df,
        max_df=tfidf.max_df,
        ngram_range=(1, tfidf.max_ngram),
        stop_words=tfidf.stop_words,
        dtype=np.float32,
        vocabulary=vocabulary,
    )


def tfidf_matrix(texts: list[str], tfidf: Tfidf) -> csr_matrix:
    """Sublinear TF-IDF of 1..n-grams, rows of length 1 (zero without a known term), float32 [N, terms]; NoTerms where there is none."""
    return _fitted_counts(texts, tfidf)[0]


def tfidf_svd(texts: list[str], *, dim: int, tfidf: Tfidf, seed: int) -> tuple[np.ndarray, TfidfSpace]:
    """(unit rows float32 [N, dim], the fitted space): sublinear TF-IDF of 1..n-grams, `dim` leading singular directions.

    NoTerms where no text has a term.
    """
    counts, vectorizer = _fitted_counts(texts, tfidf)
    x_ND, directions_TD = truncated_svd(counts, dim=dim, power=1.0, seed=seed)
    terms = vectorizer.get_feature_names_out().tolist()
    return unit_rows(x_ND), TfidfSpace(terms, vectorizer.idf_.astype(np.float32), directions_TD, tfidf)


def _fitted_counts(texts: list[str], tfidf: Tfidf) -> tuple[csr_matrix, Any]:
    vectorizer = _vectorizer(tfidf)
    try:
        return vectorizer.fit_transform(_written(texts)), vectorizer
    except ValueError:
        raise NoTerms(
            f"no term occurs in at least {tfidf.min_df} and at most {tfidf.max_df:.0%} of {len(texts)} item texts"
        ) from None


def truncated_svd(matrix: spmatrix, *, dim: int, power: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(U S^power float32 [N, dim], V float32 [columns, dim]); columns beyond the rank bound are zero.

    Source: Halko, Martinsson, Tropp 2011 (randomised SVD), scikit-learn's implementation.
    """
    from sklearn.utils.extmath import randomized_svd

    rank = min(dim, *matrix.shape)
    out, right = (np.zeros((size, dim), np.float32) for size in matrix.shape)
    left, values, directions = randomized_svd(matrix, rank, n_iter=7, random_state=seed)
    out[:, :rank] = left * values**power
    right[:, :rank] = directions.T
    return out, right


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


@dataclass(frozen=True)
class Projection:
    """A fitted PCA: x -> (x - mean) @ directions, for rows that are not zero. directions float32 [D, E]."""

    mean_D: np.ndarray
    directions_DE: np.ndarray

    def apply(self, x_ND: np.ndarray) -> np.ndarray:
        """float32 [N, E]; zero rows stay zero."""
        out_NE = ((x_ND - self.mean_D) @ self.directions_DE).astype(np.float32)
        out_NE[zero_rows(x_ND)] = 0
        return out_NE


def principal_directions(x_ND: np.ndarray, *, dim: int, whiten: bool) -> Projection:
    """PCA of the rows that are not zero; with `whiten` every direction gets variance 1 (those without variance get none).

    A direction's sign makes its largest entry positive, so that the result does not depend on the LAPACK in use.
    """
    known_ND = x_ND[~zero_rows(x_ND)].astype(np.float64)
    if dim > x_ND.shape[1] or not len(known_ND):
        raise InputError(
            f"reduce.dim {dim} needs that many columns and a row that is not zero: embeddings are {x_ND.shape}"
        )
    mean_D = known_ND.mean(0)
    variance, directions = np.linalg.eigh((known_ND - mean_D).T @ (known_ND - mean_D) / len(known_ND))
    variance, directions = variance[::-1][:dim], directions[:, ::-1][:, :dim]
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(dim)])
    if whiten:
        real = variance > 1e-9 * variance[0]
        directions = directions * np.where(real, 1 / np.sqrt(np.where(real, variance, 1)), 0)
    return Projection(mean_D.astype(np.float32), directions.astype(np.float32))


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
    """InputError that lists the first rows with NaN, infinite values, or values whose squares float32 cannot add up."""
    peak_N = np.zeros(len(x_ND), x_ND.dtype)
    for rows in row_blocks(x_ND):
        peak_N[rows] = np.maximum(x_ND[rows].max(1, initial=0), -x_ND[rows].min(1, initial=0))
    bad = np.flatnonzero(~(peak_N <= LARGEST))
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        what = f"hold values above {LARGEST:g}" if np.isfinite(peak_N).all() else "are not finite"
        raise InputError(f"{where}: {len(bad)} rows {what} (items {shown}) -> embed these items again")
