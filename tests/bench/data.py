"""Stage 01 against a row-by-row reference on a generated store.

python -m tests.bench.data            # 2M review lines, a few minutes
python -m tests.bench.data --quick    # 200k, for a look

Ours is `data.prepare.prepare` in this process, with the four parquet files: reading reviews and metadata, title filter,
time window, k-core, order, split, windows, item text. The reference reads every line with `json.loads`, counts with
dictionaries, builds windows as lists, cleans the same text with the same rules, and is spared the files. Both run
interleaved, best of --repeats; outputs must be equal row by row. The last line is one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.memory import peak_mib
from configs.program import ROOT
from data import prepare
from data.adapters import item_text
from data.adapters.options import AmazonOptions
from data.shaping.assemble import FilterOptions
from tests.bench import frame

WINDOW = ("2013-01", "2019-01")
CORE = 5
HISTORY = 10

Sequence = tuple[int, list[int], int, int, str]


def good_lines(path: Path, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The objects of a file that are complete."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if all(value.get(key) is not None for key in keys):
                yield value


def month_start(text: str) -> int:
    """UTC seconds of the first moment of a month YYYY-MM."""
    return int(datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).timestamp())


def core(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The k-core with counters."""
    while True:
        users = Counter(row["reviewerID"] for row in rows)
        items = Counter(row["asin"] for row in rows)
        kept = [row for row in rows if users[row["reviewerID"]] >= CORE and items[row["asin"]] >= CORE]
        if len(kept) == len(rows):
            return rows
        rows = kept


def reference(folder: Path) -> tuple[list[dict[str, Any]], list[Sequence]]:
    """(items, sequences) of stage 01, row by row."""
    metadata: dict[str, dict[str, Any]] = {}
    for item in good_lines(folder / "meta_Toystore.json", ("asin",)):
        metadata.setdefault(item["asin"], item)
    usable = {asin for asin, item in metadata.items() if not item_text.title_is_bad(item.get("title"))}
    first, last = map(month_start, WINDOW)
    rows = [
        row
        for row in good_lines(folder / "Toystore.json", ("reviewerID", "asin", "unixReviewTime"))
        if row["asin"] in usable and first <= row["unixReviewTime"] <= last
    ]
    rows = core(rows)
    users: dict[str, int] = {}
    by_user: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_user[users.setdefault(row["reviewerID"], len(users))].append(row)
    numbers: dict[str, int] = {}
    windows: list[tuple[int, list[int], int, int]] = []
    for user, own in by_user.items():
        own.sort(key=lambda row: row["unixReviewTime"])
        walk = [numbers.setdefault(row["asin"], len(numbers)) for row in own]
        for place in range(1, len(walk)):
            history = walk[max(0, place - HISTORY) : place]
            windows.append((user, history, walk[place], own[place]["unixReviewTime"]))
    windows.sort(key=lambda window: window[3])
    cuts = int(0.8 * len(windows)), int(0.9 * len(windows))
    names = ["train" if n < cuts[0] else "valid" if n < cuts[1] else "test" for n in range(len(windows))]
    sequences = [(*window, name) for window, name in zip(windows, names, strict=True)]
    return [item_row(asin, metadata[asin]) for asin in numbers], sequences


def item_row(asin: str, item: dict[str, Any]) -> dict[str, Any]:
    """One row of items.parquet."""
    images = item.get("image") or [None]
    return {
        "raw_id": asin,
        "title": item_text.clean_title(item.get("title")),
        "description": item_text.description_text(item.get("description")),
        "categories": item_text.category_path(item.get("category")),
        "brand": item_text.clean_text(item.get("brand") or ""),
        "price": item_text.parse_price(item.get("price")),
        "image": images[0],
    }


def ours(folder: Path, output: Path) -> None:
    """What `data.prepare.main` does between its locks: all of stage 01, and the four tables."""
    options = AmazonOptions(reviews=["Toystore.json"], metadata=["meta_Toystore.json"])
    filters = FilterOptions(user_k=CORE, item_k=CORE, start=WINDOW[0], end=WINDOW[1])
    args = prepare.PrepareArgs(raw=str(folder), output_dir=str(output), amazon=options, filters=filters)
    prepared = prepare.prepare(args)
    output.mkdir()
    for name in ("items", "interactions", "sequences", "users"):
        pq.write_table(getattr(prepared, name), output / f"{name}.parquet", compression="zstd")


def same(output: Path, items: list[dict[str, Any]], sequences: list[Sequence]) -> bool:
    """Every row of items.parquet and sequences.parquet equals the reference's."""
    table = pq.read_table(output / "items.parquet")
    expected = pa.Table.from_pylist(items, schema=table.select(list(items[0])).schema)
    if not table.select(expected.column_names).equals(expected):
        return False
    rows = pq.read_table(output / "sequences.parquet")
    columns = [rows[name].to_pylist() for name in ("user_id", "history", "target", "timestamp", "split")]
    return list(zip(*columns, strict=True)) == sequences


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def measure(home: Path, rows: int, repeats: int) -> dict[str, Any]:
    """The bench's JSON object."""
    raw = home / "raw"
    command = [sys.executable, "-m", "data.toy", "--size", "large", "--interactions", str(rows)]
    subprocess.run([*command, "--output_dir", str(raw)], cwd=ROOT, check=True)
    mine, theirs, equal, peak = [], [], True, 0
    for repeat in range(repeats):
        output = home / f"prepared{repeat}"
        mine.append(timed(ours, raw, output)[0])
        # Later peaks would include the reference's dictionaries.
        peak = peak or peak_mib()
        seconds, (items, sequences) = timed(reference, raw)
        theirs.append(seconds)
        equal &= same(output, items, sequences)
        print(
            f"repeat {repeat}: reference {theirs[-1]:.2f} s, ours {mine[-1]:.2f} s, {len(items)} items, {len(sequences)} windows"
        )
        del items, sequences
    return {
        "bench": "data",
        "same": equal,
        "ratios": {"prepare": round(min(theirs) / min(mine), 2)},
        "values": {"peak_mib": peak, "rows_per_s": round(rows / min(mine))},
        "threads": pa.cpu_count(),
        "device": "cpu",
    }


def main() -> None:
    args = frame.flags(__doc__, quick="200k instead of 2M lines", repeats=2).parse_args()
    with tempfile.TemporaryDirectory() as home:
        result = measure(Path(home), 200_000 if args.quick else 2_000_000, args.repeats)
    frame.finish(result)


if __name__ == "__main__":
    main()
