"""Answers as compact JSON: the one place that writes them and reads them back.

    {"target_cid":"<...>"}                          a semantic ID, where the wording asks for JSON
    {"target_tid":["steel bolt","workshop"]}        a textual identifier (TID)
    {"target_tid":["steel bolt"],"target_ins":".."} a TID and an instruction

They are written in pieces: the fixed words, and between them what an answer says. Training and decoding tokenise every piece by
itself, so a decoder that is given the fixed pieces stands where training stood, whatever the tokenizer would merge across.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

INSTRUCTION_TASK = "history_to_instruction"
TERM_TASKS = frozenset({"sid_to_tid", "history_to_tid", INSTRUCTION_TASK})
SID_HEAD, SID_END = '{"target_cid":"', '"}'
HEAD, END = '{"target_tid":["', '"]}'
BETWEEN, TEXT_END = '"],"target_ins":"', '"}'
_LIST = re.compile(r'"target_tid"\s*:\s*\[([^\]]*)')
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_TEXT = re.compile(r'"target_ins"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)


@dataclass(frozen=True)
class ReadAnswer:
    """What a text says: `strict` where all of it is one JSON object of its task, `repaired` where only its fields were found."""

    terms: tuple[str, ...] = ()
    text: str | None = None
    how: Literal["strict", "repaired", "unreadable"] = "unreadable"


def inside(text: str) -> str:
    r"""`text` as it stands inside a JSON string: a "nut" becomes a \"nut\"."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def listed(terms: Sequence[str]) -> str:
    """`a","b`: the piece between HEAD and what ends a list of terms."""
    return '","'.join(map(inside, terms))


def after_terms(task: str) -> str:
    """The fixed piece behind the terms of an answer."""
    return BETWEEN if task == INSTRUCTION_TASK else END


def pieces(task: str, terms: Sequence[str], text: str | None) -> list[str]:
    """The answer of one of TERM_TASKS, to be joined without anything between; `text` is the instruction where it has one.

    >>> "".join(pieces("history_to_instruction", ["nut"], 'A "nut".'))
    '{"target_tid":["nut"],"target_ins":"A \\\\"nut\\\\"."}'
    """
    made = [HEAD, listed(terms), after_terms(task)]
    return [*made, inside(text or ""), TEXT_END] if task == INSTRUCTION_TASK else made


def piece_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that stand behind others, each tokenised by itself.

    A tokenizer that puts a blank in front of every text (Llama's) reads them behind a line break, which is taken off again.
    """
    if not texts:
        return []

    def encode(some: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(some), add_special_tokens=False)["input_ids"]

    one, front = encode(["a", "\n"])
    if tokenizer.decode(one + one, clean_up_tokenization_spaces=False) == "aa":
        return encode(texts)
    return [ids[len(front) :] for ids in encode([f"\n{text}" for text in texts])]


def read_answer(task: str, text: str) -> ReadAnswer:
    """What a model's text says as an answer of `task`.

    >>> read_answer("sid_to_tid", '{"target_tid":["a","b"]}'), read_answer("sid_to_tid", 'Here: {"target_tid": ["a", "b"')
    (ReadAnswer(terms=('a', 'b'), text=None, how='strict'), ReadAnswer(terms=('a', 'b'), text=None, how='repaired'))
    """
    wanted = ["target_tid", "target_ins"] if task == INSTRUCTION_TASK else ["target_tid"]
    try:
        found = json.loads(text, object_pairs_hook=list)
    except ValueError:
        found = None
    if isinstance(found, list) and [pair[0] if isinstance(pair, tuple) else None for pair in found] == wanted:
        terms, *rest = (value for _, value in found)
        if _are_terms(terms) and all(isinstance(one, str) and one.strip() for one in rest):
            return ReadAnswer(tuple(terms), rest[0] if rest else None, "strict")
    return _repaired(text, task)


def _repaired(text: str, task: str) -> ReadAnswer:
    named, told = _LIST.search(text), _TEXT.search(text)
    terms = tuple(
        term for one in _STRING.findall(named.group(1) if named else "") if (term := _plain(one).strip())
    )
    instruction = _plain(told.group(1)).strip() if told and task == INSTRUCTION_TASK else None
    if not terms or (task == INSTRUCTION_TASK and not instruction):
        return ReadAnswer()
    return ReadAnswer(terms, instruction, "repaired")


def _plain(quoted: str) -> str:
    """What stood between quotes, its escapes undone where they are valid."""
    try:
        return json.loads(f'"{quoted}"', strict=False)
    except ValueError:
        return quoted


def _are_terms(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) and t.strip() for t in value)
