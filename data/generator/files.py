"""The generated store as files: raw Amazon lines of the 2018 and 2023 form, with the dirt of real dumps.

Reviews: exact duplicates, impossible dates, items without metadata, broken lines (0.05 %). Metadata: missing titles,
`<span` titles, titles of more than 20 words, HTML entities, tags in descriptions, descriptions that are a string or empty,
missing prices, and a second, different line for some items (the first counts).
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Literal

import numpy as np

from data.generator.catalogue import Catalogue, ItemText, item_text
from data.generator.users import Purchases
from data.generator.words import REVIEW_DETAILS, REVIEW_OPENINGS, SUMMARIES

FIRST_DAY = datetime(2013, 1, 1, tzinfo=UTC)
DAYS = 2000
DAY_SECONDS = 86_400
Form = Literal[2018, 2023]

DUPLICATE, WRONG_DATE, UNKNOWN_ITEM, BROKEN = 0.004, 0.004, 0.005, 0.0005
NO_TITLE, SPAN_TITLE, LONG_TITLE, SECOND_LINE = 0.015, 0.02, 0.01, 0.05
SPAN = '<span class="a-size-medium a-color-secondary"'
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TEXTS = [f"{opening} {detail}" for opening, detail in product(REVIEW_OPENINGS, REVIEW_DETAILS)]


def base36(number: int, width: int) -> str:
    """`number` in base 36, the last `width` digits."""
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 36)
        digits.append(_LETTERS[digit])
    return "".join(reversed(digits))


def item_id(item: int, seed: int) -> str:
    """The item's asin; distinct items have distinct ids, in no visible order."""
    # Multiplying by a number coprime to 36 permutes the residues.
    return "B0" + base36((item * 1_000_003 + seed * 7919 + 36**7) % 36**8, 8)


def user_id(user: int, seed: int, form: Form) -> str:
    """The reviewer's id; distinct users have distinct ids."""
    width = 13 if form == 2018 else 26
    return ("A" if form == 2018 else "AE") + base36(
        (user * 6_364_136_223_846_793 + seed * 104_729 + 36 ** (width - 1)) % 36**width, width
    )


