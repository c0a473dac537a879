"""Terms of a textual identifier (TID): the question to a chat model, the cleaning of its answer, keywords without a model.

A TID is a list of 1 to 10 English terms, the most important first. NaviGen takes what a chat model says, free text and
refusals included, and drops terms with an accent, `%` or `#`; here an answer is held to a schema, each term to the length
and letters of a term, and accents are folded.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from configs.program import InputError
from data.tids import MOST_TERMS
from infer.chat.client import ChatRequest, ChatSettings
from infer.chat.quoting import DATA_RULE, quoted
from infer.chat.refusals import is_refusal

SYSTEM = (
    "You write identifiers of catalogue items. Name the core of an item in at most {most} English terms, the most important "
    "first: what it is, then its kind, use, scene and telling attributes. Prefer standard words that other items share; a "
    "term has one to four words; no sentences, no numbers of models or articles. You choose how many terms are needed. "
    'Answer with a JSON object {{"terms": ["...", "..."]}} and nothing else. ' + DATA_RULE
)
LONGEST_TERM, MOST_WORDS = 40, 5
TERM = re.compile(r"[a-z0-9][a-z0-9 &+/\-,'().%#\"]*")
WORD = re.compile(r"[a-z][a-z0-9'-]+[a-z0-9]")
EDGES = " \t.,;:!?'\"`-*_/\\"


@dataclass
class TermChat:
    """How terms are asked for."""

    client: ChatSettings = field(default_factory=ChatSettings)
    """Which chat model; backend `heuristic` asks none and takes keywords of the text, marked as such."""
    most_terms: int = 10
    """Terms of a TID."""
    text_chars: int = 1500
    """Characters of an item's text that go into its question."""
    max_tokens: int = 160
    """Longest answer."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 42
    """Of sampling and of repeated questions; servers may ignore it."""

    def __post_init__(self) -> None:
        if min(self.most_terms, self.text_chars, self.max_tokens) < 1 or self.temperature < 0:
            raise InputError("ask: most_terms, text_chars and max_tokens must be >= 1, temperature >= 0")
        if self.most_terms > MOST_TERMS:
            raise InputError(f"ask.most_terms is {self.most_terms} -> a TID has at most {MOST_TERMS}")

    def request(self, item: int, text: str) -> ChatRequest:
        """The question about one item; the key names the item, its text is data."""
        return ChatRequest(
            key=f"item {item}",
            messages=[
                {"role": "system", "content": SYSTEM.format(most=self.most_terms)},
                {
                    "role": "user",
                    "content": f"Item:\n{quoted(text[: self.text_chars])}\n\nIts terms as JSON:",
                },
            ],
            schema=terms_schema(self.most_terms),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )


def terms_schema(most: int) -> dict[str, Any]:
    """JSON schema of an answer."""
    term = {"type": "string", "minLength": 1, "maxLength": 2 * LONGEST_TERM}
    terms = {"type": "array", "items": term, "minItems": 1, "maxItems": most}
    return {
        "type": "object",
        "properties": {"terms": terms},
        "required": ["terms"],
        "additionalProperties": False,
    }


def clean_term(term: str) -> str | None:
    """One term in its only spelling, None for what is no English term.

    clean_term(" Café-Style Mug. ") is "cafe-style mug"; sentences, refusals, other scripts and bare numbers are None.
    """
    if is_refusal(term):
        return None
    folded = unicodedata.normalize("NFKD", term)
    plain = "".join(mark for mark in folded if not unicodedata.combining(mark)).replace("\u2019", "'").lower()
    plain = " ".join(plain.split()).strip(EDGES)
    short = 0 < len(plain) <= LONGEST_TERM and len(plain.split()) <= MOST_WORDS
    return plain if short and TERM.fullmatch(plain) and re.search("[a-z]", plain) else None


def clean_terms(terms: Iterable[str], *, most: int) -> list[str]:
    """The clean terms in their order, each once, at most `most`."""
    kept = dict.fromkeys(clean for term in terms if (clean := clean_term(term)))
    return list(kept)[:most]


class Keywords:
    """Terms without a model: the finest categories of an item, then the words of its text that few other texts have.

    Fitted on the texts of all items, so that the same catalogue gives the same terms. A word weighs its count in the text,
    three times that in the title, times log(texts / texts with the word); ties go by the alphabet.
    """

    def __init__(self, items: pa.Table, texts: Sequence[str | None], *, most: int) -> None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        self.most, self.stop = most, ENGLISH_STOP_WORDS
        self.titles, self.categories = items["title"].to_pylist(), items["categories"].to_pylist()
        self.words = [self._words(text or "") for text in texts]
        self.document_counts = Counter(word for words in self.words for word in set(words))

    def of(self, item: int) -> list[str]:
        """The terms of one item; none where its text has no English words."""
        weights = Counter(self.words[item])
        for word in self._words(self.titles[item]):
            weights[word] += 3
        total = len(self.words) + 1
        scored = {
            word: weight * math.log(total / max(self.document_counts[word], 1))
            for word, weight in weights.items()
        }
        best = sorted(scored, key=lambda word: (-scored[word], word))[: self.most]
        return clean_terms([*reversed(self.categories[item][-2:]), *best], most=self.most)

    def _words(self, text: str) -> list[str]:
        folded = "".join(
            m for m in unicodedata.normalize("NFKD", text) if not unicodedata.combining(m)
        ).lower()
        return [word for word in WORD.findall(folded) if word not in self.stop]
