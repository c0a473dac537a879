"""A map of the items: two coordinates of their vectors, and a colour for every first code.

Codes are coloured by where their items lie (hue = direction of their centre from the middle, lightness = distance), so that codes
side by side look alike and an item far from its code's other items stands out as a speck of the wrong colour.

Legend: N items, D dimensions, K codes.
"""

from __future__ import annotations

import colorsys
from typing import Literal

import numpy as np
import pyarrow as pa

from rq.vectors.embeddings import Projection, principal_directions, zero_rows

MapMethod = Literal["pca", "tsne"]
FILE = "map.parquet"
MOST_POINTS, ITERATIONS = 2000, 500  # of a t-SNE: about 5 s of one core; twice the iterations change little


def coordinates(x_ND: np.ndarray, *, method: MapMethod, seed: int) -> np.ndarray:
    """float32 [N, 2]; NaN for zero rows and for items that t-SNE leaves out (it takes MOST_POINTS, drawn by seed)."""
    known = np.flatnonzero(~zero_rows(x_ND))
    out_N2 = np.full((len(x_ND), 2), np.nan, np.float32)
    if len(known) < 3 or x_ND.shape[1] < 2:
        return out_N2
    if method == "pca":
        projection: Projection = principal_directions(np.asarray(x_ND), dim=2, whiten=False)
        out_N2[known] = projection.apply(x_ND[known])
        return out_N2
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(known) > MOST_POINTS:
        known = np.sort(np.random.default_rng(seed).permutation(known)[:MOST_POINTS])
    perplexity = min(30.0, (len(known) - 1) / 3)
    tsne = TSNE(n_components=2, init="pca", perplexity=perplexity, max_iter=ITERATIONS, random_state=seed)
    # Its threads wait for one another after every step: 2 s with one of them were 22 s with two on two cores that others used too.
    with threadpool_limits(limits=1, user_api="openmp"):
        out_N2[known] = tsne.fit_transform(np.ascontiguousarray(x_ND[known], np.float32))
    return out_N2


def map_table(raw_ids: list[str], xy_N2: np.ndarray) -> pa.Table:
    """map.parquet: item_id, raw_id (how later data sets name the item), x and y (null where there is no point)."""
    return pa.table(
        {
            "item_id": np.arange(len(raw_ids), dtype=np.int32),
            "raw_id": pa.array(raw_ids, pa.string()),
            "x": pa.array(xy_N2[:, 0], from_pandas=True),
            "y": pa.array(xy_N2[:, 1], from_pandas=True),
        }
    )


def code_colours(xy_N2: np.ndarray, code_N: np.ndarray) -> dict[int, tuple[float, float, float]]:
    """{code: (red, green, blue) in 0..1} for every code with a point on the map."""
    shown = np.flatnonzero(np.isfinite(xy_N2).all(1))
    if not len(shown):
        return {}
    xy, code = xy_N2[shown].astype(np.float64), code_N[shown]
    count_K = np.bincount(code)
    used = np.flatnonzero(count_K)
    centre_K2 = np.stack([np.bincount(code, weights=xy[:, axis]) for axis in (0, 1)], axis=1)[used]
    offset_K2 = centre_K2 / count_K[used, None] - np.median(xy, axis=0)
    offset_K2 /= np.maximum(np.abs(xy - np.median(xy, axis=0)).mean(0), 1e-12)
    hue_K = np.arctan2(offset_K2[:, 1], offset_K2[:, 0]) / (2 * np.pi) % 1
    radius_K = np.linalg.norm(offset_K2, axis=1)
    light_K = 0.36 + 0.3 * (np.argsort(np.argsort(radius_K)) / max(len(used) - 1, 1))
    return {
        int(k): colorsys.hls_to_rgb(hue, light, 0.72)
        for k, hue, light in zip(used, hue_K, light_K, strict=True)
    }
