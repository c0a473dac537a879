"""Stage 01 on a generated file of MovieLens-32M's size: seconds and memory of the program as a user runs it.

python -m tests.bench.movielens            # 32,000,204 ratings, some minutes and 2 GB of disk
python -m tests.bench.movielens --quick    # 400,000, for a look
python -m tests.bench.movielens --millions 100      # 100 million of 628,000 users: 7 GB of disk under --folder

Writes ratings.csv as the release has it (sorted by user and movie, so that the times of a user are out of order) and
movies.csv, runs data.prepare with HiD-VAE's recipe (windows of 200 rows, stride 180, time quantile .8) in a process of its own, and
checks all windows against a reference that walks every user's sorted ratings in plain Python. The last line is one JSON object.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from configs.program import ROOT
from tests.bench import frame

ROWS, USERS, MOVIES = 32_000_204, 200_948, 87_585
LENGTH, STRIDE = 200, 180
RECIPE = "configs/hidvae/ml32m/prepare.yaml"


def write_release(folder: Path, *, rows: int, users: int, movies: int, seed: int = 0) -> np.ndarray:
    """ratings.csv and movies.csv; returns the number of ratings of every user, int64 [users]."""
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0, 1.2, users)
    lengths = 20 + np.floor(weight / weight.sum() * (rows - 20 * users)).astype(np.int64)
    lengths[: rows - lengths.sum()] += 1
    schema = pa.schema(
        [("userId", pa.int32()), ("movieId", pa.int32()), ("rating", pa.float32()), ("timestamp", pa.int64())]
    )
    folder.mkdir(parents=True)
    with pcsv.CSVWriter(folder / "ratings.csv", schema) as out:
        for first in range(0, users, 5000):
            own = lengths[first : first + 5000]
            user = np.repeat(np.arange(first, first + len(own)) + 1, own)
            movie = np.minimum(rng.zipf(1.3, len(user)) % movies, movies - 1) + 1
            order = np.lexsort((movie, user))
            begin = np.repeat(rng.integers(800_000_000, 1_690_000_000, len(own)), own)
            time = begin + rng.integers(0, 5_000_000, len(user))
            rating = rng.integers(1, 11, len(user)) / 2
            out.write_table(
                pa.table([user[order], movie[order], rating, time], names=schema.names).cast(schema)
            )
    with open(folder / "movies.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["movieId", "title", "genres"])
        writer.writerows((n, f"Film, No. {n} ({1950 + n % 70})", "Drama|War") for n in range(1, movies + 1))
    return lengths


def reference(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(time, length) of every window, int64, sorted: users one by one, windows by slices."""
    table = pcsv.read_csv(folder / "ratings.csv")
    user, time = table["userId"].to_numpy(), table["timestamp"].to_numpy()
    found: list[tuple[int, int]] = []
    for own in np.split(time, np.flatnonzero(np.diff(user)) + 1):
        own, end = np.sort(own), 0
        for begin in range(0, len(own), STRIDE):
            if min(begin + LENGTH, len(own)) > end:
                end = min(begin + LENGTH, len(own))
                found.append((int(own[end - 1]), end - begin - 1))
    ordered = np.array(sorted(found), np.int64)
    return ordered[:, 0], ordered[:, 1]


def same(made: Path, folder: Path) -> bool:
    """Whether windows, their lengths and their splits are the reference's."""
    time, length = reference(folder)
    table = pq.read_table(made / "sequences.parquet", columns=["timestamp", "history", "split"])
    got_time = table["timestamp"].to_numpy()
    got_length = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in table["history"].chunks])
    order = np.lexsort((got_length, got_time))
    limits = [
        time[(2 * tenths * (len(time) - 1) + 10) // 20] for tenths in (8, 9)
    ]  # nearest rank, a half upwards
    names = np.array(["train", "valid", "test"])[np.searchsorted(limits, got_time, side="left")]
    windows = np.array_equal(got_time[order], time) and np.array_equal(got_length[order], length)
    return bool(windows and (names == np.array(table["split"].to_pylist())).all())


def measure(home: Path, rows: int, users: int, movies: int, repeats: int) -> dict[str, Any]:
    """The bench's JSON object."""
    folder = home / "raw"
    write_release(folder, rows=rows, users=users, movies=movies)
    command = [sys.executable, "-m", "data.prepare", "--config", RECIPE, "--raw", str(folder), "--output_dir"]
    manifests = []
    for repeat in range(repeats):
        made = home / f"made{repeat}"
        subprocess.run([*command, str(made)], cwd=ROOT, check=True)
        manifests.append(json.loads((made / "manifest.json").read_text()))
    seconds = min(manifest["wall_seconds"] for manifest in manifests)
    return {
        "bench": "movielens",
        "same": same(made, folder) and manifests[-1]["counts"]["interactions"] == rows,
        "ratios": {},
        "values": {
            "seconds": seconds,
            "peak_mib": max(manifest["peak_mib"] for manifest in manifests),
            "rows_per_s": round(rows / seconds),
        },
        "threads": pa.cpu_count(),
        "device": "cpu",
    }


def main() -> None:
    parser = frame.flags(__doc__, quick="400,000 instead of 32 million ratings", repeats=1)
    parser.add_argument("--millions", type=float, help="so many million ratings instead, users in proportion")
    parser.add_argument("--folder", help="where the files go; the system's place for temporary files")
    args = parser.parse_args()
    share = args.millions * 1e6 / ROWS if args.millions else 1 / 80 if args.quick else 1.0
    movies = MOVIES if share >= 1 else round(MOVIES * share)
    with tempfile.TemporaryDirectory(dir=args.folder) as home:
        frame.finish(measure(Path(home), round(ROWS * share), round(USERS * share), movies, args.repeats))


if __name__ == "__main__":
    main()
