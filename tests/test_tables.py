"""A user's own tables: column maps, ids, times, text, published splits; what is wrong is found, not raised."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.adapters import tables
from data.adapters.options import AmazonOptions, TableFile, TablesOptions
from data.prepare import PrepareArgs, prepare
from data.shaping.assemble import SplitOptions
from data.shaping.findings import Finding

NO_FILTERS = {"user_k": 0, "item_k": 0}


def write(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def store(folder: Path, **changes: dict[str, Any]) -> Path:
    """Three items with gaps in their ids, two users, two shipped sequences; `changes` replace columns of a table."""
    columns = {
        "items": {"item_id": [40, 7, 100], "title": ["forty", "seven", "hundred"]},
        "interactions": {
            "user_id": [9, 9, 9, 9, 5, 5, 5], "item_id": [7, 40, 40, 100, 7, 7, 100], "order": [0, 1, 2, 3, 0, 1, 2],
            "timestamp": pa.array([10, 20, 20, None, None, None, 7]),
            "split": ["train", "train", "train", "test", "context", "train", "valid"],
        },
        "sequences": {
            "user_id": [5, 9, 9], "history_item_ids": [[7, 7], [7, 40, 40], [7, 40, 40]], "target": [100, 100, 100],
            "split": ["valid", "test", "test"],
        },
    }  # fmt: skip
    for name, table in columns.items():
        table |= changes.get(name, {})
        write(folder / f"{name}.parquet", {n: c for n, c in table.items() if c is not None})
    return folder


def options(**changes: Any) -> TablesOptions:
    return TablesOptions(
        **({"sequences": TableFile("sequences.parquet", {"history": "history_item_ids"})} | changes)
    )


def load(folder: Path, chosen: TablesOptions | None = None) -> tables.Tables:
    loaded, findings = tables.load(folder, chosen or options())
    assert findings == [] and loaded is not None
    return loaded


def findings_of(folder: Path, chosen: TablesOptions | None = None) -> list[Finding]:
    return tables.load(folder, chosen or options())[1]


def prepared(folder: Path, chosen: TablesOptions, **split: Any):
    from data.shaping.assemble import FilterOptions

    args = PrepareArgs(
        raw=str(folder), output_dir="none", adapter="tables", tables=chosen, filters=FilterOptions(**NO_FILTERS),
        split=SplitOptions(**({"kind": "published"} | split)),
    )  # fmt: skip
    return prepare(args)


def test_ids_with_gaps_become_dense_and_the_source_keeps_its_own(tmp_path):
    loaded = load(store(tmp_path))
    assert loaded.items["raw_id"].to_pylist() == ["40", "7", "100"]
    assert loaded.items["item_id"].to_pylist() == [0, 1, 2]
    assert loaded.user.tolist() == [0, 0, 0, 0, 1, 1, 1] and loaded.item.tolist() == [1, 0, 0, 2, 1, 1, 2]
    assert loaded.users.to_pylist() == [{"user_id": 0, "raw_id": "9"}, {"user_id": 1, "raw_id": "5"}]
    assert loaded.known.tolist() == [True, True, True, False, False, False, True]


def test_items_that_are_already_numbered_keep_their_number(tmp_path):
    folder = store(
        tmp_path,
        items={"item_id": pa.array([2, 0, 1], pa.uint16()), "title": ["two", "zero", "one"]},
        interactions={"item_id": [0, 1, 1, 2, 0, 0, 2]},
        sequences={"history_item_ids": [[0, 0], [0, 1, 1], [0]], "target": [2, 2, 2]},
    )
    loaded = load(folder)
    assert loaded.items["title"].to_pylist() == ["zero", "one", "two"]
    assert loaded.item.tolist() == [0, 1, 1, 2, 0, 0, 2]


def test_a_published_split_is_kept_row_for_row_with_its_repeats(tmp_path):
    made = prepared(store(tmp_path), options(), max_history=2)
    sequences = made.sequences.to_pylist()
    # Train windows are made here, because no train rows are shipped: rows after the first of a user that are train.
    assert [(s["user_id"], s["history"], s["target"], s["split"]) for s in sequences] == [
        (0, [1], 0, "train"),
        (0, [1, 0], 0, "train"),
        (1, [1], 1, "train"),
        (1, [1, 1], 2, "valid"),
        (0, [1, 0, 0], 2, "test"),
        (0, [1, 0, 0], 2, "test"),
    ]
    assert [s["example_id"] for s in sequences] == list(range(6))
    assert made.funnel.facts["windows_made_here"] == ["train"]
    rows = made.interactions.to_pylist()
    assert [(r["user_id"], r["item_id"], r["order"], r["timestamp"], r["split"]) for r in rows] == [
        (0, 1, 0, 10, "train"), (0, 0, 1, 20, "train"), (0, 0, 2, 20, "train"), (0, 2, 3, None, "test"),
        (1, 1, 0, None, "context"), (1, 1, 1, None, "train"), (1, 2, 2, 7, "valid"),
    ]  # fmt: skip


def test_interactions_without_a_split_do_not_bring_the_held_out_targets_to_train(tmp_path):
    folder = store(tmp_path, interactions={"split": None})
    with pytest.raises(
        InputError, match="3 of 3 targets of the valid and test rows are among the interactions"
    ):
        prepared(folder, options())
    # Two of the three targets are no interactions of their users: what is left may be a repeat.
    answers = {"target": [7, 100, 100]}
    store(tmp_path, interactions={"split": None, "item_id": [7, 40, 40, 40, 7, 7, 7]}, sequences=answers)
    assert set(prepared(folder, options()).interactions["split"].to_pylist()) == {"train"}


def test_all_windows_are_made_where_no_sequences_are_shipped(tmp_path):
    made = prepared(store(tmp_path), options(sequences=TableFile()))
    windows = Counter(made.sequences["split"].to_pylist())
    assert windows == {"train": 3, "valid": 1, "test": 1}
    assert made.funnel.facts["windows"] == {"train": 3, "valid": 1, "test": 1}


def test_other_splits_of_the_same_tables(tmp_path):
    chosen = options(sequences=TableFile())
    made = prepared(store(tmp_path), chosen, kind="leave_one_out")
    assert made.sequences["split"].to_pylist() == ["train", "valid", "valid", "test", "test"]
    with pytest.raises(InputError, match="rows have no time"):
        prepared(store(tmp_path), chosen, kind="global_temporal")


def test_filters_renumber_what_stays(tmp_path):
    from data.shaping.assemble import FilterOptions

    folder = store(tmp_path)
    args = PrepareArgs(
        raw=str(folder), output_dir="none", adapter="tables", tables=options(sequences=TableFile()),
        filters=FilterOptions(user_k=4, item_k=0), split=SplitOptions(kind="leave_one_out"),
    )  # fmt: skip
    made = prepare(args)
    assert made.items.select(["item_id", "raw_id"]).to_pylist() == [
        {"item_id": 0, "raw_id": "7"}, {"item_id": 1, "raw_id": "40"}, {"item_id": 2, "raw_id": "100"},
    ]  # fmt: skip
    assert made.users["raw_id"].to_pylist() == ["9"] and made.interactions["item_id"].to_pylist() == [
        0,
        1,
        1,
        2,
    ]


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.tsv.gz"])
def test_csv_with_a_column_map(tmp_path, name):
    mark = "\t" if ".tsv" in name else ","
    text = "who,what,when,junk\nann,007,1500000000,x\nbob,7,1500000001.0,\nann,7,,y\n".replace(",", mark)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    items = 'sku,name,path,price\n007,"a ""quoted"", title","[""A"", ""B""]",1.5\n7,second,Flat,\n'
    (tmp_path / "items.csv").write_text("\ufeff" + items)
    chosen = TablesOptions(
        items=TableFile("items.csv", {"item_id": "sku", "title": "name", "categories": "path"}),
        interactions=TableFile(name, {"user_id": "who", "item_id": "what", "timestamp": "when"}),
    )
    loaded = load(tmp_path, chosen)
    assert loaded.items.to_pylist() == [
        {"item_id": 0, "raw_id": "007", "title": 'a "quoted", title', "description": "", "categories": ["A", "B"], "brand": "", "price": 1.5},
        {"item_id": 1, "raw_id": "7", "title": "second", "description": "", "categories": ["Flat"], "brand": "", "price": None},
    ]  # fmt: skip
    assert loaded.item.tolist() == [0, 1, 1] and loaded.users["raw_id"].to_pylist() == ["ann", "bob"]
    assert loaded.timestamp.tolist() == [1500000000, 1500000001, 0]
    assert loaded.known.tolist() == [True, True, False] and loaded.order is None


@pytest.mark.parametrize("cell", ["[7, 40]", '["7", "40"]', "7 40", "7,40", " 7, 40 "])
def test_histories_in_text_cells(tmp_path, cell):
    folder = store(tmp_path)
    (folder / "s.csv").write_text(
        f'user_id,history,target,split\n9,"{cell.replace(chr(34), chr(34) * 2)}",100,test\n'
    )
    loaded = load(folder, options(sequences=TableFile("s.csv")))
    assert loaded.sequences.to_pylist() == [{"user_id": 0, "history": [1, 0], "target": 2, "split": "test"}]


@pytest.mark.parametrize(
    ("times", "unit", "expected"),
    [
        (pa.array([1_500_000_000_999] * 7), "ms", 1_500_000_000),
        (pa.array([1.5e9] * 7), "s", 1_500_000_000),
        (pa.array([1_500_000_000_000] * 7, pa.timestamp("ms")), "ms", 1_500_000_000),
        (pa.array([1_500_000_000] * 7, pa.timestamp("s", tz="Asia/Tokyo")), "s", 1_500_000_000),
    ],
)
def test_times_become_utc_seconds(tmp_path, times, unit, expected):
    loaded = load(store(tmp_path, interactions={"timestamp": times}), options(time_unit=unit))
    assert loaded.timestamp.tolist() == [expected] * 7 and loaded.known.all()


def test_text_is_cleaned_or_kept_byte_for_byte(tmp_path):
    titles = ["8.5&rdquo; x 11&rdquo;", "A  title\nwith <b>tags</b>", "plain"]
    categories = [["A &amp; B", " "], [], ["C"]]
    folder = store(tmp_path, items={"title": titles, "categories": categories})
    clean, kept = load(folder), load(folder, options(clean_text=False))
    assert clean.items["title"].to_pylist() == ["8.5” x 11”", "A title with tags", "plain"]
    assert clean.items["categories"].to_pylist() == [["A & B"], [], ["C"]] and clean.cleaned == 2
    assert kept.items["title"].to_pylist() == titles and kept.items["categories"].to_pylist() == categories
    assert kept.cleaned == 0


def test_raw_ids_extras_and_foreign_types(tmp_path):
    folder = store(
        tmp_path,
        items={
            "asin": pa.array(["B1", None, "B3"], pa.large_string()), "tags": [[1], [], [2, 3]],
            "title": pa.array(["x", "y", "x"]).dictionary_encode(), "description": [["a", "b"], [], None],
            "categories": pa.array([["c"], None, []], pa.large_list(pa.large_string())),
        },
        interactions={"split": pa.array(["train"] * 7).dictionary_encode()},
    )  # fmt: skip
    write(
        tmp_path / "users.parquet",
        {"user_id": [5, 77, 9], "name": ["five", "nobody", None], "age": [1, 2, 3]},
    )
    chosen = options(
        items=TableFile("items.parquet", {"raw_id": "asin"}, ["tags"]),
        users=TableFile("users.parquet", {"raw_id": "name"}, ["age"]),
    )
    loaded = load(folder, chosen)
    assert loaded.items["raw_id"].to_pylist() == ["B1", "7", "B3"]  # a null falls back to the item's id
    assert loaded.items["tags"].to_pylist() == [[1], [], [2, 3]]
    assert loaded.items["description"].to_pylist() == ["a b", "", ""]
    assert loaded.items["categories"].to_pylist() == [["c"], [], []]
    assert loaded.items["title"].to_pylist() == ["x", "y", "x"]
    assert loaded.users.to_pylist() == [
        {"user_id": 0, "raw_id": "9", "age": 3}, {"user_id": 1, "raw_id": "five", "age": 1},
    ]  # fmt: skip
    assert set(loaded.split.tolist()) == {0}


def test_a_user_only_of_the_sequences_is_a_user(tmp_path):
    loaded = load(store(tmp_path, sequences={"user_id": [5, 9, 123]}))
    assert loaded.users["raw_id"].to_pylist() == ["9", "5", "123"]
    assert loaded.sequences["user_id"].to_pylist() == [1, 0, 2]


BAD = [
    ({"items": {"item_id": [40, 7, 100, 7], "title": None}}, "items.parquet: column `item_id` row 3 ('7'): duplicate item id"),
    ({"items": {"item_id": [40, 7, 100, None], "title": None}}, "items.parquet: column `item_id` row 3: null or empty id"),
    ({"items": {"item_id": [4.5, 7.0, 100.0]}}, "wrong type: ids are double"),
    ({"items": {"item_id": None}}, "items.parquet: column `item_id`: missing column -> it has title"),
    ({"items": {"title": [{"a": 1}] * 3}}, "items.parquet: column `title`: wrong type: struct<a: int64>, not text"),
    ({"items": {"price": [{"a": 1}] * 3}}, "column `price`: wrong type: struct<a: int64>, not numbers"),
    ({"items": {"categories": ["[A", "", "B"]}}, "column `categories` row 0 ('[A'): not a JSON list"),
    ({"interactions": {"item_id": [7, 8, 40, 8, 7, 7, 8]}}, "column `item_id` rows 1 ('8'), 3 ('8'), 6 ('8'): item is not in the item table"),
    ({"interactions": {"item_id": [7, 8, 8, 8, 8, 7, 7]}}, "rows 1 ('8'), 2 ('8'), 3 ('8'), ... (4 rows): item is not"),
    ({"interactions": {"user_id": [9, None, 9, 9, 5, 5, 5], "order": None}}, "column `user_id` row 1: null or empty id"),
    ({"interactions": {"timestamp": [1, 2, -3, 4, 5, 6, 7]}}, "column `timestamp` row 2 (-3): negative time"),
    ({"interactions": {"timestamp": [1, 2, 3, 4, 5, 6, 1_500_000_000_000]}}, "row 6 (1500000000000): later than the year 2286 as seconds -> milliseconds? set tables.time_unit to ms"),
    ({"interactions": {"timestamp": [1, 2, 3, 4, 5, 6, 1_500_000_000_000_000_000]}}, "as seconds -> nanoseconds? divide by 1000000 and set tables.time_unit to ms"),
    ({"interactions": {"timestamp": pa.array([10**12] * 7, pa.timestamp("s"))}}, "later than the year 2286 as seconds -> the column's unit is not that of its numbers"),
    ({"interactions": {"timestamp": pa.array([-1_500] * 7, pa.timestamp("ms"))}}, "rows 0 (-2), 1 (-2), 2 (-2), ... (7 rows): negative time"),
    ({"interactions": {"timestamp": pa.array([17_000] * 7, pa.date32())}}, "wrong type: date32[day], not numbers -> write whole unix seconds, or milliseconds"),
    ({"interactions": {"timestamp": pa.array([17_000] * 7, pa.decimal128(12, 2))}}, "wrong type: decimal128(12, 2), not numbers -> write whole unix seconds, or milliseconds"),
    ({"interactions": {"order": ["0", "1", "2", "3", "0", "1", "last"]}}, "row 6 ('last'): wrong type: not a number -> write it as integers or floats"),
    ({"interactions": {"timestamp": ["1", "x", "", "2018-01-01", "5", "6", "7"]}}, "rows 1 ('x'), 3 ('2018-01-01'): wrong type: not a number -> write whole unix seconds, or milliseconds with tables.time_unit ms, or a parquet timestamp column"),
    ({"interactions": {"timestamp": [1.0, 6.5, None, float("nan"), 5.0, 6.0, 7.0]}}, "column `timestamp` row 1 (6.5): wrong type: not a whole number -> write whole unix seconds, or milliseconds"),
    ({"interactions": {"order": [0, 1, 3, 4, 0, 1, 2]}}, "column `order` row 2 (3): gap in the user's order before it"),
    ({"interactions": {"order": [0, 1, 1, 2, 0, 1, 2]}}, "column `order` row 2 (1): the user has this order twice"),
    ({"interactions": {"order": [0, 1, 2, 3, 0, 1, None]}}, "column `order` row 6: null order"),
    ({"interactions": {"split": ["train", "dev", "train", "test", "train", None, "valid"]}}, "column `split` row 1 ('dev'): unknown split -> one of train, valid, test, context"),
    ({"interactions": {"rating": [True] * 7}}, "column `rating`: wrong type: bool, not numbers"),
    ({"interactions": {c: [] for c in ("user_id", "item_id", "order", "timestamp", "split")}}, "interactions.parquet: has no rows"),
    ({"sequences": {"history_item_ids": [[7], [7, 3, 4], [7]]}}, "column `history_item_ids` row 1 ('3'): an item is not in the item table"),
    ({"sequences": {"history_item_ids": [[7], [], None]}}, "column `history_item_ids` rows 1, 2: empty history"),
    ({"sequences": {"history_item_ids": [[7], [7, None], [7]]}}, "column `history_item_ids` row 1: null or empty id in the list"),
    ({"sequences": {"history_item_ids": [1, 2, 3]}}, "wrong type: int64, not a list of ids"),
    ({"sequences": {"target": [100, 1, 100]}}, "sequences.parquet: column `target` row 1 ('1'): item is not in the item table"),
    ({"sequences": {"split": ["valid", "context", "test"]}}, "row 1 ('context'): unknown split -> one of train, valid, test"),
    ({"sequences": {"split": ["valid", None, "test"]}}, "sequences.parquet: column `split` row 1: null split"),
    ({"sequences": {"split": None}}, "sequences.parquet: column `split`: missing column"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[-50:] for _, message in BAD])
def test_each_violation_is_one_finding_with_row_and_column(tmp_path, changes, message):
    found = findings_of(store(tmp_path, **changes))
    assert [message in str(finding) for finding in found] == [True], list(map(str, found))


def test_seconds_taken_for_milliseconds_are_found(tmp_path):
    found = findings_of(
        store(tmp_path, interactions={"timestamp": [1_500_000_000] * 7}), options(time_unit="ms")
    )
    assert [f.what for f in found] == ["earlier than May 1970 as milliseconds"] and found[0].count == 7


def test_all_kinds_are_found_at_once(tmp_path):
    folder = store(
        tmp_path,
        items={"item_id": [40, 40, 100]},
        interactions={"timestamp": [-1] * 7, "split": ["x"] * 7},
        sequences={"target": None, "split": ["y"] * 3},
    )
    chosen = options(users=TableFile("nobody.parquet"))
    whats = [f.what for f in findings_of(folder, chosen)]
    assert whats == [
        "duplicate item id", "item is not in the item table", "negative time", "unknown split", "missing column",
        "an item is not in the item table", "unknown split", "missing file",
    ]  # fmt: skip


def test_options_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="time_unit"):
        TablesOptions(time_unit="us")
    with pytest.raises(InputError, match="interactions.extras"):
        TablesOptions(interactions=TableFile("i.csv", extras=["x"]))
    with pytest.raises(InputError, match="items.file"):
        TablesOptions(items=TableFile())
    with pytest.raises(InputError, match="keep_without_metadata"):
        AmazonOptions(keep_without_metadata=True)
    base = {"raw": "r", "output_dir": "o"}
    with pytest.raises(InputError, match="brings no split"):
        PrepareArgs(**base, adapter="movielens", split=SplitOptions(kind="published"))
    with pytest.raises(InputError, match="kept whole"):
        PrepareArgs(**base, adapter="tables", split=SplitOptions(kind="published"))


def test_an_order_that_contradicts_the_times_needs_a_rule(tmp_path):
    write(tmp_path / "items.parquet", {"item_id": [0, 1, 2, 3]})
    columns = {"user_id": [1] * 4 + [2] * 3, "item_id": [0, 1, 2, 3, 0, 1, 2], "order": [0, 1, 2, 3, 0, 1, 2],
               "timestamp": [10, 40, 20, None, 5, 5, 6]}  # fmt: skip
    write(tmp_path / "interactions.parquet", columns)
    loaded, findings = tables.load(tmp_path, TablesOptions())
    assert [(f.column, f.rows, f.values) for f in findings] == [("order", (2,), ("2",))]
    assert "contradicts the times" in findings[0].what and "sequence_by" in findings[0].fix
    loaded, findings = tables.load(tmp_path, TablesOptions(sequence_by="order"))
    assert (findings, loaded.order.tolist()) == ([], columns["order"])
    columns["timestamp"][3] = 30
    write(tmp_path / "interactions.parquet", columns)
    loaded, findings = tables.load(tmp_path, TablesOptions(sequence_by="time"))
    assert findings == [] and np.argsort(loaded.order[:4]).tolist() == [0, 2, 3, 1]
    with pytest.raises(InputError, match="cuts by time.*sequence_by"):
        PrepareArgs(raw="", output_dir="", adapter="tables", tables=TablesOptions(sequence_by="order"))


def test_ratings_and_prices_as_text_are_read_as_in_dumps(tmp_path):
    (tmp_path / "items.csv").write_text('item_id,price\n7,"$1,299.00"\n8,n/a\n9,\n')
    (tmp_path / "log.csv").write_text("user_id,item_id,rating\na,7, 5 \na,8,five\nb,9,\n")
    options = TablesOptions(items=TableFile("items.csv"), interactions=TableFile("log.csv"))
    loaded, findings = tables.load(tmp_path, options)
    assert findings == [] and loaded.items["price"].to_pylist() == [1299.0, None, None]
    assert np.isnan(loaded.rating).tolist() == [False, True, True] and loaded.rating[0] == 5
    assert [(name, lost[0].rows, lost[0].values) for name, lost in loaded.unread.items()] == [
        ("ratings", (1,), ("'five'",)),
        ("prices", (1,), ("'n/a'",)),
    ]


@pytest.mark.parametrize("typed", [True, False])
def test_a_negative_price_is_none_whether_it_is_a_number_or_text(tmp_path, typed):
    prices = [-5.0, 0.0, None, 12.5]
    if not typed:
        prices = [None if price is None else str(price) for price in prices]
    write(tmp_path / "items.parquet", {"item_id": [0, 1, 2, 3], "price": prices})
    write(tmp_path / "interactions.parquet", {"user_id": [1], "item_id": [0], "rating": [-5.0]})
    loaded, findings = tables.load(tmp_path, TablesOptions())
    assert findings == [] and loaded.items["price"].to_pylist() == [None, 0.0, None, 12.5]
    assert [one.rows for one in loaded.unread["prices"]] == [(0,)]
    assert loaded.rating.tolist() == [-5.0] and not loaded.unread["ratings"], "a scale may go below 0"


def test_control_characters_go_also_where_text_is_kept(tmp_path):
    write(tmp_path / "items.parquet", {"item_id": [0], "title": ["a\0 &amp; b\x1b"], "categories": [["x\0"]]})
    write(tmp_path / "interactions.parquet", {"user_id": [1], "item_id": [0]})
    loaded, _ = tables.load(tmp_path, TablesOptions(clean_text=False))
    assert loaded.items["title"][0].as_py() == "a  &amp; b " and loaded.items["categories"][0].as_py() == [
        "x "
    ]
