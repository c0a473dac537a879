"""Item text from raw metadata: entities, tags, lists, prices, and the published title filter.

No text is ever blanked or cut for its length. Lists become plain strings joined by a space, so that no brackets or
quotes of a printed list reach an encoder.
"""

from __future__ import annotations

import html
import math
import re
from functools import lru_cache
from typing import Any

from data.adapters.options import TitleFilter
from data.releases.text import printed_list

# A closed tag is `<` with a letter, `/` or `!` up to `>`; "2 < 3" and "<3" are text. Scraped titles break off inside a
# tag (`<span class="a-size-medium a-color-secondary"`): such a rest is dropped where it is plainly one.
_TAG = re.compile(r"<[a-zA-Z/!][^<>]*>|<(?:span|div)\b[^<>]*$|<[a-zA-Z]+\s[^<>]*=[^<>]*$")
_SCRIPT = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|$)", re.IGNORECASE | re.DOTALL)
_SPAN = re.compile(r"<span\b", re.IGNORECASE)
# A comma parts thousands, so three digits follow it: in `12,50` it may be a decimal mark, and nobody can tell.
_AMOUNT = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_CURRENCY = "[$£€¥₹]|AUD|BRL|CAD|CHF|CNY|CZK|DKK|EUR|GBP|HKD|INR|JPY|KRW|MXN|NOK|NZD|PLN|SEK|SGD|USD"
_MONEY = rf"(?:{_CURRENCY})?\s*({_AMOUNT})\s*(?:{_CURRENCY})?"
_PRICE = re.compile(rf"(?:from )?{_MONEY}(?:\s*-\s*{_MONEY})?", re.IGNORECASE)
MAX_TITLE_WORDS = 20
# C0 without tab, line feed, carriage return; DEL; C1.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10, 13}, " ")


def unescape_fully(text: str) -> str:
    """HTML entities resolved until none is left (`&amp;amp;` is `&`): dumps are escaped more than once."""
    for _ in range(4):
        plain = html.unescape(text)
        if plain == text:
            break
        text = plain
    return text


def without_controls(text: str) -> str:
    """Text as every later stage can hold it: control characters (NUL, ESC, ...) are spaces, lone surrogates `?`.

    Tabs and line ends stay.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.translate(_CONTROLS)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def clean_text(text: str) -> str:
    """Entities resolved, tags stripped, whitespace collapsed, control characters and lone surrogates replaced."""
    if "&" in text or "<" in text:
        text = unescape_fully(text)
        if "<" in text:
            text = _TAG.sub(" ", _SCRIPT.sub(" ", text))
    return " ".join(without_controls(text).split())


@lru_cache(maxsize=1 << 16)
def clean_label(text: str) -> str:
    """`clean_text` for the few strings that many items share: categories and brands."""
    return clean_text(text)


def parse_list(value: Any) -> list[Any]:
    """A list as it is; a printed list (`"['a', 'b']"`, JSON or Python) read back; any other value as one element."""
    if value is None:
        return []
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):
            if (parsed := printed_list(text)) is not None:
                return parsed
            if len(text) >= 4 and text[1] in "'\"" and text[-2] == text[1]:
                # printed by something that did not escape the apostrophes of its text
                return text[2:-2].split(f"{text[1]}, {text[1]}")
        return [value] if text else []
    return [value]


def clean_parts(value: Any) -> list[str]:
    """The non-empty cleaned strings of a value that is a string, a list or a printed list."""
    return [text for part in parse_list(value) if isinstance(part, str) and (text := clean_text(part))]


def description_text(value: Any) -> str:
    """One string of a description that may be a string, a list of paragraphs or a printed list."""
    return " ".join(clean_parts(value))


def category_path(value: Any) -> list[str]:
    """The path, coarse to fine; of 2014's several paths (a nested list) the first."""
    paths = parse_list(value)
    if paths and isinstance(paths[0], list):
        paths = paths[0]
    return [label for part in paths if isinstance(part, str) and (label := clean_label(part))]


def parse_price(value: Any) -> float | None:
    """A price as float, or None: `12.99`, `"$1,299.00"`, `"12.99 EUR"`; of a range the lower end; `""`, `"—"`, scripts, `"12,50"` are None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) and value >= 0 else None
    match = _PRICE.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None


def parse_rating(value: Any) -> float | None:
    """A rating as float, or None: `4.5`, `"4.5"`, `" 5 "`; text that is no finite number is None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def title_is_bad(raw: Any) -> bool:
    """The published title rule: missing, holds `<span`, at most one character, or more than 20 words.

    Source: MiniOneRec's data set build. It counts words on the title with only `&quot;` and `&amp;` resolved; here they
    are counted on the cleaned title, so that a double space is no word.
    """
    if not isinstance(raw, str) or _SPAN.search(raw):
        return True
    title = clean_title(raw)
    return len(title) <= 1 or title.count(" ") + 1 > MAX_TITLE_WORDS


def clean_title(raw: Any) -> str:
    """A cleaned title without surrounding double quotes; empty when there is none."""
    return clean_text(raw).strip(' "') if isinstance(raw, str) else ""


def kept_title(raw: Any, rule: TitleFilter) -> str:
    """The title that an item keeps under a rule: `mark_missing` empties a bad one, otherwise only cleaning."""
    return "" if rule == "mark_missing" and title_is_bad(raw) else clean_title(raw)
