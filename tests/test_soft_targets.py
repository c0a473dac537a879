"""Soft targets from a saved teacher: what a train row is told, by hand and against the teacher; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from configs.program import InputError
from data.rows import read_rows
from data.store.output import read_manifest
from infer.models import contract
from infer.models.cache import ScoreCache
from infer.models.recency import with_ages
from tests.handmade import call, refuse, resign
from tests.store import ITEMS, sequences, write_store
from train.soft_targets import SoftTargets, TaughtRows


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A data set, and a product of item-kNN, trend and popularity with a fitted scale."""
    root = tmp_path_factory.mktemp("soft")
    data = write_store(root / "store")
    call(
        "infer.run_baselines", "--data", data, "--output_root", root / "eval", "--splits", "[]",
        "--models", "[pop,itemknn,trend]",
    )  # fmt: skip
    members = ",".join(str(root / "baselines" / name) for name in ("pop", "itemknn", "trend"))
    call(
        "infer.fuse", "--members", f"[{members}]", "--data", data, "--output_dir", root / "baselines/teacher",
        "--output_root", root / "eval", "--splits", "[]", "--weights", "[1,1,0.5]", "--scale", "fitted",
    )  # fmt: skip
    return root, data


def test_a_row_is_told_by_hand():
    log = np.log(np.array([[0.6, 0.2]], np.float32))
    cache = ScoreCache(
        np.array([7]), np.array([[1, 3]]), log, np.log(np.array([0.1], np.float32)), num_items=4, where="x"
    )
    items_RK, chance_RK, rest_R = TaughtRows(cache).of_examples(np.array([7]))
    assert (
        items_RK.tolist() == [[1, 3]]
        and chance_RK[0] == pytest.approx([0.6, 0.2])
        and rest_R == pytest.approx([0.1])
    )
    # Square roots of .6, .2, .1 and .1 sum to 1.854.
    softer = TaughtRows(cache, temperature=2.0).of_examples(np.array([7]))
    assert softer[1][0] == pytest.approx([0.4178, 0.2412], abs=1e-4) and softer[2] == pytest.approx(
        [0.1705], abs=1e-4
    )
    assert TaughtRows(cache, temperature=2.0).dense(np.array([7]))[0] == pytest.approx(
        [0.1705, 0.4178, 0.1705, 0.2412], abs=1e-4
    )
    cold = TaughtRows(cache, temperature=1e-3).dense(np.array([7]))[0]
    assert cold.tolist() == [0, 1, 0, 0], "no overflow"


@pytest.mark.parametrize("k", [None, 5])
def test_train_rows_are_told_what_the_teacher_says(taught, k):
    root, data = taught
    options = SoftTargets(str(root / "baselines/teacher"), k=k, folds=0)
    told = TaughtRows.of(options, data=data, num_items=ITEMS)
    rows = with_ages(read_rows(data, "train", num_items=ITEMS), data, num_items=ITEMS)
    some = rows.take(np.random.default_rng(0).permutation(len(rows))[:30])
    exact_RN = np.exp(contract.load(options.teacher).score(some).astype(float))
    items_RK, chance_RK, rest_R = told.of_examples(some.example_ids_R)
    assert told.whole == (k is None) and items_RK.shape == (30, ITEMS if k is None else 5)
    assert chance_RK == pytest.approx(np.take_along_axis(exact_RN, items_RK, 1), rel=1e-4)
    dense_RN = told.dense(some.example_ids_R)
    assert dense_RN.sum(1) == pytest.approx(np.ones(30), abs=1e-5) and dense_RN.shape == exact_RN.shape
    if k is not None:
        assert rest_R == pytest.approx((1 - chance_RK.sum(1)) / (ITEMS - k), abs=1e-5)
        assert (np.sort(exact_RN, 1)[:, -k] <= chance_RK.min(1) + 1e-6).all()
    place = root / "scores" / ("teacher.train" + (".top5" if k else ""))
    assert (place / "manifest.json").exists()
    with pytest.raises(InputError, match="has no scores of example 999999"):
        told.of_examples(np.array([999999]))


