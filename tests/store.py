"""A prepared data set of a few hundred rows for the evaluation tests: users who walk along item chains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data import artifacts
from data.store.output import open_output

ITEMS = 40
HOSTILE = '<script>alert("x")</script> & Co'


@dataclass
class Made:
    """The configuration that the manifest records."""

    what: str = "a store for tests"


def sequences(users: int = 90, seed: int = 0) -> list[list[int]]:
    """One item sequence per user: mostly i -> i + 1, some popular items, some repeats; item 39 only at the end."""
    rng = np.random.default_rng(seed)
    result = []
    for user in range(users):
        item, walk = int(rng.integers(0, ITEMS - 1)), []
        for _ in range(int(rng.integers(4, 12))):
            walk.append(item)
            step = rng.random()
            item = (
                int(rng.integers(0, 5)) if step < 0.25 else item if step < 0.32 else (item + 1) % (ITEMS - 1)
            )
        result.append([*walk, ITEMS - 1] if user % 30 == 0 else walk)
    return result


def write_store(directory: Path, walks: list[list[int]] | None = None, items: int = ITEMS) -> Path:
    """items, interactions (leave one out) and sequences with their manifest and funnel.json."""
    walks = sequences() if walks is None else walks
    flat, rows = [], []
    for user, walk in enumerate(walks):
        for order, item in enumerate(walk):
            split = {0: "test", 1: "valid"}.get(len(walk) - 1 - order, "train")
            time = 1_500_000_000 + 86_400 * (20 * user + order) if user % 2 else None
            flat.append((user, item, order, split, time))
            if order:
                rows.append((user, walk[max(0, order - 10) : order], item, split, time))
    rows.sort(key=lambda row: artifacts.SPLITS.index(row[3]))
    columns = list(zip(*flat, strict=True))
    users, histories, targets, splits, times = zip(*rows, strict=True)
    with open_output(Made(), "prepare", version=1, inputs={}, directory=directory) as out:
        titles = [f"Item {item} of a long series of useful things" for item in range(items)]
        titles[1], titles[2] = HOSTILE, ""
        table = {
            "item_id": pa.array(range(items), pa.int32()),
            "raw_id": [f"B{item:04d}" for item in range(items)],
            "title": titles,
            "description": ["..."] * items,
            "categories": pa.array(
                [["Tools", f"Shelf {item // 8}"] for item in range(items)], artifacts.TEXT_LIST
            ),
            "brand": ["Acme"] * items,
        }
        out.write_table("items.parquet", pa.table(table))
        interactions = dict(zip(("user_id", "item_id", "order", "split", "timestamp"), columns, strict=True))
        out.write_table("interactions.parquet", pa.table(interactions))
        examples = {
            "example_id": pa.array(range(1000, 1000 + len(rows)), pa.int64()),
            "user_id": pa.array(users, pa.int32()),
            "history": pa.array(histories, artifacts.INT_LIST),
            "target": pa.array(targets, pa.int32()),
            "split": pa.array(splits),
            "timestamp": pa.array(times, pa.int64()),
        }
        out.write_table("sequences.parquet", pa.table(examples))
        steps = [
            {"step": "review lines", "rows": len(flat) + 23},
            {"step": "final", "rows": len(flat), "users": len(walks), "items": items},
        ]
        out.write_json(
            "funnel.json", {"steps": steps, "items_without_title": 1, "windows": {"test": len(walks)}}
        )
        out.counts |= {"items": items, "users": len(walks), "interactions": len(flat)}
    return directory
