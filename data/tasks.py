"""One pure function per task: row -> Example. The answer never enters the messages; dispatch is on `task`, never on text.

    of an item                                   of a sequence
    title_to_sid         title -> SID            history_to_sid          SIDs so far -> next SID
    sid_to_title         SID -> title            history_to_title        SIDs so far -> next title
    description_to_sid   description -> SID      history_to_description  SIDs so far -> next description
    item_narrative       text about the item     titles_to_sid           titles so far -> next SID
                                                 titles_to_title         titles so far -> next title
    with a written preference                    sequence_narrative      text that recites SIDs and titles
    reason_then_sid      SIDs so far -> preference as a thought, next SID
    preference_to_sid    preference -> next SID
    with textual identifiers (data/tids.py)
    sid_to_tid           SID -> TID              history_to_tid          SIDs so far -> next TID
    tid_to_sid           TID -> SID              history_to_instruction  SIDs so far -> next TID, an instruction

SID: an item's semantic ID. A history task may have a thought before its answer (data/reasoning.py). Narratives are plain text: no prompt, every token is learned. `chat` rows come from files
(preprocess/examples/corpora.py); what else TASKS names needs text of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.answers import listed
from data.prompts import Wording, title_lines
from data.reasoning import rendered
from data.sid import SidFormat, SidTable
from data.signals import Signals
from data.wordings import ITEM_CLAUSES, SEQUENCE_ITEM, SEQUENCE_NARRATIVE, SEQUENCE_STEP

# The position of a task decides its example ids, so the order is part of the artifact format: append, never reorder.
TASKS = (
    "history_to_sid", "sid_to_title", "title_to_sid", "description_to_sid", "history_to_title", "titles_to_sid",
    "titles_to_title", "history_to_description", "item_narrative", "sequence_narrative", "reason_then_sid",
    "sid_to_tid", "tid_to_sid", "history_to_tid", "history_to_instruction", "chat", "preference_to_sid",
)  # fmt: skip
SID_TASKS = frozenset(
    {
        "history_to_sid", "title_to_sid", "description_to_sid", "titles_to_sid", "reason_then_sid", "tid_to_sid",
        "preference_to_sid",
    }
)  # fmt: skip
ID_STRIDE = 1 << 40


def example_id(task: str, key: int) -> int:
    """A unique int64 per (task, key); for history_to_sid it is the sequence's own example_id.

    >>> example_id("history_to_sid", 7), example_id("title_to_sid", 7) == 7 + 2 * ID_STRIDE
    (7, True)
    """
    return TASKS.index(task) * ID_STRIDE + key


def row_key(example: int) -> int:
    """The key behind an example id: of tasks with a history the example_id of their row of sequences.

    >>> row_key(example_id("history_to_instruction", 7))
    7
    """
    return example % ID_STRIDE


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
    """One training or evaluation example. `messages` end before the answer; `history` and `target` are item ids.

    ages: days before the newest item of the history, None where unknown; None as a whole where nobody asked for them.
    """

    example_id: int
    task: str
    messages: tuple[dict[str, str], ...]
    answer: Answer
    history: tuple[int, ...] = ()
    target: tuple[int, ...] = ()
    user_id: int | None = None
    weight: float = 1.0
    ages: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class TaskContext:
    """All that a task function needs besides its row: the items' codes and texts, and how they are written.

    titles, descriptions, brands, categories: one text per item, empty where there is none that may be shown; terms: TIDs; narratives:
    what a teacher wrote about each item, with placeholders.
    """

    sids: SidTable
    fmt: SidFormat
    wording: Wording
    titles: Sequence[str] = field(default_factory=list)
    descriptions: Sequence[str] = field(default_factory=list)
    brands: Sequence[str] = field(default_factory=list)
    categories: Sequence[str] = field(default_factory=list)
    category: str = "items"
    signals: Signals | None = None
    terms: Sequence[Sequence[str]] = field(default_factory=list)
    narratives: Sequence[str] = field(default_factory=list)
    _sid_texts: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def sid_text(self, item: int) -> str:
        """How the item's semantic ID is written; remembered, because a history set names each item many times."""
        text = self._sid_texts.get(item)
        if text is None:
            text = self._sid_texts[item] = self.sids.text(item, self.fmt)
        return text

    def history_texts(self, history: Sequence[int]) -> list[str]:
        """The items of a history as semantic IDs, each behind the token of its type where there are signals."""
        if self.signals is None:
            return [self.sid_text(item) for item in history]
        return [self.signals.item_token(item) + self.sid_text(item) for item in history]

    def sid_answer(self, item: int, *, reasoning: str | None = None) -> Answer:
        return Answer(item_id=item, sid=tuple(self.sids.codes_NL[item].tolist()), reasoning=reasoning)


