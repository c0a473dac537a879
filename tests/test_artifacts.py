"""Tables that cross stages: what is accepted, and how a table that does not fit is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.program import InputError
from data import artifacts
from data.store.output import open_output
from tests.handmade import Made, write_data


def items(**replaced: pa.Array) -> pa.Table:
    columns = {
        "item_id": pa.array([0, 1], pa.int32()),
        "raw_id": pa.array(["x", "y"]),
        "title": pa.array(["one", ""]),
        "description": pa.array(["", ""]),
        "categories": pa.array([["a", "b"], []], artifacts.TEXT_LIST),
        "brand": pa.array(["", ""]),
    }
    return pa.table({name: column for name, column in (columns | replaced).items() if column is not None})


def test_foreign_types_are_cast_and_extras_kept() -> None:
    table = items(
        item_id=pa.array([0, 1], pa.int64()),
        title=pa.array(["one", ""], pa.large_string()),
        categories=pa.array([["a"], []], pa.large_list(pa.large_string())),
        price=pa.array([1.5, None], pa.float64()),
        shelf=pa.array(["left", None]),
    )
    fitted = artifacts.conform(table, artifacts.ITEMS, where="here")
    assert fitted.schema.field("item_id").type == pa.int32()
    assert fitted.schema.field("title").type == pa.string()
    assert fitted.schema.field("categories").type == artifacts.TEXT_LIST
    assert fitted.schema.field("price").type == pa.float32()
    assert fitted["price"].to_pylist() == [1.5, None]
    assert fitted.column_names[-1] == "shelf" and fitted["shelf"].to_pylist() == ["left", None]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"title": None}, "here: column `title` .* is missing -> scripts/01_prepare_data.sh writes it"),
        ({"brand": pa.array(["a", None])}, "here: column `brand` is null in row 1"),
        ({"item_id": pa.array(["zero", "one"])}, "here: column `item_id` is string, not int32"),
        ({"item_id": pa.array([0, 2**40])}, "here: column `item_id` is int64, not int32"),
    ],
)
def test_a_column_that_does_not_fit_is_named(replaced: dict[str, pa.Array], message: str) -> None:
    with pytest.raises(InputError, match=message):
        artifacts.conform(items(**replaced), artifacts.ITEMS, where="here")


def test_reading_needs_a_finished_directory_and_a_readable_file(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    assert artifacts.read_items(data)["item_id"].to_pylist() == list(range(12))
    assert len(artifacts.read_sequences(data, num_items=12)) == 8
    file = data / "items.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    half = len(whole) // 2
    with pytest.raises(
        InputError, match=f"{file} has {half} bytes, not {len(whole)}: it is not what stage prep"
    ):
        artifacts.read_items(data)
    with pytest.raises(
        InputError, match=rf"{file} \({half} bytes\) is not a readable parquet file: .* -> give"
    ):
        artifacts.read_file(file)
    file.unlink()
    with pytest.raises(InputError, match=f"{file} is missing"):
        artifacts.read_items(data)
    with pytest.raises(InputError, match=f"missing file: {file}"):
        artifacts.read_file(file)
    (data / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no manifest.json\) -> run scripts/01_prepare_data.sh first"):
        artifacts.read_items(data)


def test_item_ids_are_dense_and_sequences_stay_inside(tmp_path: Path) -> None:
    with open_output(Made(), "prepare", version=1, inputs={}, directory=tmp_path / "data") as out:
        out.write_table("items.parquet", items(item_id=pa.array([0, 2], pa.int32())))
    with pytest.raises(InputError, match=r"item_id is not 0..1 in order"):
        artifacts.read_items(tmp_path / "data")
    data = write_data(tmp_path / "sequences")
    with pytest.raises(InputError, match=r"`history` names an item outside 0..9"):
        artifacts.read_sequences(data, num_items=10)
    late = write_data(tmp_path / "late", sequences=[("train", 0, [1], 11)])
    with pytest.raises(InputError, match=r"`target` names an item outside 0..10"):
        artifacts.read_sequences(late, num_items=11)


@given(rows=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=12), data=st.data())
def test_ragged_inverts_int_lists_whatever_the_slicing(rows: list[list[int]], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    array = pa.array(rows, artifacts.INT_LIST)
    cut = data.draw(st.integers(0, len(rows)))
    chunked = pa.chunked_array([array[:cut], array[cut:]], type=artifacts.INT_LIST)
    for column in (array.slice(start, stop - start), chunked.slice(start, stop - start)):
        offsets, values = artifacts.ragged(column)
        assert offsets[0] == 0 and offsets.dtype == np.int64
        assert [values[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == rows[start:stop]
        assert artifacts.int_lists(offsets, values).to_pylist() == rows[start:stop]


def test_int_rows_of_a_matrix() -> None:
    matrix = np.array([[1, 2, 3], [4, 5, 6]])
    assert artifacts.int_rows(matrix).to_pylist() == [[1, 2, 3], [4, 5, 6]]
    assert artifacts.int_rows(matrix).type == artifacts.INT_LIST
