"""The item-model contract: what every model's scores are, lists and caches that follow from them, and their refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs.program import InputError
from data.rows import read_rows
from infer.models import cache, contract
from infer.models.recency import with_ages
from tests.handmade import call, resign, write_data
from tests.store import ITEMS, write_store

NAMES = ("pop", "last", "recent", "itemknn", "itemknn_tuned", "repeat")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    data = write_store(root / "store")
    call(
        "infer.run_baselines", "--data", data, "--output_root", root / "eval", "--splits", "[test]",
        "--models", f"[{','.join(NAMES)}]", "--tune.decays", "[0.6]", "--tune.shrinks", "[0.0]",
    )  # fmt: skip
    return root, data, with_ages(read_rows(data, "test", num_items=ITEMS), data, num_items=ITEMS)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_log_probabilities_of_every_item(saved, name):
    root, _, rows = saved
    model = contract.load(root / "baselines" / name)
    score_RN = model.score(rows)
    assert score_RN.dtype == np.float32 and score_RN.shape == (len(rows), ITEMS) and model.num_items == ITEMS
    assert np.allclose(np.exp(score_RN.astype(float)).sum(1), 1, atol=1e-5)
    items_RC = np.random.default_rng(0).integers(0, ITEMS, (len(rows), 5))
    asked = model.score(rows, items_RC)
    assert asked.dtype == np.float32 and (asked == np.take_along_axis(score_RN, items_RC, axis=1)).all()
    few = np.array([7, 3])
    assert (model.score(rows.take(few)) == score_RN[few]).all(), "a row's scores are its own"


def test_lists_follow_from_scores():
    score_RN = np.log(np.array([[0.4, 0.1, 0.4, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32))
    score_RN[1, 0] = -np.inf
    lists = contract.ranked_lists(score_RN, 3)
    assert lists.item_E.tolist() == [0, 2, 1, 3, 3, 2, 1] and lists.offsets.tolist() == [0, 4, 7]
    assert lists.rank_E.tolist() == [1.5, 1.5, 3.5, 3.5, 1, 2, 3]


def test_a_cache_keeps_the_best_and_shares_the_rest(saved, tmp_path):
    root, _, rows = saved
    directory = root / "baselines" / "itemknn"
    made = cache.cached(tmp_path / "cache", model=directory, rows=rows, k=6)
    exact_RN, score_RN = contract.load(directory).score(rows), made.score(rows)
    kept = score_RN == exact_RN
    assert (kept.sum(1) >= 6).all() and np.allclose(np.exp(score_RN.astype(float)).sum(1), 1, atol=1e-5)
    # What is not kept is no better than what is, and has one value in a row: the mean of the rest.
    best = np.argsort(-exact_RN, axis=1)[:, :6]
    assert (np.take_along_axis(kept, best, 1).sum(1) >= 5).all()  # the sixth may tie with the seventh
    row = 4
    rest = np.setdiff1d(np.arange(ITEMS), np.flatnonzero(score_RN[row] == exact_RN[row]))
    assert np.exp(score_RN[row, rest]) == pytest.approx(np.exp(exact_RN[row, rest]).mean(), rel=1e-4)
    shuffled = rows.take(np.random.default_rng(1).permutation(len(rows))[:20])
    items_RC = np.random.default_rng(2).integers(0, ITEMS, (20, 7))
    again = contract.load(tmp_path / "cache")
    assert (
        again.score(shuffled, items_RC) == np.take_along_axis(again.score(shuffled), items_RC, axis=1)
    ).all()
    stamp = (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns
    cache.cached(tmp_path / "cache", model=directory, rows=rows, k=6)
    assert (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns == stamp, "made once"


def test_a_cache_of_the_whole_catalogue_is_the_model(saved, tmp_path):
    root, _, rows = saved
    made = cache.cached(tmp_path, model=root / "baselines" / "recent", rows=rows, k=ITEMS + 3)
    assert (made.score(rows) == contract.load(root / "baselines" / "recent").score(rows)).all()


def test_a_cache_of_another_model_or_of_other_rows_is_refused(saved, tmp_path):
    root, data, rows = saved
    models, half = root / "baselines", rows.take(np.arange(len(rows) // 2))
    cache.cached(tmp_path / "cache", model=models / "last", rows=half, k=4)
    for options, words in (
        ({"model": models / "recent", "rows": half, "k": 4}, "scores of another model ->"),
        ({"model": models / "last", "rows": rows, "k": 4}, "scores of other rows ->"),
        ({"model": models / "last", "rows": half, "k": 5}, "the 4 best items ->"),
    ):
        with pytest.raises(InputError, match=words):
            cache.cached(tmp_path / "cache", **options)
    with pytest.raises(InputError, match="has no scores of example"):
        contract.load(tmp_path / "cache").score(rows)
    made = cache.cached(tmp_path / "cache", model=models / "recent", rows=rows, k=ITEMS, overwrite=True)
    assert (made.score(rows) == contract.load(models / "recent").score(rows)).all()
    stamp = (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns
    cache.cached(tmp_path / "cache", model=models / "recent", rows=rows, k=ITEMS, overwrite=True)
    assert (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns == stamp, "what is asked for is kept"
    valid = read_rows(data, "valid", num_items=ITEMS)
    assert cache.rows_sha256(valid) != cache.rows_sha256(rows)


def test_what_is_no_model_is_refused(saved, tmp_path):
    root, _, rows = saved
    with pytest.raises(InputError, match="holds no item model"):
        contract.load(write_data(tmp_path / "data"))
    settings = root / "baselines" / "pop" / contract.FILE
    text = settings.read_text()
    settings.write_text(json.dumps({"kind": "svd"}))
    resign(root / "baselines" / "pop")
    with pytest.raises(InputError, match="unknown kind 'svd' -> one of counting, cache"):
        contract.load(root / "baselines" / "pop")
    settings.write_text(text)
    resign(root / "baselines" / "pop")
    by_age = contract.load(root / "baselines" / "itemknn_tuned")
    if by_age.half_life is not None:
        with pytest.raises(InputError, match="give it rows with ages"):
            by_age.score(read_rows(saved[1], "test", num_items=ITEMS))
