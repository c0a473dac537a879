"""Missing tags by a language model: retrieve the few tags nearest to an item, let a chat model choose among them.

Per item and missing level the `candidates` tags with the largest cosine go into one question, with their similarity and
how many items have them; the model answers {"completed_tags": {"level_2": "..."}}. A name counts when the level's pool
has it (letter case aside); an unusable answer is asked again with the reason, at most `attempts` times in all, and what
then is still missing stays unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data.tags import Tags
from infer.chat.client import ChatRequest, ChatSettings, chat_client, read_results
from infer.chat.quoting import DATA_RULE, quoted
from preprocess.tags.graph import tag_vectors
from rq.vectors.embeddings import unit_rows, zero_rows

SYSTEM = (
    "You file products into a fixed tag hierarchy. For every missing level choose the one candidate that fits the product "
    "best. Answer with a JSON object and nothing else. " + DATA_RULE
)
# (questions, number of the attempt) -> the text of each answer, None where there is none.
Ask = Callable[[list["Question"], int], list[str | None]]


@dataclass
class TagChat:
    """How a chat model is asked for tags."""

    client: ChatSettings = field(default_factory=ChatSettings)
    """Which model, and how it is reached; `heuristic` takes the nearest candidate."""
    candidates: int = 6
    """Tags of the level that are offered."""
    attempts: int = 2
    """Times that an item is asked at most, with the reason why the last answer was of no use."""
    max_tokens: int = 256
    """Longest answer."""
    text_chars: int = 1500
    """Characters of an item's text that go into its question."""

    def __post_init__(self) -> None:
        if min(self.candidates, self.attempts, self.max_tokens, self.text_chars) < 1:
            raise InputError(
                f"llm: candidates {self.candidates}, attempts {self.attempts}, max_tokens {self.max_tokens} and "
                f"text_chars {self.text_chars} must be >= 1"
            )

    def asker(self, answers: Path) -> Ask:
        """Asks the model and keeps every answer in `answers`, so that an interrupted run goes on where it was."""
        client = chat_client(self.client, heuristic=nearest_candidate)

        def ask(waiting: list[Question], attempt: int) -> list[str | None]:
            requests = [question.request(attempt, max_tokens=self.max_tokens) for question in waiting]
            client.run_to_file(requests, answers, label=f"tags, attempt {attempt + 1}")
            results = read_results(answers)
            texts = [results[request.key].text for request in requests]
            return [text or None for text in texts]

        return ask


def nearest_candidate(request: ChatRequest) -> dict[str, Any]:
    """The explicit stand-in for a model: the first candidate of every level, which is the nearest."""
    levels = request.schema["properties"]["completed_tags"]["properties"]
    return {"completed_tags": {name: level["enum"][0] for name, level in levels.items()}}


@dataclass(frozen=True)
class Candidate:
    """A tag that is offered."""

    name: str
    similarity: float
    items: int


