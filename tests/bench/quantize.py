"""Balanced k-means against k-means-constrained (min-cost flow), 256 clusters, the sizes of the published scripts.

python -m pip install k-means-constrained==0.9.1      # the reference; nothing else needs it
python -m tests.bench.quantize            # minutes
python -m tests.bench.quantize --quick    # smaller sets, for a look

`balanced_converged`: 2,500 x 128, the reference from one start until it converges. `balanced`: 10,000 x 1024, the reference
stopped after 3 iterations from one start. Both sides get the same points and bounds, run interleaved in this process with
the same threads, best of --repeats. `same`: both keep every size within the bounds, ours has no higher inertia (mean squared
distance to a point's own centre), and encodes its points as it assigned them. `seconds_100k`: ours on 100,000 x 1024 (20,000
with --quick), which the reference does not finish. The last line is one JSON object.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from rq.constructors import capacity
from rq.constructors.balanced import balanced_kmeans, inertia
from rq.stack.vq import cheapest_codes
from tests.bench import frame

CODES = 256
CENTRES, RANK, NOISE = 400, 48, 0.15


def vectors(points: int, dim: int) -> np.ndarray:
    """Unit vectors float32 like those of texts: clusters of skewed sizes in few directions, and noise in all."""
    rng = np.random.default_rng(0)
    centres, share = rng.normal(size=(CENTRES, RANK)), rng.pareto(1.0, CENTRES) + 0.05
    cluster = rng.choice(CENTRES, points, p=share / share.sum())
    low_rank = centres[cluster] + 0.6 * rng.normal(size=(points, RANK))
    x = low_rank @ rng.normal(size=(RANK, dim)) / np.sqrt(RANK) + NOISE * rng.normal(size=(points, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def reference(x: np.ndarray, low: int, high: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes, centres) of k-means-constrained from one start."""
    from k_means_constrained import KMeansConstrained

    model = KMeansConstrained(
        CODES, size_min=low, size_max=high, n_init=1, max_iter=iterations, tol=1e-7, random_state=0, n_jobs=1
    )
    model.fit(x)
    return model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32)


def timed(function: Any, *arguments: Any, **options: Any) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def race(points: int, dim: int, *, iterations: int, repeats: int) -> dict[str, float | bool]:
    """One size: ratio of seconds, ratio of inertias, whether sizes and codes are right."""
    x = vectors(points, dim)
    low, high = capacity.bounds(points, CODES, slack=0)
    ours, theirs = [], []
    for repeat in range(repeats):
        seconds, level = timed(balanced_kmeans, x, CODES, low=low, high=high, seed=repeat)
        ours.append(seconds)
        seconds, (codes, centres) = timed(reference, x, low, high, iterations)
        theirs.append(seconds)
        mean = inertia(x, level.codebook_KD, level.codes_N), inertia(x, centres, codes)
        print(
            f"{points} x {dim}: ours {ours[-1]:.2f} s, inertia {mean[0]:.5f}; "
            f"reference {theirs[-1]:.2f} s, inertia {mean[1]:.5f}",
            flush=True,
        )
    sizes = [np.bincount(labels, minlength=CODES) for labels in (level.codes_N, codes)]
    return {
        "ratio": min(theirs) / min(ours),
        "inertia": mean[0] / mean[1],
        "in_bounds": all(low <= size.min() and size.max() <= high for size in sizes),
        "encoded": (cheapest_codes(x, level.codebook_KD, price_K=level.price_K) == level.codes_N).mean()
        > 0.999,
    }


def measure(*, quick: bool, repeats: int) -> dict[str, Any]:
    """The bench's JSON object."""
    import torch

    balanced_kmeans(vectors(600, 16), 32, low=10, high=30, seed=0)  # imports and first calls are not timed
    converged = race(1_000 if quick else 2_500, 128, iterations=100, repeats=repeats)
    stopped = race(2_000 if quick else 10_000, 256 if quick else 1024, iterations=3, repeats=repeats)
    x = vectors(20_000 if quick else 100_000, 256 if quick else 1024)
    low, high = capacity.bounds(len(x), CODES, slack=0)
    seconds, level = timed(balanced_kmeans, x, CODES, low=low, high=high, seed=0)
    sizes = np.bincount(level.codes_N, minlength=CODES)
    in_bounds = bool(low <= sizes.min() and sizes.max() <= high)
    races = (converged, stopped)
    worst = max(race["inertia"] for race in races)
    return {
        "bench": "quantize",
        "same": bool(
            in_bounds and worst <= 1 and all(race["in_bounds"] and race["encoded"] for race in races)
        ),
        "ratios": {
            "balanced": round(stopped["ratio"], 2),
            "balanced_converged": round(converged["ratio"], 2),
        },
        "values": {
            "inertia_ours_over_reference": round(worst, 4),
            "sizes_in_bounds": in_bounds and all(race["in_bounds"] for race in races),
            "seconds_100k": round(seconds, 1),
        },
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def main() -> None:
    args = frame.flags(__doc__, quick="smaller sets", repeats=2).parse_args()
    try:
        import k_means_constrained  # noqa: F401
    except ImportError as error:
        sys.exit(f"the reference is missing ({error}) -> python -m pip install k-means-constrained==0.9.1")
    result = measure(quick=args.quick, repeats=args.repeats)
    frame.finish(result)


if __name__ == "__main__":
    main()
