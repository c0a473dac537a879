"""An item as a person sees it: title, category, semantic ID. The one place where a missing title gets its words."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from data.sid import SidFormat, SidTable


@dataclass(frozen=True)
class ItemCard:
    """One item in words. sid: as its model writes it, empty without semantic IDs; seen: it is in the row's history."""

    item_id: int
    title: str
    category: str
    sid: str
    seen: bool = False


def shown_title(title: str, item: int | str) -> str:
    """The title, or words that say which item has none: by our number or by its source's id."""
    return title.strip() or f"(no title, item {item})"


class Cards:
    """Items as cards, those without a title by their raw id; sids and fmt: None where there are no semantic IDs."""

    def __init__(self, items: pa.Table, sids: SidTable | None, fmt: SidFormat | None) -> None:
        self._titles, self._categories, self._raw_ids = items["title"], items["categories"], items["raw_id"]
        self._sids, self._fmt = sids, fmt
        self._pattern = None if sids is None or fmt is None else fmt.pattern(sids.num_levels)

    def __call__(self, item: int, *, seen: bool = False) -> ItemCard:
        return ItemCard(
            int(item),
            shown_title(self._titles[item].as_py(), self._raw_ids[item].as_py() or item),
            " › ".join(self._categories[item].as_py()),
            self._sids.text(item, self._fmt) if self._sids is not None and self._fmt is not None else "",
            seen,
        )

    def named(self, text: str) -> str:
        """A text in which the titles of its items stand behind every semantic ID of the catalogue: `<a_1><b_2> (Steel bolt)`."""
        return text if self._pattern is None else self._pattern.sub(self._with_titles, text)

    def _with_titles(self, match: re.Match[str]) -> str:
        items = self._sids.items_of([int(code) for code in match.groups()])
        titles = " / ".join(self(item).title for item in items[:2].tolist()) + (
            " / ..." if len(items) > 2 else ""
        )
        return f"{match[0]} ({titles})" if len(items) else match[0]
