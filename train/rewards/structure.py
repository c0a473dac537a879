"""The text of a whole answer as NaviGen's reward reads it: a thought, what is said behind it, and what is out of order.

An answer is one JSON object, or a semantic ID where the wording writes it bare. What cannot be parsed is repaired as far as its
fields can be found, as the published code does before it judges the format; `strict` wants it right as it came.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from data.answers import INSTRUCTION_TASK, ReadAnswer, read_answer
from data.renderer import THINK_END, THINK_START
from data.sid import SidFormat

BLOCK = re.compile(re.escape(THINK_START) + ".*?" + re.escape(THINK_END), re.DOTALL)
KEYS = ('"target_cid"', '"target_tid"', '"target_ins"')
UNBALANCED, SEVERAL_THOUGHTS, LATE_THOUGHT = 0.35, 0.2, 0.1
TEXT_BEFORE, TEXT_AFTER, SEVERAL_OBJECTS = 0.2, 0.45, 0.2
REPEATED_KEY, REPEATED_KEYS = 0.1, 0.3


@dataclass(frozen=True)
class TextReading:
    """What a text says: thinks (0 or 1), penalty in [0, 1], well_formed (0 or 1), codes of the first semantic ID behind the
    thought (None: there is none), terms and instruction."""

    thinks: float
    penalty: float
    well_formed: float
    codes: tuple[int, ...] | None = None
    said: ReadAnswer = ReadAnswer()


def thinks(text: str, *, least: int = 10) -> float:
    """1 where more than `least` characters other than blanks stand between the tags of a thought, else 0.

    >>> thinks("<think>\\nthey like lamps\\n</think>"), thinks("<think>\\n\\n</think>"), thinks("they like lamps</think>")
    (1.0, 0.0, 0.0)
    """
    start = text.find(THINK_START)
    end = text.find(THINK_END, start + len(THINK_START))
    if start < 0 or end < 0:
        return 0.0
    return float(len("".join(text[start + len(THINK_START) : end].split())) > least)


def penalty(text: str, *, sids: SidFormat, num_levels: int) -> float:
    """What is out of order, added up and at most 1.

    .35 for tags of thoughts that do not match, .2 for more than one thought, .1 for a thought that does not come first, .2 for text
    before the answer (one that is not whole is such text), .45 for text behind it, .2 for more than one answer, .1 for every
    target key that comes again, at most .3.

    >>> penalty('<think>\\na\\n</think>\\n\\n{"target_cid":"x"} so', sids=SidFormat(), num_levels=3)
    0.45
    """
    opened, closed = text.count(THINK_START), text.count(THINK_END)
    found = UNBALANCED * (opened != closed) + SEVERAL_THOUGHTS * (opened > 1)
    found += LATE_THOUGHT * (opened > 0 and not text.lstrip().startswith(THINK_START))
    rest = BLOCK.sub("", text)
    spans = _answers(rest, sids, num_levels)
    before = rest[: spans[0][0]] if spans else rest
    found += TEXT_BEFORE * bool(before.strip())
    found += TEXT_AFTER * bool(spans and rest[spans[-1][1] :].strip())
    found += SEVERAL_OBJECTS * (len(spans) > 1)
    again = sum(max(rest.count(key) - 1, 0) for key in KEYS)
    return min(found + min(REPEATED_KEY * again, REPEATED_KEYS), 1.0)


def _answers(rest: str, sids: SidFormat, num_levels: int) -> list[tuple[int, int]]:
    """(start, end) of every whole JSON object; of every semantic ID where no brace is opened."""
    if "{" not in rest:
        return [match.span() for match in sids.pattern(num_levels).finditer(rest)]
    spans, at, decoder = [], rest.find("{"), json.JSONDecoder()
    while at >= 0:
        try:
            _, end = decoder.raw_decode(rest, at)
            spans.append((at, end))
        except ValueError:
            end = at + 1
        at = rest.find("{", end)
    return spans


def read(
    text: str, task: str, *, sids: SidFormat, num_levels: int, least_thought: int = 10, strict: bool = False
) -> TextReading:
    """What `text` says as an answer of `task`."""
    disorder = penalty(text, sids=sids, num_levels=num_levels)
    rest = BLOCK.sub("", text)
    told = thinks(text, least=least_thought), disorder
    if task == INSTRUCTION_TASK:
        said = read_answer(task, rest.strip())
        right = said.how == "strict" or (said.how == "repaired" and not strict)
        return TextReading(*told, float(right and not (strict and disorder)), said=said)
    found = sids.find(rest, num_levels=num_levels)
    right = found and not (strict and (disorder or len(found) > 1))
    return TextReading(*told, float(bool(right)), codes=found[0] if found else None)