@dataclass(frozen=True)
class Question:
    """One item with missing levels. `complaint` says why its previous answer was refused."""

    item: int
    text: str
    known: tuple[tuple[int, str], ...]
    offered: tuple[tuple[int, tuple[Candidate, ...]], ...]
    complaint: str = ""

    def prompt(self) -> str:
        """The user message: the item, its known tags, the candidates of every missing level."""
        lines = ["Product:", quoted(self.text), "", "Known tags:"]
        lines += [f"level_{level + 1}: {name}" for level, name in self.known] or ["none"]
        for level, candidates in self.offered:
            lines += ["", f"Candidates for level_{level + 1}:"]
            lines += [f"- {c.name} (similarity {c.similarity:.2f}, {c.items} items)" for c in candidates]
        shape = {"completed_tags": {f"level_{level + 1}": "<candidate>" for level, _ in self.offered}}
        lines += ["", "Answer in this form: " + json.dumps(shape)]
        if self.complaint:
            lines += [f"Your previous answer could not be used: {self.complaint}."]
        return "\n".join(lines)

    def request(self, attempt: int, *, max_tokens: int) -> ChatRequest:
        """The question as it goes to a chat client."""
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.prompt()}]
        key = f"item {self.item} attempt {attempt + 1}"
        return ChatRequest(key=key, messages=messages, schema=self.schema(), max_tokens=max_tokens)

    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer: for every missing level one of its candidates."""
        levels = {
            f"level_{level + 1}": {"type": "string", "enum": [c.name for c in candidates]}
            for level, candidates in self.offered
        }
        completed = _closed_object(levels)
        return _closed_object({"completed_tags": completed})


def _closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def questions(x_ND: np.ndarray, tags: Tags, texts: Sequence[str], *, candidates: int) -> list[Question]:
    """One question per item that misses a tag and has a vector; the pools are the tags that items have."""
    levels = len(tags[0]) if tags else 0
    unit_ND = unit_rows(x_ND)
    able_N = ~zero_rows(unit_ND)
    pools = [tag_vectors(x_ND, tags, level=level) for level in range(levels)]
    counts = [Counter(row[level] for row in tags) for level in range(levels)]
    offered: dict[int, list[tuple[int, tuple[Candidate, ...]]]] = {}
    for level, (names, vectors_TD) in enumerate(pools):
        wanting = [item for item, row in enumerate(tags) if row[level] is None and able_N[item]]
        if not wanting or not names:
            continue
        cosine_WT = unit_ND[wanting] @ vectors_TD.T
        best_WC = np.argsort(-cosine_WT, axis=1, kind="stable")[:, :candidates]
        for item, best, cosine in zip(wanting, best_WC, cosine_WT, strict=True):
            choices = tuple(Candidate(names[t], float(cosine[t]), counts[level][names[t]]) for t in best)
            offered.setdefault(item, []).append((level, choices))
    return [
        Question(
            item,
            texts[item],
            tuple((level, name) for level, name in enumerate(tags[item]) if name is not None),
            tuple(levels_offered),
        )
        for item, levels_offered in sorted(offered.items())
    ]


def accept(answer: str | None, question: Question, pools: Sequence[set[str]]) -> tuple[dict[int, str], str]:
    """({level: tag} that an answer names validly, what is wrong with the rest or "")."""
    if answer is None:
        return {}, "there was no answer"
    try:
        named = json.loads(answer)["completed_tags"]
        chosen = {level: named.get(f"level_{level + 1}") for level, _ in question.offered}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return {}, "it was not a JSON object with completed_tags"
    good, wrong = {}, []
    for level, name in chosen.items():
        known = {tag.casefold(): tag for tag in pools[level]}
        found = known.get(name.strip().casefold()) if isinstance(name, str) else None
        if found is None:
            wrong.append(f"level_{level + 1} named {json.dumps(name, ensure_ascii=False)}, no candidate")
        else:
            good[level] = found
    return good, "; ".join(wrong)


def complete_by_chat(
    x_ND: np.ndarray,
    tags: Tags,
    texts: Sequence[str],
    ask: Ask,
    *,
    candidates: int,
    attempts: int,
) -> tuple[Tags, np.ndarray, dict[str, int]]:
    """(tags with missing ones filled, bool [N, L] which were, counts of items asked, asked again, and left unfilled)."""
    levels = len(tags[0]) if tags else 0
    pools = [{row[level] for row in tags} - {None} for level in range(levels)]
    filled = [list(row) for row in tags]
    filled_NL = np.zeros((len(tags), levels), bool)
    waiting = questions(x_ND, tags, texts, candidates=candidates)
    counts = {"asked": len(waiting), "repeated": 0, "failed": 0}
    for attempt in range(attempts):
        if not waiting:
            break
        counts["repeated"] += len(waiting) if attempt else 0
        again = []
        for question, answer in zip(waiting, ask(waiting, attempt), strict=True):
            good, complaint = accept(answer, question, pools)
            for level, name in good.items():
                filled[question.item][level] = name
                filled_NL[question.item, level] = True
            if complaint:
                again.append(_rest(question, good, complaint))
        waiting = again
    counts["failed"] = len(waiting)
    return filled, filled_NL, counts


def _rest(question: Question, good: dict[int, str], complaint: str) -> Question:
    """The question about the levels that an answer left open."""
    return Question(
        question.item,
        question.text,
        tuple(sorted((*question.known, *good.items()))),
        tuple((level, choices) for level, choices in question.offered if level not in good),
        complaint,
    )
