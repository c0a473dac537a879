"""Every template in one place. A wording is a named set of templates, one per task; `data.tasks` fills them in.

Fields: {sids} the history as semantic IDs, {titles} the history as titles, one a line behind "- ", {sid} one semantic ID,
{title}, {description}, {preference}, {terms} the inside of a JSON list of terms, {category} what the shop sells. The history stands last before a fixed ending, so that
cutting its oldest items never touches the instruction.

A name may begin with a frame, `alpaca:sentence`: the frame says how a prompt is laid out (FRAMES), the wording what it says.

`ItemTexts` says which texts of items may stand in a prompt or an answer: examples leave the others out, and whoever asks later does as they did.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from configs.program import InputError
from data.answers import listed
from data.wordings import BARE, CODES, FIELDS, SENTENCE, SHORT, STEPS, STEPS_INSTRUCTIONS

PLAIN = (
    "text"  # role of a message that is no turn of a conversation: the answer goes on with it and has no end
)
FRAMED = (
    "prompt"  # role of a whole prompt, written out: no chat template around it, and the answer ends as ever
)
FRAMES = {
    "chat": "turns, laid out by the model's own chat template",
    "alpaca": "one text with headings for instruction, input and response",
    "plain": "one text, a line per part",
}
ALPACA = (
    "An instruction is given, and an input that it refers to. Write the response that the instruction asks for."
    "\n\n### Instruction:\n{instruction}\n\n### User Input:\n{content}\n\n### Response:\n"
)
MIN_TEXT = 3  # characters; a shorter title tells items apart by chance only
# What a tokenizer may read as one of its markers, or as a semantic ID, although it is only text of a shop.
RESERVED = re.compile(r"<\|[^<>]*\|>|<[^<>\s]+>|\[/?(?:INST|SYS|CLS|SEP|MASK|PAD|UNK|BOS|EOS)\]")
TITLE_LINE = re.compile(r"^- [^\n]*$", re.MULTILINE)


@dataclass(frozen=True)
class Wording:
    """Templates of the user turn by task, an optional system turn, and what stands between history items.

    Prompts of the tasks in `plain` are text that the answer goes on with: no chat template, nothing behind the history.
    instructions: by task, what comes before the user's input; of several one is drawn by the example's id.
    json_sids: an answer that is a semantic ID is written as JSON too (data/answers.py), as terms are in every wording.
    """

    templates: dict[str, str]
    system: str = ""
    separator: str = ""
    plain: frozenset[str] = frozenset()
    instructions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    frame: str = "chat"
    json_sids: bool = False

    def user(self, task: str, **fields: str) -> str:
        """The user's input of `task`, without instruction; InputError when this wording has none."""
        if task not in self.templates:
            raise InputError(
                f"this wording has no template for task {task} -> choose another wording or task"
            )
        return self.templates[task].format(**fields)

    def instruction(self, task: str, key: int, **fields: str) -> str:
        """The instruction of `task` for the example `key`, or nothing."""
        choices = self.instructions.get(task, ("",))
        return choices[(key * 2654435761 >> 16) % len(choices)].format(**fields)

    def messages(self, task: str, *, key: int, lead: str = "", **fields: str) -> tuple[dict[str, str], ...]:
        """The messages of a prompt in this wording's frame; `lead` stands before the user's input."""
        content = lead + self.user(task, **fields)
        if task in self.plain:
            return ({"role": PLAIN, "content": content},)
        instruction = self.instruction(task, key, **fields)
        if self.frame == "alpaca":
            content = ALPACA.format(instruction=instruction or self.system, content=content)
            return ({"role": FRAMED, "content": content},)
        content = f"{instruction}\n{content}" if instruction else content
        if self.frame == "plain":
            return ({"role": FRAMED, "content": f"{self.system}\n{content}\n".lstrip("\n")},)
        user = {"role": "user", "content": content}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)


