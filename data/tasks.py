"""One pure function per task: row -> Example. The answer never enters the messages; dispatch is on `task`, never on text.

history_to_sid   the items chosen so far -> the next item's semantic ID
title_to_sid     a title -> the item's semantic ID
sid_to_title     a semantic ID -> the item's title
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.prompts import PLAIN, Wording
from data.sid import SidFormat, SidTable

# The position of a task decides its example ids, so the order is part of the artifact format: append, never reorder.
TASKS = (
    "history_to_sid", "sid_to_title", "title_to_sid", "description_to_sid", "history_to_title", "titles_to_sid",
    "titles_to_title", "history_to_description", "item_narrative", "sequence_narrative", "reason_then_sid",
    "sid_to_tid", "tid_to_sid", "history_to_tid", "history_to_instruction", "chat",
)  # fmt: skip
SID_TASKS = frozenset(
    {"history_to_sid", "title_to_sid", "description_to_sid", "titles_to_sid", "reason_then_sid", "tid_to_sid"}
)
ID_STRIDE = 1 << 40


def example_id(task: str, key: int) -> int:
    """A unique int64 per (task, key); for history_to_sid it is the sequence's own example_id.

    >>> example_id("history_to_sid", 7), example_id("title_to_sid", 7) == 7 + 2 * ID_STRIDE
    (7, True)
    """
    return TASKS.index(task) * ID_STRIDE + key


@dataclass(frozen=True)
class Answer:
    """What the model should say. `sid` are codes, `item_id` the item they stand for, `text` free text."""

    item_id: int | None = None
    sid: tuple[int, ...] | None = None
    text: str | None = None
    reasoning: str | None = None
    terms: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Example:
    """One training or evaluation example. `messages` end before the answer; `history` and `target` are item ids."""

    example_id: int
    task: str
    messages: tuple[dict[str, str], ...]
    answer: Answer
    history: tuple[int, ...] = ()
    target: tuple[int, ...] = ()
    user_id: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class TaskContext:
    """All that a task function needs besides its row: the items' codes and titles, and how they are written."""

    sids: SidTable
    fmt: SidFormat
    wording: Wording
    titles: Sequence[str] = field(default_factory=list)
    _sid_texts: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def sid_text(self, item: int) -> str:
        """How the item's semantic ID is written; remembered, because a history set names each item many times."""
        text = self._sid_texts.get(item)
        if text is None:
            text = self._sid_texts[item] = self.sids.text(item, self.fmt)
        return text

    def messages(self, task: str, **fields: str) -> tuple[dict[str, str], ...]:
        content = self.wording.user(task, **fields)
        if task in self.wording.plain:
            return ({"role": PLAIN, "content": content},)
        user = {"role": "user", "content": content}
        return ({"role": "system", "content": self.wording.system}, user) if self.wording.system else (user,)

    def sid_answer(self, item: int) -> Answer:
        return Answer(item_id=item, sid=tuple(self.sids.codes_NL[item].tolist()))


def history_to_sid(
    context: TaskContext, *, key: int, history: Sequence[int], target: int, user_id: int | None = None
) -> Example:
    """The next item's semantic ID from the semantic IDs of the history, oldest first."""
    return Example(
        example_id("history_to_sid", key),
        "history_to_sid",
        history_messages(context, history),
        context.sid_answer(target),
        tuple(history),
        (target,),
        user_id,
    )


def history_messages(context: TaskContext, history: Sequence[int]) -> tuple[dict[str, str], ...]:
    """What `history_to_sid` asks of a history of item ids, oldest first."""
    sids = context.wording.separator.join([context.sid_text(item) for item in history])
    return context.messages("history_to_sid", sids=sids)


def title_to_sid(context: TaskContext, *, item: int) -> Example:
    """An item's semantic ID from its title."""
    messages = context.messages("title_to_sid", title=context.titles[item])
    return Example(
        example_id("title_to_sid", item), "title_to_sid", messages, context.sid_answer(item), (), (item,)
    )


def sid_to_title(context: TaskContext, *, item: int) -> Example:
    """An item's title from its semantic ID."""
    messages = context.messages("sid_to_title", sid=context.sid_text(item))
    answer = Answer(item_id=item, text=context.titles[item])
    return Example(example_id("sid_to_title", item), "sid_to_title", messages, answer, (), (item,))


def from_row(row: dict[str, Any]) -> Example:
    """The Example of one row of an examples table (`pa.Table.to_pylist()`)."""
    raw = row["answer"]
    answer = Answer(
        item_id=raw["item_id"],
        sid=None if raw["sid"] is None else tuple(raw["sid"]),
        text=raw["text"],
        reasoning=raw["reasoning"],
        terms=None if raw["terms"] is None else tuple(raw["terms"]),
    )
    return Example(
        row["example_id"], row["task"], tuple(row["messages"]), answer, tuple(row["history"]), tuple(row["target"]),
        row.get("user_id"), row["weight"],
    )  # fmt: skip
