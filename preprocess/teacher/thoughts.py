"""The two paragraphs of a teacher: from a history to the terms of the next item, and from a history to a prompt for its picture.

Both are told the target: they say how one could have come to it, and are training text for rows whose target may be known.
For models that can think a few tokens only, a clue stands in place of either: one sentence about the latest item, by a teacher
who is not told the target.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from infer.chat.client import ChatRequest
from infer.chat.quoting import DATA_RULE
from infer.metrics.instructions import names
from preprocess.teacher import paragraphs
from preprocess.teacher.rules import heuristic_clue
from preprocess.teacher.samples import TermSample
from preprocess.teacher.talks import ParagraphChat, shown_history, shown_terms, shown_text

BANNED = re.compile(
    r"\b(?:selections?|cross-?overs?|mutat(?:e[ds]?|ing|ions?)|founders?|elites?|mates?)\b", re.IGNORECASE
)
LONGEST_CLUE = 24  # words
FORM = (
    "Write one paragraph of plain English running text, 60 to 150 words, in the first person (I notice, I take it, ...), as a "
    "student thinks aloud: no list, no heading, no line breaks. "
)
IDENTIFIER = (
    "You explain how a shopper's next choice follows from the earlier ones. Each item is a line of terms, the most important "
    "first. "
    + FORM
    + "Go through the numbered items for clues, say which of them agree and which you set aside, narrow down "
    "what is wanted, and end with the terms of the next item exactly as they are written, all of them, in their order, with "
    "commas between; nothing follows them. Reason forward: do not say that you were told the next item. "
    + DATA_RULE
)
DISTILLED = (
    "You tell how you found a prompt for a picture of what a shopper will like next. You get the shopper's items (lines of "
    "terms), your first thoughts, notes on how several drafts became better, and the final prompt. "
    + FORM
    + "First say "
    "which direction the items point to. Then tell in everyday words what the drafts tried, what was weak, and what made the "
    "last one better. Near the end name the next item by its terms, every one of them as it is written, and close with how "
    "you would therefore write the prompt. Do not use words of breeding or contests for the drafts: no selection, crossover, "
    "mutation, founder, elite, mate. Do not copy the prompt. " + DATA_RULE
)

CLUE = (
    "You say in one short sentence what a shopper's latest item tells you. Each item is a line of terms, the most important first. "
    f"Write in the first person (I see ...), at most {LONGEST_CLUE} words, and name the first term of the latest item as it is "
    "written. Say nothing of what may come next. " + DATA_RULE
)


@dataclass
class ThoughtChat(ParagraphChat):
    """How a teacher is asked for a thought."""

    form: Literal["paragraph", "clue"] = "paragraph"
    """clue: one sentence about the latest item instead, for models that think few tokens; its teacher does not see the target"""

    def rule(self, paragraph: Callable[[ChatRequest], str]) -> Callable[[ChatRequest], str]:
        """What writes in place of a model: `paragraph`, or the rule for clues."""
        return heuristic_clue if self.form == "clue" else paragraph


def clue_messages(sample: TermSample, history: int) -> list[dict[str, str]]:
    """The question for a clue; data in it: the items."""
    asked = f"Items, oldest first:\n{shown_history(sample, history)}\n\nYour sentence:"
    return [{"role": "system", "content": CLUE}, {"role": "user", "content": asked}]


def clue_problem(text: str, sample: TermSample) -> str:
    """Why a text is not a clue; "" where it is: "I see desk lamps, lighting." of a latest item with the terms desk lamps, lighting, brass."""
    said, term = paragraphs.one_line(text), sample.history[-1][0]
    if (words := len(said.split())) > LONGEST_CLUE:
        return f"it has {words} words, not at most {LONGEST_CLUE}"
    if not paragraphs.first_person(said):
        return "it is not told in the first person (I see, I notice, ...)"
    return "" if names(said, term) else f"it does not name {term}"


def identifier_messages(sample: TermSample, history: int) -> list[dict[str, str]]:
    """The question for the first paragraph; data in it: the items, then the target."""
    asked = f"Items, oldest first:\n{shown_history(sample, history)}\n\nNext item: {shown_terms(sample.target)}\n\nYour paragraph:"
    return [{"role": "system", "content": IDENTIFIER}, {"role": "user", "content": asked}]


def identifier_problem(text: str, sample: TermSample) -> str:
    """Why a text is not a paragraph that ends in the target; "" where it is."""
    if found := paragraphs.paragraph_problem(text):
        return found
    if not paragraphs.ends_with(text, sample.target):
        return (
            f"it does not end with the terms of the next item as they are written: {', '.join(sample.target)}"
        )
    return ""


def distilled_messages(
    sample: TermSample, history: int, *, thought: str, summary: str, prompt: str
) -> list[dict[str, str]]:
    """The question for the second; data in it: the items, first thoughts, notes, final prompt, target."""
    asked = (
        f"Items, oldest first:\n{shown_history(sample, history)}\n\nFirst thoughts: {shown_text(thought)}\n\n"
        f"Notes on the drafts: {shown_text(summary)}\n\nFinal prompt: {shown_text(prompt)}\n\n"
        f"Next item: {shown_terms(sample.target)}\n\nYour paragraph:"
    )
    return [{"role": "system", "content": DISTILLED}, {"role": "user", "content": asked}]


def distilled_problem(text: str, sample: TermSample) -> str:
    """Why a text is not a distilled paragraph; "" where it is."""
    if found := paragraphs.paragraph_problem(text):
        return found
    named = [*sample.target, *(term for terms in sample.history for term in terms)]
    if words := paragraphs.banned(text, BANNED, named):
        return f"it uses the words {', '.join(words)}"
    if missing := paragraphs.missing_near_end(text, sample.target):
        return f"its end does not name {', '.join(missing)}"
    return ""
