"""Groups of rows: thirds of the train rows, lengths of histories, repeats, all at their edges by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.artifacts import read_items
from data.rows import Rows, read_columns, read_rows
from infer.metrics.groups import group_masks, popularity_tiers
from tests import handmade


@pytest.mark.parametrize(
    ("counts", "tiers"),
    [
        (
            [3, 2, 2, 2],
            [0, 1, 1, 1],
        ),  # exactly a third before the second item; items of equal count stay together
        ([333, 332, 332, 3], [0, 0, 0, 2]),  # 33.3 % before the second: head; 99.7 % before the last
        ([34, 33, 33], [0, 1, 1]),
        ([666, 334], [0, 1]),
        ([667, 333], [0, 2]),
        ([6, 1, 1, 1], [0, 2, 2, 2]),  # exactly two thirds before the second item
        ([1, 0, 6, 0, 2], [2, 2, 0, 2, 2]),  # any order; without train rows: tail
        ([1, 1, 1], [0, 0, 0]),
        ([0, 0], [2, 2]),
    ],
)
def test_tiers_are_cut_at_a_third_and_two_thirds_of_the_rows(counts, tiers):
    assert popularity_tiers(np.array(counts)).tolist() == tiers


def test_every_row_is_in_its_groups():
    """Item i has been bought 9 - i times, the last one never; history lengths at every edge."""
    lengths = [0, 1, 2, 3, 5, 6, 10, 11, 40]
    history = [[(7 if row % 2 else row) for _ in range(length)] for row, length in enumerate(lengths)]
    rows = Rows(
        example_ids_R=np.arange(9),
        users_R=np.arange(9),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        history_H=np.array(sum(history, []), int),
        target_R=np.arange(9),
    )
    masks = group_masks(rows, np.array([9, 8, 7, 6, 5, 4, 3, 2, 0]))
    found = {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}
    # shares of the 44 train rows before items 0, 1, ...: 0, 9, 17, 24, 30, 35, 39, 42 of 44; a third is 14.7, two 29.3
    assert found == {
        "target=cold": [8], "target=warm": [0, 1, 2, 3, 4, 5, 6, 7],
        "popularity=head": [0, 1], "popularity=torso": [2, 3], "popularity=tail": [4, 5, 6, 7, 8],
        "history=0": [0], "history=1-2": [1, 2], "history=3-5": [3, 4], "history=6-10": [5, 6], "history=11+": [7, 8],
        "repeat=yes": [2, 4, 6, 7, 8], "repeat=no": [0, 1, 3, 5],
    }  # fmt: skip


def test_a_data_sets_own_column_is_not_shadowed_by_the_derived_one(tmp_path):
    """`category` and `category_2` are read from the path of categories only where no column has that name."""
    data = handmade.write_data(tmp_path / "data")
    rows = read_rows(data, "valid", num_items=len(handmade.TITLES))
    derived = read_columns(data, ["category", "category_2"], rows)
    assert [set(values.tolist()) for values in derived.values()] == [{"Industrial"}, {"Fasteners"}]

    own = [f"shelf {item}" for item in range(len(handmade.TITLES))]
    items = read_items(data).append_column("category", pa.array(own))
    nested = pa.array([["x"]] * len(own))  # no column to group by
    pq.write_table(items.append_column("category_2", nested), data / "items.parquet")
    found = read_columns(handmade.resign(data), ["category", "category_2"], rows)
    assert found["category"].tolist() == [own[target] for target in rows.target_R]
    assert set(found["category_2"].tolist()) == {"Fasteners"}
