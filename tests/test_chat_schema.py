"""The JSON schema checker by hand: what fits, what does not, what is refused beforehand; requests that are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.program import InputError
from infer.chat.messages import ChatRequest
from infer.chat.schema import check_schema, read_answer, violation

TERMS = {
    "type": "object",
    "properties": {
        "terms": {
            "type": "array",
            "items": {"type": "string", "minLength": 2, "maxLength": 9, "pattern": "^[a-z]+$"},
            "minItems": 1,
            "maxItems": 3,
            "uniqueItems": True,
        },
        "score": {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": 10},
        "kind": {"enum": ["image", "video", 1]},
    },
    "required": ["terms"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"terms": ["bolt"]}', ""),
        ('{"terms": ["bolt", "nut"], "score": 0, "kind": "video"}', ""),
        ('{"terms": ["bolt"], "score": 9.0}', ""),
        ('{"terms": ["bolt"], "score": null, "kind": 1}', ""),
        (' \n{"terms": ["bolt"]}\n', ""),
        ('```json\n{"terms": ["bolt"]}\n```', ""),
        ('{"terms": []}', "answer.terms has 0 entries"),
        ('{"terms": ["aa", "bb", "cc", "dd"]}', "answer.terms has 4 entries"),
        ('{"terms": ["aa", "aa"]}', "answer.terms repeats"),
        ('{"terms": ["a"]}', r"answer.terms[0] has 1 characters"),
        ('{"terms": ["abcdefghij"]}', "answer.terms[0] has 10 characters"),
        ('{"terms": ["aa", "Bolt"]}', "answer.terms[1] does not match"),
        ('{"terms": "bolt"}', "answer.terms is string, not array"),
        ('{"terms": ["bolt"], "score": 10}', "answer.score is 10, out of range"),
        ('{"terms": ["bolt"], "score": -1}', "answer.score is -1, out of range"),
        ('{"terms": ["bolt"], "score": 1.5}', "answer.score is number, not integer or null"),
        ('{"terms": ["bolt"], "score": true}', "answer.score is boolean"),
        ('{"terms": ["bolt"], "kind": true}', "answer.kind is not one of"),
        ('{"terms": ["bolt"], "more": 1}', "answer has a field more"),
        ("{}", "answer has no terms"),
        ('["bolt"]', "answer is array, not object"),
        ('Here: {"terms": ["bolt"]}', "not JSON"),
        ('{"terms": ["bolt"]} I hope this helps', "not JSON"),
        ('{"terms": ["bolt"]', "not JSON"),
        ('{"terms": ["bolt"], "terms": ["nut"]}', "not JSON: a name occurs twice"),
        ('{"terms": ["bolt"], "score": NaN}', "not JSON: NaN"),
        ('{"terms": ["\\ud800"]}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("", "not JSON"),
    ],
)
def test_answers(text, problem):
    value, found = read_answer(text, TERMS)
    assert found.startswith(problem) and bool(found) == bool(problem)
    assert (value is None) == bool(problem)


def test_alternatives_constants_and_open_objects():
    schema = {"anyOf": [{"const": None}, {"type": "object", "additionalProperties": {"type": "number"}}]}
    check_schema(schema)
    assert [bool(violation(value, schema)) for value in (None, {"a": 1.5}, {}, 0, {"a": "1"}, False)] == [
        False, False, False, True, True, True,
    ]  # fmt: skip
    assert violation(1, {"const": True}) and not violation([1, {"a": 1.0}], {"const": [1.0, {"a": 1}]})


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "objekt"}, "schema"),
        ({"properties": {"a": {"$ref": "#/b"}}}, "schema.a"),
        ({"items": {"format": "date"}}, "schema.items"),
        ({"anyOf": [{}, {"not": {}}]}, r"schema.anyOf\[1\]"),
        ({"additionalProperties": {"pattern": "("}}, "schema.additionalProperties"),
        ({"pattern": 3}, "schema"),
        ("object", "schema"),
    ],
)
def test_rules_that_nobody_would_check_are_refused(schema, place):
    with pytest.raises(InputError, match=f"^{place}"):
        check_schema(schema)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé\"\\\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_every_json_value_fits_itself_and_survives_its_text(value):
    assert read_answer(json.dumps(value), {"const": value}) == (value, "")
    assert violation([value], {"const": value})


def test_requests_are_checked():
    turn = [{"role": "user", "content": "x"}]
    for bad in (
        {"messages": []},
        {"messages": [*turn, {"role": "assistant", "content": "y"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": turn, "max_tokens": 0},
        {"messages": turn, "temperature": -1},
        {"messages": turn, "schema": {"type": "object", "dependentRequired": {}}},
    ):
        with pytest.raises(InputError):
            ChatRequest(key="k", **bad)
