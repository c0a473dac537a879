"""Publishers' raw files, in miniature, against row-by-row readings; what cannot be is said in one line."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import program
from configs.program import ROOT, InputError
from data.adapters.logs.delimited import Layout, Log
from data.adapters.logs.kuairand import stratified
from data.prepare import PrepareArgs, prepare
from data.shaping.assemble import Prepared
from tests import publishers
from tests.handmade import call

KEEP_ALL = {"user_k": 0, "item_k": 0}


def made(raw: Path, adapter: str, options: dict[str, Any] | None = None, **more: Any) -> Prepared:
    """Stage 01 in this process."""
    settings = {"filters": KEEP_ALL, "split": {"kind": "leave_one_out", "max_history": 4}} | more
    argv = ["--raw", str(raw), "--output_dir", "none", "--adapter", adapter]
    for key, value in ({adapter: options or {}} | settings).items():
        argv += [f"--{key}", json.dumps(value)] if value else []
    return prepare(program.parse(PrepareArgs, argv)[0])


def walks(prepared: Prepared) -> dict[str, list[tuple[str, int]]]:
    """{raw user: [(raw item, time)] in order}."""
    items, users = prepared.items["raw_id"].to_pylist(), prepared.users["raw_id"].to_pylist()
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in prepared.interactions.to_pylist():
        found[users[row["user_id"]]].append((items[row["item_id"]], row["timestamp"]))
    return dict(found)


def by_rows(rows: list[tuple[Any, Any, int]]) -> dict[str, list[tuple[str, int]]]:
    """The same of (user, item, second) in file order: sorted by time, equal times as they stand."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for user, item, second in rows:
        found[str(user)].append((str(item), second))
    return {user: sorted(own, key=lambda row: row[1]) for user, own in found.items()}


@pytest.mark.parametrize("form", ["100k", "1m", "csv"])
def test_movielens_in_its_three_forms(tmp_path, form):
    rows = publishers.ratings()
    prepared = made(publishers.movielens(tmp_path / "raw", form, rows), "movielens")
    assert walks(prepared) == by_rows([(u, m, t) for u, m, _, t in rows])
    items = {row["raw_id"]: row for row in prepared.items.to_pylist()}
    assert list(items) == ["1", "3", "4", "7", "9", "12"], "the movie file's order, unrated ones too"
    assert items["3"]["title"] == "Cité des enfants perdus, La" and items["3"]["year"] == 1995
    assert items["7"]["title"] == "unknown" and items["7"]["year"] is None
    assert items["7"]["categories"] == [] and sum(items["7"]["genre_flags"]) == 0
    assert items["4"]["title"] == "Star Wars: Episode IV", "a colon is no delimiter"
    flags = [at for at, flag in enumerate(items["1"]["genre_flags"]) if flag]
    assert flags == [2, 3, 4], "Animation, Children's, Comedy"
    assert prepared.funnel.facts.get("latin_1_files") == {"100k": ["u.item"], "1m": ["movies.dat"]}.get(form)
    assert sum(prepared.funnel.facts["windows"].values()) == len(rows) - 30
    if form != "csv":
        assert prepared.users.to_pylist()[0]["occupation"] in ("technician", "10")


def test_ratings_doubled_and_movies_that_nobody_lists(tmp_path):
    rows = [*publishers.ratings(), (1, 99, 4.0, 978_300_760), (77, 99, 4.0, 978_300_760)]
    folder = publishers.movielens(tmp_path / "raw", "csv", [(u, m, r - 0.5, t) for u, m, r, t in rows])
    prepared = made(folder, "movielens", {"doubled": True})
    assert prepared.funnel.facts["ratings_of_unknown_movies"] == 2
    assert "77" not in prepared.users["raw_id"].to_pylist() and prepared.users.num_rows == 30
    assert any(
        "2 ratings are of movies that the movie file does not list" in note for note in prepared.funnel.notes
    )
    assert set(prepared.interactions["rating"].to_pylist()) == {1.0, 3.0, 5.0, 7.0, 9.0}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda r: (*r[:2], r[2] * 20, r[3]), {}, r"rating.*not between 0.5 and 5.*movielens.scale"),
        (lambda r: (*r[:3], r[3] * 1000), {}, r"later than the year 2286.*movielens.time_unit to ms"),
        (lambda r: r, {"time_unit": "ms"}, r"earlier than May 1970 as milliseconds.*to s"),
        (lambda r: (r[0], r[1], r[2], -5 if r[0] == 3 else r[3]), {}, "negative time"),
        (lambda r: ("", *r[1:]) if r[0] == 4 else r, {}, "null or empty id"),
        (lambda r: (*r[:2], "five", r[3]), {}, "cannot be read as a log"),
    ],
)  # fmt: skip
def test_ratings_that_cannot_be_are_refused_by_row(tmp_path, change, options, message):
    folder = publishers.movielens(tmp_path / "raw", "csv", [change(row) for row in publishers.ratings()])
    with pytest.raises(InputError, match=message):
        made(folder, "movielens", options)


