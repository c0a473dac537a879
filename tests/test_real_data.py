"""The published data sets of REAL_DATA through stage 01 with the committed configs: sizes, funnels and floors of their README.

REAL_DATA=/path/to/the/sets python -m pytest tests/test_real_data.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from data import artifacts
from data.rows import Rows, TrainLog, read_rows, read_train_log
from infer.models import counting
from tests.handmade import call

REAL = Path(os.environ.get("REAL_DATA", "missing"))
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="needs REAL_DATA")

TABLES = "minionerec/office14"  # items.parquet and interactions.parquet, valid and test rows beside
ALONE = ["--tables.items.extras", "[]", "--tables.sequences.file", "", "--tables.sequences.columns", "{}"]
LONG = ["--split.max_history", 10_000]  # the README's floors mask whole histories
# set: (config, flags, folder below the set); the rows of its README are in checks.json
SETS: dict[str, tuple[str, list[object]]] = {
    "amazon14_beauty": ("hidvae/beauty14", []),
    "amazon14_toys": ("hidvae/toys14", []),
    "amazon14_office": ("minionerec/office14", []),
    "amazon18_industrial": ("minionerec/industrial", []),
    "amazon18_office": ("minionerec/office", []),
    "amazon18_instruments": ("minionerec/instruments18", []),
    "amazon18_office_full": ("minionerec/office_full", []),
    "amazon18_scientific_full": ("hidvae/scientific", LONG),
    "amazon18_scientific_sids": ("minionerec/scientific_sids", []),
    "yelp": ("minionerec/yelp", []),
    "ml_100k": (TABLES, [*ALONE, *LONG]),
    "ml_latest_small": (TABLES, [*ALONE, *LONG]),
    "raw14_digital_music_part": (TABLES, [*ALONE, *LONG]),
    "raw18_all_beauty": (TABLES, [*ALONE, *LONG]),
    "raw18_magazine": (TABLES, [*ALONE, *LONG]),
}
# The publishers' own files of the same sets: (config, folder, users, items, interactions).
RAW = {
    "ml_100k": ("minionerec/ml100k", "ml_100k/raw", [], (943, 1682, 100_000)),
    "ml_latest_small": ("hidvae/ml_latest", "ml_latest_small/raw", [], (610, 9742, 100_836)),
    "beauty_p5": ("hidvae/beauty14_p5", "amazon14_beauty/raw", [], (22_363, 12_101, 198_502)),
    "toys_p5": ("hidvae/toys14_p5", "amazon14_toys/raw", [], (19_412, 11_924, 167_597)),
    "yelp_p5": ("hidvae/beauty14_p5", "yelp/raw", ["--p5.sequences", "[Yelp.txt*]", "--p5.metadata", "[]"],
                (30_431, 20_033, 316_354)),
    "magazine": ("minionerec/magazine", "raw18_magazine/raw",
                 ["--filters.user_k", 0, "--filters.item_k", 0, "--amazon.drop_duplicates", "true", "--amazon.keep_without_metadata", "true"],
                 (348, 157, 2328)),
    # Its README keeps five repeats of (user, item, time) whose ratings differ.
    "all_beauty": ("minionerec/all_beauty", "raw18_all_beauty/raw", [], (991, 85, 4161)),
}  # fmt: skip


def prepared(name: str, place: Path) -> Path:
    config, flags = SETS[name]
    call(
        "data.prepare",
        "--config",
        f"configs/{config}/prepare.yaml",
        "--raw",
        REAL / name,
        "--output_dir",
        place,
        *flags,
    )
    return place


@pytest.mark.parametrize("name", SETS)
def test_sizes_and_floors_are_those_of_the_readme(name, tmp_path):
    expected = json.loads((REAL / "checks.json").read_text())[name]
    data = prepared(name, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())["counts"]
    assert (manifest["items"], manifest["users"]) == (expected["items"], expected["users"])
    assert manifest["interactions"] == sum(expected["interactions"].values())
    for split, rows in expected.get("sequence_rows", {}).items():
        assert manifest[split] == rows, split
    for key, got in floors(data, expected["baseline_rows"]).items():
        assert got == pytest.approx(list(expected["baselines"][key].values()), abs=0.001), (name, key)


def test_the_users_of_office_whose_times_are_not_proven_raise_its_floors_as_its_readme_says(tmp_path):
    """Train rows of others, laid beside those of the set: for pre-training only, so no config joins them."""
    data = prepared("amazon18_office", tmp_path / "data")
    more = pq.read_table(REAL / "amazon18_office/derived/extra_users_time_unproven.parquet").sort_by(
        [("user_id", "ascending"), ("order", "ascending")]
    )
    raw_ids = np.array(artifacts.read_items(data)["raw_id"].to_pylist())
    place = {raw: item for item, raw in enumerate(raw_ids.tolist())}
    items = np.array([place[str(item)] for item in more["item_id"].to_pylist()], np.int32)
    found = floors(data, 4866, more=(more["user_id"].to_numpy().astype(np.int32), items))
    expected = {
        "pop": (0.0284, 0.0150), "pop_mask_history": (0.0288, 0.0159), "itemknn": (0.1769, 0.1242),
        "itemknn_mask_history": (0.1728, 0.1289), "last": (0.1451, 0.1089), "last_mask_history": (0.1301, 0.1001),
    }  # fmt: skip
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=0.001), key


def floors(data: Path, size: int, *, more: Any = None) -> dict[str, tuple[float, float]]:
    """HR@10 and NDCG@10 on test of the counting baselines, plain and with the items of a history left out; every step-th row
    where `size` is smaller than the split. The README's `last` reaches three places: `recent` here."""
    num_items = artifacts.read_items(data).num_rows
    train, rows = read_train_log(data, num_items=num_items), read_rows(data, "test", num_items=num_items)
    if more is not None:  # users and items of further train rows
        joined = (np.concatenate(both) for both in zip((train.users_T, train.items_T), more, strict=True))
        train = TrainLog(*joined, num_items)
    rows = rows.take(np.arange(0, len(rows), -(-len(rows) // size)))
    popular = train.popularity_N
    models = {
        "pop": counting.CountingModel(popular, sparse.csr_matrix((num_items, num_items))),
        "itemknn": counting.CountingModel(popular, counting.item_similarity(train)),
        "last": counting.CountingModel(popular, counting.transition_matrix(train, reach=3), last=1),
    }
    found = {}
    for name, model in models.items():
        scores = model.counts(rows)
        placed = counting.target_places(scores, rows.target_R, popular)
        rank = placed.before_R + (placed.group_R + 1) / 2
        found |= {name: hr_ndcg(rank), f"{name}_mask_history": hr_ndcg(masked(rank, scores, rows, popular))}
    return found


def masked(rank: np.ndarray, scores: sparse.csr_matrix, rows: Rows, popular: np.ndarray) -> np.ndarray:
    """Mean ranks when the items of a history are left out; a target among them is never found."""
    count, own = len(rows), rows.target_R[rows.history_row_H]
    again = np.bincount(rows.history_row_H, rows.history_H == own, minlength=count) > 0
    pairs = np.unique(np.stack([rows.history_row_H, rows.history_H])[:, rows.history_H != own], axis=1)
    row, item = pairs
    score, mine = (np.asarray(scores[row, items]).ravel() for items in (item, rows.target_R[row]))
    more, target = popular[item], popular[rows.target_R[row]]
    ahead = (score > mine) | ((score == mine) & (more > target))
    tied = (score == mine) & (more == target)
    rank = rank - np.bincount(row, ahead, minlength=count) - np.bincount(row, tied, minlength=count) / 2
    return np.where(again, np.inf, rank)


def hr_ndcg(rank: np.ndarray) -> tuple[float, float]:
    """Ties share their mean rank, as in the README's floors; 10.5 is still among the first ten."""
    gain = np.where(rank < 11, 1 / np.log2(rank + 1), 0)
    return float((rank < 11).mean()), float(gain.mean())


@pytest.mark.parametrize("name", RAW)
def test_publishers_files_give_the_same_sizes(name, tmp_path):
    config, folder, flags, sizes = RAW[name]
    call(
        "data.prepare",
        "--config",
        f"configs/{config}/prepare.yaml",
        "--raw",
        REAL / folder,
        "--output_dir",
        tmp_path / "made",
        *flags,
    )
    counts = json.loads((tmp_path / "made/manifest.json").read_text())["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == sizes
    steps = json.loads((tmp_path / "made/funnel.json").read_text())["steps"]
    assert steps[-1]["rows"] == sizes[2] and [step["rows"] for step in steps] == sorted(
        (step["rows"] for step in steps), reverse=True
    )
