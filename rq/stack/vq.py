"""One codebook: k-means on faiss, the nearest code of a vector, the cheapest one where codes have prices.

Legend: N vectors, K codes, D dimensions.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Distance = Literal["euclidean", "cosine"]
REVIVALS = 3
SAMPLE_PER_CODE = 64  # points per code that first centres, and most steps of large sets, are made from
BLOCK = 1 << 20  # cost matrices are made in blocks of at most this many numbers


def train_codebook(
    x_ND: np.ndarray, num_codes: int, *, iterations: int, restarts: int, seed: int
) -> np.ndarray:
    """Centroids float32 [num_codes, D] of k-means; the best of `restarts` runs by distortion.

    With no more distinct vectors than codes, the codebook is those vectors, repeated to fill it. Otherwise a code that
    ends without a vector is moved onto the vector farthest from its own code. Centroids start at random vectors:
    k-means++ picks outliers, and residuals of a previous level have many (measured on Amazon Industrial, 3 x 256:
    third-level perplexity 137 against 31, 299 against 381 collisions, the same distortion).
    """
    distinct = distinct_rows(x_ND)
    if len(distinct) <= num_codes:
        return distinct[np.arange(num_codes) % len(distinct)]
    codebook = kmeans(x_ND, num_codes, iterations=iterations, restarts=restarts, seed=seed, start=None)
    for _ in range(REVIVALS):
        codes, squared = nearest_codes(x_ND, codebook)
        dead = np.flatnonzero(np.bincount(codes, minlength=num_codes) == 0)
        if not len(dead):
            break
        far = distinct_rows(x_ND[np.argsort(-squared, kind="stable")])[: len(dead)]
        codebook[dead[: len(far)]] = far
        codebook = kmeans(x_ND, num_codes, iterations=iterations, restarts=1, seed=seed, start=codebook)
    return codebook


def kmeans(
    x_ND: np.ndarray, num_codes: int, *, iterations: int, restarts: int, seed: int, start: np.ndarray | None
) -> np.ndarray:
    """Centroids of faiss' k-means, on all GPUs where faiss sees any (faiss-gpu), else on the CPU."""
    import faiss

    kmeans = faiss.Kmeans(
        x_ND.shape[1],
        num_codes,
        niter=iterations,
        nredo=restarts,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=2**31 - 1,
        gpu=faiss.get_num_gpus() > 0,
    )
    kmeans.train(np.ascontiguousarray(x_ND, np.float32), init_centroids=start)
    return kmeans.centroids.copy()


def nearest_codes(x_ND: np.ndarray, codebook_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(code int32 [N], squared distance float32 [N]) of each vector's nearest codeword; of equal ones the first.

    Distances are |x|^2 - 2 xc + |c|^2 in single precision. Both sides lose the codebook's mean first: an offset that all
    vectors share, a hundred times their spread, otherwise gives one vector in 200 a wrong code, and another one in a larger
    batch than in a smaller.
    """
    import faiss

    middle_D = codebook_KD.mean(0, dtype=np.float64).astype(np.float32)
    squared, near = faiss.knn(
        np.ascontiguousarray(x_ND - middle_D, np.float32),
        np.ascontiguousarray(codebook_KD - middle_D, np.float32),
        1,
    )
    _, first, group = np.unique(codebook_KD, axis=0, return_index=True, return_inverse=True)
    return first[group.reshape(-1)][near[:, 0]].astype(np.int32), np.maximum(squared[:, 0], 0)


def cheapest_codes(
    x_ND: np.ndarray,
    codebook_KD: np.ndarray,
    *,
    price_K: np.ndarray | None = None,
    distance: Distance = "euclidean",
) -> np.ndarray:
    """The code int32 [N] of least `cost_matrix` for every vector; of equal ones the first."""
    if price_K is None and distance == "euclidean":
        return nearest_codes(x_ND, codebook_KD)[0]
    rows = max(1, BLOCK // len(codebook_KD))
    blocks = [
        cost_matrix(x_ND[start : start + rows], codebook_KD, price_K=price_K, distance=distance).argmin(1)
        for start in range(0, len(x_ND), rows)
    ]
    return np.concatenate([*blocks, np.zeros(0, np.int64)]).astype(np.int32)


def cost_matrix(
    x_ND: np.ndarray, codebook_KD: np.ndarray, *, price_K: np.ndarray | None, distance: Distance
) -> np.ndarray:
    """Squared distance (or 1 - cosine) minus the code's price, float64 [N, K]. A zero vector has cosine 0 to all."""
    if distance == "cosine":
        cost_NK = 1 - directions(x_ND) @ directions(codebook_KD).T
    else:
        cost_NK = squared_distances(x_ND, codebook_KD)
    return cost_NK if price_K is None else cost_NK - price_K


def directions(x_ND: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, zero rows kept, float64 [N, D]."""
    x = x_ND.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def squared_distances(x_ND: np.ndarray, codebook_KD: np.ndarray) -> np.ndarray:
    """Squared distance of every vector to every codeword, float64 [N, K]."""
    x, c = x_ND.astype(np.float64), codebook_KD.astype(np.float64)
    return np.maximum((x**2).sum(1)[:, None] - 2 * x @ c.T + (c**2).sum(1), 0)


def distinct_rows(x_ND: np.ndarray) -> np.ndarray:
    """The different rows, each where it first occurs, float32."""
    x = np.ascontiguousarray(x_ND, np.float32) + np.float32(0)  # -0.0 becomes 0.0: equal rows are equal bytes
    rows = x.view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).reshape(-1)
    _, first = np.unique(rows, return_index=True)
    return x[np.sort(first)]
