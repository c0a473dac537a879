"""What a paragraph of a teacher must be: one, in the first person, with the right words at its end and none of the wrong ones.

Every check gives what is wrong in words, which go back to the teacher with the question for another one. A published stage
takes a text for first-person where it contains the letter I, and never asks again for a better reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from infer.metrics.instructions import names

SHORTEST, LONGEST = 20, 400  # words
CLOSING = 40  # words that may follow the target
LIST_LINE = re.compile(r"^\s*(?:[-*•#]|\d+[.)])\s", re.MULTILINE)
SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+")
I_WORD = re.compile(r"[\"'“‘(]*I(?:['’](?:m|ve|d|ll))?")
MINE = re.compile(r"\b(?:my|me|myself)\b", re.IGNORECASE)
CONFESSION = re.compile(
    r"\b(?:(?:given|provided|correct|expected) (?:answer|target)|target (?:tid|terms?)|as (?:instructed|requested))\b",
    re.I,
)
_BETWEEN = r"[\W_]*(?:(?:and|then)\b[\W_]*)?"


def one_line(text: str) -> str:
    """`text` with all white space as single spaces."""
    return " ".join(text.split())


def paragraph_problem(text: str) -> str:
    """Why a text is not one first-person paragraph; "" where it is."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]
    if len(paragraphs) != 1:
        return f"it has {len(paragraphs)} paragraphs, not one"
    if LIST_LINE.search(text):
        return "it is a list or has a heading, not running text"
    if not SHORTEST <= (words := len(text.split())) <= LONGEST:
        return f"it has {words} words, not {SHORTEST} to {LONGEST}"
    if found := CONFESSION.search(text):
        return f'it says "{found[0]}", as if the answer had been handed out'
    sentences = SENTENCE.split(one_line(text))
    mine = [first_person(sentence) for sentence in sentences]
    if not any(mine[:2]) or 4 * sum(mine) < len(mine):
        return "it is not told in the first person (I notice, I expect, ...)"
    return ""


def first_person(sentence: str) -> bool:
    """Whether somebody speaks of themselves: "I see", "it tells me"; not "a Type I error is", "World War I was"."""
    words = sentence.split()
    for place, word in enumerate(words[:-1]):
        name = place > 1 and words[place - 1][0].isupper()
        if I_WORD.fullmatch(word) and words[place + 1][0].islower() and not name:
            return True
    return bool(MINE.search(sentence))


def ends_with(text: str, terms: Sequence[str]) -> bool:
    """Whether all terms stand at the end of a text, in their order: "so I expect a desk lamp, and brass." ends with both."""
    return bool(re.search(_BETWEEN.join(map(_bounded, terms)) + r"[\W_]*$", text, re.IGNORECASE))


def missing_near_end(text: str, terms: Sequence[str]) -> list[str]:
    """The terms that the end of a text does not name: its second half, or as many words as the terms have and 40 more."""
    words = text.split()
    end = max(len(words) // 2, sum(len(term.split()) for term in terms) + CLOSING)
    return [term for term in terms if not names(" ".join(words[-end:]), term)]


def banned(text: str, pattern: re.Pattern[str], terms: Sequence[str]) -> list[str]:
    """The words of `pattern` that a text says outside of `terms`, which it may name: `yerba mate` is a term."""
    for term in sorted(terms, key=len, reverse=True):
        text = re.sub(_bounded(term), " ", text, flags=re.IGNORECASE)
    return list(dict.fromkeys(word.lower() for word in pattern.findall(text)))


def _bounded(term: str) -> str:
    return r"(?<!\w)" + r"\s+".join(map(re.escape, term.split())) + r"(?!\w)"