def test_the_scale_of_the_teacher_is_the_best_one(taught):
    root, data = taught
    facts = read_manifest(root / "baselines/teacher")["facts"]
    assert (
        facts["tuned_on"] == "valid" and facts["valid_nll_scale_fitted"] < facts["valid_nll_scale_1"] - 0.01
    )
    assert facts["weights"][str(root / "baselines/pop")] == 1 and facts["scale"] != 1
    rows = with_ages(read_rows(data, "valid", num_items=ITEMS), data, num_items=ITEMS)
    said = contract.load(root / "baselines/teacher").score(rows, rows.target_R[:, None].astype(int))
    assert -said.mean() == pytest.approx(facts["valid_nll_scale_fitted"], abs=1e-4)


def test_what_cannot_teach_is_refused(taught, tmp_path):
    root, data = taught
    teacher = root / "baselines/teacher"

    def told(teacher=teacher, data=data, **options):
        return TaughtRows.of(SoftTargets(str(teacher), **options), data=data, num_items=ITEMS)

    other = write_store(tmp_path / "other", sequences(seed=1))
    with pytest.raises(InputError, match="was made from another state of the data"):
        told(data=other)
    told(scores=str(tmp_path / "scores"), k=3)
    renamed = tmp_path / "elsewhere/teacher"
    renamed.parent.mkdir()
    (root / "baselines/pop").rename(renamed)
    try:
        with pytest.raises(InputError, match="holds scores of another model ->"):
            told(teacher=renamed, scores=str(tmp_path / "scores"), k=3)
    finally:
        renamed.rename(root / "baselines/pop")
    with pytest.raises(InputError, match="holds no item model"):
        told(teacher=data)
    manifest = teacher / "manifest.json"
    kept, facts = manifest.read_bytes(), read_manifest(teacher)["facts"]
    try:
        resign(teacher, facts=facts | {"fitted_on": "train and valid"})
        with pytest.raises(
            InputError, match="was fitted on train and valid -> a teacher that was fitted on train rows"
        ):
            told()
        resign(teacher, facts=facts, stage="import_predictions")
        with pytest.raises(InputError, match="has ranks, no probabilities"):
            told()
    finally:
        manifest.write_bytes(kept)
    for wrong in (
        {"share": 0.0},
        {"share": 1.5},
        {"temperature": 0.0},
        {"k": 0},
        {"folds": 1},
        {"folds": -1},
    ):
        with pytest.raises(InputError, match="soft_targets."):
            SoftTargets("teacher", **wrong)
    with pytest.raises(InputError, match="soft_targets.scores x is read only with soft_targets.teacher"):
        SoftTargets(scores="x")


def test_scales_that_cannot_be(taught, tmp_path):
    root, data = taught
    members = f"[{root}/baselines/pop,{root}/baselines/itemknn]"
    fuse = (
        "infer.fuse",
        "--members",
        members,
        "--data",
        data,
        "--output_dir",
        tmp_path / "x",
        "--output_root",
        tmp_path,
    )
    assert "scale fitted is read only with how product" in refuse(
        *fuse, "--how", "mixture", "--scale", "fitted"
    )
    assert "must be a number above 0, or fitted" in refuse(*fuse, "--scale", "best")
    call(*fuse, "--scale", "2.0", "--splits", "[]")
    call(*fuse[:6], tmp_path / "y", *fuse[7:], "--weights", "[1.0,1.0]", "--splits", "[]")
    rows = with_ages(read_rows(data, "test", num_items=ITEMS), data, num_items=ITEMS)
    pair = [contract.load(tmp_path / name).score(rows) for name in "xy"]
    assert np.allclose(*pair, atol=1e-5)
