"""Ties of models that score items: expected values over their random orders, lists of bounded length, examples without a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.predictions import read_predictions, unanswered, write_predictions
from data.rows import Rows, TrainLog
from data.store.output import open_output, read_manifest
from infer import run_baselines
from infer.metrics.placement import find_targets, place_items
from infer.metrics.ranking import by_name
from infer.models import answers, contract, counting, tuning
from tests.handmade import Made, call, resign, succeed, write_data
from train.scratch.sequential import by_ranking


def equally_often(directory: Path, count: int, rows: int = 60) -> Path:
    """A data set whose items stand in train once each, bought by users who buy nothing else."""
    tested = [
        (split, user, [user % count], (7 * user) % count)
        for split in ("valid", "test")
        for user in range(rows)
    ]
    data = write_data(directory, titles=[f"Thing {item}" for item in range(count)], sequences=tested)
    bought = {
        "user_id": pa.array(range(count), pa.int32()),
        "item_id": pa.array(range(count), pa.int32()),
        "order": pa.array([0] * count, pa.int32()),
        "split": ["train"] * count,
    }
    pq.write_table(pa.table(bought), data / "interactions.parquet")
    return resign(data)


def measured(data: Path, root: Path, *flags: object) -> dict:
    call(
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        root,
        "--models",
        "[pop]",
        "--splits",
        "[test]",
        *flags,
    )
    succeed("infer.evaluate", "--predictions", root / "pop.test", "--data", data, "--resamples", 50)
    return json.loads((root / "pop.test/metrics/metrics.json").read_text())


@pytest.mark.parametrize("count", [19, 21, 120])
def test_a_tie_of_all_items_gives_each_its_share(count, tmp_path):
    """Every item is as popular as any other: in random order 10 of them are among the first ten."""
    found = measured(equally_often(tmp_path / "data", count), tmp_path / "eval")
    values = {name: one["value"] for name, one in found.items() if name != "protocol"}
    places = np.arange(10)
    assert values["item_level/hr@10"] == pytest.approx(10 / count, abs=1e-6)
    assert values["item_level/ndcg@10"] == pytest.approx((1 / np.log2(places + 2)).sum() / count, abs=1e-6)
    assert values["all/coverage@10"] == 1 and values["all/gini@10"] == pytest.approx(0, abs=1e-6)
    assert values["all/novelty@10"] == pytest.approx(np.log2(count), abs=1e-5)
    assert all(np.isfinite(value) for value in values.values())


def test_a_tie_that_is_too_large_is_drawn_from(tmp_path, monkeypatch):
    """Room for 40 entries of a row: lists of 40 of the 300 items, other ones for every row, and the same mean over many rows."""
    data = equally_often(tmp_path / "data", 300, rows=600)
    monkeypatch.setattr(answers, "LISTED", 40 * 600)
    found = measured(data, tmp_path / "eval", "--depth", 20)
    predictions, _ = read_predictions(tmp_path / "eval/pop.test")
    assert set(np.diff(predictions.offsets)) == {40} and len(np.unique(predictions.items_M)) == 300
    assert found["item_level/hr@20"]["low"] <= 20 / 300 <= found["item_level/hr@20"]["high"]
    assert found["all/coverage@10"]["value"] == 1


def test_lists_end_behind_the_tie_of_their_last_place():
    score_RN = np.array([[5, 4, 4, 4, 4, 1], [3, 3, 3, 3, 3, 3]], np.float32)
    lists = contract.ranked_lists(score_RN, 2)
    assert lists.item_E.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    assert lists.rank_E.tolist() == [1, *[3.5] * 4, *[3.5] * 6]
    drawn = contract.ranked_lists(np.tile(score_RN, (2000, 1)), 2, most=3)
    assert np.diff(drawn.offsets).tolist() == [4, 3] * 2000
    first = drawn.rank_E[drawn.offsets[:-1][::2]]
    assert set(first) == {1.0} and set(drawn.rank_E) == {1.0, 3.0, 2.0}
    often = np.bincount(drawn.item_E[np.repeat(np.arange(4000) % 2, np.diff(drawn.offsets)) == 1])
    assert np.abs(often - 1000).max() < 5 * np.sqrt(2000 * 0.25), (
        "every item of a tie is as likely as any other"
    )


def test_places_are_those_of_the_lists_whoever_counts_them(tmp_path):
    """Validation, tuning and evaluation: one rule."""
    rng = np.random.default_rng(0)
    popularity_N, targets = np.repeat([1, 2, 5], 4), rng.integers(0, 12, 40)
    rows = Rows(
        np.arange(40), np.arange(40), np.zeros(41, int), np.zeros(0, np.int32), targets.astype(np.int32)
    )
    train = TrainLog(
        np.arange(popularity_N.sum()), np.repeat(np.arange(12), popularity_N).astype(np.int32), 12
    )
    model = counting.CountingModel(train.popularity_N, counting.item_similarity(train))
    with open_output(Made(), "baseline x", version=1, inputs={}, directory=tmp_path / "eval") as out:
        write_predictions(out, answers.predict(rows, model, 10, label="x"))
    predictions, _ = read_predictions(tmp_path / "eval")
    listed = place_items(predictions, find_targets(predictions, rows.target_R))
    counted = counting.target_places(model.counts(rows), rows.target_R, popularity_N)
    expected = by_name("ndcg@10", counted.before_R, counted.group_R)
    assert by_name("ndcg@10", listed.before_R, listed.group_R).tolist() == pytest.approx(expected.tolist())
    assert by_ranking(model.score, rows, 12)["ndcg@10"] == pytest.approx(expected.mean())
    tuned = tuning.ndcgs_of(model.counts(rows), rows, popularity_N).mean()
    assert tuned == pytest.approx(by_name("ndcg@10", counted.before_R, counted.group_R).mean())
    by_group = {0: 4, 4: 4, 8: 4}
    assert {int(b): int(g) for b, g in zip(counted.before_R, counted.group_R, strict=True)} == by_group


def without_lists(directory: Path, data: Path, keep: int, **facts: object) -> Path:
    """Predictions of the test rows of `data` of which only the first `keep` examples have a list."""
    call(
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        directory,
        "--models",
        "[pop]",
        "--splits",
        "[test]",
    )
    table = pq.read_table(directory / "pop.test/predictions-00000-of-00001.parquet")
    ids = table["example_id"].unique().to_numpy()
    kept = table.filter(np.isin(table["example_id"].to_numpy(), ids[:keep]))
    with open_output(
        Made(), "recommend", version=1, inputs={"data": data}, directory=directory / "few.test"
    ) as out:
        write_predictions(out, kept)
        out.counts |= {"examples": len(ids), "predictions": kept.num_rows}
        out.facts |= {"split": "test", "depth": 12} | (
            unanswered(ids, kept) if facts.get("named", True) else {}
        )
    return directory / "few.test"


@pytest.mark.parametrize(("keep", "named"), [(20, True), (0, True), (0, False)])
def test_examples_that_were_answered_by_no_list_are_misses(keep, named, tmp_path):
    data = equally_often(tmp_path / "data", 12)
    given = without_lists(tmp_path / "eval", data, keep, named=named)
    found, manifest = read_predictions(given)
    assert len(found.example_ids_R) == (60 if named else 0) and len(
        manifest["facts"].get("unanswered", [])
    ) == (60 - keep if named else 0)
    succeed("infer.evaluate", "--predictions", given, "--data", data, "--resamples", 20)
    values = json.loads((given / "metrics/metrics.json").read_text())
    assert values["protocol"]["rows"] == 60
    assert values["item_level/hr@10"]["value"] == pytest.approx(keep / 60 * 10 / 12, abs=1e-6)
    shown = [
        values[f"all/{name}@10"][key]
        for name in ("novelty", "popularity")
        for key in ("value", "low", "high")
    ]
    assert np.isfinite(shown).all() and (keep or not any(shown))
    assert read_manifest(given)["counts"]["examples"] == 60


def test_what_is_drawn_from_a_tie_is_the_rows_own():
    """However the rows are cut: the example's number decides, not its place in a block."""
    score_RN, keys = np.zeros((6, 40), np.float32), np.array([7, 3, 9, 1, 4, 2])
    whole = contract.ranked_lists(score_RN, 2, most=5, keys_R=keys)
    assert np.diff(whole.offsets).tolist() == [5] * 6
    alone = [contract.ranked_lists(score_RN[:1], 2, most=5, keys_R=keys[row : row + 1]) for row in range(6)]
    assert np.concatenate([one.item_E for one in alone]).tolist() == whole.item_E.tolist()
    assert len(set(map(tuple, whole.item_E.reshape(6, 5).tolist()))) > 1


def test_lists_of_before_are_refused_and_written_anew(tmp_path):
    """Made by the rule of mean ranks: never kept beside new ones, and --overwrite does what it says."""
    data = equally_often(tmp_path / "data", 19)
    flags = [
        "infer.run_baselines",
        "--data",
        data,
        "--models",
        "[pop]",
        "--output_root",
        tmp_path / "eval",
        "--splits",
        "[test]",
    ]
    call(*flags)
    place = tmp_path / "eval/pop.test"
    resign(place, stage_version=1)
    with pytest.raises(InputError, match="pop.test holds another run .*--overwrite"):
        call(*flags)
    call(*flags, "--overwrite", "true")
    assert read_manifest(place)["stage_version"] == run_baselines.LISTS_VERSION == 2
