"""Answers drawn from a teacher in place of its distributions: how many fall where, what stays on disk, what a student learns of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.rows import read_rows
from infer.models import contract
from infer.models.recency import with_ages
from tests.handmade import call
from tests.store import ITEMS, write_store
from train.scratch.drawn import DrawnRows
from train.soft_targets import SoftTargets, systematic

PASSES = 4


@given(st.data())
@settings(max_examples=40)
def test_a_run_of_items_has_its_part_of_the_draws(data):
    """Whatever lies beside one another with mass q has A q of A draws, give or take one; so has an epoch's part of them."""
    size, draws = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    mass_BN = rng.random((3, size)) ** 4 + 1e-9
    place_BA = systematic(np.cumsum(mass_BN, 1), PASSES * draws, rng.random(3))
    assert (np.diff(place_BA, axis=1) >= 0).all()
    begin, end = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    share_B = mass_BN[:, begin:end].sum(1) / mass_BN.sum(1)
    for drawn in (place_BA, place_BA[:, 1::PASSES]):
        found_B = ((drawn >= begin) & (drawn < end)).sum(1)
        assert (np.abs(found_B - drawn.shape[1] * share_B) <= 1 + 1e-6).all()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    data = write_store(root / "store")
    call(
        "infer.run_baselines", "--data", data, "--output_root", root / "eval", "--splits", "[]", "--models", "[pop,recent]",
    )  # fmt: skip
    return root / "baselines", data


def test_train_rows_have_the_answers_of_their_teacher(teacher, monkeypatch):
    folder, data = teacher
    rows = with_ages(read_rows(data, "train", num_items=ITEMS), data, num_items=ITEMS)
    order_N = np.random.default_rng(0).permutation(ITEMS)
    told = {"data": data, "num_items": ITEMS, "order_N": order_N, "draws": 50, "epochs": PASSES}
    drawn = DrawnRows.of(SoftTargets(str(folder / "recent"), folds=0), **told)
    chance_RN = np.exp(contract.load(folder / "recent").score(rows).astype(float))
    counts_RN = np.zeros((len(rows), ITEMS))
    for epoch in range(PASSES):
        item_RM = drawn.answers(rows.example_ids_R, epoch)
        assert item_RM.shape == (len(rows), 50)
        np.add.at(counts_RN, (np.arange(len(rows))[:, None], item_RM), 1)
    assert (np.abs(counts_RN - PASSES * 50 * chance_RN) <= 1 + 1e-3).all()
    assert (drawn.answers(rows.example_ids_R, PASSES) == drawn.answers(rows.example_ids_R, 0)).all()
    ones = np.stack([drawn.one(rows.example_ids_R[:1], np.random.default_rng(seed)) for seed in range(30)])
    assert set(ones.ravel()) <= set(np.flatnonzero(counts_RN[0])) and len(set(ones.ravel())) > 1
    with pytest.raises(InputError, match="has no answers of example 999999"):
        drawn.answers(np.array([999999]), 0)
    # Read again without the teacher's scores; another teacher, temperature or order has a folder of its own.
    places = set((folder.parent / "scores").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("train.scratch.drawn.drawn_answers", lambda *a: pytest.fail("drawn again"))
        again = DrawnRows.of(SoftTargets(str(folder / "recent"), folds=0), **told)
    assert (again.answers(rows.example_ids_R, 2) == drawn.answers(rows.example_ids_R, 2)).all()
    assert set((folder.parent / "scores").iterdir()) == places
    cold = DrawnRows.of(SoftTargets(str(folder / "recent"), temperature=0.01, folds=0), **told)
    best_R = chance_RN.argmax(1)
    certain = np.sort(chance_RN, 1)[:, -1] > 1.2 * np.sort(chance_RN, 1)[:, -2]
    assert certain.sum() > 5 and (cold.answers(rows.example_ids_R, 1) == best_R[:, None])[certain].all()
    DrawnRows.of(SoftTargets(str(folder / "pop")), **told)
    assert len(set((folder.parent / "scores").iterdir())) == len(places) + 2