def test_another_scale_and_unit_work_once_they_are_named(tmp_path):
    rows = [(u, m, r * 20, t * 1000) for u, m, r, t in publishers.ratings()]
    folder = publishers.movielens(tmp_path / "raw", "csv", rows)
    prepared = made(folder, "movielens", {"scale": [1, 100], "time_unit": "ms"})
    assert walks(prepared) == by_rows([(u, m, t // 1000) for u, m, _, t in rows])


def test_one_row_in_another_unit_is_named(tmp_path):
    rows = publishers.ratings()
    rows[7] = (*rows[7][:3], rows[7][3] * 1000)
    with pytest.raises(InputError, match=rf"timestamp` row 7 \({rows[7][3]:.1f}\)"):
        made(publishers.movielens(tmp_path / "raw", "csv", rows), "movielens")


@pytest.mark.parametrize(
    ("remove", "message"),
    [("movies.csv.gz", "missing file: .*movies.csv"), ("ratings.csv.gz", "no MovieLens ratings")],
)
def test_half_a_release_is_refused(tmp_path, remove, message):
    folder = publishers.movielens(tmp_path / "raw", "csv", publishers.ratings())
    (folder / remove).unlink()
    with pytest.raises(InputError, match=message):
        made(folder, "movielens")


def test_a_delimiter_of_two_characters_is_found_wherever_a_block_ends(tmp_path):
    rows = [(n, n % 7, 3.0, 10**9 + n) for n in range(1000)]
    folder = publishers.movielens(tmp_path / "raw", "1m", rows)
    for size in (97, 98, 99, 1000):
        with patch("data.adapters.logs.delimited.BLOCK_BYTES", size):
            log = Log("s", "x")
            names = ("userId", "movieId", "rating", "timestamp")
            columns = dict(zip(("user", "item", "rating", "time"), names, strict=True))
            assert log.read(folder / "ratings.dat", Layout("::", names), columns) == []
            coded, users, items = log.finish()
        assert users.take(coded.user).to_pylist() == [str(row[0]) for row in rows]
        assert items.take(coded.item).to_pylist() == [str(row[1]) for row in rows]


def test_movielens_as_a_user_runs_it_with_hidvaes_windows(tmp_path):
    """Windows of 200 from 180 to 180 rows, cut at the .8 and .9 quantiles of their last times, nothing shared."""
    rows = [(u, m, r, t + at * 3600) for at, (u, m, r, t) in enumerate(publishers.ratings(users=8) * 30)]
    folder = publishers.movielens(tmp_path / "raw", "1m", rows)
    config = ROOT / "configs/hidvae/ml1m/prepare.yaml"
    call("data.prepare", "--config", config, "--raw", folder, "--output_dir", tmp_path / "made")
    table = pq.read_table(tmp_path / "made/sequences.parquet").to_pylist()
    assert max(len(row["history"]) for row in table) == 199
    times = sorted(row["timestamp"] for row in table)
    first = times[int(0.8 * (len(times) - 1) + 0.5)]
    assert all((row["timestamp"] <= first) == (row["split"] == "train") for row in table)
    assert {row["split"] for row in table} == {"train", "valid", "test"}
    lengths = [len(own) for own in by_rows([(u, m, t) for u, m, _, t in rows]).values()]
    assert len(table) == sum(1 + max(0, -(-(n - 200) // 180)) for n in lengths if n > 1)


def test_kuairand_histories_are_what_the_logs_say(tmp_path):
    """Every window is consecutive clicks of one user in the logs; no valid or test target is in a train window."""
    log = publishers.kuairand(tmp_path / "raw")
    options = {"min_clicks": 6, "min_levels": 2, "max_items": 0}
    split = {"kind": "leave_one_out", "max_history": 19, "stride": 4}
    prepared = made(tmp_path / "raw", "kuairand", options, split=split, filters={"user_k": 5, "item_k": 0})
    clicks = [(u, v, t) for u, v, t, click in log if click]
    many = {u for u in range(12) if sum(row[0] == u for row in clicks) >= 6}
    known = {v for v in range(40) if v % 9 and (v % 5 > 0) + (v % 2 == 0) + 1 >= 2}
    kept = [(u, v, t // 1000) for u, v, t in clicks if u in many and v in known]
    expected = {user: own for user, own in by_rows(kept).items() if len(own) >= 5}
    assert walks(prepared) == expected
    users = prepared.users["raw_id"].to_pylist()
    names = prepared.items["raw_id"].to_pylist()
    train: dict[str, set[int]] = defaultdict(set)
    later: list[tuple[str, int]] = []
    for row in prepared.sequences.to_pylist():
        user, history = users[row["user_id"]], row["history"]
        own = [item for item, _ in expected[user]]
        window = [names[item] for item in [*history, row["target"]]]
        places = [
            at
            for at in range(len(own))
            if own[at : at + len(window)] == window and len(own) >= at + len(window)
        ]
        assert places and len(history) <= 19
        end = {"train": None, "valid": len(own) - 2, "test": len(own) - 1}[row["split"]]
        if end is None:
            begin = next(at for at in places if at % 4 == 0)
            train[user] |= set(range(begin, begin + len(window)))
        else:
            assert end - len(history) in places
            later.append((user, end))
    assert later and not [place for user, place in later if place in train[user]]
    texts = {row["raw_id"]: row for row in prepared.items.to_pylist()}
    assert all(row["title"] == f'视频, {key} "quoted" second line' for key, row in texts.items())
    shown = next(row for row in texts.values() if int(row["raw_id"]) % 2 == 0 and int(row["raw_id"]) % 5 == 0)
    assert shown["categories"] == [f"top{int(shown['raw_id']) % 3}", "", f"leaf{shown['raw_id']}"]


def test_kuairand_draws_are_seeded_and_keep_the_shares(tmp_path):
    publishers.kuairand(tmp_path / "raw")
    options = {"min_clicks": 1, "max_users": 7, "max_items": 12, "min_levels": 1}
    first, second = (made(tmp_path / "raw", "kuairand", options) for _ in range(2))
    assert first.items.equals(second.items) and first.interactions.equals(second.interactions)
    assert first.users.num_rows <= 7 and first.items.num_rows <= 12
    other = made(tmp_path / "raw", "kuairand", options | {"seed": 1})
    assert not other.items.equals(first.items)
    groups = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    drawn = stratified(groups, 10, np.random.default_rng(0))
    assert [sum(groups[at] == name for at in drawn) for name in "abc"] == [5, 3, 2] and len(set(drawn)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "none.csv"}, "missing file: .*none.csv"),
        ({"logs": ["none*"]}, "no log file .* matches none"),
        ({"min_clicks": 10**6}, "the filters of kuairand leave no row"),
        ({"time_unit": "s"}, "later than the year 2286.*kuairand.time_unit to ms"),
        ({"captions": ""}, "min_levels asks for captions"),
    ],
)
def test_kuairand_says_what_is_wrong(tmp_path, options, message):
    publishers.kuairand(tmp_path / "raw")
    with pytest.raises(InputError, match=message):
        made(tmp_path / "raw", "kuairand", options)


def test_kuairand_without_texts(tmp_path):
    publishers.kuairand(tmp_path / "raw")
    options = {"captions": "", "categories": "", "min_levels": 0, "min_clicks": 0, "clicks_only": False}
    prepared = made(tmp_path / "raw", "kuairand", options)
    assert prepared.funnel.facts["items_without_title"] == prepared.items.num_rows == 40


def test_yelp_reviews_dates_and_duplicate_businesses(tmp_path):
    rows = publishers.yelp(tmp_path / "raw")
    prepared = made(tmp_path / "raw", "yelp")
    listed = {f"b{n}" for n in range(7)}
    assert walks(prepared) == by_rows([(u, b, t) for u, b, _, t in rows if b in listed])
    facts = prepared.funnel.facts
    assert facts["review_lines_broken"] == 1 and facts["repeated_businesses"] == 1
    assert any("1 further lines of businesses" in note for note in prepared.funnel.notes)
    items = {row["raw_id"]: row for row in prepared.items.to_pylist()}
    assert items["b2"]["title"] == "Shop & Co 2" and items["b2"]["categories"] == ["Bars", "Nightlife"]
    assert items["b3"]["categories"] == [] and items["b3"]["description"] == "3 Main St, Reno, NV"


def test_p5s_archive_keeps_its_numbers_its_order_and_its_split(tmp_path):
    own = publishers.p5(tmp_path / "raw")
    config = ROOT / "configs/hidvae/beauty14_p5/prepare.yaml"
    call("data.prepare", "--config", config, "--raw", tmp_path / "raw", "--output_dir", tmp_path / "made")
    users, items, rows, windows = (
        pq.read_table(tmp_path / f"made/{name}.parquet").to_pylist()
        for name in ("users", "items", "interactions", "sequences")
    )
    assert [row["raw_id"] for row in items] == [f"B{n:05d}" for n in range(1, 16)], "number less 1"
    assert [row["raw_id"] for row in users] == list(own)
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[users[row["user_id"]]["raw_id"]].append(items[row["item_id"]]["raw_id"])
    assert found == own
    for row in windows:
        walk = own[users[row["user_id"]]["raw_id"]]
        names = [items[item]["raw_id"] for item in [*row["history"], row["target"]]]
        end = {"test": len(walk), "valid": len(walk) - 1}.get(row["split"], len(names))
        assert names == walk[:end] and (row["split"] != "train" or end <= max(len(walk) - 2, 2))
    assert items[0]["title"] == "Mom's lamp & 1" and items[0]["categories"] == ["Beauty", "Level 1"]
    assert (items[3]["title"], items[3]["attribute_ids"]) == ("", [4, 7]) and items[4]["attribute_ids"] == []
    facts = json.loads((tmp_path / "made/funnel.json").read_text())
    assert facts["items_without_metadata"] == 1 and facts["items_without_attributes"] == 1


def test_s3_rec_ships_the_same_without_names_and_text(tmp_path, capsys):
    publishers.p5(tmp_path / "raw")
    archive = made(tmp_path / "raw", "p5")
    for name in ("datamaps.json", "meta.json.gz"):
        (tmp_path / "raw" / name).unlink()
    text = (tmp_path / "raw/sequential_data.txt").read_text()
    (tmp_path / "raw/sequential_data.txt").unlink()
    publishers.write(tmp_path / "raw/Beauty.txt.gz", text)
    (tmp_path / "raw/item2attributes.json").rename(tmp_path / "raw/Beauty_item2attributes.json")
    prepared = made(tmp_path / "raw", "p5", {"sequences": ["Beauty.txt*"]})
    assert prepared.sequences.equals(archive.sequences) and prepared.interactions.equals(archive.interactions)
    listed = sorted({int(item) for line in text.splitlines() for item in line.split()[1:]})
    assert prepared.items["raw_id"].to_pylist() == [str(n) for n in listed]
    assert prepared.funnel.facts["items_without_title"] == len(listed)
    assert any("no item has text" in note for note in prepared.funnel.notes)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda raw: (raw / "sequential_data.txt").unlink(), {}, "no sequences file in .*p5.sequences"),
        (lambda raw: (raw / "sequential_data.txt").write_text("\n"), {}, "no sequences -> lines of a user"),
        (lambda raw: publishers.write(raw / "sequential_data.txt.gz", ""), {}, "both match p5.sequences"),
        (lambda raw: appended(raw, "1 3\n"), {}, r"row 12 \('1'\): a user of an earlier line"),
        (lambda raw: appended(raw, "2\n"), {}, "a user of an earlier line"),
        (lambda raw: appended(raw, "77 3\n"), {}, r"row 12 \('77'\): not in datamaps.json"),
        (lambda raw: (raw / "datamaps.json").write_text('{"id2user": {}}'), {}, "neither id2item nor item2id"),
        (lambda raw: (raw / "datamaps.json").write_text('{"id2u'), {}, "not JSON"),
        (lambda raw: None, {"maps": []}, "p5.metadata is found by ASIN -> name p5.maps"),
        (lambda raw: (raw / "item2attributes.json").write_text('{"1": ["a"]}'), {}, "no lists of attribute"),
        (lambda raw: (raw / "meta.json.gz").write_bytes((raw / "meta.json.gz").read_bytes()[:90]), {}, "p5.allow_trunc"),
    ],
)  # fmt: skip
def test_p5_says_what_is_wrong(tmp_path, change, options, message):
    publishers.p5(tmp_path / "raw")
    change(tmp_path / "raw")
    with pytest.raises(InputError, match=message):
        made(tmp_path / "raw", "p5", options)


def appended(raw: Path, line: str) -> None:
    with open(raw / "sequential_data.txt", "a") as file:
        file.write(line)


def test_users_with_one_row_have_no_window_and_are_said(tmp_path, capsys):
    rows = [(1, 1, 4.0, 10**9), (2, 3, 4.0, 10**9), (2, 4, 3.0, 10**9 + 5)]
    prepared = made(publishers.movielens(tmp_path / "raw", "csv", rows), "movielens")
    assert prepared.sequences.num_rows == 1
    assert "1 of 2 users have one row: they have no window" in prepared.funnel.notes
    assert any("the valid split has no rows" in note for note in prepared.funnel.notes)
    call("data.prepare", "--adapter", "movielens", "--raw", tmp_path / "raw", "--output_dir", tmp_path / "made",
         "--split.kind", "leave_one_out", "--filters.user_k", 0, "--filters.item_k", 0)  # fmt: skip
    said = capsys.readouterr().out
    assert "the valid split has no rows: no checkpoint can be chosen on it" in said


def amazon_csv(
    folder: Path, year: int, *, split: bool = False, seed: int = 4
) -> list[tuple[str, str, float, int]]:
    """Ratings as csv; with `split` the last two of every user in files of their own. Returns (user, item, stars, second)."""
    rng = np.random.default_rng(seed)
    rows = [
        (
            f"U{user}",
            f"B{int(rng.integers(9))}",
            float(rng.integers(1, 6)),
            1_600_000_000 + step * 1000 + user,
        )
        for user in range(15)
        for step in range(int(rng.integers(3, 9)))
    ]
    columns = ["user_id", "parent_asin", "rating", "timestamp"]
    told = [
        (u, i, s, t * 1000) if year == 2023 else (i, u, s, t) if year == 2018 else (u, i, s, t)
        for u, i, s, t in rows
    ]
    if not split:
        publishers.table(folder / "Games.csv.gz", columns, told)
        if year != 2023:  # no header
            publishers.write(folder / "Games.csv.gz", "".join(",".join(map(str, row)) + "\n" for row in told))
        return rows
    left = {user: sum(row[0] == user for row in rows) for user in {row[0] for row in rows}}
    parts: dict[str, list[Any]] = {"train": [], "valid": [], "test": []}
    for row in told:
        left[row[0]] -= 1
        parts[{0: "test", 1: "valid"}.get(left[row[0]], "train")].append(row)
    for name, part in parts.items():
        publishers.table(folder / f"Games.{name}.csv", columns, part)
    return rows


META = {"metadata": [], "keep_without_metadata": True, "title_filter": "none"}


@pytest.mark.parametrize("year", [2014, 2018, 2023])
def test_amazon_ratings_as_csv(tmp_path, year):
    rows = amazon_csv(tmp_path / "raw", year)
    prepared = made(tmp_path / "raw", "amazon", META | {"format": year, "reviews": ["*.csv*"]})
    assert walks(prepared) == by_rows([(u, i, t) for u, i, _, t in rows])


def test_the_published_split_of_amazon_2023_is_kept_exactly(tmp_path):
    rows = amazon_csv(tmp_path / "raw", 2023, split=True)
    options = META | {"format": 2023, "reviews": ["*.csv*"]}
    prepared = made(tmp_path / "raw", "amazon", options, split={"kind": "published", "max_history": 50})
    own = by_rows([(u, i, t) for u, i, _, t in rows])
    assert walks(prepared) == own
    for row in prepared.sequences.to_pylist():
        walk = own[prepared.users["raw_id"][row["user_id"]].as_py()]
        place = {"test": len(walk) - 1, "valid": len(walk) - 2}.get(row["split"], len(row["history"]))
        assert len(row["history"]) == place
    assert prepared.funnel.facts["windows"]["test"] == 15
    with pytest.raises(
        InputError, match="published split is kept whole, amazon.drop_duplicates leaves rows out"
    ):
        made(tmp_path / "raw", "amazon", options | {"drop_duplicates": True}, split={"kind": "published"})
    publishers.table(tmp_path / "raw/Games.csv", ["user_id"], [])
    with pytest.raises(InputError, match="stands beside files of a split"):
        made(tmp_path / "raw", "amazon", options, split={"kind": "published"})


def test_a_published_split_that_nobody_ships_is_said(tmp_path):
    amazon_csv(tmp_path / "raw", 2023)
    with pytest.raises(InputError, match="split.kind published, but the interactions have no split"):
        made(
            tmp_path / "raw",
            "amazon",
            META | {"format": 2023, "reviews": ["*.csv*"]},
            split={"kind": "published"},
        )