WORDINGS = {
    # A few tokens: for a base model trained from scratch every word of an instruction is a cost and teaches nothing.
    "short": Wording(SHORT),
    # Nothing behind the history: the next item follows the last one, so that one row of a user trains all their items.
    "bare": Wording(BARE, plain=frozenset({"history_to_sid"})),
    # The history and not a word: for decoders from scratch that learn nothing else.
    "codes": Wording(CODES, plain=frozenset({"history_to_sid"})),
    # The same between the markers of a turn: an encoder with relative positions counts from them which item is the newest.
    "turn": Wording(CODES),
    # Whole sentences: a pretrained model already knows what they mean.
    "sentence": Wording(
        SENTENCE,
        system="Items of a shop are written as semantic IDs. Answer with nothing but what is asked for.",
        separator=", ",
    ),
    # Instruction and input apart, eleven instructions for titles: the structure of MiniOneRec's prompts, in our words.
    "minionerec": Wording(STEPS, separator=", ", instructions=STEPS_INSTRUCTIONS),
    # Fields and JSON answers: the structure of NaviGen's prompts, in our words.
    "navigen": Wording(
        FIELDS,
        system="You know every item by its cid, a semantic ID, and by its tid, a list of terms. Answer in JSON and with nothing else.",
        separator='","',
        json_sids=True,
    ),
}


def wording(name: str) -> Wording:
    """A wording by name, `sentence` or `alpaca:sentence`; InputError for an unknown one.

    >>> wording("plain:short").messages("title_to_sid", key=0, title="Steel nut")
    ({'role': 'prompt', 'content': 'sid of: Steel nut\\n'},)
    """
    frame, _, base = name.rpartition(":")
    if base not in WORDINGS:
        raise InputError(f"unknown wording {base!r} -> one of {', '.join(WORDINGS)}")
    if not frame:
        return WORDINGS[base]
    if frame not in FRAMES:
        raise InputError(f"unknown frame {frame!r} of wording {name!r} -> one of {', '.join(FRAMES)}")
    found = WORDINGS[base]
    if frame != "chat" and found.plain:
        raise InputError(f"wording {base} has no frame, its histories are bare text -> leave out {frame}:")
    if frame == "alpaca" and not (found.instructions or found.system):
        raise InputError(
            f"wording {base} has no instruction to fill in -> alpaca:sentence or alpaca:minionerec"
        )
    return replace(found, frame=frame)


def title_lines(titles: list[str]) -> str:
    """A history as titles, one a line; `data.renderer` cuts it by lines, so a title must have no line break.

    >>> title_lines(["Steel nut", "Wood glue"])
    '- Steel nut\\n- Wood glue'
    """
    return "\n".join(f"- {title}" for title in titles)


@dataclass(frozen=True)
class ItemTexts:
    """One column of item texts, whitespace collapsed: `shown` with "" for what no task may show, and why that is so."""

    shown: tuple[str, ...]
    reasons: tuple[str, ...]

    @classmethod
    def read(
        cls, texts: Sequence[str], kind: str, *, longest: int | None = None, shortest: int = MIN_TEXT
    ) -> ItemTexts:
        """Not shown are texts below `shortest` or above `longest` characters and those with a marker of a tokenizer or a SID.

        >>> ItemTexts.read(["Steel  nut", "ab", "a <|end|>"], "title").reasons
        ('', 'short_title', 'reserved_marker')
        """
        plain = plain_texts(texts)
        reasons = tuple(_unusable(text, kind, longest, shortest) for text in plain)
        shown = tuple("" if reason else text for text, reason in zip(plain, reasons, strict=True))
        return cls(shown, reasons)

    @classmethod
    def of_terms(cls, terms: Sequence[Sequence[str]]) -> ItemTexts:
        """Textual identifiers, as they stand in a JSON list."""
        shown = tuple(map(listed, terms))
        reasons = tuple(
            "no_tid" if not text else "reserved_marker" if RESERVED.search(text) else "" for text in shown
        )
        return cls(shown, reasons)

    @property
    def usable_N(self) -> np.ndarray:
        """bool [N]"""
        return np.array([not reason for reason in self.reasons], bool)


def plain_texts(texts: Sequence[str]) -> list[str]:
    """Texts with whitespace collapsed, so that what a model writes can be compared with them."""
    return [" ".join(text.split()) for text in texts]


def _unusable(text: str, kind: str, longest: int | None, shortest: int) -> str:
    """Why a text cannot be in a text task, or nothing."""
    if len(text) < shortest:
        return f"short_{kind}"
    if longest is not None and len(text) > longest:
        return f"long_{kind}"
    return "reserved_marker" if RESERVED.search(text) else ""