class ReviewLines:
    """Chunks of purchases -> lines; every chunk depends on the seed and its number only."""

    def __init__(self, catalogue: Catalogue, form: Form) -> None:
        self.seed, self.form = catalogue.seed, form
        self.asins = [item_id(n, self.seed) for n in range(catalogue.size)]
        unknown = max(2, catalogue.size // 100)
        self.unknown = [item_id(catalogue.size + n, self.seed) for n in range(unknown)]
        self.texts = [json.dumps(text) for text in _TEXTS]
        self.summaries = [json.dumps(text) for text in SUMMARIES]
        self.dates = [
            f"{day:%m} {day.day}, {day:%Y}" for day in (FIRST_DAY + timedelta(n) for n in range(DAYS))
        ]

    def of_chunk(self, chunk: int, bought: Purchases) -> Iterator[str]:
        """The lines of a chunk, duplicates included."""
        rng = np.random.default_rng([self.seed, 5, chunk])
        count = len(bought.user)
        users, position = np.unique(bought.user, return_inverse=True)
        ids = [user_id(user, self.seed, self.form) for user in users.tolist()]
        text, summary = (
            rng.integers(len(self.texts), size=count),
            rng.integers(len(self.summaries), size=count),
        )
        dirt = rng.random(count)
        second = rng.integers(DAY_SECONDS * 1000, size=count)
        columns = (position, bought.item, bought.day, bought.rating, text, summary, dirt, second)
        build = self._line_2018 if self.form == 2018 else self._line_2023
        for user, item, day, rating, words, head, fault, moment in zip(
            *(c.tolist() for c in columns), strict=True
        ):
            asin = self.asins[item]
            if fault < UNKNOWN_ITEM:
                asin = self.unknown[words % len(self.unknown)]
            stamp = int(FIRST_DAY.timestamp()) + day * DAY_SECONDS
            if UNKNOWN_ITEM <= fault < UNKNOWN_ITEM + WRONG_DATE:
                stamp = 0 if words % 2 else 4_102_444_800
            line = build(ids[user], asin, stamp, day, rating, self.texts[words], self.summaries[head], moment)
            if fault >= 1 - BROKEN:
                line = line[: len(line) // 2] + "\n"
            yield line
            if 0.5 <= fault < 0.5 + DUPLICATE:
                yield line

    def _line_2018(
        self, user: str, asin: str, stamp: int, day: int, rating: float, text: str, summary: str, moment: int
    ) -> str:
        return (
            f'{{"overall": {rating}, "verified": true, "reviewTime": "{self.dates[day]}", "reviewerID": "{user}", '
            f'"asin": "{asin}", "reviewerName": "Customer {user[-4:]}", "reviewText": {text}, "summary": {summary}, '
            f'"unixReviewTime": {stamp}}}\n'
        )

    def _line_2023(
        self, user: str, asin: str, stamp: int, day: int, rating: float, text: str, summary: str, moment: int
    ) -> str:
        # Within a day 2023's milliseconds are drawn, so a day's purchases lose their order, as if rounded.
        return (
            f'{{"rating": {rating}, "title": {summary}, "text": {text}, "images": [], "asin": "{asin}", '
            f'"parent_asin": "{asin}", "user_id": "{user}", "timestamp": {stamp * 1000 + moment}, '
            f'"helpful_vote": 0, "verified_purchase": true}}\n'
        )


def metadata_lines(catalogue: Catalogue, form: Form) -> Iterator[str]:
    """One line per item, a second one for some, in item order."""
    leader = np.full(catalogue.size, -1, np.int64)
    named = np.flatnonzero(catalogue.shared_name)
    leader[catalogue.follow_up[named]] = named
    for item in range(catalogue.size):
        rng = np.random.default_rng([catalogue.seed, 6, item])
        text = item_text(catalogue, item, int(leader[item]))
        build = _metadata_2018 if form == 2018 else _metadata_2023
        asin = item_id(item, catalogue.seed)
        yield json.dumps(build(asin, text, rng)) + "\n"
        if rng.random() < SECOND_LINE:
            again = build(asin, text, rng) | {"title": f"Previous listing {item}"}
            yield json.dumps(again) + "\n"


@dataclass(frozen=True)
class _Page:
    """An item's page with its dirt, before it takes the form of a release."""

    paragraphs: list[str]
    one_string: bool
    title: str | None
    has_image: bool
    has_price: bool


def _page(text: ItemText, rng: np.random.Generator) -> _Page:
    # Keyword by keyword, so that both forms draw the same dirt.
    return _Page(
        paragraphs=_paragraphs(text, rng),
        one_string=rng.random() < 0.1,
        title=_dirty_title(text, rng),
        has_image=rng.random() < 0.8,
        has_price=rng.random() < 0.75,
    )


def _dirty_title(text: ItemText, rng: np.random.Generator) -> str | None:
    """None = no title."""
    fault = rng.random()
    if fault < NO_TITLE:
        return None
    if fault < NO_TITLE + SPAN_TITLE:
        return SPAN
    title = text.title
    if fault < NO_TITLE + SPAN_TITLE + LONG_TITLE:
        title = f"{title} with Gift Box, Care Guide and Spare Parts for Home, Studio, Travel and Everyday Use by All Ages and Skill Levels"
    escaped = html.escape(title)
    return html.escape(escaped) if fault > 0.99 else escaped


def _paragraphs(text: ItemText, rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.08:
        return []
    parts = [html.escape(part, quote=False) for part in text.description]
    if rng.random() < 0.15:
        parts[0] = f"<b>{parts[0]}</b><br />"
    return parts


def _metadata_2018(asin: str, text: ItemText, rng: np.random.Generator) -> dict[str, object]:
    page = _page(text, rng)
    item = {
        "category": [html.escape(part) for part in text.categories],
        "description": " ".join(page.paragraphs) if page.one_string else page.paragraphs,
        "title": page.title,
        "also_buy": [],
        "image": [f"https://images.example.com/I/{asin}._SS40_.jpg"] if page.has_image else [],
        "brand": html.escape(text.brand),
        "feature": [],
        "price": f"${text.price:,.2f}" if page.has_price else "",
        "asin": asin,
    }
    return {key: value for key, value in item.items() if value is not None}


def _metadata_2023(asin: str, text: ItemText, rng: np.random.Generator) -> dict[str, object]:
    page = _page(text, rng)
    address = f"https://images.example.com/I/{asin}"
    return {
        "main_category": text.categories[0],
        "title": page.title,
        "average_rating": 4.3,
        "rating_number": 25,
        "features": page.paragraphs[1:],
        "description": page.paragraphs[:1],
        "price": text.price if page.has_price else None,
        "images": [{"thumb": f"{address}_t.jpg", "large": f"{address}.jpg"}] if page.has_image else [],
        "videos": [],
        "store": text.brand,
        "categories": list(text.categories),
        "details": {},
        "parent_asin": asin,
        "bought_together": None,
    }
