"""Stage 01 as a user runs it, against a row-by-row build; bad input ends with one line, exit code 2 and nothing written."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.adapters.item_text import clean_title, title_is_bad
from data.artifacts import read_items, read_sequences
from data.prepare import PrepareArgs, prepare
from tests.handmade import call, refuse, run

DAY = 86400


def seconds(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp())


def dump(folder: Path, *, users: int = 60, seed: int = 3) -> Path:
    """A 2018 dump with ties in time, repeats, reviews outside any window, bad titles and items without metadata."""
    rng = random.Random(seed)
    reviews = []
    for user in range(users):
        time = seconds(2016, 1, 1) + rng.randrange(900) * DAY
        for _ in range(rng.randrange(1, 12)):
            item = int(rng.paretovariate(0.6)) % 40
            reviews.append({"reviewerID": f"U{user}", "asin": f"B{item:02}", "overall": float(rng.randrange(1, 6)), "unixReviewTime": time})  # fmt: skip
            if rng.random() < 0.1:
                reviews.append(dict(reviews[-1]))
            if user == 0:
                reviews.append(reviews[-1] | {"asin": "B39"})  # an item without metadata
            time += rng.choice([0, 0, 1, 30, 400]) * DAY
    rng.shuffle(reviews)
    titles = ['<span class="a"', None, "x", *(f"Item &amp; {n} &rdquo;" for n in range(3, 38))]
    metadata = [
        {"asin": f"B{n:02}", "title": title, "category": ["A", "B"]} for n, title in enumerate(titles)
    ]
    metadata += [{"asin": "B05", "title": "another title of an item that has one"}]
    folder.mkdir(parents=True)
    write_lines(folder / "Store.json.gz", reviews)
    write_lines(folder / "meta_Store.json", metadata)
    return folder


def write_lines(path: Path, objects: list[Any]) -> None:
    text = "".join((o if isinstance(o, str) else json.dumps(o)) + "\n" for o in objects)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def read_lines(path: Path) -> list[dict]:
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def config(path: Path, **changes: Any) -> Path:
    settings = {
        "adapter": "amazon",
        "amazon": {"format": 2018, "reviews": ["Store.json*"], "metadata": ["meta_Store.json*"]},
        "filters": {"user_k": 3, "item_k": 2},
        "split": {"kind": "global_temporal", "max_history": 4},
    }
    path.write_text(json.dumps(settings | changes))
    return path


def by_rows(folder: Path, *, user_k: int, item_k: int, max_history: int, drop: bool) -> tuple[list, list]:
    """(items as (raw id, title), sequences as (user, history, target, time, split)) by dictionaries and slices."""
    metadata: dict[str, dict] = {}
    for line in read_lines(folder / "meta_Store.json"):
        metadata.setdefault(line["asin"], line)
    usable = {asin for asin, line in metadata.items() if not (drop and title_is_bad(line["title"]))}
    reviews = [
        (r["reviewerID"], r["asin"], r["unixReviewTime"]) for r in read_lines(folder / "Store.json.gz")
    ]
    reviews = [review for review in reviews if review[1] in usable]
    while True:
        users, items = Counter(r[0] for r in reviews), Counter(r[1] for r in reviews)
        kept = [r for r in reviews if users[r[0]] >= user_k and items[r[1]] >= item_k]
        if len(kept) == len(reviews):
            break
        reviews = kept
    walks: dict[str, list] = {}
    for review in reviews:
        walks.setdefault(review[0], []).append(review)
    numbers: dict[str, int] = {}
    windows = []
    for user, walk in enumerate(walks.values()):
        walk.sort(key=lambda review: review[2])
        for _, asin, _ in walk:
            numbers.setdefault(asin, len(numbers))
        for n in range(1, len(walk)):
            history = [numbers[asin] for _, asin, _ in walk[max(0, n - max_history) : n]]
            windows.append((user, history, numbers[walk[n][1]], walk[n][2]))
    windows.sort(key=lambda window: window[3])
    cuts = int(0.8 * len(windows)), int(0.9 * len(windows))
    names = ["train" if n < cuts[0] else "valid" if n < cuts[1] else "test" for n in range(len(windows))]
    titles = [(asin, clean_title(metadata[asin]["title"])) for asin in numbers]
    return titles, [(*window, name) for window, name in zip(windows, names, strict=True)]


@pytest.mark.parametrize(
    ("user_k", "item_k", "rule"), [(3, 2, "published"), (2, 4, "none"), (5, 1, "published")]
)
def test_a_dump_equals_the_row_by_row_build(tmp_path, user_k, item_k, rule):
    folder = dump(tmp_path / "raw", seed=user_k)
    args = PrepareArgs(raw=str(folder), output_dir="none")
    amazon = {"reviews": ["Store.json*"], "metadata": ["meta_Store.json"], "title_filter": rule}
    made = prepare(
        replaced(args, amazon=amazon, filters={"user_k": user_k, "item_k": item_k}, split={"max_history": 4})
    )
    items, sequences = by_rows(folder, user_k=user_k, item_k=item_k, max_history=4, drop=rule == "published")
    assert len(sequences) > 40
    assert [(i["raw_id"], i["title"]) for i in made.items.to_pylist()] == items
    found = made.sequences.to_pylist()
    assert [(s["user_id"], s["history"], s["target"], s["timestamp"], s["split"]) for s in found] == sequences
    rows = made.interactions.to_pylist()
    by_target = {(s[0], s[2], s[3], s[4]) for s in sequences}
    assert all(
        (r["user_id"], r["item_id"], r["timestamp"], r["split"]) in by_target for r in rows if r["order"]
    )


def replaced(args: PrepareArgs, **parts: dict[str, Any]) -> PrepareArgs:
    from dataclasses import replace

    return replace(args, **{name: replace(getattr(args, name), **values) for name, values in parts.items()})


def test_mark_missing_keeps_the_items_that_published_drops(tmp_path):
    folder = dump(tmp_path / "raw")
    base = PrepareArgs(raw=str(folder), output_dir="none")
    counts = {}
    for rule in ("published", "mark_missing"):
        amazon = {"reviews": ["Store.json*"], "metadata": ["meta_Store.json"], "title_filter": rule}
        made = prepare(replaced(base, amazon=amazon, filters={"user_k": 0, "item_k": 0}))
        titles = dict(zip(made.items["raw_id"].to_pylist(), made.items["title"].to_pylist(), strict=True))
        counts[rule] = {asin: titles.get(asin) for asin in ("B00", "B01", "B02", "B03", "B39")}
        assert made.funnel.facts["reviewed_items_with_bad_title"] == 3
    assert counts["published"] == {"B00": None, "B01": None, "B02": None, "B03": "Item & 3 ”", "B39": None}
    assert counts["mark_missing"] == {"B00": "", "B01": "", "B02": "", "B03": "Item & 3 ”", "B39": None}
    amazon |= {"keep_without_metadata": True, "drop_duplicates": True}
    made = prepare(replaced(base, amazon=amazon, filters={"user_k": 0, "item_k": 0}))
    lines = read_lines(folder / "Store.json.gz")
    assert set(made.items["raw_id"].to_pylist()) == {r["asin"] for r in lines} > {"B39"}
    distinct = {(r["reviewerID"], r["asin"], r["unixReviewTime"]) for r in lines}
    assert made.interactions.num_rows == len(distinct) < len(lines)


def test_of_exact_repeats_the_first_line_stays_with_its_rating_and_its_place(tmp_path):
    """B1 and B0 in one second, then B1 again with another rating: B1 comes before B0 and has its first rating."""
    day = [seconds(2017, 1, n) for n in (1, 2, 3)]
    lines = [
        ("B1", 4.0, day[1]),
        ("B0", 3.0, day[1]),
        ("B1", 1.0, day[1]),
        ("B1", 2.0, day[2]),
        ("B0", 5.0, day[0]),
    ]
    reviews = [
        {"reviewerID": "U", "asin": asin, "overall": stars, "unixReviewTime": at} for asin, stars, at in lines
    ]
    (tmp_path / "raw").mkdir()
    write_lines(tmp_path / "raw/Store.json.gz", reviews)
    metadata = [{"asin": f"B{n}", "title": f"Item {n}", "category": ["A"]} for n in (0, 1)]
    write_lines(tmp_path / "raw/meta_Store.json", metadata)
    amazon = {
        "format": 2018,
        "reviews": ["Store.json*"],
        "metadata": ["meta_Store.json*"],
        "drop_duplicates": True,
    }
    made = config(tmp_path / "c.yaml", amazon=amazon, filters={"user_k": 1, "item_k": 1})
    call("data.prepare", "--config", made, "--raw", tmp_path / "raw", "--output_dir", tmp_path / "out")
    raw = pq.read_table(tmp_path / "out/items.parquet")["raw_id"].to_pylist()
    rows = sorted(
        pq.read_table(tmp_path / "out/interactions.parquet").to_pylist(), key=lambda row: row["order"]
    )
    assert [(raw[row["item_id"]], row["rating"]) for row in rows] == [
        ("B0", 5.0), ("B1", 4.0), ("B0", 3.0), ("B1", 2.0),
    ]  # fmt: skip


def test_output_is_the_same_in_every_time_zone_and_the_manifest_tells_the_window(tmp_path):
    folder = dump(tmp_path / "raw")
    # Reviews around the first second of every month where the window may begin or end: another zone would move them.
    starts = [(2015, 1), (2016, 1), (2017, 1), (2017, 6)]
    edge = [
        {"reviewerID": "U1", "asin": "B05", "unixReviewTime": seconds(*month, 1) + late}
        for month in starts
        for late in (-1, 0, 1)
    ]
    write_lines(folder / "Store.json.gz", read_lines(folder / "Store.json.gz") + edge)
    filters = {
        "user_k": 2,
        "item_k": 2,
        "start": "2017-01",
        "end": "2017-06",
        "min_items": 25,
        "min_year": 2015,
    }
    path = config(tmp_path / "prepare.yaml", filters=filters, split={"kind": "leave_one_out"})
    hashes = {}
    for zone in ("America/Los_Angeles", "Asia/Tokyo"):
        output = tmp_path / zone.replace("/", "_")
        done = run("data.prepare", "--config", path, "--raw", folder, "--output_dir", output, TZ=zone)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((output / "manifest.json").read_text())
        hashes[zone] = manifest["content_hash"]
        months = manifest["facts"]["funnel"]["months"]
    assert len(set(hashes.values())) == 1
    funnel = manifest["facts"]["funnel"]
    assert funnel == json.loads((output / "funnel.json").read_text())
    assert funnel["window"] in ("2016-01..2017-06", "2015-01..2017-06"), "the window had to be widened"
    assert months[funnel["window"][:7]] >= 2 and max(months) <= "2017-06"
    assert manifest["counts"]["items"] == read_items(output).num_rows
    sequences = read_sequences(output, num_items=manifest["counts"]["items"])
    assert Counter(sequences["split"].to_pylist()) == funnel["windows"]
    assert sum(months.values()) == pq.read_table(output / "interactions.parquet").num_rows
    call("data.prepare", "--config", path, "--raw", folder, "--output_dir", output)
    assert json.loads((output / "manifest.json").read_text()) == manifest, "a finished output is kept"
    changed = refused("--config", path, "--raw", folder, "--output_dir", output, "--filters.user_k", 3)
    assert "holds another run (filters.user_k 2 -> 3)" in changed


def test_a_first_window_that_is_wide_enough_is_kept(tmp_path):
    folder = dump(tmp_path / "raw")
    base = PrepareArgs(raw=str(folder), output_dir="none")
    amazon = {"reviews": ["Store.json*"], "metadata": ["meta_Store.json"]}
    filters = {"user_k": 1, "item_k": 1, "start": "2017-01", "end": "2018-01", "min_items": 3}
    made = prepare(replaced(base, amazon=amazon, filters=filters, split={"kind": "leave_one_out"}))
    assert made.funnel.facts["window"] == "2017-01..2018-01"
    assert min(made.funnel.facts["months"]) >= "2017-01" and max(made.funnel.facts["months"]) <= "2018-01"
    steps = {step["step"]: step["rows"] for step in made.funnel.steps}
    assert steps["final"] < steps["reviews read"] == steps["review lines"]


def refused(*flags: object) -> str:
    """The message of a run that must find its input bad, in this process; it is what `ERROR 2:` says."""
    with pytest.raises(InputError) as caught:
        call("data.prepare", *flags)
    return str(caught.value)


def test_dates_far_out_of_range_are_rows_like_others(tmp_path):
    folder = dump(tmp_path / "raw")
    wild = [{"reviewerID": "U1", "asin": "B05", "unixReviewTime": time} for time in (-(10**9), 10**17)]
    write_lines(folder / "Store.json.gz", read_lines(folder / "Store.json.gz") + wild)
    base = PrepareArgs(raw=str(folder), output_dir="none")
    amazon = {"reviews": ["Store.json*"], "metadata": ["meta_Store.json"]}
    made = prepare(replaced(base, amazon=amazon, filters={"user_k": 1, "item_k": 1}))
    months = made.funnel.facts["months"]
    assert months["1938-04"] == 1 and sum(months.values()) == made.interactions.num_rows
    inside = prepare(replaced(base, amazon=amazon, filters={"start": "2000-01", "user_k": 1, "item_k": 1}))
    assert inside.interactions.num_rows == made.interactions.num_rows - 2


BROKEN = '{"reviewerID": "U1", "asin'


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--amazon.reviews", "[none*]"], r"no reviews file in .* matches none\*"),
        (["--amazon.format", "2023"], "no user_id; keys: reviewerID"),
        (["--amazon.format", "2019"], "amazon.format"),
        (["--filters.user_k", "999"], "filters leave nothing"),
        (["--filters.user_k", "many"], "filters.user_k"),
        (["--filters.start", "2050-01"], "filters leave nothing"),
        (["--filters.start", "Jan 2016"], "YYYY-MM"),
        (["--no_such_flag", "1"], "no_such_flag"),
        (["--split.train_share", "1.5"], "test share"),
        (["--amazon.metadata", "[]"], "keep_without_metadata"),
        (["--adapter", "tables"], "missing file: .*items.parquet"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, flags, message):
    folder, path, output = dump(tmp_path / "raw"), config(tmp_path / "c.yaml"), tmp_path / "made/here"
    line = refused("--config", path, "--raw", folder, "--output_dir", output, *flags)
    assert re.search(message, line) and " -> " in line, line
    assert not output.exists()


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda raw: write_lines(raw / "Store.json.gz", [*read_lines(raw / "Store.json.gz"), *[BROKEN] * 40]), r"Store\.json\.gz:\d+ \(not JSON.*max_bad_share"),
        (lambda raw: write_lines(raw / "meta_Store.json", [BROKEN, *read_lines(raw / "meta_Store.json")]), r"meta_Store\.json:1 \(not JSON"),
        (lambda raw: (raw / "Store.json.gz").write_bytes((raw / "Store.json.gz").read_bytes()[:900]), "ends in the middle"),
        (lambda raw: (raw / "Store.json.gz").write_bytes(b"\x1f\x8b" + bytes(300)), "corrupt gzip"),
        (lambda raw: (raw / "Store.json.gz").write_bytes(b"PAR1" + bytes(3000)), "broken|no line end"),
        (lambda raw: (raw / "Store.json.gz").write_bytes(b""), "no reviews"),
        (lambda raw: [path.unlink() for path in raw.iterdir()], "no reviews file"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line_and_leave_nothing(tmp_path, breaks, message):
    folder, path, output = dump(tmp_path / "raw"), config(tmp_path / "c.yaml"), tmp_path / "out"
    breaks(folder)
    line = refused("--config", path, "--raw", folder, "--output_dir", output)
    assert re.search(message, line), line
    assert not output.exists()


def test_a_refusal_is_exit_code_2_and_one_line(tmp_path):
    folder, path, output = dump(tmp_path / "raw"), config(tmp_path / "c.yaml"), tmp_path / "out"
    write_lines(folder / "meta_Store.json", [BROKEN, *read_lines(folder / "meta_Store.json")])
    line = refuse("data.prepare", "--config", path, "--raw", folder, "--output_dir", output)
    assert f"{folder}/meta_Store.json:1 (not JSON" in line and not output.exists()


def test_a_file_that_breaks_off_is_used_and_told(tmp_path, capsys):
    folder, path = dump(tmp_path / "raw"), config(tmp_path / "c.yaml")
    whole = read_lines(folder / "Store.json.gz")
    data = (folder / "Store.json.gz").read_bytes()
    (folder / "Store.json.gz").write_bytes(data[:-100])
    flags = ["--config", path, "--raw", folder, "--output_dir", tmp_path / "out"]
    assert "allow_truncated" in refused(*flags)
    call("data.prepare", *flags, "--amazon.allow_truncated", "true")
    said = capsys.readouterr().out
    assert "Store.json.gz ends in the middle; its whole lines are used" in said
    assert "1 broken review lines" in said and "first: Store.json.gz:" in said
    funnel = json.loads((tmp_path / "out/funnel.json").read_text())
    assert funnel["truncated_files"] == ["Store.json.gz"]
    assert len(whole) // 2 < funnel["steps"][1]["rows"] < len(whole)


def test_bad_configs_are_one_line(tmp_path):
    folder, output = dump(tmp_path / "raw"), tmp_path / "out"
    for changes, message in (
        ({"filter": {"user_k": 5}}, "filter"),
        ({"amazon": {"formats": 2018}}, "formats"),
        ({"split": {"max_history": "ten"}}, "max_history"),
        ({"adapter": "yelp", "split": {"kind": "published"}}, "brings no split"),
    ):
        path = config(tmp_path / "c.yaml", **changes)
        line = refused("--config", path, "--raw", folder, "--output_dir", output)
        assert message in line
    assert "none.yaml" in refuse(
        "data.prepare", "--config", tmp_path / "none.yaml", "--raw", folder, "--output_dir", output
    )
    assert "raw folder" in refused("--config", config(tmp_path / "c.yaml"), "--raw", tmp_path / "no", "--output_dir", output)  # fmt: skip
    assert not output.exists()


def test_an_unreadable_file_is_named(tmp_path):
    folder, path = dump(tmp_path / "raw"), config(tmp_path / "c.yaml")
    (folder / "Store.json.gz").chmod(0)
    if os.access(folder / "Store.json.gz", os.R_OK):
        pytest.skip("this user may read everything")
    line = refused("--config", path, "--raw", folder, "--output_dir", tmp_path / "out")
    assert "Store.json.gz" in line and not (tmp_path / "out").exists()


def test_a_refusal_leaves_nothing_beside_the_raw_files(tmp_path):
    # scripts/01_prepare_data.sh looks for the raw files inside the data set's own folder.
    folder, path = dump(tmp_path / "shop/raw"), config(tmp_path / "c.yaml")
    flags = ("--config", path, "--raw", folder, "--output_dir", tmp_path / "shop")
    assert "filters leave nothing" in refused(*flags, "--filters.user_k", 999)
    assert [entry.name for entry in (tmp_path / "shop").iterdir()] == ["raw"]
    call("data.prepare", *flags)


def test_an_overwrite_that_fails_gives_the_old_data_back(tmp_path):
    folder, path = dump(tmp_path / "raw"), config(tmp_path / "c.yaml")
    out = tmp_path / "out"
    flags = ("--config", path, "--raw", folder, "--output_dir", out)
    call("data.prepare", *flags)
    before = {entry.name: entry.read_bytes() for entry in out.iterdir()}
    assert "filters leave nothing" in refused(*flags, "--filters.user_k", 999, "--overwrite")
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before
    call("data.prepare", *flags, "--split.max_history", 3, "--overwrite")
    assert not (out / ".replaced").exists()
    assert (out / "sequences.parquet").read_bytes() != before["sequences.parquet"]