def title_to_sid(context: TaskContext, *, item: int) -> Example:
    """An item's semantic ID from its title."""
    return _of_item(context, "title_to_sid", item, context.sid_answer(item), title=context.titles[item])


def sid_to_title(context: TaskContext, *, item: int) -> Example:
    """An item's title from its semantic ID."""
    answer = Answer(item_id=item, text=context.titles[item])
    return _of_item(context, "sid_to_title", item, answer, sid=context.sid_text(item))


def description_to_sid(context: TaskContext, *, item: int) -> Example:
    """An item's semantic ID from its description."""
    answer = context.sid_answer(item)
    return _of_item(context, "description_to_sid", item, answer, description=context.descriptions[item])


def sid_to_tid(context: TaskContext, *, item: int) -> Example:
    """An item's terms from its semantic ID."""
    answer = Answer(item_id=item, terms=tuple(context.terms[item]))
    return _of_item(context, "sid_to_tid", item, answer, sid=context.sid_text(item))


def tid_to_sid(context: TaskContext, *, item: int) -> Example:
    """An item's semantic ID from its terms."""
    terms = listed(context.terms[item])
    return _of_item(context, "tid_to_sid", item, context.sid_answer(item), terms=terms)


def item_narrative(context: TaskContext, *, item: int) -> Example:
    """What a teacher wrote about the item, else sentences that say title, brand, categories and description of its semantic ID."""
    if len(context.narratives) and context.narratives[item]:
        answer = Answer(item_id=item, text=rendered(context.narratives[item], context.sid_text))
        return Example(example_id("item_narrative", item), "item_narrative", (), answer, (), (item,))
    columns = {
        "title": context.titles, "brand": context.brands, "categories": context.categories,
        "description": context.descriptions,
    }  # fmt: skip
    told = {name: column[item] for name, column in columns.items() if len(column) and column[item]}
    told["sid"] = context.sid_text(item)
    text = " ".join(clause.format(**told) for name, clause in ITEM_CLAUSES.items() if name in told)
    answer = Answer(item_id=item, text=text)
    return Example(example_id("item_narrative", item), "item_narrative", (), answer, (), (item,))


def _of_item(context: TaskContext, task: str, item: int, answer: Answer, **fields: str) -> Example:
    key = example_id(task, item)
    return Example(key, task, context.wording.messages(task, key=key, **fields), answer, (), (item,))


@dataclass(frozen=True)
class TaskWindow:
    """A row of sequences.parquet, its `key` the example_id there; `environment`: its signal of the moment, where known.

    ages: as in Example; thought: text before the answer; instruction: text of history_to_instruction; narrative: that of sequence_narrative. None where
    nobody wrote one.
    """

    key: int
    history: Sequence[int]
    target: int
    user_id: int | None = None
    environment: str | None = None
    weight: float = 1.0
    ages: Sequence[float | None] | None = None
    thought: str | None = None
    instruction: str | None = None
    narrative: str | None = None


def history_to_sid(
    context: TaskContext, *, key: int, history: Sequence[int], target: int, user_id: int | None = None
) -> Example:
    """The next item's semantic ID from the semantic IDs of the history, oldest first."""
    return _next_sid(context, TaskWindow(key, history, target, user_id))


def _next_sid(context: TaskContext, window: TaskWindow) -> Example:
    answer = context.sid_answer(window.target, reasoning=window.thought)
    return _of_history(context, "history_to_sid", window, answer)


def history_to_tid(context: TaskContext, window: TaskWindow) -> Example:
    """The next item's terms from the semantic IDs of the history."""
    terms = tuple(context.terms[window.target])
    answer = Answer(item_id=window.target, terms=terms, reasoning=window.thought)
    return _of_history(context, "history_to_tid", window, answer)


def history_to_instruction(context: TaskContext, window: TaskWindow) -> Example:
    """The next item's terms and an instruction for an image or video of it, from the semantic IDs of the history."""
    terms = tuple(context.terms[window.target])
    answer = Answer(window.target, text=window.instruction, reasoning=window.thought, terms=terms)
    return _of_history(context, "history_to_instruction", window, answer)


def history_to_title(context: TaskContext, window: TaskWindow) -> Example:
    """The next item's title from the semantic IDs of the history."""
    answer = Answer(item_id=window.target, text=context.titles[window.target])
    return _of_history(context, "history_to_title", window, answer)


