"""Constrained text: whatever a random model wants to say, the text matches, parses, and says when it is not whole."""

from __future__ import annotations

import json
import re
import string

import pytest

from configs.program import InputError, NumericError
from infer.text.constraints import (
    ConstrainedText,
    Constraint,
    TokenConstraint,
    constrained_texts,
    distinct,
    vocabulary,
)
from infer.text.generate import TextSettings
from tests import handmade, tiny

SCHEMA = {
    "type": "object",
    "properties": {
        "terms": {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 1, "maxItems": 3},
        "instruction": {"type": "string", "maxLength": 12},
        "fit": {"enum": ["good", "bad"]},
    },
    "required": ["terms", "instruction"],
}
SAMPLED = TextSettings(max_new_tokens=120, temperature=1.5, samples=12)


@pytest.fixture(scope="module", params=["ours", "gpt2", "llama"])
def speaker(request):
    """(random model, its tokenizer, three prompts of different lengths)."""
    tokenizer = handmade.tokenizer(request.param)
    texts = ("nut", "Steel bolt of", "a prompt that is a good deal longer")
    return (
        tiny.model(vocab_size=len(tokenizer)),
        tokenizer,
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
    )


def test_every_complete_json_text_parses_and_has_the_fields(speaker):
    texts = [one for row in constrained_texts(*speaker, Constraint(schema=SCHEMA), SAMPLED) for one in row]
    whole = [json.loads(one.text) for one in texts if one.complete]
    assert len(texts) == 36 and len(whole) > 20
    for value in whole:
        assert 1 <= len(value["terms"]) <= 3 and set(value) <= {"terms", "instruction", "fit"}
        assert len(value["instruction"]) <= 12 and value.get("fit", "bad") in ("good", "bad")


def test_the_library_alone_writes_text_that_is_no_json(speaker):
    """Control: what StrictJson forbids is what the library's parser lets through."""
    from lmformatenforcer import JsonSchemaParser

    def reads(parser, text):
        for character in text:
            if character not in parser.get_allowed_characters():
                return False
            parser = parser.add_character(character)
        return parser.can_end()

    loose = '{"terms":["a"],"instruction":"b",}'
    assert reads(JsonSchemaParser(SCHEMA), loose) and not reads(Constraint(schema=SCHEMA).parser(), loose)
    with pytest.raises(json.JSONDecodeError):
        json.loads(loose)
    for text in (loose.replace(",}", "}"), '{"terms": ["a", "b"], "instruction": "{,}]\\""}'):
        assert reads(Constraint(schema=SCHEMA).parser(), text) and json.loads(text)
    assert not reads(Constraint(schema=SCHEMA).parser(), '{"terms":["a"],"instruction":"b"}  ')


def test_control_characters_are_never_offered_for_json(speaker):
    _, tokenizer, _ = speaker
    text = {"regex": r'\{"terms":\["[^"]*"\]\}', "prefix": '{"terms":["'}
    offered = {}
    for name, constraint in (("loose", Constraint(**text)), ("strict", Constraint(**text, json_text=True))):
        one = TokenConstraint(tokenizer, constraint, width=0)
        texts = one.enforcer.tokenizer_tree.tokens_to_strs
        offered[name] = [texts[token] for token in one.allowed(())]
    assert any(min(text) < " " for text in offered["loose"])
    assert offered["strict"] and not any(min(text) < " " for text in offered["strict"])


def test_a_regex_text_that_is_no_json_is_an_error_and_not_a_result(speaker):
    constraint = Constraint(regex=r'\{"a":[0-9]{2}', json_text=True)  # the closing brace is missing
    with pytest.raises(NumericError, match="is not JSON"):
        constrained_texts(*speaker, constraint, TextSettings(max_new_tokens=40))


