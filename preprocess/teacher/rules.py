"""Rules in place of a teacher, for backend `heuristic` only: a chain that runs in seconds without a model, marked in every row.

What they write is made of the data in the question, so that it depends on history and target, and passes the same checks as
a teacher's text. It is no supervision worth a claim: scores come from a hash, sentences from a handful of moulds.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from typing import Any

from data.reasoning import PLACEHOLDER, placeholder
from infer.chat.client import ChatRequest
from infer.chat.quoting import FRAME, unquoted
from preprocess.teacher.evolution import CHILDREN, FOUNDERS, WEIGHTS
from preprocess.teacher.search import CANDIDATES

HISTORY_LINE = re.compile(r"^\d+\. \[\[item:(\d+)\]\]", re.MULTILINE)
WORD = re.compile(r"[^\W\d_]{3,}")
PLACES = (
    "on an oak table",
    "by a wide window",
    "on dark slate",
    "in a bright studio",
    "on a stone ledge",
    "in a quiet room",
)
STYLES = (
    "a crisp product view",
    "a painterly still life",
    "a candid close-up",
    "a wide editorial frame",
    "a graphic poster",
)
CAMERAS = (
    "50 mm lens at eye level",
    "macro lens from above",
    "low angle with shallow focus",
    "slow orbit around it",
)
MOODS = (
    "soft morning light",
    "cool side light",
    "amber evening glow",
    "even white light",
    "hard contrast and long shadows",
)
DETAILS = (
    "fine texture in view",
    "dust in the air",
    "a plain ground",
    "crisp edges",
    "muted colours with one accent",
)


def heuristic_identifier(request: ChatRequest) -> str:
    """A paragraph that says what the items share and ends in the target."""
    *items, target = unquoted(request.messages[-1]["content"])
    return f"I look for what comes back in all that was chosen so far. {_walk(items)} So I expect the next to be {target}."


def heuristic_clue(request: ChatRequest) -> str:
    """The first two terms of the latest item: "I see desk lamps, lighting."."""
    *_, latest = unquoted(request.messages[-1]["content"])
    return f"I see {', '.join(latest.split(', ')[:2])}."


def heuristic_distillation(request: ChatRequest) -> str:
    """A paragraph from the items to the target and a way to write the prompt."""
    *items, _, notes, _, target = unquoted(request.messages[-1]["content"])
    looks = notes.count("\nLook ") + 1
    return (
        f"I look for what comes back in all that was chosen so far. {_walk(items)} My drafts went from plain to bold, and after "
        f"{looks} looks I kept what was clear in them. They lead me to {target}, so I would write one thing in view, with its "
        "place, light and camera, and leave its name unsaid."
    )


def heuristic_search(request: ChatRequest) -> dict[str, Any]:
    """Drafts for the target, or scores of drafts."""
    step, said = request.key.partition(" ")[2].split()[0], unquoted(request.messages[-1]["content"])
    if step == "judge":
        return dict(zip(CANDIDATES, map(_scores, said[1:]), strict=True))
    if step == "founders":
        *items, _, target = said
        return {mode: _draft(f"{mode} {target}", items, target) for mode in FOUNDERS}
    *items, _, target, better, _, other, _ = said
    turned = f"{target} {better} {other}"
    return {mode: _draft(f"{mode} {turned}", items, target) for mode in CHILDREN}


def heuristic_item(request: ChatRequest) -> dict[str, Any] | str:
    """Facts of an item that are its own words but for those of its title, or a narrative of them."""
    asked, step = request.messages[-1]["content"], request.key.partition(" ")[2]
    said = unquoted(asked)
    if step == "facts":
        hidden = {word.lower() for word in WORD.findall(said[0])}
        words = [word for text in said[1:] for word in WORD.findall(text) if word.lower() not in hidden]
        told = list(dict.fromkeys(word.lower() for word in words))[:5] or ["useful"]
        return {
            "description": "It is known for " + ", ".join(told) + ".",
            "use_cases": ["everyday use"],
            "audience": "people who look for " + told[0],
            "features": told,
            "keywords": told,
        }
    (item, *_) = PLACEHOLDER.findall(asked)
    named, told = placeholder(int(item)), WORD.findall(said[-1])[:1] or ["use"]
    moulds = (
        "{item} is an item of this shop.", "Those who look for {word} find {item}.", "It is made for everyday use.",
        "What is said of {item} is that it has to do with {word}.", "It is there for all who need it.", "It can be used at once.",
        "It goes with what is like it.", "It is one of many, and {item} has a place of its own.", "It is what it says.",
        "So {item} is for those who want {word}.",
    )  # fmt: skip
    return " ".join(mould.format(item=named, word=told[0].lower()) for mould in moulds)


def heuristic_row(request: ChatRequest) -> str:
    """A reasoning over a history, a narrative around one, or a preference, of nothing but the marks and the last of the data."""
    asked = request.messages[-1]["content"]
    history = [placeholder(int(item)) for item in HISTORY_LINE.findall(asked)]
    if "\nGuidance: " in asked:
        return (
            f"I look at what was chosen, from {history[0]} to {history[-1]}, and I see what comes back in all of it. "
            f"The latest is {history[-1]}, and I expect that more of its kind may be of interest, with some things that are new."
        )
    (*_, target) = PLACEHOLDER.findall(FRAME.sub("", asked))
    if "\nReasoning: " in asked:
        thought = unquoted(asked)[-1]
        return f"{', '.join(history)} were chosen in this order. {thought} And so it was that {placeholder(int(target))} was chosen next."
    return f"They want what is like the {len(history)} items that they chose before, and new to them."


def _walk(items: list[str]) -> str:
    """What most of the items have in common, and the latest of them."""
    (common, times), *_ = Counter(term for item in items for term in item.split(", ")).most_common(1)
    latest = ", ".join(items[-1].split(", ")[:3])
    return f"Most often I see {common} ({times} of {len(items)}), and the latest is {latest}."


def _draft(seed: str, items: list[str], target: str) -> dict[str, str]:
    place, style, camera, mood, detail = (
        options[zlib.crc32(f"{number} {seed}".encode()) % len(options)]
        for number, options in enumerate((PLACES, STYLES, CAMERAS, MOODS, DETAILS))
    )
    known = [term for item in items for term in item.split(", ")[:3] if term not in target] or [
        "what is there"
    ]
    company = known[zlib.crc32(seed.encode()) % len(known)]
    prompt = (
        f"{style.capitalize()} of one thing {place}, made to go with {company}; {camera}, {mood}, {detail}."
    )
    return {"prompt": prompt, "reasoning": f"One thing in view, with {mood}."}


def _scores(prompt: str) -> dict[str, Any]:
    made = {name: 5 + zlib.crc32(f"{name} {prompt}".encode()) % 46 / 10 for name in WEIGHTS}
    return made | {"reasoning": "A hash of the prompt, no judgement."}
