"""data.validate as a user runs it: all kinds of violations at once, rows and columns named, one last line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.adapters.checks import check_prepared
from tests.handmade import call, run, succeed
from tests.store import write_store
from tests.test_tables import store

TABLES = {
    "sequences": {"file": "sequences.parquet", "columns": {"history": "history_item_ids"}},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "prepare.yaml"
    settings = {
        "adapter": "tables",
        "tables": TABLES,
        "filters": {"user_k": 0, "item_k": 0},
        "split": {"kind": "published"},
    }
    path.write_text(json.dumps(settings))
    return path


def complain(*flags: object) -> tuple[list[str], str]:
    """(lines of stdout, the one line of stderr) of a run that must end with exit code 2."""
    done = run("data.validate", *flags)
    errors = done.stderr.strip().splitlines()
    assert (done.returncode, len(errors)) == (2, 1), (done.returncode, done.stdout, done.stderr)
    return done.stdout.splitlines(), errors[0]


def refused(*flags: object) -> str:
    """The message of a run that must find its input bad, in this process."""
    with pytest.raises(InputError) as caught:
        call("data.validate", *flags)
    return str(caught.value)


def test_good_tables_are_fine_and_become_a_data_set_that_is_fine(tmp_path, recipe, capsys):
    folder = tmp_path / "raw"
    folder.mkdir()
    store(folder)
    said = succeed("data.validate", "--config", recipe, "--raw", folder)
    assert (
        said == "validate: the published sequences have no rows of train: their windows are made here\n"
        f"validate: {folder} is fine (3 items, 2 users, 7 interactions, 3 train, 1 valid, 2 test; 57 % of the interactions have a time)\n"
    )
    call("data.prepare", "--config", recipe, "--raw", folder, "--output_dir", tmp_path / "data")
    call("data.validate", "--data", tmp_path / "data")
    assert "is fine (3 items, 2 users, 7 interactions, 6 sequences)" in capsys.readouterr().out


def test_every_kind_is_listed_with_three_rows_at_most(tmp_path, recipe):
    folder = tmp_path / "raw"
    folder.mkdir()
    store(
        folder,
        items={"item_id": [40, 7, 7], "title": None},
        interactions={
            "timestamp": [-1, -2, -3, -4, -5, 6, 1_500_000_000_000],
            "split": ["train", "dev", "train", "test", "train", "test", "valid"],
            "order": [0, 1, 2, 4, 0, 1, 2], "user_id": [9, 9, 9, 9, 5, None, 5],
        },
        sequences={"history_item_ids": [[7], [1, 2], [7]], "target": None},
    )  # fmt: skip
    lines, error = complain("--config", recipe, "--raw", folder)
    expected = [
        "items.parquet: column `item_id` row 2 ('7'): duplicate item id",
        "interactions.parquet: column `user_id` row 5: null or empty id",
        "interactions.parquet: column `item_id` rows 3 ('100'), 6 ('100'): item is not in the item table",
        "interactions.parquet: column `timestamp` rows 0 (-1), 1 (-2), 2 (-3), ... (5 rows): negative time",
        "interactions.parquet: column `timestamp` row 6 (1500000000000): later than the year 2286",
        "interactions.parquet: column `split` row 1 ('dev'): unknown split -> one of train, valid, test, context",
        "sequences.parquet: column `target`: missing column -> it has ",
        "sequences.parquet: column `history_item_ids` row 1 ('1'): an item is not in the item table",
        "interactions.parquet: column `order` rows 3 (4), 6 (2): gap in the user's order before it",
    ]
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines
    assert error.startswith(f"ERROR 2: {folder}: 9 kinds of violation, first: {expected[0]} -> ")


def test_stage_01_stops_at_the_first_and_writes_nothing(tmp_path, recipe):
    folder = tmp_path / "raw"
    folder.mkdir()
    store(folder, interactions={"timestamp": [-1] * 7, "split": ["dev"] * 7})
    with pytest.raises(InputError) as caught:
        call("data.prepare", "--config", recipe, "--raw", folder, "--output_dir", tmp_path / "out")
    line = str(caught.value)
    assert (
        "column `timestamp` rows 0 (-1), 1 (-1), 2 (-1), ... (7 rows): negative time (1 further problem: "
        in line
    )
    assert "python -m data.validate" in line and not (tmp_path / "out").exists()


def test_missing_files_and_a_dump_are_told(tmp_path, recipe, capsys):
    assert "3 kinds of violation, first: " in refused("--config", recipe, "--raw", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": missing file")[0] for line in lines] == [
        f"{tmp_path}/{name}.parquet" for name in ("items", "interactions", "sequences")
    ]
    assert "no reviews file in" in refused("--raw", tmp_path)
    assert "--raw (with --config) or --data" in refused()
    assert "no manifest.json" in refused("--data", tmp_path)


def rewrite(directory: Path, file: str, column: str, change) -> None:
    """Replace one column of a prepared table (None drops it), as a user with pandas would."""
    table = pq.read_table(directory / file)
    place = table.column_names.index(column)
    if change is None:
        table = table.drop_columns([column])
    elif isinstance(change, list):
        table = table.set_column(place, column, pa.array(change))
    else:
        values = table[column].to_pylist()
        for row, value in change.items():
            values[row] = value
        table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    pq.write_table(table, directory / file)


PREPARED = [
    ("items.parquet", "title", None, "missing column"),
    ("items.parquet", "item_id", [f"B{n}" for n in range(40)], "wrong type: string -> int32 is expected"),
    ("items.parquet", "brand", {3: None}, "column `brand` row 3: null"),
    ("items.parquet", "item_id", {4: 3}, "column `item_id` row 4 (3): duplicate item id"),
    ("items.parquet", "item_id", {0: 1, 1: 0}, "column `item_id` rows 0 (1), 1 (0): not the row's number"),
    ("interactions.parquet", "item_id", {2: 40, 5: -1}, "column `item_id` rows 2 (40), 5 (-1): id is not in items.parquet"),
    ("interactions.parquet", "order", {1: 2}, "column `order` row 1 (2): gap or repeat in the user's order"),
    ("interactions.parquet", "user_id", {0: 3}, "rows of a user are not together"),
    ("interactions.parquet", "split", {0: "dev"}, "column `split` row 0 ('dev'): unknown split"),
    ("interactions.parquet", "timestamp", {0: -5}, "column `timestamp` row 0 (-5): negative time"),
    ("interactions.parquet", "timestamp", {0: 1_500_000_000_000}, "row 0 (1500000000000): later than the year 2286"),
    ("sequences.parquet", "split", {0: "context"}, "row 0 ('context'): unknown split -> one of train, valid, test"),
    ("sequences.parquet", "history", {1: []}, "column `history` row 1: empty history"),
    ("sequences.parquet", "history", {2: [1, 99]}, "column `history` row 2 ([1, 99]): an item is not in items.parquet"),
    ("sequences.parquet", "target", {2: 40}, "column `target` row 2 (40): id is not in items.parquet"),
    ("sequences.parquet", "example_id", {7: 1000}, "column `example_id` row 7 (1000): duplicate example id"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "column", "change", "message"), PREPARED, ids=[m[-45:] for *_, m in PREPARED]
)
def test_a_damaged_data_set_is_told_by_row_and_column(tmp_path, file, column, change, message):
    write_store(tmp_path / "data")
    users = {"user_id": pa.array(range(90), pa.int32()), "raw_id": [f"U{n}" for n in range(90)]}
    pq.write_table(pa.table(users), tmp_path / "data/users.parquet")
    assert check_prepared(tmp_path / "data")[1] == []
    rewrite(tmp_path / "data", file, column, change)
    found = [str(finding) for finding in check_prepared(tmp_path / "data")[1]]
    assert [message in line and line.startswith(file) for line in found] == [True], found


def test_a_damaged_data_set_is_refused(tmp_path, capsys):
    write_store(tmp_path / "data")
    capsys.readouterr()
    assert "1 kind of violation" in refused("--data", tmp_path / "data")
    assert capsys.readouterr().out == "users.parquet: missing file -> scripts/01_prepare_data.sh writes it\n"


def test_a_dump_is_checked_and_empty_splits_and_long_histories_are_said(tmp_path, recipe, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    store(raw)
    settings = json.loads(recipe.read_text()) | {"split": {"kind": "published", "max_history": 1}}
    recipe.write_text(json.dumps(settings))
    call("data.prepare", "--config", recipe, "--raw", raw, "--output_dir", tmp_path / "data")
    assert "published histories are longer than split.max_history 1" in capsys.readouterr().out
    call("data.validate", "--data", tmp_path / "data")
    assert "published histories are longer than split.max_history 1" in capsys.readouterr().out
    reviews = [
        {"reviewerID": f"U{n % 2}", "asin": f"B{n // 2}", "unixReviewTime": 10**9 + n} for n in range(4)
    ]
    (raw / "S_5.json").write_text("".join(json.dumps(line) + "\n" for line in reviews))
    (raw / "meta_S.json").write_text(
        "".join(json.dumps({"asin": f"B{n}", "title": "x y"}) + "\n" for n in range(2))
    )
    flags = ["--raw", raw, "--filters.user_k", 2, "--filters.item_k", 2, "--split.kind", "leave_one_out"]
    call("data.validate", *flags)
    said = capsys.readouterr().out
    assert "the valid split has no rows" in said and "the test split has no rows" in said
    assert "is fine (2 items, 2 users, 4 interactions, 2 train, 0 valid, 0 test" in said
    assert "filters leave nothing" in refused("--raw", raw, "--filters.user_k", 9)


def own_recipe(folder: Path, **filters: int) -> Path:
    """Tables whose windows are made by us."""
    settings = {"adapter": "tables", "filters": filters, "split": {"kind": "leave_one_out"}}
    (folder / "own.yaml").write_text(json.dumps(settings))
    return folder / "own.yaml"


def test_users_who_keep_the_file_order_for_want_of_a_time_are_said(tmp_path, capsys):
    pq.write_table(pa.table({"item_id": [0, 1, 2]}), tmp_path / "items.parquet")
    # By time; no time, against it; no time, with it; one row; no time at all.
    columns = {
        "user_id": [1, 2, 3, 2, 1, 2, 3, 3, 4, 5, 5], "item_id": [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1],
        "timestamp": [9, 9, 1, None, 8, 3, 5, None, None, None, None],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet")
    recipe = own_recipe(tmp_path, user_k=0, item_k=0)
    told = (
        "3 of 5 users have interactions without a time and keep the file's order throughout, for 1 of them against times that"
        " are known -> give an order column, or drop the rows without a time\n"
    )
    call("data.validate", "--config", recipe, "--raw", tmp_path)
    assert f"validate: {told}" in capsys.readouterr().out
    call("data.prepare", "--config", recipe, "--raw", tmp_path, "--output_dir", tmp_path / "data")
    assert f"prepare: {told}" in capsys.readouterr().out
    funnel = json.loads((tmp_path / "data/funnel.json").read_text())
    assert (funnel["users_in_file_order"], funnel["users_in_file_order_against_times"]) == (3, 1)
    for silent in (
        {"order": [0, 0, 0, 1, 1, 2, 1, 2, 0, 0, 1], "timestamp": None},
        {"timestamp": list(range(11))},
        {"timestamp": None},
    ):
        table = {name: column for name, column in (columns | silent).items() if column is not None}
        pq.write_table(pa.table(table), tmp_path / "interactions.parquet")
        call("data.validate", "--config", recipe, "--raw", tmp_path)
        assert "without a time" not in capsys.readouterr().out


def test_prices_and_ratings_that_cannot_be_read_are_said_once_each(tmp_path, capsys):
    (tmp_path / "items.csv").write_text('item_id,price\n0,"35,07"\n1,EUR 43.61\n2,"1,299.00"\n3,n/a\n')
    log = "".join(f"{user},{item},{'good' if item % 2 else 4}\n" for user in range(2) for item in range(4))
    (tmp_path / "log.csv").write_text(f"user_id,item_id,rating\n{log}")
    settings = {
        "adapter": "tables",
        "tables": {"items": {"file": "items.csv"}, "interactions": {"file": "log.csv"}},
        "filters": {"user_k": 0, "item_k": 0},
        "split": {"kind": "leave_one_out"},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(settings))
    told = [
        "items.csv: column `price` rows 0 ('35,07'), 3 ('n/a'): 2 of 4 cells cannot be read and are left empty -> write them as"
        " 12.50 or 1,250.00",
        "log.csv: column `rating` rows 1 ('good'), 3 ('good'), 5 ('good'), ... (4 rows): 4 of 8 cells cannot be read and are left"
        " empty -> write them as 4 or 4.5",
    ]
    given = ["--config", tmp_path / "own.yaml", "--raw", tmp_path]
    for stage, more in (("validate", []), ("prepare", ["--output_dir", tmp_path / "data"])):
        call(f"data.{stage}", *given, *more)
        lines = [line for line in capsys.readouterr().out.splitlines() if "cannot be read" in line]
        assert sorted(lines) == [f"{stage}: {line}" for line in told]
    funnel = json.loads((tmp_path / "data/funnel.json").read_text())
    assert (funnel["prices_not_parsed"], funnel["ratings_not_parsed"]) == (2, 4)
    prices = pq.read_table(tmp_path / "data/items.parquet")["price"].to_pylist()
    assert prices[1:3] == pytest.approx([43.61, 1299.0]) and prices[0] is prices[3] is None


@pytest.mark.parametrize(("user_k", "items"), [(0, 4), (2, 2)])
def test_items_without_an_interaction_stay_only_where_nothing_is_filtered(tmp_path, capsys, user_k, items):
    pq.write_table(pa.table({"item_id": [0, 1, 2, 3]}), tmp_path / "items.parquet")
    columns = {"user_id": [1, 1, 2], "item_id": [0, 1, 2], "timestamp": [1, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet")
    recipe = own_recipe(tmp_path, user_k=user_k, item_k=0)
    call("data.prepare", "--config", recipe, "--raw", tmp_path, "--output_dir", tmp_path / "data")
    assert pq.read_metadata(tmp_path / "data/items.parquet").num_rows == items
    funnel = json.loads((tmp_path / "data/funnel.json").read_text())
    assert funnel.get("items_without_interactions_left_out") == (1 if user_k else None)
    assert ("items without an interaction among those read: 1, left out" in capsys.readouterr().out) == bool(
        user_k
    )
