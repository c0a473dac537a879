"""Text that must match a regular expression or a JSON schema, enforced token by token.

    texts = constrained_texts(model, tokenizer, prompts, Constraint(schema={...}), TextSettings(max_new_tokens=200))

On the core of lm-format-enforcer (a character-level parser walked along the tokenizer's own vocabulary); its integration
with transformers is not used. Works on batches, greedy, with sampling and with beams. What it adds to the core:

* a JSON text is one that json.loads accepts: no raw control characters (the library lets a tab through inside a string,
  as does any regex of the kind `".*"`), no comma before a closing bracket (its objects allow one), no runs of
  whitespace, nothing after the end; and the finished text is parsed;
* a constraint that cannot be met is an error; the library would log and stop the text as if it were complete;
* a text that ran out of tokens says so (`complete` False); a half text is never passed on as a whole one;
* beams are told apart by their text: one text has many tokenisations.

Tokens that are not whole characters (single bytes of a longer one) are never offered: what is generated is valid UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from configs.program import InputError, NumericError
from infer.text.generate import Generated, TextSettings, generate_ids

REPLACEMENT = "\ufffd"
SPACE = " \t\n\r"
# (banned ids, JSON or not) -> the tokenizer's vocabulary as the library wants it: seconds to build for 150k tokens.
_CACHE: WeakKeyDictionary[Any, dict[tuple[frozenset[int], bool], Vocabulary]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A regular expression or a JSON schema; exactly one of them.

    `json_text` says of a regex that what it matches is meant to be JSON: then only matches that parse are generated.
    `prefix` is what the prompt already holds of the text, e.g. `{"terms":["`; generation goes on behind it.
    """

    regex: str | None = None
    schema: dict[str, Any] | None = None
    json_text: bool = False
    prefix: str = ""

    def __post_init__(self) -> None:
        if (self.regex is None) == (self.schema is None):
            raise InputError("a constraint is either a regex or a JSON schema -> give exactly one of them")
        self.parser()

    @property
    def is_json(self) -> bool:
        return self.schema is not None or self.json_text

    def parser(self, alphabet: str | None = None) -> Any:
        """A fresh character-level parser that has read `prefix`; InputError for a constraint that cannot be used.

        alphabet: what "any character" may be; default is printable ASCII.
        """
        from lmformatenforcer import CharacterLevelParserConfig, JsonSchemaParser, RegexParser

        from infer.text.json_parser import StrictJson

        # Before the prefix is read: states that are made while reading keep the configuration of that moment.
        config = CharacterLevelParserConfig(**({} if alphabet is None else {"alphabet": alphabet}))
        try:
            if self.regex is not None:
                parser: Any = RegexParser(self.regex, config)
            else:
                _refuse_empty_choice(self.schema)
                parser = StrictJson(JsonSchemaParser(self.schema, config))
            for character in self.prefix:
                if character not in parser.get_allowed_characters():
                    raise ValueError(f"the prefix {self.prefix!r} does not begin any text of it")
                parser = parser.add_character(character)
        except Exception as error:
            raise InputError(
                f"the constraint cannot be used: {type(error).__name__}: {str(error)[:160]} -> simplify the regex or schema"
            ) from error
        return parser


def _refuse_empty_choice(schema: Any) -> None:
    """The library accepts `enum: []` and then has nothing to offer."""
    if isinstance(schema, dict):
        if schema.get("enum") == []:
            raise ValueError("an enum without values matches nothing")
        for value in schema.values():
            _refuse_empty_choice(value)
    elif isinstance(schema, list):
        for value in schema:
            _refuse_empty_choice(value)


@dataclass(frozen=True)
class ConstrainedText:
    """One text: `text` with the constraint's prefix, the generated `ids`, `complete` where it matches as a whole."""

    text: str
    ids: tuple[int, ...]
    complete: bool
    score: float | None = None


class TokenConstraint:
    """A transformers logits processor: -inf on every token that no text of the constraint continues with.

    Made for one call of generate on prompts that are padded to one width. The state of a row is found by its generated
    ids, so that rows, samples and beams may change places.
    """

    def __init__(
        self,
        tokenizer: Any,
        constraint: Constraint,
        *,
        width: int,
        beams: bool = False,
        banned_ids: frozenset[int] = frozenset(),
    ) -> None:
        from lmformatenforcer import TokenEnforcer

        words = vocabulary(tokenizer, json_text=constraint.is_json, banned_ids=banned_ids)
        parser = constraint.parser(words.data.tokenizer_alphabet)
        self.enforcer, self.blanks = TokenEnforcer(words.data, parser), words.blanks
        self.eos, self.width, self.beams = tokenizer.eos_token_id, width, beams
        self.alive: dict[tuple[int, ...], frozenset[int]] = {}

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        blocked = torch.ones_like(scores, dtype=torch.bool)
        for row, ids in enumerate(input_ids[:, self.width :].tolist()):
            blocked[row, list(self.allowed(tuple(ids)))] = False
        return scores.masked_fill(blocked, float("-inf"))

    def allowed(self, ids: tuple[int, ...]) -> frozenset[int]:
        """Token ids that may follow the generated `ids`; eos where a text may end or has ended."""
        if self.eos in ids:
            return frozenset((self.eos,))
        if ids in self.alive:
            return self.alive[ids]
        if ids and ids[-1] not in self.alive.get(ids[:-1], ()):
            # Beam search fills up with candidates of score -inf where there are fewer legal tokens than beams.
            if self.beams:
                return frozenset((self.eos,))
            raise NumericError(f"token {ids[-1]} was generated against the constraint -> a decoding bug")
        tokens = frozenset(self.enforcer.get_allowed_tokens(list(ids)).allowed_tokens)
        parser = self.enforcer.prefix_states[ids].parser
        if getattr(parser, "fresh", False):
            tokens -= self.blanks
        if not tokens - {self.eos} and not parser.can_end():
            raise NumericError(
                f"no token of this tokenizer continues {self.text(ids)!r} under the constraint -> change the constraint"
            )
        self.alive[ids] = tokens
        return tokens

    def can_end(self, ids: tuple[int, ...]) -> bool:
        """True where the generated `ids` (without eos) are a whole text of the constraint."""
        self.allowed(ids)
        return ids in self.alive and bool(self.enforcer.prefix_states[ids].parser.can_end())

    def text(self, ids: tuple[int, ...]) -> str:
        return self.enforcer.decoder(list(ids))


