"""Stage 04 on millions of items: k-means of a sample, every item coded from the memory-mapped vectors; seconds and memory.

python -m tests.bench.items                # 10,000,000 x 256 float32: 10 GB of disk under --folder, some minutes
python -m tests.bench.items --quick        # 400,000

The program runs as a user runs it, in a process of its own; codes of a few thousand items are held to a float64 reference.
The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from configs.program import ROOT
from rq.stack import residual
from tests import handmade
from tests.bench import frame

ITEMS, DIM, TRAINED = 10_000_000, 256, 500_000
BLOCK, CHECKED = 100_000, 4_000


def write_vectors(directory: Path, *, items: int, seed: int = 0) -> Path:
    """An embeddings directory of a mixture of 4,000 clusters, written block by block."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((4000, DIM)).astype(np.float32)

    def fill(path: Path) -> None:
        x_ND = open_memmap(path, mode="w+", dtype=np.float32, shape=(items, DIM))
        for start in range(0, items, BLOCK):
            rows = slice(start, min(start + BLOCK, items))
            count = rows.stop - start
            x_ND[rows] = centres[rng.integers(0, len(centres), count)]
            x_ND[rows] += 0.5 * rng.standard_normal((count, DIM), dtype=np.float32)
        x_ND.flush()

    with handmade.open_output(handmade.Made(), "embed_items", version=1, inputs={}, directory=directory) as out, \
            out.replacing("embeddings.npy") as temporary:  # fmt: skip
        fill(temporary)
    return directory


def same(quantizer: residual.ResidualQuantizer, x_ND: np.ndarray, *, seed: int = 1) -> bool:
    """Whether blocks give the codes of single rows in float64, near-ties apart (one in a thousand codes)."""
    rows = np.sort(np.random.default_rng(seed).choice(len(x_ND), min(CHECKED, len(x_ND)), replace=False))
    found, rest, equal = quantizer.encode(x_ND[rows]), x_ND[rows].astype(np.float64), []
    for level, book in enumerate(quantizer.codebooks):
        parts = np.array_split(rest, len(rest) // 32)
        best = np.concatenate([((part[:, None] - book[None]) ** 2).sum(-1).argmin(1) for part in parts])
        equal.append(best == found[:, level])
        rest = rest - book[found[:, level]]
    return float(np.mean(equal)) > 0.999


def measure(home: Path, *, items: int, trained: int) -> dict[str, Any]:
    """The bench's JSON object."""
    vectors = write_vectors(home / "vectors", items=items)
    command = [
        "-m",
        "rq.train_quantizer",
        "--embeddings",
        vectors,
        "--rqkmeans.train_items",
        trained,
        "--rqkmeans.restarts",
        1,
    ]
    subprocess.run(
        [sys.executable, *map(str, command), "--output_dir", str(home / "quantizer")], cwd=ROOT, check=True
    )
    manifest = json.loads((home / "quantizer/manifest.json").read_text())
    quantizer, _ = residual.load(home / "quantizer")
    return {
        "bench": "items",
        "same": same(quantizer, np.load(vectors / "embeddings.npy", mmap_mode="r")),
        "ratios": {},
        "values": {
            "items": items, "seconds": manifest["wall_seconds"], "peak_mib": manifest["peak_mib"],
            "items_per_s": round(items / manifest["wall_seconds"]),
        },
        "threads": os.cpu_count(),
        "device": "cpu",
    }  # fmt: skip


def main() -> None:
    parser = frame.flags(__doc__, quick="400,000 items instead of 10 million", repeats=1)
    parser.add_argument("--folder", help="where the vectors go; the system's place for temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as home:
        frame.finish(
            measure(
                Path(home), items=400_000 if args.quick else ITEMS, trained=30_000 if args.quick else TRAINED
            )
        )


if __name__ == "__main__":
    main()
