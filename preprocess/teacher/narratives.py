"""SIDReasoner's and MiniOneRec's questions to a teacher, and what a text must be: items named by placeholders and never by their titles.

    item        facts of an item (step 1), then a paragraph of ten sentences and more that names it by its placeholder only (step 2)
    history     where a history leads: the target is told for guidance and must not appear
    narrative   recites history and target, keeps that reasoning
    preference  what the user of a row prefers: as a search they would make, as lasting taste, or as their latest interest

All prompts are ours; the structure is that of the published stages. Every check gives what is wrong in words, which go back to the
teacher with the question for another text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from configs.program import InputError
from data.prompts import RESERVED
from data.reasoning import PLACEHOLDER, named_items, placeholder
from infer.chat.quoting import DATA_RULE
from infer.metrics.instructions import names
from preprocess.teacher import paragraphs
from preprocess.teacher.placed import PlacedSample
from preprocess.teacher.talks import shown_text

Language = Literal["english", "any"]
Preference = Literal["intention", "taste", "interest"]
LEADING = 5  # words of a longer title that are its name too
# The most frequent words of English: about four in ten words of running text, next to none of other languages.
FREQUENT = frozenset(
    [
        "the",
        "a",
        "and",
        "or",
        "of",
        "to",
        "in",
        "is",
        "it",
        "its",
        "that",
        "this",
        "for",
        "with",
        "on",
        "as",
        "are",
        "be",
        "by",
        "from",
        "at",
        "i",
        "my",
        "they",
        "them",
        "their",
        "who",
        "which",
        "has",
        "have",
        "not",
        "can",
        "but",
        "you",
        "your",
        "what",
        "more",
        "next",
        "these",
        "those",
        "than",
        "into",
        "one",
        "two",
    ]
)
LEAST_FREQUENT, LEAST_LATIN = 0.12, 0.9

NAMES = "Every item has a mark such as [[item:12]]. Name items by their marks only, written exactly so, and never by their titles. "
FACTS = {
    "type": "object",
    "properties": {
        "description": {"type": "string", "minLength": 1},
        "use_cases": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        "audience": {"type": "string"},
        "features": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 5},
        "keywords": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 8},
    },
    "required": ["description", "use_cases", "audience", "features", "keywords"],
    "additionalProperties": False,
}
FACTS_SYSTEM = (
    "You describe an item of a shop. From what is given, write: a description of two or three sentences, two or three use cases, "
    "who it is for, three to five features and five to eight keywords. Claim nothing that does not follow from it. Answer in JSON. "
)
ITEM_SYSTEM = (
    "You write one paragraph about an item of a shop, in running text: no list, no heading, no line breaks. Use every fact that is "
    "given. "
)
HISTORY_SYSTEM = (
    "You think aloud, in the first person, about what a user may want next, in one paragraph: no list, no heading, no line breaks. "
    "Go through the items from the oldest to the newest, say which themes come back and where the interest shifts, and end with what "
    "is likely to interest the user, without being certain. One more item is given as guidance: your thoughts should lead towards it, but "
    "neither its mark nor its title may appear, nor that you were told of it. "
)
NARRATIVE_SYSTEM = (
    "You tell the story of a user in one paragraph: no list, no heading, no line breaks. Begin with the marks of all items of the "
    "history, in their order, with commas between and nothing before them. Go on with the reasoning that is given, keep all of it, and "
    "end with the item that was chosen next, by its mark. "
)
PREFERENCES = {
    "intention": "Write one sentence that the user could say when looking for what comes next: what they want, for what, and how it should be. ",
    "taste": "Write, in one paragraph of two to four sentences, what the user likes in general, as all their items show it. ",
    "interest": "Write, in one paragraph of two to four sentences, what the user is interested in now, as the latest items show it. ",
}
PREFERENCE_RULE = (
    "You know what the user chose next, so that what you write leads to it; but name no item, neither by its mark nor by its title, and "
    "do not say that you were told. "
)


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """What a text must be; one that is not is asked for again. null: as suits the kind of text (`over`)."""

    least_words: int | None = None
    """shortest text"""
    most_words: int | None = None
    """longest text"""
    least_sentences: int | None = None
    """sentences of it at least"""
    first_person: bool | None = None
    """somebody must speak of themselves"""
    language: Language | None = None
    """english: at least 90 % of its letters are Latin and 12 % of its words frequent ones of English; any: no check"""

    def over(self, usual: TextForm) -> TextForm:
        """The form with what is null as in `usual`; InputError for bounds out of order."""
        made = replace(usual, **{name: value for name, value in vars(self).items() if value is not None})
        if not 1 <= made.least_words <= made.most_words or made.least_sentences < 1:
            raise InputError(
                f"form: least_words {made.least_words} and most_words {made.most_words} must be in order, least_sentences "
                f"{made.least_sentences} at least 1"
            )
        return made

    def told(self) -> str:
        """The same for the teacher."""
        sentences = f"at least {self.least_sentences} sentences, " if self.least_sentences > 1 else ""
        language = " of plain English" if self.language == "english" else ""
        return f"Write {sentences}{self.least_words} to {self.most_words} words{language}. "

    def problem(self, text: str) -> str:
        """Why a text is not of this form; "" where it is."""
        plain = paragraphs.one_line(PLACEHOLDER.sub("it", text))
        if len([part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]) != 1:
            return "it is not one paragraph"
        if paragraphs.LIST_LINE.search(text):
            return "it is a list or has a heading, not running text"
        if not self.least_words <= (words := len(plain.split())) <= self.most_words:
            return f"it has {words} words, not {self.least_words} to {self.most_words}"
        sentences = [part for part in paragraphs.SENTENCE.split(plain) if part]
        if len(sentences) < self.least_sentences:
            return f"it has {len(sentences)} sentences, fewer than {self.least_sentences}"
        if found := RESERVED.search(text):
            return f'it has the marker "{found[0]}" in it'
        if found := paragraphs.CONFESSION.search(plain):
            return f'it says "{found[0]}", as if the answer had been handed out'
        if self.language == "english" and not is_english(plain):
            return "it is not written in English"
        if self.first_person and not any(map(paragraphs.first_person, sentences)):
            return "it is not told in the first person (I notice, I expect, ...)"
        return ""


_USUAL = TextForm(least_words=20, most_words=600, least_sentences=1, first_person=False, language="english")
FORMS = {
    "item": replace(_USUAL, least_words=60, least_sentences=10),
    "history": replace(_USUAL, first_person=True),
    "narrative": replace(_USUAL, least_words=30),
    **dict.fromkeys(PREFERENCES, replace(_USUAL, least_words=5, most_words=150)),
}


def is_english(text: str) -> bool:
    """By scripts and frequent words; is_english("Das ist ein Hammer aus Stahl") is False."""
    letters = [letter for letter in text if letter.isalpha()]
    latin = sum(letter < "\u0250" for letter in letters)
    words = re.findall(r"[a-z']+", text.lower())
    frequent = sum(word in FREQUENT for word in words)
    return bool(words) and latin >= LEAST_LATIN * len(letters) and frequent >= LEAST_FREQUENT * len(words)


def title_in(text: str, titles: Iterable[str]) -> str:
    """The first of the titles that a text says, whole or by its first five words, as whole words; "" where it says none."""
    for title in titles:
        words = title.split()
        spoken = [" ".join(words)] + ([" ".join(words[:LEADING])] if len(words) > LEADING else [])
        if next((name for name in spoken if len(name) > 2 and names(text, name)), ""):
            return " ".join(words)
    return ""


def _mentions(text: str, sample: PlacedSample, allowed: Iterable[int]) -> str:
    """What is wrong with how a text names items: others than `allowed`, or by a title."""
    if strange := [item for item in named_items(text) if item not in set(allowed)]:
        return f"it names {placeholder(strange[0])}, which it may not"
    told = title_in(PLACEHOLDER.sub(" ", text), [one.title for one in sample.texts.values()])
    return f'it says the title "{told}" instead of its mark' if told else ""


def facts_messages(sample: PlacedSample) -> list[dict[str, str]]:
    """Step 1 of an item."""
    return _turns(FACTS_SYSTEM + DATA_RULE, sample.texts[sample.target_item].lines())


def item_messages(sample: PlacedSample, facts: dict[str, Any], form: TextForm) -> list[dict[str, str]]:
    """Step 2 of an item; data in it: its texts, then every fact."""
    told = [
        facts["description"],
        *facts["use_cases"],
        facts["audience"],
        *facts["features"],
        *facts["keywords"],
    ]
    item = sample.target_item
    asked = f"Item: {placeholder(item)}\n{sample.texts[item].lines()}\n\nFacts:\n" + "\n".join(
        shown_text(fact) for fact in told if fact
    )
    return _turns(ITEM_SYSTEM + form.told() + NAMES + DATA_RULE, f"{asked}\n\nYour paragraph:")


def item_problem(text: str, sample: PlacedSample, form: TextForm) -> str:
    """Why a text is no narrative of its item; "" where it is one."""
    if found := form.problem(text) or _mentions(text, sample, [sample.target_item]):
        return found
    return (
        ""
        if named_items(text)
        else f"it does not name the item by its mark {placeholder(sample.target_item)}"
    )


def history_messages(sample: PlacedSample, form: TextForm, *, description: int) -> list[dict[str, str]]:
    """The question for the reasoning over a history."""
    asked = f"{_history(sample, description)}\n\nGuidance: {sample.line(sample.target_item, description=description)}\n\nYour thoughts:"
    return _turns(HISTORY_SYSTEM + form.told() + NAMES + DATA_RULE, asked)


def history_problem(text: str, sample: PlacedSample, form: TextForm) -> str:
    """Why a text is no reasoning over its history, or gives the target away; "" where it is one."""
    if found := form.problem(text) or _mentions(text, sample, sample.items):
        return found
    return "" if named_items(text) else "it names no item of the history by its mark"


def narrative_messages(
    sample: PlacedSample, thought: str, form: TextForm, *, description: int
) -> list[dict[str, str]]:
    """The question for the integrated narrative. `thought` has placeholders of its own, which stay."""
    asked = (
        f"{_history(sample, description)}\n\nChosen next: {sample.line(sample.target_item, description=description)}\n\n"
        f"Reasoning: {shown_text(thought)}\n\nYour story:"
    )
    return _turns(NARRATIVE_SYSTEM + form.told() + NAMES + DATA_RULE, asked)


def narrative_problem(text: str, sample: PlacedSample, form: TextForm) -> str:
    """Why a text does not recite history and target as it must; "" where it does."""
    if found := form.problem(text) or _mentions(text, sample, sample.texts):
        return found
    said, recited = named_items(text), list(sample.items)
    start = r"\s*" + r"[\s,]*(?:and\s+)?".join(re.escape(placeholder(item)) for item in recited)
    if not re.match(start, text):
        return "it does not begin with the marks of the history, in their order"
    if sample.target_item not in said[len(recited) :]:
        return f"it does not name {placeholder(sample.target_item)} as what was chosen next"
    return ""


def preference_messages(
    sample: PlacedSample, which: Preference, form: TextForm, *, description: int
) -> list[dict[str, str]]:
    """The question for one of MiniOneRec's pseudo-labels."""
    asked = f"{_history(sample, description)}\n\nChosen next: {sample.line(sample.target_item, description=description)}\n\nYour text:"
    return _turns(PREFERENCES[which] + PREFERENCE_RULE + form.told() + DATA_RULE, asked)


def preference_problem(text: str, sample: PlacedSample, form: TextForm) -> str:
    """Why a text is no preference; "" where it is one. It names no item at all."""
    return form.problem(text) or _mentions(text, sample, ())


def _history(sample: PlacedSample, description: int) -> str:
    lines = [
        f"{place}. {sample.line(item, description=description)}"
        for place, item in enumerate(sample.items, start=1)
    ]
    return "History, oldest first:\n" + "\n".join(lines)


def _turns(system: str, asked: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system.strip()}, {"role": "user", "content": asked}]