@pytest.mark.parametrize(
    "settings",
    [
        TextSettings(max_new_tokens=20),
        TextSettings(max_new_tokens=20, temperature=2.0, samples=5),
        TextSettings(max_new_tokens=20, beams=4, samples=4),
    ],
    ids=["greedy", "sampling", "beams"],
)
def test_regex_in_batches_of_prompts_of_different_lengths(speaker, settings):
    pattern = r"(nut|bolt)s? of [0-9]{1,3}"
    rows = constrained_texts(*speaker, Constraint(regex=pattern), settings)
    assert len(rows) == 3 and all(rows)
    for one in (one for row in rows for one in row):
        assert one.complete and re.fullmatch(pattern, one.text), one
    for row in rows:
        assert settings.beams == 1 or len({one.text for one in row}) == len(row)
    model, tokenizer, prompts = speaker
    if settings.temperature == 0:  # a row does not depend on its neighbours
        alone = constrained_texts(model, tokenizer, prompts[1:2], Constraint(regex=pattern), settings)
        assert [one.text for one in alone[0]] == [one.text for one in rows[1]]


def test_fewer_texts_than_beams(speaker):
    settings = TextSettings(max_new_tokens=8, beams=6, samples=6)
    for row in constrained_texts(*speaker, Constraint(regex="yes|no"), settings):
        assert sorted(one.text for one in row if one.complete) == ["no", "yes"]


def test_beams_with_one_text_in_several_tokenisations_are_one():
    texts = [ConstrainedText("soap", (1, 2), True, -1.0), ConstrainedText("oil", (4,), True, -2.0)]
    assert distinct([*texts, ConstrainedText("soap", (3,), True, -3.0)]) == texts


def test_a_text_that_runs_out_of_tokens_says_so(speaker):
    rows = constrained_texts(*speaker, Constraint(schema=SCHEMA), TextSettings(max_new_tokens=3))
    assert not any(one.complete for row in rows for one in row)


def test_the_prefix_in_the_prompt_belongs_to_the_text(speaker):
    constraint = Constraint(schema=SCHEMA, prefix='{"terms":["')
    rows = constrained_texts(*speaker, constraint, SAMPLED)
    whole = [one for row in rows for one in row if one.complete]
    assert whole and all(
        json.loads(one.text)["terms"] and one.text.startswith('{"terms":["') for one in whole
    )
    with pytest.raises(InputError, match="does not begin any text"):
        Constraint(schema=SCHEMA, prefix='["terms"')


def test_banned_tokens_do_not_appear(speaker):
    model, tokenizer, prompts = speaker
    digits = {token for token in range(len(tokenizer)) if set(tokenizer.decode([token])) & set("012345678")}
    rows = constrained_texts(
        model, tokenizer, prompts, Constraint(regex="[0-9]{4}"), TextSettings(max_new_tokens=8),
        banned_ids=frozenset(digits),
    )  # fmt: skip
    assert [row[0].text for row in rows] == ["9999"] * 3


def test_what_cannot_be_enforced_is_an_error(speaker):
    model, tokenizer, prompts = speaker
    for bad in ({}, {"regex": "a", "schema": SCHEMA}, {"regex": "(a"}, {"schema": {"type": "nothing"}}):
        with pytest.raises(InputError):
            Constraint(**bad)
    with pytest.raises(InputError, match="enum without values"):
        Constraint(schema={"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]})
    words = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    letters = frozenset(token for token, text in words.items() if set(text) & set(string.ascii_letters))
    with pytest.raises(NumericError, match="no token of this tokenizer continues '1'"):
        constrained_texts(
            model, tokenizer, prompts[:1], Constraint(regex="1x"), TextSettings(max_new_tokens=4), banned_ids=letters
        )  # fmt: skip
    processor = TokenConstraint(tokenizer, Constraint(regex="nut"), width=0)
    wrong = tokenizer("9", add_special_tokens=False)["input_ids"][-1]
    processor.allowed(())
    with pytest.raises(NumericError, match="against the constraint"):
        processor.allowed((wrong,))


def test_the_vocabulary_is_read_once(speaker):
    _, tokenizer, _ = speaker
    assert vocabulary(tokenizer, json_text=True) is vocabulary(tokenizer, json_text=True)
    assert vocabulary(tokenizer, json_text=True) is not vocabulary(tokenizer, json_text=False)
