"""How good terms and instructions are without a judge: terms against the target's, words of the text, variety over all texts.

Words are runs of letters and digits, case does not count. Two wishes disagree on purpose and are reported side by side: an
instruction should say what the predicted terms mean (coverage of their words), and imply the target without quoting its terms
(concealment). A judge's opinion is infer.chat.judge.

Legend: N rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import exp, lgamma

import numpy as np

WORD = re.compile(r"[^\W_]+")
DRAWS = 1000  # runs of words, of some thirty instructions
ENOUGH = 25  # content words that make an instruction specific
SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "from",
        "has",
        "have",
        "her",
        "his",
        "i",
        "in",
        "into",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "our",
        "over",
        "she",
        "so",
        "that",
        "the",
        "their",
        "them",
        "they",
        "this",
        "to",
        "under",
        "was",
        "we",
        "were",
        "which",
        "who",
        "will",
        "with",
        "you",
        "your",
    ]
)
# Words that say of any picture that it is one, or that it is good.
EMPTY_WORDS = frozenset(
    [
        "beautiful",
        "good",
        "great",
        "high",
        "image",
        "instruction",
        "item",
        "nice",
        "photo",
        "picture",
        "prompt",
        "quality",
        "show",
        "shows",
        "video",
    ]
)


def words(text: str) -> list[str]:
    """words("A steel-bolt, M10!") is ["a", "steel", "bolt", "m10"]."""
    return WORD.findall(text.lower())


def term_scores(predicted: Sequence[str], target: Sequence[str]) -> dict[str, float]:
    """precision, recall, f1 and exact of predicted against target terms, as sets without regard to case.

    Predicted ["Nut", "steel", "m4"], target ["steel", "nut", "brass", "small"]: 2 terms agree, precision 2/3, recall 2/4,
    f1 = 2 * 2 / (3 + 4) = .5714, exact 0. Without predicted terms all four are 0.
    """
    made, wanted = ({term.casefold().strip() for term in terms} for terms in (predicted, target))
    both = len(made & wanted)
    return {
        "precision": both / max(len(made), 1),
        "recall": both / max(len(wanted), 1),
        "f1": 2 * both / max(len(made) + len(wanted), 1),
        "exact": float(made == wanted and bool(made)),
    }


def specificity(text: str) -> float:
    """Different content words, of ENOUGH at most: words without small ones (the, of) and empty ones (nice, picture).

    "A nice photo of a brass nut on dark oak, on oak": brass, nut, dark, oak are 4 words, 4 / 25 = .16.
    """
    told = set(words(text)) - SMALL_WORDS - EMPTY_WORDS
    return min(len(told) / ENOUGH, 1.0)


def term_coverage(text: str, terms: Sequence[str]) -> float:
    """Share of the different words of `terms` that the text has as whole words.

    Terms ["steel bolt", "workshop"] and "Bolts of steel in a workshop": steel and workshop of 3 words (bolts is no bolt), .6667.
    Without terms 0.
    """
    wanted = {word for term in terms for word in words(term)} - SMALL_WORDS
    return len(wanted & set(words(text))) / max(len(wanted), 1)


def names(text: str, term: str) -> bool:
    """Whether a term's words stand in a text one behind the other: "desk lamp" in "A Desk-lamp.", `art` not in "party".

    False for a term without a word.
    """
    spelt = " ".join(words(term))
    return bool(spelt) and f" {spelt} " in f" {' '.join(words(text))} "


def quoted_terms(text: str, terms: Sequence[str]) -> list[str]:
    """The terms of two characters or more whose words stand in the text one behind the other.

    quoted_terms("Two armchairs at a party, art deco", ["chair", "art", "art deco"]) is ["art", "art deco"]: `chair` is no word
    of the text, and the `art` in "party" does not count, that in "art deco" does.
    """
    return [term for term in terms if len(" ".join(words(term))) >= 2 and names(text, term)]


def concealment(text: str, target: Sequence[str]) -> float:
    """Share of the target's terms that the text does not quote: 1 of ["art", "chair"] in "An art fair" is quoted, .5."""
    return 1 - len(quoted_terms(text, target)) / max(len(target), 1)


def distinct_n(texts: Sequence[str], n: int, draws: int = DRAWS) -> float:
    """Different runs of n words per run, expected among `draws` runs drawn from all texts without replacement; 0 where there is none.

    The share over all runs (distinct-n, Li et al. 2016) falls with the number of texts, as words come back; this one (rarefaction,
    Hurlbert 1971) does not: of N runs, a run that comes f times is missed with probability C(N - f, draws) / C(N, draws). With fewer
    than `draws` runs it is of all of them, and no number to compare.

    "a red nut", "a red bolt": runs of 2 are a red, red nut, a red, red bolt. All 4: 3 different, .75. Of 2 draws a red is missed
    with C(2, 2) / C(4, 2) = 1/6, the two others with C(3, 2) / 6 = 1/2: (5/6 + 1/2 + 1/2) / 2 = .9167.
    """
    often = Counter(run for text in texts for run in _runs(words(text), n))
    total = sum(often.values())
    draws = min(draws, total)
    seen = sum(many * (1 - _missed(total, f, draws)) for f, many in Counter(often.values()).items())
    return seen / max(draws, 1)


def self_overlap(texts: Sequence[str], n: int = 2) -> np.ndarray:
    """float64 [N]: share of a text's different runs of n words that another text has too; 1 = nothing of its own, 0 = no such run.

    "a red nut", "a red bolt", "oak": a red is shared: [1/2, 1/2, 0].
    """
    runs = [set(_runs(words(text), n)) for text in texts]
    often = Counter(run for own in runs for run in own)
    return np.array([sum(often[run] > 1 for run in own) / max(len(own), 1) for own in runs], np.float64)


def _runs(found: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(found[start:] for start in range(n)), strict=False))


def _missed(total: int, often: int, draws: int) -> float:
    """C(total - often, draws) / C(total, draws)."""
    left = total - often
    if left < draws:
        return 0.0
    return exp(lgamma(left + 1) - lgamma(left - draws + 1) - lgamma(total + 1) + lgamma(total - draws + 1))
