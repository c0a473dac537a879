"""Levels beyond the item: one product under several ids, prefixes, diversity, what a file keeps of them."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from configs.program import InputError
from data.rows import products
from data.sid import SidTable
from infer.metrics import levels, measure
from infer.metrics.groups import MAX_VALUES, column_masks
from tests.test_metrics import make_rows, sid_predictions


def test_a_product_under_two_ids_and_a_user_who_buys_it_again_and_again_by_hand():
    """Items 0 and 1 are one product. User 5 buys it in three of four rows, user 6 buys item 3 once."""
    table = SidTable(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32), (2, 2))
    rows = make_rows([[2], [2, 0], [2], [0], [0]], targets=[0, 1, 1, 2, 3], users=[5, 5, 5, 5, 6])
    predictions = sid_predictions([[1, 0], [2, 0], [0, 1], [3, 1], [1, 0, 3]], table, rows.example_ids_R)
    flat, facts, places_of = measure.measure(
        predictions,
        rows,
        popularity_N=np.ones(4, int),
        sids=table,
        settings=measure.Settings(ks=(1, 2), resamples=50),
        product_N=np.array([0, 0, 1, 2]),
        depth=2,
        groups={"shop=a": np.array([True, True, False, False, False]), "shop=none": np.zeros(5, bool)},
        where="here",
    )
    value = {name: number["value"] for name, number in flat.items()}
    assert value["item_level/hr@1"] == 0.0 and value["item_level/hr@2"] == pytest.approx(2 / 5)
    # Merged: rows 0 and 2 hit at once, row 1 second, row 4 second behind one product (0 and 1) instead of two items.
    assert value["item_level_merged/hr@1"] == pytest.approx(2 / 5)
    assert value["item_level_merged/hr@2"] == pytest.approx(4 / 5)
    # Once per user and product: rows 0-2 weigh a third each.
    assert places_of["item_level_dedup"].weight_R.tolist() == pytest.approx([1 / 3] * 3 + [1, 1])
    assert value["item_level_dedup/hr@1"] == pytest.approx((2 / 3) / 3, abs=1e-6)
    assert value["item_level_dedup/hr@2"] == pytest.approx((1 + 0 + 1) / 3, abs=1e-6)
    assert value["item_level_dedup/ndcg@2"] == pytest.approx(
        ((2 + 1 / math.log2(3)) / 3 + 1 / math.log2(3)) / 3, abs=1e-6
    )
    assert value["item_level/shop=a/hr@2"] == 0.5 and "item_level/shop=none/hr@2" not in value
    assert facts["rows_dedup"] == pytest.approx(3) and facts["merged_items"] == 1
    # First codes: row 0 target 0 in [0, 0], row 1 in [1, 0], row 2 in [0, 0], row 3 target 1 in [1, 0], row 4 1 in [0, 0, 1].
    assert value["prefix_level/prefix=1/hr@1"] == pytest.approx(3 / 5)
    assert value["prefix_level/position=2/hr@1"] == pytest.approx(1 / 5)
    assert value["prefix_level/prefix=2/hr@2"] == value["sid_level/hr@2"]
    # Distinct first codes among the first two: 1 of 2, 2 of 2, 1 of 2, 2 of 2, 1 of 2; both codes always differ.
    assert value["all/diversity_1@2"] == pytest.approx(7 / 10) and value["all/diversity_2@2"] == 1.0


def test_places_survive_their_file():
    table = SidTable(np.array([[0, 0], [0, 0], [1, 0]], np.int32), (2, 2))
    rows = make_rows([[2], [1]], targets=[0, 2])
    predictions = sid_predictions([[0, 1], [0]], table, rows.example_ids_R)
    product_N = np.array([0, 0, 1])
    placed = levels.place_rows(predictions, rows, sids=table, num_items=3, product_N=product_N)
    made = levels.levels_of_blocks([placed], rows, ks=[1, 2], product_N=product_N)
    again = levels.levels_of(levels.level_table(made, rows))
    assert list(again) == list(made)
    for name, level in made.items():
        assert again[name].metrics == level.metrics and (again[name].weight_R == level.weight_R).all()
        assert all((again[name].value_R(metric) == level.value_R(metric)).all() for metric in level.metrics)


def test_a_product_is_the_same_title_and_description():
    items = pa.table(
        {
            "title": ["Bolt", " bolt ", "Bolt", "", "", "Nut"],
            "description": ["10  mm", "10 mm", "12 mm", "x", "x", ""],
        }
    )
    product = products(items).tolist()
    assert product[0] == product[1] and len(set(product)) == 5


def test_without_resamples_there_are_numbers_but_no_intervals():
    table = SidTable(np.array([[0, 0], [0, 1], [1, 0]], np.int32), (2, 2))
    rows = make_rows([[2], [1]], targets=[0, 2])
    predictions = sid_predictions([[0, 1], [0, 2]], table, rows.example_ids_R)
    found = {
        resamples: measure.measure(
            predictions,
            rows,
            popularity_N=np.array([1, 2, 3]),
            sids=table,
            settings=measure.Settings(ks=(1, 2), resamples=resamples),
            where="here",
        ).metrics
        for resamples in (0, 20)
    }
    assert found[0].keys() == found[20].keys()
    assert all(found[0][name]["value"] == found[20][name]["value"] for name in found[0])
    assert found[0]["item_level/hr@1"] == {"value": 0.5, "low": None, "high": None}
    assert found[20]["item_level/hr@1"]["low"] is not None


def test_a_column_of_many_values_is_no_grouping():
    with pytest.raises(InputError, match=f"column 'user' has {MAX_VALUES + 1} values"):
        column_masks({"user": np.arange(MAX_VALUES + 1).astype(str)})
