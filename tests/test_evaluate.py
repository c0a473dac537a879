"""infer.evaluate as a user runs it: a SID model beside a baseline, and everything that must stop it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs.program import ROOT
from data import artifacts
from data.predictions import write_predictions
from data.releases.index import read_index
from data.rows import products, read_rows
from data.sid import SidTable, read_sids
from data.store.output import open_output
from infer.metrics.levels import levels_of
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


def write_run(directory: Path, tables: list[pa.Table], data: Path | None = None, **facts: object) -> Path:
    """A prediction directory as recommend writes it, one part per table; it may record the data set it is of."""
    inputs = {"data": data}
    with open_output(Made(str(directory)), "recommend", version=1, inputs=inputs, directory=directory) as out:
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
    assert "predictions-00000-of-00002.parquet is missing" in refuse(
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


def test_predictions_and_sids_of_another_data_set_are_refused(made, tmp_path):
    """Example ids, split, counts and codes all fit; only the manifests know."""
    root, data, sids, ids, table, _ = made
    twin = write_store(
        tmp_path / "twin", [[item + 1 if item < 9 else item for item in walk] for walk in sequences()]
    )
    own = write_run(tmp_path / "own.test", [table], data=data)
    call("infer.evaluate", "--predictions", own, "--data", data, "--sids", sids, "--resamples", 10)
    for predictions, of, extra in (
        (own, twin, []),
        (write_run(tmp_path / "x.test", [table], twin), twin, ["--sids", sids]),
    ):
        line = refuse("infer.evaluate", "--predictions", predictions, "--data", of, *extra, "--overwrite")
        assert (
            f"{extra[-1] if extra else predictions} was made from another state of the data than {twin}"
            in line
        )


def test_an_answer_outside_the_catalogue_exits_with_4(made, tmp_path):
    root, data, sids, ids, table, _ = made
    codes = np.array(table["codes"].to_pylist())
    codes[5] = [4, 7]
    at = table.column_names.index("codes")
    wrong = write_run(tmp_path / "wrong.test", [table.set_column(at, "codes", artifacts.int_rows(codes))])
    said = refuse("infer.evaluate", "--predictions", wrong, "--data", data, "--sids", sids, code=4)
    assert f"1 of {len(table)} predictions are not in the catalogue (first: example {ids[0]})" in said
    assert not (wrong / "metrics" / "metrics.json").exists()


def test_an_answer_from_a_part_of_the_catalogue_may_hold_a_part_of_a_semantic_id(made, tmp_path):
    _, data, sids, _, table, _ = made
    part = pa.array([items[:1] for items in table["item_ids"].to_pylist()], artifacts.INT_LIST)
    table = table.set_column(table.column_names.index("item_ids"), "item_ids", part)
    command = ("--data", data, "--sids", sids, "--resamples", 10)
    whole = write_run(tmp_path / "whole.test", [table])
    assert "are not in the catalogue" in refuse("infer.evaluate", "--predictions", whole, *command, code=4)
    some = write_run(tmp_path / "some.test", [table], allowed="stock.parquet")
    call("infer.evaluate", "--predictions", some, *command)
    other = pa.array([[(items[0] + 8) % ITEMS] for items in part.to_pylist()], artifacts.INT_LIST)
    table = table.set_column(table.column_names.index("item_ids"), "item_ids", other)
    wrong = write_run(tmp_path / "wrong.test", [table], allowed="stock.parquet")
    assert "are not in the catalogue" in refuse("infer.evaluate", "--predictions", wrong, *command, code=4)


def test_groups_by_a_column_the_row_of_the_table_and_the_places(made, tmp_path):
    root, data, sids, ids, table, _ = made
    model = write_run(tmp_path / "m.test", [table])
    command = ("infer.evaluate", "--predictions", model, "--data", data, "--sids", sids, "--resamples", 10)
    call(*command, "--group_columns", "[brand,title,category,category_2]", "--ks", "[1,5]")
    values = read_metrics(model)
    targets = read_rows(data, "test", num_items=ITEMS).target_R
    assert values["item_level/brand=Acme/hr@5"]["value"] == values["item_level/hr@5"]["value"]
    assert values["protocol"]["group_rows"]["title="] == (targets == 2).sum(), "the item without a title"
    shelves = {
        key: rows for key, rows in values["protocol"]["group_rows"].items() if key.startswith("category_2=")
    }
    assert values["item_level/category=Tools/hr@5"]["value"] == values["item_level/hr@5"]["value"]
    assert shelves["category_2=Shelf 0"] == (targets // 8 == 0).sum() and sum(shelves.values()) == len(
        targets
    )
    header, row, *rest = (model / "metrics" / "metrics.tsv").read_text().splitlines()
    line = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    assert not rest and line["sid_level/hr@5"] == f"{values['sid_level/hr@5']['value']:.4f}"
    assert {"item_level_unseen/ndcg@5", "item_level_dedup/mrr@5", "all/gini@10"} <= line.keys() and len(
        line["item_level/hr@1"]
    ) == 6
    places = levels_of(artifacts.read_file(model / "metrics" / "rows.parquet"))
    assert places["sid_level"].value_R("ndcg@5").mean() == pytest.approx(
        values["sid_level/ndcg@5"]["value"], abs=1e-6
    )
    assert "has no column 'shop' to group by" in refuse(
        *command, "--group_columns", "[shop]", "--overwrite", "true"
    )
    assert "has 90 values, more than 50" in refuse(
        *command, "--group_columns", "[example_id]", "--overwrite", "true"
    )


def test_rows_of_some_items_apart(made, tmp_path):
    _, data, sids, _, table, _ = made
    model = write_run(tmp_path / "m.test", [table])
    command = ("infer.evaluate", "--predictions", model, "--data", data, "--sids", sids, "--resamples", 10)
    call(*command, "--apart_items", "[2,4]", "--ks", "[5]")
    values, targets = read_metrics(model), read_rows(data, "test", num_items=ITEMS).target_R
    apart = np.isin(targets, [2, 4])
    assert values["protocol"]["group_rows"]["apart=yes"] == apart.sum() > 0
    parts = [values[f"item_level/apart={name}/hr@5"]["value"] for name in ("yes", "no")]
    assert apart.mean() * parts[0] + (1 - apart.mean()) * parts[1] == pytest.approx(
        values["item_level/hr@5"]["value"], abs=1e-5
    )
    assert f"no item {ITEMS}" in refuse(*command, "--apart_items", f"[{ITEMS}]", "--overwrite", "true")


def test_broken_scores_and_a_second_answer_are_refused(made, tmp_path):
    _, data, _, ids, table, _ = made
    score = table["score"].to_numpy().copy()
    score[7] = np.nan
    at = table.column_names.index("score")
    broken = write_run(tmp_path / "nan.test", [table.set_column(at, "score", pa.array(score))])
    said = refuse("infer.evaluate", "--predictions", broken, "--data", data, code=4)
    assert f"1 scores are not finite (first: example {ids[0]})" in said
    twice = write_run(tmp_path / "twice.test", [table, table.slice(0, BEAMS)])
    assert f"1 examples occur more than once (first: {ids[0]})" in refuse(
        "infer.evaluate", "--predictions", twice, "--data", data
    )
    gap = write_run(tmp_path / "gap.test", [table.take([*range(3), *range(4, len(table))])])
    assert f"the semantic IDs of example {ids[0]} do not have the ranks 1, 2, 3" in refuse(
        "infer.evaluate", "--predictions", gap, "--data", data
    )
    ranks = pa.array(np.tile(np.arange(1.0, BEAMS + 1), len(ids)), pa.float32())
    doubled = table.take([0, 0, *range(2, len(table))]).set_column(1, "rank", ranks)
    same = write_run(tmp_path / "double.test", [doubled])
    assert f"example {ids[0]} is given item" in refuse(
        "infer.evaluate", "--predictions", same, "--data", data, code=4
    )


def test_repeating_the_history_finds_the_repeats(made):
    root, data, *_ = made
    command = (
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        root / "repeat",
        "--models",
        "[repeat]",
    )
    call(*command, "--splits", "[test]")
    call(
        "infer.evaluate", "--predictions", root / "repeat" / "repeat.test", "--data", data, "--resamples", 10
    )
    rows = read_rows(data, "test", num_items=ITEMS)
    values = read_metrics(root / "repeat" / "repeat.test")
    newest = rows.history_H[rows.offsets[1:] - 1]
    assert values["item_level/hr@1"]["value"] == pytest.approx((newest == rows.target_R).mean(), abs=1e-6)
    assert values["item_level/repeat=yes/hr@10"]["value"] == 1.0


@pytest.mark.skipif("REAL_DATA" not in os.environ, reason="needs REAL_DATA")
def test_published_industrial_test_split_and_its_one_spammed_product(tmp_path):
    """Facts of the published files: repeating the last SID hits 4.35 %, almost all of it one product."""
    raw = Path(os.environ["REAL_DATA"]) / "amazon18_industrial"
    config = ROOT / "configs" / "minionerec" / "industrial" / "prepare.yaml"
    data = tmp_path / "industrial"
    succeed("data.prepare", "--config", config, "--raw", raw, "--output_dir", data)
    index = read_index(raw / "raw" / "Industrial_and_Scientific.index.json.gz")
    sids = write_sids(tmp_path / "sids", data=data, codes=index.codes_NL, sizes=(256,) * 3)
    call(
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        tmp_path,
        "--models",
        "[repeat]",
        "--splits",
        "[test]",
    )
    call(
        "infer.evaluate",
        "--predictions",
        tmp_path / "repeat.test",
        "--data",
        data,
        "--sids",
        sids,
        "--resamples",
        10,
    )
    values = read_metrics(tmp_path / "repeat.test")
    assert f"{values['sid_level/hr@1']['value']:.4f}" == "0.0435"
    assert values["protocol"]["rows"] == 4533
    rows = read_rows(data, "test", num_items=3686)
    product = products(artifacts.read_items(data))
    spam = product[rows.target_R] == product[181]
    assert product[181] == product[182] and spam.sum() == 200 and len(set(rows.users_R[spam].tolist())) == 73
    # Each user counted once per product, most of that is gone.
    assert values["item_level_dedup/hr@1"]["value"] < 0.02 < values["item_level_merged/hr@1"]["value"]


def test_predictions_of_another_data_set_are_refused(made, tmp_path):
    """The examples were built from one store, the targets would be another's with the same ids."""
    root, data, sids, ids, table, _ = made
    other = write_store(tmp_path / "other", [walk[::-1] for walk in sequences()])
    examples = tmp_path / "examples"
    with open_output(Made(), "build_examples", version=1, inputs={"data": other}, directory=examples) as out:
        out.write_json("facts.json", {})
    predicted = tmp_path / "eval" / "sft.test"
    inputs = {"examples": examples, "model": examples}
    with open_output(Made(), "recommend", version=1, inputs=inputs, directory=predicted) as out:
        write_predictions(out, table)
        out.facts |= {"split": "test", "fitted_on": "train"}
    for program in ("infer.evaluate", "infer.show"):
        said = refuse(program, "--predictions", predicted, "--data", data)
        assert f"{predicted} was made from another state of the data than {data}" in said
        assert said.endswith(f" -> run what made it (stage recommend, model {examples}) again")
    elsewhere = ("--output_dir", tmp_path / "metrics")
    said = refuse("infer.evaluate", "--predictions", made[5], "--data", other, "--sids", sids, *elsewhere)
    assert f"{sids} was made from another state of the data than {other}" in said
    assert not (predicted / "metrics").exists()
