"""Free text inside a JSON string, valid whatever the model wants to say: a table of states and tokens, and no parser.

    prompt = [*chat_ids, *tid.ids]                     # ... {"target_tid":["steel"],"target_ins":"
    (written,) = write_strings(model, tokenizer, [prompt], TextSettings(max_new_tokens=192))
    written[0].text, written[0].raw, written[0].finished

Between the opening quote (the end of the prompt) and `ending` (the closing quote and what follows it) raw control characters,
broken escapes and an early end cannot be chosen. A text that the length cuts off is closed behind its last whole character,
and says so. The text is never empty and does not begin with a blank.

Differs from infer.text.constraints, which takes any regex or schema: one look-up per step instead of a parser per row, so
it costs the same for any number of rows. Escapes are those of json.dumps for printable text (`\\"`, `\\\\`, `\\n`, ...), not
`\\uXXXX`: other characters stand for themselves. Tokens that are no whole characters are never offered.

Legend: B rows, S states, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from configs.program import InputError
from infer.text.constraints import token_texts
from infer.text.generate import TextSettings, generate_ids

FRESH, PLAIN, ESCAPED, CLOSED = range(
    4
)  # CLOSED + n: n characters of what follows the closing quote are there
DEAD = 255
ESCAPES = '"\\/nrt'
ENDING = '"}'
_CACHE: WeakKeyDictionary[Any, dict[tuple[frozenset[int], str], StringTable]] = WeakKeyDictionary()


@dataclass(frozen=True)
class JsonString:
    """One text. raw: as JSON between its quotes; ids: the tokens generated; finished: the model wrote `ending` itself; whole: how
    many of the ids stand before the end of `raw` (all where it is finished)."""

    text: str
    raw: str
    ids: tuple[int, ...]
    finished: bool
    whole: int


class StringTable:
    """next_SV uint8: the state behind each token, DEAD where it is illegal; texts: of each legal token."""

    def __init__(
        self, tokenizer: Any, *, ending: str = ENDING, banned_ids: frozenset[int] = frozenset()
    ) -> None:
        if not ending.startswith('"'):
            raise InputError(f"ending {ending!r} does not close the string -> begin it with a quote")
        self.behind, self.eos = ending[1:], tokenizer.eos_token_id
        self.done = CLOSED + len(self.behind)
        self.texts = {token: text for token, text, _ in token_texts(tokenizer, banned_ids)}
        self.next_SV = np.full((self.done + 1, len(tokenizer)), DEAD, np.uint8)
        for token, text in self.texts.items():
            for state in range(self.done):
                self.next_SV[state, token] = self._walk(state, text)
        self.next_SV[self.done, self.eos] = self.done
        while (stuck := [s for s in range(self.done) if (self.next_SV[s] == DEAD).all()]) and np.isin(
            self.next_SV, stuck
        ).any():
            self.next_SV[np.isin(self.next_SV, stuck)] = DEAD
        if FRESH in stuck:
            raise InputError("this tokenizer has no token that may begin a text -> use another one")

    def step(self, state: int, character: str) -> int:
        """The state behind one more character."""
        if state >= CLOSED:
            at = state - CLOSED
            return state + 1 if self.behind[at : at + 1] == character else DEAD
        if state == ESCAPED:
            return PLAIN if character in ESCAPES else DEAD
        if state == FRESH and (character in '"\\' or character.isspace()):
            return DEAD
        if character < " ":
            return DEAD
        return {'"': CLOSED, "\\": ESCAPED}.get(character, PLAIN)

    def _walk(self, state: int, text: str) -> int:
        for character in text:
            state = self.step(state, character)
            if state == DEAD:
                break
        return state

    def read(self, ids: Sequence[int]) -> JsonString:
        """The string of generated ids; what the length cut off in the middle is left out."""
        text, state, whole = "".join(self.texts[token] for token in ids), FRESH, 0
        for place, character in enumerate(text):
            state = self.step(state, character)
            whole = place + 1 if state == PLAIN else whole
        raw, finished = text[:whole], state == self.done
        ends = np.cumsum([len(self.texts[token]) for token in ids])
        kept = len(ids) if finished else int((ends <= whole).sum())
        return JsonString(json.loads(f'"{raw}"'), raw, tuple(ids), finished, kept)


class StringConstraint:
    """A transformers logits processor for one call of generate without beams: rows keep their places."""

    def __init__(self, table: StringTable, *, width: int) -> None:
        self.table, self.width = table, width

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        if input_ids.shape[1] == self.width:
            wide = np.full((len(self.table.next_SV), scores.shape[1]), DEAD, np.uint8)
            wide[:, : self.table.next_SV.shape[1]] = self.table.next_SV
            self.next_SV = torch.as_tensor(wide, device=scores.device)
            self.state_B = torch.full((len(scores),), FRESH, device=scores.device)
        else:
            self.state_B = self.next_SV[self.state_B, input_ids[:, -1]].long()
        return scores.masked_fill(self.next_SV[self.state_B] == DEAD, float("-inf"))


def string_table(
    tokenizer: Any, *, ending: str = ENDING, banned_ids: frozenset[int] = frozenset()
) -> StringTable:
    """The StringTable of a tokenizer, built once."""
    known = _CACHE.setdefault(tokenizer, {})
    key = (banned_ids, ending)
    if key not in known:
        known[key] = StringTable(tokenizer, ending=ending, banned_ids=banned_ids)
    return known[key]


def write_strings(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: TextSettings,
    *,
    ending: str = ENDING,
    banned_ids: frozenset[int] = frozenset(),
    keys: Sequence[int] | None = None,
) -> list[list[JsonString]]:
    """`settings.samples` strings for every prompt (token ids that end with an opening quote); each row ends by itself.

    banned_ids are never generated (the tokens of semantic IDs, say); keys: see infer.text.generate. Raises InputError for
    beams and for an empty prompt, NumericError (exit 4) where the model's scores are not finite.
    """
    if settings.beams > 1:
        raise InputError("free text is written greedily or by sampling -> beams 1")
    table = string_table(tokenizer, ending=ending, banned_ids=banned_ids)
    keys = range(len(prompts)) if keys is None else keys
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    written: list[list[JsonString]] = [[] for _ in prompts]
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        batch = [prompts[row] for row in rows]
        made = generate_ids(
            model, batch, settings, stop_ids=[table.eos], keys=[keys[row] for row in rows],
            processors=[StringConstraint(table, width=max(map(len, batch)))],
        )  # fmt: skip
        for row, texts in zip(rows, made, strict=True):
            written[row] = [table.read(one.ids) for one in texts]
    return written
