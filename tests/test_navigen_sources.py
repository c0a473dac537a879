"""A NaviGen folder of several data sets: which one a row is of stays with it, and metrics are told for each."""

from __future__ import annotations

import json

from data import artifacts
from data.releases import navigen
from data.rows import read_rows
from tests.handmade import call, refuse
from tests.test_navigen_files import cid, tables
from tests.test_releases import PUBLISHED

A, B, C = cid(1, 2, 3), cid(4, 5, 6), cid(7, 8, 9)


def folder_of(root, **test_columns):
    """B is popular. Test: a row of games that popularity answers at once, one of books that it answers last."""
    rows = {"uid": ["u", "v"], "hist_sid": [[A], [A]], "target_sid": [B, C]}
    train = {"uid": ["u", "v", "w"], "hist_sid": [[B], [B], [C]], "target_sid": [B, B, A]}
    catalogue = {"pid": ["1", "2", "3"], "sid": [A, B, C], "tid": [["nut"], ["bolt"], ["glue"]]}
    return tables(root, pid2cid2tid=catalogue, train_cid2cid=train, test_cid2cid=rows | test_columns)


def test_metrics_by_data_set(tmp_path):
    folder = folder_of(tmp_path / "raw", source_dataset=["games_test_cid2cid", "books_test_cid2cid"])
    data = tmp_path / "data"
    call("data.prepare", "--adapter", "navigen", *PUBLISHED, "--raw", folder, "--output_dir", data)
    rows = artifacts.read_sequences(data)
    told = dict(zip(rows["example_id"].to_pylist(), rows["source_dataset"].to_pylist(), strict=True))
    test = read_rows(data, "test", num_items=3)
    assert [told[key] for key in test.example_ids_R.tolist()] == ["games_test_cid2cid", "books_test_cid2cid"]
    assert [told[key] for key in told if key not in test.example_ids_R] == [""] * 3, "train rows name none"

    run = ["infer.run_baselines", "--data", data, "--output_root", tmp_path / "eval"]
    call(*run, "--models", "[pop]", "--splits", "[test]")
    score = ["infer.evaluate", "--predictions", tmp_path / "eval/pop.test", "--data", data, "--resamples", 10]
    call(*score, "--group_columns", "[source_dataset]", "--ks", "[1,3]")
    metrics = json.loads((tmp_path / "eval/pop.test/metrics/metrics.json").read_text())
    first = {
        name: metrics[f"item_level/source_dataset={name}_test_cid2cid/hr@1"]["value"]
        for name in ("games", "books")
    }
    assert first == {"games": 1.0, "books": 0.0} and metrics["item_level/hr@1"]["value"] == 0.5


def test_a_folder_that_names_no_data_set_has_no_such_column(tmp_path):
    for name, more in (("none", {}), ("null", {"source_dataset": [None, " "]})):
        folder = folder_of(tmp_path / name, **more)
        assert navigen.read_folder(folder).rows.texts == {}
        data = tmp_path / f"{name}-data"
        call("data.prepare", "--adapter", "navigen", *PUBLISHED, "--raw", folder, "--output_dir", data)
        assert "source_dataset" not in artifacts.read_sequences(data).column_names
    call("infer.run_baselines", "--data", data, "--output_root", tmp_path / "eval", "--models", "[pop]", "--splits", "[test]")  # fmt: skip
    command = ("infer.evaluate", "--predictions", tmp_path / "eval/pop.test", "--data", data)
    assert "no column 'source_dataset' to group by" in refuse(*command, "--group_columns", "[source_dataset]")
