"""Goodreads and MIND, in miniature, against row-by-row readings."""

from __future__ import annotations

import doctest

import pytest

from configs.program import InputError
from data.adapters.logs import goodreads, mind
from data.adapters.logs.options import GoodreadsOptions, MindOptions
from tests import publishers
from tests.test_publishers import by_rows, made, walks


def test_goodreads_reads_zones_shelves_and_authors(tmp_path):
    assert doctest.testmod(goodreads).failed == doctest.testmod(mind).failed == 0
    rows = publishers.goodreads(tmp_path / "raw")
    listed = {str(100 + n) for n in range(6)}
    prepared = made(tmp_path / "raw", "goodreads", {"max_bad_share": 0.1})
    assert walks(prepared) == by_rows([(u, b, t) for u, b, _, t, read in rows if read and b in listed])
    assert prepared.funnel.facts["interaction_lines_broken"] == 1
    book = prepared.items.to_pylist()[0]
    assert book["title"].startswith("Poems & Prose") and (book["categories"], book["brand"]) == (
        ["poetry", "verse"],
        "A. Poet",
    )
    ratings = prepared.interactions["rating"]
    rated = sum(1 for _, b, rating, _, read in rows if read and b in listed and rating)
    assert len(ratings) - ratings.null_count == rated, "0 stars: not rated"
    everything = made(
        tmp_path / "raw", "goodreads", {"read_only": False, "authors": [], "max_bad_share": 0.1}
    )
    assert walks(everything) == by_rows([(u, b, t) for u, b, _, t, _ in rows if b in listed])
    found = goodreads.find_lines(tmp_path / "raw", GoodreadsOptions(), user="user3", items=["102"])
    assert (
        len(found.user) == sum(row[0] == "user3" for row in rows)
        and found.items[0].fields["title"] == "Poems &amp; Prose 2"
    )
    assert found.user[0].event == next((b, t) for u, b, _, t, _ in rows if u == "user3")


def test_goodreads_reads_odd_values_as_nothing():
    book = {
        "book_id": "7",
        "title": None,
        "authors": 3,
        "popular_shelves": [{"name": "verse", "count": "many"}, 5],
    }
    assert goodreads.describe(book, authors={}, shelves=3) == (
        "7", {"title": "", "description": "", "categories": ["verse"], "brand": ""},
    )  # fmt: skip
    book |= {"authors": [{"author_id": [1]}, {"author_id": "1"}]}
    assert goodreads.describe(book, authors={"1": "A. Poet"}, shelves=0)[1]["brand"] == "A. Poet"


def test_mind_joins_histories_and_clicks_of_its_parts(tmp_path):
    own = publishers.mind(tmp_path / "raw")
    prepared = made(tmp_path / "raw", "mind")
    assert {user: [item for item, _ in walk] for user, walk in walks(prepared).items()} == own
    times = [time for _, time in walks(prepared)["U1"]]
    assert times[:2] == [None, None] and times[2:] == sorted(times[2:]) and times[2] == 1_573_693_200
    (article,) = [row for row in prepared.items.to_pylist() if row["raw_id"] == "N1"]
    assert (article["title"], article["categories"]) == ('Title "1', ["news", "newsworld"])
    assert (
        prepared.funnel.facts["articles_not_in_news"] == 1 and prepared.funnel.facts["repeated_articles"] == 6
    )
    found = mind.find_lines(tmp_path / "raw", MindOptions(), user="U1", items=["N4"])
    assert [line.line for line in found.user] == [1, 1, 2] and found.user[0].event == ("N4", 1_573_804_800)
    (tmp_path / "raw/MINDsmall_dev/behaviors.tsv").write_text(
        "1\tU1\tyesterday\tN1\tN3-1\n2\tU1\t11/15/2019 8:00:00 AM\tN1\tN3\n"
    )
    with pytest.raises(InputError, match="behaviors.tsv.*time is 'yesterday'"):
        made(tmp_path / "raw", "mind")
