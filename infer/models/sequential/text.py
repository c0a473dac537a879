"""What item texts say of items: vectors of them, and which items have similar ones.

Legend: N items, D dimensions, K similar items, T terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from infer.models.sequential.options import TextOptions
from rq.vectors import embeddings

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LEAST_SIMILARITY = 0.05  # below it a cosine of TF-IDF vectors is chance
BLOCK = 512  # items whose similarities to all others are held at once


def require_texts(items: pa.Table, options: TextOptions, *, needed_by: list[str], where: str) -> list[str]:
    """The text of every item; InputError naming the options that need it where no item has any."""
    texts = embeddings.item_texts(items, options.fields)
    remedy = f"leave it out, or prepare {where} with item texts"
    embeddings.require_text(texts, options.fields, needed_by=", ".join(needed_by), remedy=remedy)
    return texts


def text_vectors(texts: list[str], options: TextOptions, *, seed: int) -> np.ndarray:
    """float32 [N, D] of mean square 1 per dimension over items with known terms; others are zero rows."""
    x_ND, _ = embeddings.tfidf_svd(texts, dim=options.dim, tfidf=options.tfidf, seed=seed)
    return scaled(x_ND)


def nothing_similar(num_items: int, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """`similar_items` of texts that say nothing of one another."""
    shape = num_items, min(most, num_items - 1)
    return np.zeros(shape, np.int32), np.zeros(shape, np.float32)


def scaled(x_ND: np.ndarray) -> np.ndarray:
    """Vectors times one number that makes the mean square of those that are not zero 1 per dimension."""
    known = x_ND[~embeddings.zero_rows(x_ND)]
    square = float(np.mean(np.square(known, dtype=np.float64))) if known.size else 1.0
    return (x_ND * square**-0.5).astype(np.float32)


def similar_items(texts: list[str], options: TextOptions, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(items int32 [N, K], cosines float32 [N, K], best first) of the other items with the most similar text.

    K = min(most, N - 1). Cosines below LEAST_SIMILARITY are 0: nothing is known of these two.
    """
    terms_NT = embeddings.tfidf_matrix(texts, options.tfidf)
    size = terms_NT.shape[0]
    most = min(most, size - 1)
    found = [_similar(terms_NT, start, most) for start in range(0, size, BLOCK)]
    items_NK, cosine_NK = (np.concatenate(part) for part in zip(*found, strict=True))
    return items_NK.astype(np.int32), np.where(cosine_NK < LEAST_SIMILARITY, 0, cosine_NK).astype(np.float32)


def _similar(terms_NT: csr_matrix, start: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    block_BN = (terms_NT[start : start + BLOCK] @ terms_NT.T).toarray()
    rows = np.arange(len(block_BN))
    block_BN[rows, start + rows] = -1  # not its own neighbour
    best_BK = np.sort(np.argpartition(-block_BN, most - 1, axis=1)[:, :most], axis=1)
    cosine_BK = np.take_along_axis(block_BN, best_BK, axis=1)
    order_BK = np.argsort(-cosine_BK, axis=1, kind="stable")
    return np.take_along_axis(best_BK, order_BK, axis=1), np.take_along_axis(cosine_BK, order_BK, axis=1)