def history_to_description(context: TaskContext, window: TaskWindow) -> Example:
    """The next item's description from the semantic IDs of the history."""
    answer = Answer(item_id=window.target, text=context.descriptions[window.target])
    return _of_history(context, "history_to_description", window, answer)


def titles_to_sid(context: TaskContext, window: TaskWindow) -> Example:
    """The next item's semantic ID from the titles of the history; items without a title are left out of it."""
    return _of_titles(context, "titles_to_sid", window, context.sid_answer(window.target))


def titles_to_title(context: TaskContext, window: TaskWindow) -> Example:
    """The next item's title from the titles of the history."""
    answer = Answer(item_id=window.target, text=context.titles[window.target])
    return _of_titles(context, "titles_to_title", window, answer)


def sequence_narrative(context: TaskContext, window: TaskWindow) -> Example:
    """What a teacher wrote about the row, else a sentence that recites history and target, with titles where there are some."""
    if window.narrative:
        return _of_window(
            "sequence_narrative", window, (), Answer(item_id=window.target, text=window.narrative)
        )

    def named(item: int) -> str:
        title = context.titles[item] if len(context.titles) else ""
        sid = context.sid_text(item)
        return SEQUENCE_ITEM.format(sid=sid, title=title) if title else sid

    first = named(window.history[0])
    steps = "".join(SEQUENCE_STEP.format(item=named(item)) for item in window.history[1:])
    text = SEQUENCE_NARRATIVE.format(first=first + steps, target=named(window.target))
    return _of_window("sequence_narrative", window, (), Answer(item_id=window.target, text=text))


def reason_then_sid(context: TaskContext, window: TaskWindow, *, reasoning: str) -> Example:
    """What the customer prefers as a thought, then the next item's semantic ID."""
    answer = context.sid_answer(window.target, reasoning=reasoning)
    return _of_history(context, "reason_then_sid", window, answer)


def preference_to_sid(context: TaskContext, window: TaskWindow, *, reasoning: str) -> Example:
    """The next item's semantic ID from a text that says what the customer prefers."""
    key = example_id("preference_to_sid", window.key)
    messages = context.wording.messages("preference_to_sid", key=key, preference=reasoning)
    return _of_window("preference_to_sid", window, messages, context.sid_answer(window.target))


def history_messages(
    context: TaskContext, task: str, *, key: int, history: Sequence[int], lead: str = ""
) -> tuple[dict[str, str], ...]:
    """What a task asks of a history of item ids, oldest first, written as semantic IDs."""
    sids = context.wording.separator.join(context.history_texts(history))
    return context.wording.messages(task, key=key, lead=lead, sids=sids)


def _of_history(context: TaskContext, task: str, window: TaskWindow, answer: Answer) -> Example:
    lead = "" if context.signals is None else context.signals.lead(window.user_id, window.environment)
    key = example_id(task, window.key)
    messages = history_messages(context, task, key=key, history=window.history, lead=lead)
    return _of_window(task, window, messages, answer)


def _of_titles(context: TaskContext, task: str, window: TaskWindow, answer: Answer) -> Example:
    titles = title_lines([context.titles[item] for item in window.history if context.titles[item]])
    key = example_id(task, window.key)
    messages = context.wording.messages(task, key=key, titles=titles, category=context.category)
    return _of_window(task, window, messages, answer)


def _of_window(
    task: str, window: TaskWindow, messages: tuple[dict[str, str], ...], answer: Answer
) -> Example:
    return Example(
        example_id(task, window.key), task, messages, answer, tuple(window.history), (window.target,), window.user_id,
        window.weight, None if window.ages is None else tuple(window.ages),
    )  # fmt: skip


ITEM_TASKS: dict[str, Callable[..., Example]] = {
    "sid_to_title": sid_to_title,
    "title_to_sid": title_to_sid,
    "description_to_sid": description_to_sid,
    "sid_to_tid": sid_to_tid,
    "tid_to_sid": tid_to_sid,
    "item_narrative": item_narrative,
}
WINDOW_TASKS: dict[str, Callable[..., Example]] = {
    "history_to_sid": _next_sid,
    "history_to_title": history_to_title,
    "history_to_description": history_to_description,
    "titles_to_sid": titles_to_sid,
    "titles_to_title": titles_to_title,
    "sequence_narrative": sequence_narrative,
    "history_to_tid": history_to_tid,
    "history_to_instruction": history_to_instruction,
}
PREFERENCE_TASKS: dict[str, Callable[..., Example]] = {
    "reason_then_sid": reason_then_sid,
    "preference_to_sid": preference_to_sid,
}


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
        row.get("user_id"), row["weight"], None if row.get("ages") is None else tuple(row["ages"]),
    )  # fmt: skip
