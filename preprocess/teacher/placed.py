"""What a teacher is asked about where items are named by placeholders: an item with its texts, a row of sequences with those of its items.

A question names an item as `[[item:12]]`, outside of data; its texts stand behind it as data, in which what looks like a placeholder
is escaped. So a title can name no item, and what a teacher takes over from one is text in its answer too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from configs.program import InputError
from data.reasoning import escaped, placeholder
from data.rows import sample_rows
from infer.chat.quoting import quoted
from preprocess.teacher.samples import TermSample, rows_of

LONGEST = 4000  # characters of a description that go into a question about its item


@dataclass(frozen=True)
class ShopText:
    """An item as a shop describes it; "" where it says nothing."""

    title: str
    description: str = ""
    brand: str = ""
    categories: str = ""

    def lines(self) -> str:
        """What there is, a line of data each."""
        told = {
            "title": self.title, "brand": self.brand, "categories": self.categories,
            "description": self.description[:LONGEST],
        }  # fmt: skip
        return "\n".join(f"{name}: {shown(text)}" for name, text in told.items() if text)


@dataclass(frozen=True, kw_only=True)
class PlacedSample(TermSample):
    """An item (no history, itself the target) or a row; `texts` are those of all its items."""

    history: tuple[tuple[str, ...], ...] = ()
    target: tuple[str, ...] = ()
    target_item: int
    items: tuple[int, ...] = ()
    """the history, oldest first, as far as it is shown"""
    texts: dict[int, ShopText]

    def line(self, item: int, *, description: int) -> str:
        """`[[item:12]]: <data>"title"</data>: <data>"description"</data>`, with so many characters of the latter."""
        text = self.texts[item]
        parts = [placeholder(item), shown(text.title) if text.title else "(without a title)"]
        parts += [shown(text.description[:description])] if description and text.description else []
        return ": ".join(parts)


def shown(text: str) -> str:
    """A text of a shop as data without placeholders."""
    return quoted(escaped(text))


def item_texts(items: pa.Table) -> list[ShopText]:
    """The texts of all items, white space as it is."""
    columns = [items[name].to_pylist() for name in ("title", "description", "brand", "categories")]
    return [
        ShopText(title or "", description or "", brand or "", ", ".join(path or ()))
        for title, description, brand, path in zip(*columns, strict=True)
    ]


def item_samples(
    items: pa.Table, *, max_samples: int | None, seed: int
) -> tuple[list[PlacedSample], dict[str, int]]:
    """(a sample per item with a title or a description, how many have neither)."""
    texts = item_texts(items)
    known = [item for item, text in enumerate(texts) if (text.title + text.description).strip()]
    if not known:
        raise InputError(
            f"none of the {len(items)} items has a title or a description -> data with text of its items"
        )
    chosen = [known[place] for place in sample_rows(len(known), max_samples, seed)]
    made = [
        PlacedSample(key=item, split="train", target_item=item, texts={item: texts[item]}) for item in chosen
    ]
    return made, {"no_text": len(items) - len(known)}


def row_samples(
    sequences: pa.Table, items: pa.Table, *, splits: Sequence[str], latest: int, max_samples: int | None, seed: int
) -> tuple[list[PlacedSample], dict[str, int]]:  # fmt: skip
    """(a sample per row of `splits` with the latest items of its history, how many rows were left out and why).

    InputError where none is left. Of more than `max_samples` a seeded draw is taken, after rows were left out.
    """
    texts, left_out, made = item_texts(items), Counter({"leaks": 0, "no_history": 0}), []
    for row, leaks in rows_of(sequences, splits):
        if leaks or not row["history"]:
            left_out["leaks" if leaks else "no_history"] += 1
            continue
        history, target = tuple(row["history"][-latest:]), row["target"]
        made.append(
            PlacedSample(
                key=row["example_id"], split=row["split"], user_id=row["user_id"], target_item=target, items=history,
                texts={item: texts[item] for item in (*history, target)},
            )
        )  # fmt: skip
    if not made:
        reasons = ", ".join(f"{count} {name}" for name, count in left_out.items())
        raise InputError(f"no row of {', '.join(splits)} has a history ({reasons}) -> other splits")
    return [made[place] for place in sample_rows(len(made), max_samples, seed)], dict(left_out)
