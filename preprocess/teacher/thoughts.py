"""The two paragraphs of a teacher: from a history to the terms of the next item, and from a history to a prompt for its picture.

Both are told the target: they say how one could have come to it, and are training text for rows whose target may be known.
"""

from __future__ import annotations

import re

from infer.chat.quoting import DATA_RULE
from preprocess.teacher import paragraphs
from preprocess.teacher.samples import TermSample
from preprocess.teacher.talks import shown_history, shown_terms, shown_text

BANNED = re.compile(
    r"\b(?:selections?|cross-?overs?|mutat(?:e[ds]?|ing|ions?)|founders?|elites?|mates?)\b", re.IGNORECASE
)
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
