"""The published data sets of REAL_DATA through stage 01 with the committed configs: sizes, funnels and floors of their README.

REAL_DATA=/path/to/the/sets python -m pytest tests/test_real_data.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

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
    "magazine": ("minionerec/magazine", "raw18_magazine/raw",
                 ["--filters.user_k", 0, "--filters.item_k", 0, "--amazon.drop_duplicates", "true", "--amazon.keep_without_metadata", "true"],
                 (348, 157, 2328)),
    # Its README keeps five repeats of (user, item, time) whose ratings differ.
    "all_beauty": ("minionerec/all_beauty", "raw18_all_beauty/raw", [], (991, 85, 4161)),
}  # fmt: skip
NAMES = {"pop": "pop", "itemknn": "itemknn", "recent": "last"}


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
    call("infer.run_baselines", "--data", data, "--output_root", tmp_path / "eval", "--models", f"[{','.join(NAMES)}]", "--splits", "[test]")  # fmt: skip
    for ours, theirs in NAMES.items():
        rows = expected["test_rows"]
        step = -(-rows // expected["baseline_rows"])
        place = tmp_path / f"eval/{ours}.test"
        call("infer.evaluate", "--predictions", place, "--data", data, "--resamples", 10)
        value = {key: each["value"] for key, each in json.loads((place / "metrics/metrics.json").read_text()).items() if key.startswith("item_level")}  # fmt: skip
        # Where the README takes every step-th row, its figure is a sample: three standard errors of a share.
        # Masked: the README gives tied items their mean rank, infer.evaluate every order of them: it shows in few rows.
        tied = 0.001 if rows > 2000 else 0.005
        for metric in ("hr@10", "ndcg@10"):
            floor = expected["baselines"][theirs][metric.upper()]
            near = 0.001 if step == 1 else 3 * (floor / expected["baseline_rows"]) ** 0.5
            assert value[f"item_level/{metric}"] == pytest.approx(floor, abs=near), (name, ours, metric)
            if f"item_level_unseen/{metric}" in value and step == 1:
                masked = expected["baselines"][f"{theirs}_mask_history"][metric.upper()]
                assert value[f"item_level_unseen/{metric}"] == pytest.approx(masked, abs=tied), (name, ours)


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
