"""infer.evaluate as a user runs it: a SID model beside a baseline, and everything that must stop it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data import artifacts
from data.output import open_output
from data.sid import SidTable, read_sids
from infer.predictions import write_predictions
from infer.rows import read_rows
from tests.handmade import Made, call, refuse, succeed, write_sids
from tests.store import ITEMS, sequences, write_store

CODES = np.stack([np.arange(ITEMS) // 8, np.arange(ITEMS) % 8 // 2 * 2], axis=1).astype(
    np.int32
)  # pairs collide
BEAMS = 12


def prediction_table(ids: np.ndarray, table: SidTable, seed: int) -> pa.Table:
    """A random ranking of BEAMS semantic IDs for every example."""
    rng = np.random.default_rng(seed)
    sids = np.concatenate([rng.permutation(len(table.sids_SL))[:BEAMS] for _ in ids])
    return pa.table(
        {
            "example_id": np.repeat(ids, BEAMS),
            "rank": pa.array(np.tile(np.arange(1.0, BEAMS + 1), len(ids)), pa.float32()),
            "codes": artifacts.int_rows(table.sids_SL[sids]),
            "item_ids": pa.array([table.items_of_sid(sid).tolist() for sid in sids], artifacts.INT_LIST),
            "score": pa.array(np.tile(-np.arange(BEAMS), len(ids)), pa.float32()),
        }
    )


def write_run(directory: Path, tables: list[pa.Table], **facts: object) -> Path:
    """A prediction directory as recommend writes it, one part per table."""
    with open_output(directory, stage="recommend", version=1, args=Made(str(directory)), inputs={}) as out:
        for part, table in enumerate(tables):
            write_predictions(out, table, part=part, parts=len(tables))
        out.facts |= {"split": "test", "beams": BEAMS, "score_space": "full", "fitted_on": "train", **facts}
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    data = write_store(root / "store")
    sids = write_sids(root / "sids", data=data, codes=CODES, sizes=(5, 8))
    ids = read_rows(data, "test", num_items=ITEMS).example_ids_R
    table = prediction_table(ids, read_sids(sids), seed=1)
    half = len(ids) // 2 * BEAMS
    model = write_run(
        root / "eval" / "sft.test", [table.slice(0, half), table.slice(half)], users_per_second=12.5
    )
    return root, data, sids, ids, table, model


def read_metrics(predictions: Path) -> dict:
    return json.loads((predictions / "metrics" / "metrics.json").read_text())


def test_a_sid_model_in_two_parts(made):
    root, data, sids, ids, table, model = made
    line = succeed("infer.evaluate", "--predictions", model, "--data", data, "--sids", sids).splitlines()[0]
    values = read_metrics(model)
    targets = {i: walk[-1] for i, walk in zip(sorted(ids), sequences(), strict=True)}
    hits, expected, before = 0, 0.0, dict.fromkeys(targets, 0)
    for row in table.select(["example_id", "rank", "item_ids"]).to_pylist():
        example, items = row["example_id"], row["item_ids"]
        if targets[example] in items:
            hits += row["rank"] <= 10
            expected += min(1.0, max(0.0, (10 - before[example]) / len(items)))
        before[example] += len(items)
    assert values["sid_level/hr@10"]["value"] == pytest.approx(hits / len(ids), abs=1e-6)
    assert values["item_level/hr@10"]["value"] == pytest.approx(expected / len(ids), abs=1e-6)
    assert 0 < values["item_level/hr@10"]["value"] < values["sid_level/hr@10"]["value"]
    assert values["all/invalid_rate"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert values["all/users_per_second"]["value"] == 12.5
    assert values["protocol"]["ks"] == [1, 3, 5, 10] and values["protocol"]["rows"] == len(ids)
    assert (
        values["protocol"]["score_space"] == "full" and values["protocol"]["group_rows"]["target=cold"] == 3
    )
    assert line.startswith("sft.test: item level HR@10 0.") and "sid level HR@10" in line
    assert "already complete" in succeed(
        "infer.evaluate", "--predictions", model, "--data", data, "--sids", sids
    )


def test_a_ranking_of_items_gets_a_sid_level_from_the_table(made):
    root, data, sids, *_ = made
    call(
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        root / "base",
        "--models",
        "[itemknn]",
        "--splits",
        "[test]",
    )
    predictions = root / "base" / "itemknn.test"
    call("infer.evaluate", "--predictions", predictions, "--data", data)
    assert not any(name.startswith("sid_level") for name in read_metrics(predictions))
    call(
        "infer.evaluate", "--predictions", predictions, "--data", data, "--sids", sids, "--overwrite", "true"
    )
    values = read_metrics(predictions)
    assert values["sid_level/hr@3"]["value"] > values["item_level/hr@3"]["value"] > 0


def test_missing_parts_examples_and_wrong_sets_are_refused(made, tmp_path):
    root, data, sids, ids, table, model = made
    short = write_run(tmp_path / "short.test", [table.slice(BEAMS * 2)])
    said = refuse("infer.evaluate", "--predictions", short, "--data", data)
    assert f"2 of {len(ids)} examples are missing (first: {ids[0]}, {ids[1]})" in said
    assert not (short / "metrics").exists()
    sample = write_run(tmp_path / "sample.test", [table.slice(BEAMS * 2)], max_rows=len(ids) - 2)
    call("infer.evaluate", "--predictions", sample, "--data", data, "--resamples", 10)
    lost = write_run(tmp_path / "lost.test", [table.slice(0, BEAMS), table.slice(BEAMS)])
    (lost / "predictions-00000-of-00002.parquet").unlink()
    assert "lacks 1 of its parts (first: part 0)" in refuse(
        "infer.evaluate", "--predictions", lost, "--data", data
    )
    mixed = write_run(tmp_path / "mixed.test", [table], sids_sha256="0" * 64)
    said = refuse("infer.evaluate", "--predictions", mixed, "--data", data, "--sids", sids)
    assert f"other semantic IDs than {sids} (000000000000 against {read_sids(sids).sha256[:12]})" in said
    other = write_run(tmp_path / "other.test", [table], split="valid")
    assert "are not of this data set and split" in refuse(
        "infer.evaluate", "--predictions", other, "--data", data
    )
    assert "no manifest.json" in refuse("infer.evaluate", "--predictions", tmp_path, "--data", data)


def test_an_answer_outside_the_catalogue_exits_with_4(made, tmp_path):
    root, data, sids, ids, table, _ = made
    codes = np.array(table["codes"].to_pylist())
    codes[5] = [4, 7]
    at = table.column_names.index("codes")
    wrong = write_run(tmp_path / "wrong.test", [table.set_column(at, "codes", artifacts.int_rows(codes))])
    said = refuse("infer.evaluate", "--predictions", wrong, "--data", data, "--sids", sids, code=4)
    assert f"1 of {len(table)} predictions are not in the catalogue (first: example {ids[0]})" in said
    assert not (wrong / "metrics" / "metrics.json").exists()
