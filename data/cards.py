"""An item as a person sees it: title, category, semantic ID. The one place where a missing title gets its words."""

from __future__ import annotations

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


def shown_title(title: str, item: int) -> str:
    """The title, or words that say which item has none."""
    return title.strip() or f"(no title, item {item})"


class Cards:
    """Items as cards; sids and fmt: None where there are no semantic IDs."""

    def __init__(self, items: pa.Table, sids: SidTable | None, fmt: SidFormat | None) -> None:
        self._titles, self._categories = items["title"], items["categories"]
        self._sids, self._fmt = sids, fmt

    def __call__(self, item: int, *, seen: bool = False) -> ItemCard:
        return ItemCard(
            int(item),
            shown_title(self._titles[item].as_py(), item),
            " › ".join(self._categories[item].as_py()),
            self._sids.text(item, self._fmt) if self._sids is not None and self._fmt is not None else "",
            seen,
        )
