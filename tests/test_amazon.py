"""Amazon dumps: every release, dirt on every line, against reading row by row."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.adapters.dumps import amazon
from data.adapters.dumps import lines as amazon_lines
from data.adapters.item_text import clean_title, kept_title, parse_price, title_is_bad
from data.adapters.options import AmazonOptions

REVIEW = {"reviewerID": "U1", "asin": "B1", "overall": 4.0, "unixReviewTime": 1393372800}


def write(path: Path, lines: list[str | bytes | dict], *, end: bytes = b"\n") -> Path:
    """Lines as they are, objects as JSON; gzip where the name says so."""
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    data = b"\n".join(encoded) + end if lines else b""
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, *, year: int = 2018, **options: Any) -> amazon.Reviews:
    return amazon.read_reviews([path], AmazonOptions(format=year, **{"max_bad_share": 0.0} | options))


def rows(reviews: amazon.Reviews) -> list[tuple[str, str, float | None, int]]:
    user_ids, item_ids = reviews.user_ids.to_pylist(), reviews.item_ids.to_pylist()
    columns = zip(reviews.user.tolist(), reviews.item.tolist(), reviews.rating.tolist(), reviews.timestamp.tolist(), strict=True)  # fmt: skip
    return [(user_ids[u], item_ids[i], None if r != r else r, t) for u, i, r, t in columns]


def items_of(
    path: Path, ids: list[str], *, year: int = 2018, title_filter: str = "none", max_bad_share: float = 0.0
) -> tuple[amazon.Metadata, list[dict[str, Any]]]:
    """(metadata, rows of the item table in the order of `ids`)."""
    options = AmazonOptions(format=year, max_bad_share=max_bad_share)
    metadata = amazon.scan_metadata([path], pa.array(ids), options)
    table, _ = amazon.read_items([path], metadata, np.arange(len(ids)), year=year, title_filter=title_filter)
    return metadata, table.to_pylist()


@pytest.mark.parametrize("name", ["r.json", "r.json.gz"])
def test_2018_reviews(tmp_path, name):
    lines = [
        REVIEW | {"reviewText": "a\nb", "style": {"Size:": "L"}, "image": ["x"], "vote": "3"},
        REVIEW | {"reviewerID": "U2", "overall": 5},
        {"reviewerID": "U1", "asin": "B2", "unixReviewTime": 1},
    ]
    found = read(write(tmp_path / name, lines))
    assert rows(found) == [
        ("U1", "B1", 4.0, 1393372800),
        ("U2", "B1", 5.0, 1393372800),
        ("U1", "B2", None, 1),
    ]
    assert (found.user.dtype, found.item.dtype, found.timestamp.dtype, found.rating.dtype) == (
        np.int32, np.int32, np.int64, np.float32,
    )  # fmt: skip
    assert (found.lines[0].total, found.lines[0].broken) == (3, 0)


def test_2023_fields_and_milliseconds(tmp_path):
    review = {
        "user_id": "AE",
        "asin": "variant",
        "parent_asin": "B1",
        "rating": 3.0,
        "timestamp": 1588687728923,
    }
    path = write(tmp_path / "r.jsonl.gz", [review | {"text": "x", "images": [], "verified_purchase": True}])
    assert rows(read(path, year=2023)) == [("AE", "B1", 3.0, 1588687728)]
    meta = {
        "main_category": "Beauty", "title": "Soap &amp; Co", "average_rating": 4.8, "features": ["Mild", "<b>Big</b>"],
        "description": [], "price": "from 12.50", "images": [{"thumb": "t", "large": "l", "hi_res": None}],
        "videos": [], "store": "Howard", "categories": ["Beauty", "Soap"], "details": {"x": "y"}, "parent_asin": "B1",
    }  # fmt: skip
    _, (item,) = items_of(write(tmp_path / "m.jsonl", [meta]), ["B1"], year=2023)
    assert item == {
        "title": "Soap & Co", "description": "Mild Big", "categories": ["Beauty", "Soap"], "brand": "Howard",
        "price": 12.5, "image": "l",
    }  # fmt: skip


def test_2014_python_literals_are_read_and_never_run(tmp_path):
    target = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    lines = [
        str({"asin": "B1", "title": "It's 'x'", "price": 9.49, "imUrl": "http://i", "categories": [["CDs", "Pop"], ["Digital"]]}),
        f"{{'asin': 'B2', 'title': {code}}}",
        code,
        str({"asin": "B3", "description": "d", "related": {"also_bought": ["B1"]}}),
        json.dumps({"asin": "B4", "title": "JSON too"}),
    ]  # fmt: skip
    metadata, found = items_of(
        write(tmp_path / "meta.json", lines), ["B1", "B2", "B3", "B4"], year=2014, max_bad_share=0.5
    )
    assert not target.exists()
    assert metadata.file.tolist() == [0, -1, 0, 0]
    assert (metadata.lines[0].broken, metadata.lines[0].total, metadata.distinct) == (2, 5, 3)
    assert metadata.lines[0].first_broken.startswith(f"{tmp_path}/meta.json:2 (")
    assert found[0] == {
        "title": "It's 'x'", "description": "", "categories": ["CDs", "Pop"], "brand": "",
        "price": pytest.approx(9.49), "image": "http://i",
    }  # fmt: skip
    assert [item["title"] for item in found[2:]] == ["", "JSON too"] and found[2]["description"] == "d"
    reviews = write(tmp_path / "r.json", [str(REVIEW), REVIEW | {"helpful": [1, 2]}])
    assert len(rows(read(reviews, year=2014))) == 2
    with pytest.raises(InputError, match="r.json:1 "):
        read(reviews, year=2018)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (["First &amp; second.", "<p>Third</p>"], "First & second. Third"),
        ("['First', \"it's\"]", "First it's"),
        ('["First", ""]', "First"),
        ("Plain [text]", "Plain [text]"),
        ("x" * 5000, "x" * 5000),
        ([], ""),
        (None, ""),
        ("2 < 3 &amp;lt; 4", "2 < 3 < 4"),
    ],
)
def test_2018_descriptions(tmp_path, raw, text):
    path = write(
        tmp_path / "m.json",
        [{"asin": "B1", "title": "t", "description": raw, "category": ["A", "B &amp; C"]}],
    )
    _, (item,) = items_of(path, ["B1"])
    assert (item["description"], item["categories"]) == (text, ["A", "B & C"])


@pytest.mark.parametrize(
    ("raw", "bad", "clean"),
    [
        ("Steel &quot;bolt&quot;", False, 'Steel "bolt'),
        ('"Quoted"', False, "Quoted"),
        ("AT&amp;T &rdquo;phone&rdquo;", False, "AT&T ”phone”"),
        ('<span class="a-size-medium a-color-secondary"', True, ""),
        ('Nice <span id="x">title</span>', True, "Nice title"),
        ("", True, ""),
        ("x", True, "x"),
        (None, True, ""),
        (" ".join(["word"] * 20), False, " ".join(["word"] * 20)),
        (" ".join(["word"] * 21), True, " ".join(["word"] * 21)),
        ("two  spaces", False, "two spaces"),
    ],
)
def test_titles(raw, bad, clean):
    assert title_is_bad(raw) is bad
    assert clean_title(raw) == clean
    assert kept_title(raw, "mark_missing") == ("" if bad else clean)
    assert kept_title(raw, "none") == clean


@pytest.mark.parametrize(
    ("raw", "price"),
    [("$1,299.00", 1299.0), ("12.99", 12.99), (9.5, 9.5), ("$5.00 - $7.50", 5.0), (".a-box-inner{x", None), ("", None),
     (True, None), (-1, None), (float("nan"), None), ("1,234,567.5", 1234567.5), ("from $1,299", 1299.0), (".99", 0.99),
     ("12,50", None), ("12,5", None), ("0,99", None), ("0,999", None), ("1.299,00", None), ("12,50 - 13,00", None), ("1234,567", None),
     ("EUR 43.61", 43.61), ("$ 3.99", 3.99), ("12.00 USD", 12.0), ("5 € - 7.50 €", 5.0), ("12.00 KGS", None), ("-5", None)],
)  # fmt: skip
def test_prices(raw, price):
    assert parse_price(raw) == price


def test_the_first_metadata_line_of_an_item_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(amazon_lines, "BLOCK_BYTES", 200)
    lines = [{"asin": f"B{n % 7}", "title": f"title {n}", "filler": "x" * (n % 50)} for n in range(60)]
    metadata, found = items_of(write(tmp_path / "m.json", lines), [f"B{n}" for n in (6, 0, 3)])
    assert [item["title"] for item in found] == ["title 6", "title 0", "title 3"]
    assert metadata.distinct == 7
    first = write(tmp_path / "a.json", [{"asin": "B3", "title": "another file"}])
    both = amazon.scan_metadata([first, tmp_path / "m.json"], pa.array(["B3", "B1"]), AmazonOptions())
    assert both.file.tolist() == [0, 1]
    table, _ = amazon.read_items(
        [first, tmp_path / "m.json"], both, np.array([1, 0]), year=2018, title_filter="none"
    )
    assert table["title"].to_pylist() == ["title 1", "another file"]


def test_broken_lines_are_counted_and_the_first_is_named(tmp_path):
    lines: list[str | dict] = [REVIEW] * 200
    lines[120], lines[150] = '{"reviewerID": "U1", "asi', {"reviewerID": "U1", "overall": 1.0}
    path = write(tmp_path / "r.json", lines)
    found = read(path, max_bad_share=0.01)
    assert (len(rows(found)), found.lines[0].broken) == (198, 2)
    assert found.lines[0].first_broken.startswith(f"{path}:121 (not JSON")
    with pytest.raises(
        InputError, match=r"r\.json: 2 of 200 lines are broken.*max_bad_share 0\.009.*r\.json:121 "
    ):
        read(path, max_bad_share=0.009)


def test_the_wrong_release_is_refused_with_the_keys_it_has(tmp_path):
    path = write(tmp_path / "r.json", [REVIEW] * 3)
    with pytest.raises(InputError, match=r"r\.json:1 \(no user_id; keys: reviewerID, asin.*amazon\.format"):
        read(path, year=2023, max_bad_share=0.01)


@pytest.mark.parametrize("cut", [3, 40, 0.5])
def test_a_gzip_file_that_ends_in_the_middle_is_one_broken_line(tmp_path, cut):
    lines = [REVIEW | {"reviewText": f"{n * 7919 % 1000003:x}" * 9} for n in range(3000)]
    path = write(tmp_path / "r.json.gz", lines)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)] if cut < 1 else data[:-cut])
    found = read(path, max_bad_share=0.01, allow_truncated=True)
    account = found.lines[0]
    assert account.truncated and account.broken == 1 and account.total == len(rows(found)) + 1
    assert f"{path}:{len(rows(found)) + 1} (the file ends" in account.first_broken
    rejects = read(path, skip_bad_rows=1, allow_truncated=True).lines[0].rejects
    whole = (
        json.dumps(lines[len(rows(found))]) if cut != 3 else ""
    )  # all lines are there, the checksum is not
    assert [reject["line"] for reject in rejects] == [len(rows(found)) + 1]
    assert whole.startswith(rejects[0]["text"]) and rejects[0]["text"] == account.cut_off.decode()
    assert len(rows(found)) >= (2990 if cut == 3 else 1000)
    with pytest.raises(InputError, match="ends in the middle of a line or of its gzip.*allow_truncated"):
        read(path, max_bad_share=0.01)


def test_plain_file_that_ends_in_the_middle_of_a_line(tmp_path):
    path = write(tmp_path / "r.json", [*[REVIEW] * 150, '{"reviewerID": "U'], end=b"")
    with pytest.raises(InputError, match="after 150 lines.*allow_truncated"):
        read(path, max_bad_share=0.01)
    found = read(path, max_bad_share=0.01, allow_truncated=True)
    assert (len(rows(found)), found.lines[0].broken, found.lines[0].truncated) == (150, 1, True)
    (reject,) = read(path, skip_bad_rows=1, allow_truncated=True).lines[0].rejects
    assert (reject["line"], reject["text"]) == (151, '{"reviewerID": "U')
    assert len(rows(read(write(tmp_path / "whole.json", [REVIEW] * 2, end=b"")))) == 2


@pytest.mark.parametrize(
    ("year", "time", "unit", "what"),
    [
        (2018, 1_500_000_000_000, "ms", "later than the year 2286 as seconds"),
        (2023, 1_700_000_000, "s", "1970"),
    ],
)
def test_times_of_another_unit_are_refused_unless_it_is_named(tmp_path, year, time, unit, what):
    fields = amazon.FIELDS[year]
    line = {fields.user: "U", fields.item: "B", fields.rating: 5.0, fields.time: time}
    # A single date out of range is a dump's noise.
    odd = line | {fields.time: 3}
    path = write(tmp_path / "r.json", [odd, line, line])
    with pytest.raises(InputError, match=rf"r\.json: . of 3 times are .*{what}.*amazon.time_unit to {unit}"):
        read(path, year=year)
    seconds = read(path, year=year, time_unit=unit).timestamp.tolist()[1]
    assert seconds == time // (1000 if unit == "ms" else 1)


def test_ratings_and_prices_as_text(tmp_path):
    lines = [REVIEW | {"overall": rating} for rating in ("4.5", " 5 ", "five", "", None, 3)]
    reviews = read(write(tmp_path / "r.json", lines))
    assert [rating for _, _, rating, _ in rows(reviews)] == [4.5, 5.0, None, None, None, 3.0]
    assert reviews.ratings_not_parsed == 1
    path = write(tmp_path / "m.json", [{"asin": f"B{n}", "price": price} for n, price in enumerate(("$1,299.00", "n/a", ""))])  # fmt: skip
    ids = pa.array(["B0", "B1", "B2"])
    metadata = amazon.scan_metadata([path], ids, AmazonOptions())
    table, unparsed = amazon.read_items([path], metadata, np.arange(3), year=2018, title_filter="none")
    assert (table["price"].to_pylist(), unparsed) == ([1299.0, None, None], 1)


def test_a_first_line_that_is_no_object_is_one_broken_line(tmp_path):
    # pyarrow's reader crashes the whole process on such a first line.
    found = read(write(tmp_path / "r.json", ["null", REVIEW, REVIEW]), max_bad_share=0.5)
    assert (len(rows(found)), found.lines[0].broken) == (2, 1)


def test_corrupt_gzip_and_other_files_are_refused(tmp_path):
    path = write(tmp_path / "r.json.gz", [REVIEW | {"reviewText": f"{n}"} for n in range(5000)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"r\.json\.gz: corrupt gzip data"):
        read(path, max_bad_share=0.9)
    noise = tmp_path / "noise.json"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match=r"noise\.json: \d+ of \d+ lines are broken"):
        read(noise, max_bad_share=0.01)
    empty = write(tmp_path / "empty.json", [])
    with pytest.raises(InputError, match="no reviews"):
        read(empty)


def test_find_files_takes_the_first_pattern_that_matches(tmp_path):
    for name in ("Toys.json", "meta_Toys.json.gz"):
        (tmp_path / name).touch()
    patterns = ["Toys_5.json*", "Toys.json*"]
    assert amazon.find_files(tmp_path, patterns, what="reviews") == [tmp_path / "Toys.json"]
    (tmp_path / "Toys_5.json.gz").touch()
    assert amazon.find_files(tmp_path, patterns, what="reviews") == [tmp_path / "Toys_5.json.gz"]
    with pytest.raises(InputError, match="no metadata file in .* matches m_"):
        amazon.find_files(tmp_path, ["m_*"], what="metadata")
    with pytest.raises(InputError, match="raw folder does not exist"):
        amazon.find_files(tmp_path / "none", patterns, what="reviews")


def expected_row(line: bytes, *, literals: bool) -> tuple[str, str, float | None, int] | None:
    """One review line, read the slow way; None when it is broken."""
    text = line.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip()) if literals else None
        except (ValueError, SyntaxError):
            value = None
    if not isinstance(value, dict):
        return None
    user, item, time = (value.get(key) for key in ("reviewerID", "asin", "unixReviewTime"))
    if not (isinstance(user, str) and user and isinstance(item, str) and item):
        return None
    if isinstance(time, bool) or not isinstance(time, int | float | str):
        return None
    try:
        seconds = int(time)
    except ValueError:
        return None
    if not isinstance(time, str) and seconds != time:
        return None
    rating = value.get("overall")
    rating = float(rating) if isinstance(rating, str) and rating.replace(".", "").isdecimal() else rating
    return user, item, float(rating) if isinstance(rating, int | float) else None, seconds


GOOD = st.builds(
    lambda user, item, time, extra: json.dumps(REVIEW | {"reviewerID": f"U{user}", "asin": f"B{item}", "unixReviewTime": time} | extra, ensure_ascii=False).encode(),
    st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**31),
    st.sampled_from([{}, {"reviewText": "a}\\n{"}, {"overall": None}, {"summary": "é黄\u2028x"}, {"style": {"a": 1}}]),
)  # fmt: skip
DIRT = st.sampled_from(
    [
        b"", b"   ", b"{}", b"[1, 2]", b"null", b'"text"', b'{"reviewerID": "U1", "asin": "B', b"}", b"{",
        json.dumps(REVIEW).encode() + b"\r", json.dumps(REVIEW | {"asin": None}).encode(),
        json.dumps(REVIEW | {"asin": ""}).encode(), json.dumps(REVIEW | {"unixReviewTime": "123"}).encode(),
        json.dumps(REVIEW | {"unixReviewTime": 1.5}).encode(), json.dumps(REVIEW | {"unixReviewTime": 2.0}).encode(),
        json.dumps(REVIEW | {"overall": "5.0"}).encode(), json.dumps(REVIEW | {"overall": 3}).encode(),
        str(REVIEW).encode(), json.dumps(REVIEW).encode() * 2, b"\xff\xfe" + json.dumps(REVIEW).encode(),
        json.dumps(REVIEW | {"asin": "B\ud800"}).encode(), json.dumps(REVIEW)[:-1].encode(),
    ]
)  # fmt: skip


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.one_of(GOOD, GOOD, GOOD, DIRT), min_size=1, max_size=40),
    zipped=st.booleans(),
    newline=st.booleans(),
    year=st.sampled_from([2014, 2018]),
)
def test_reading_equals_row_by_row_whatever_the_dirt(tmp_path, monkeypatch, lines, zipped, newline, year):
    monkeypatch.setattr(amazon_lines, "BLOCK_BYTES", 700)
    monkeypatch.setattr(amazon_lines, "PIECE_BYTES", 150)
    path = write(tmp_path / ("r.json.gz" if zipped else "r.json"), lines, end=b"\n" if newline else b"")
    expected = [
        (n, expected_row(line, literals=year == 2014)) for n, line in enumerate(lines, 1) if line.strip()
    ]
    good = [row for _, row in expected if row]
    if not good:
        with pytest.raises(InputError, match="lines are broken" if expected else "no reviews"):
            read(path, year=year, max_bad_share=0.9999, allow_truncated=True)
        return
    found = read(path, year=year, max_bad_share=0.9999, allow_truncated=True)
    escaped = [(u, i.encode("utf-8", "replace").decode(), r, t) for u, i, r, t in good]
    assert rows(found) == escaped
    account = found.lines[0]
    broken = [n for n, row in expected if not row]
    assert (account.total, account.broken) == (len(expected), len(broken))
    if broken:
        assert account.first_broken.startswith(f"{path}:{broken[0]} (")
    ids = found.user_ids.to_pylist()
    assert len(set(ids)) == len(ids) and ids == list(dict.fromkeys(u for u, *_ in escaped))