def constrained_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    constraint: Constraint,
    settings: TextSettings,
    *,
    banned_ids: frozenset[int] = frozenset(),
) -> list[list[ConstrainedText]]:
    """For every prompt (token ids) its `settings.samples` texts; with beams distinct texts, best first, maybe fewer.

    banned_ids are never generated (the tokens of semantic IDs, say). Raises NumericError where the constraint cannot be
    kept or a complete JSON text does not parse.
    """
    results = []
    for start in range(0, len(prompts), settings.batch_size):
        batch = prompts[start : start + settings.batch_size]
        processor = TokenConstraint(
            tokenizer,
            constraint,
            width=max(map(len, batch)),
            beams=settings.beams > 1,
            banned_ids=banned_ids,
        )
        texts = generate_ids(
            model, batch, settings, stop_ids=[tokenizer.eos_token_id], keys=range(start, start + len(batch)),
            processors=[processor],
        )  # fmt: skip
        for made in texts:
            read = [
                _read(one, processor, constraint) for one in made if one.score is None or one.score > -1e8
            ]
            results.append(distinct(read) if settings.beams > 1 else read)
    return results


def _read(made: Generated, processor: TokenConstraint, constraint: Constraint) -> ConstrainedText:
    text = constraint.prefix + processor.text(made.ids)
    complete = processor.can_end(made.ids)
    if constraint.is_json:
        text = text.strip(SPACE)
        if complete:
            try:
                json.loads(text)
            except json.JSONDecodeError as error:
                raise NumericError(
                    f"constrained text {text[:80]!r} is not JSON ({error}) -> tighten the regex or give a schema"
                ) from None
    return ConstrainedText(text, made.ids, complete, made.score)


def distinct(texts: Sequence[ConstrainedText]) -> list[ConstrainedText]:
    """The first of each text: beams find one text under several tokenisations."""
    kept: dict[str, ConstrainedText] = {}
    for one in texts:
        kept.setdefault(one.text, one)
    return list(kept.values())


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as lm-format-enforcer reads it, and its tokens that begin with a blank."""

    data: Any
    blanks: frozenset[int]


def vocabulary(tokenizer: Any, *, json_text: bool, banned_ids: frozenset[int] = frozenset()) -> Vocabulary:
    """The Vocabulary of a tokenizer, built once.

    Special tokens, tokens that are no whole characters and, for JSON, tokens with control characters are left out.
    """
    from lmformatenforcer import TokenEnforcerTokenizerData

    known = _CACHE.setdefault(tokenizer, {})
    key = (banned_ids | {len(tokenizer)}, json_text)
    if key not in known:
        tokens = [row for row in token_texts(tokenizer, banned_ids) if not (json_text and min(row[1]) < " ")]
        if not tokens:
            raise InputError("this tokenizer has no ordinary tokens -> constrained text needs some")
        decode = _decoder(tokenizer)
        data = TokenEnforcerTokenizerData(tokens, decode, tokenizer.eos_token_id, False, len(tokenizer))
        known[key] = Vocabulary(data, frozenset(token for token, text, _ in tokens if text[0] in SPACE))
    return known[key]


def token_texts(tokenizer: Any, banned_ids: frozenset[int] = frozenset()) -> list[tuple[int, str, bool]]:
    """(token, its text behind other text, whether it begins a word) of every ordinary token that is whole characters."""
    decode, left_out = _decoder(tokenizer), banned_ids | set(tokenizer.all_special_ids)
    zero = tokenizer("0", add_special_tokens=False)["input_ids"][-1]
    tokens = []
    for token in range(len(tokenizer)):
        if token in left_out:
            continue
        # Behind a "0" a token of a new word shows its leading space, which decoding it alone would drop.
        text, alone = decode([zero, token])[1:], decode([token])
        if text and REPLACEMENT not in text:
            tokens.append((token, text, len(text) > len(alone)))
    return tokens


def _decoder(tokenizer: Any) -> Any:
    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    return decode
