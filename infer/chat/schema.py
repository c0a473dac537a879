"""JSON answers held to a JSON schema: no free text, no guessing, one line about what is wrong.

A schema may use the keywords below and annotations; any other keyword is refused before the first question is asked,
because a rule that nobody checks is worse than none. Meaning of the keywords: json-schema.org, draft 2020-12.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from configs.program import InputError

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": (int, float),
    "boolean": bool,
    "null": type(None),
}
ANNOTATIONS = {"title", "description", "examples", "default", "$schema"}
KEYWORDS = ANNOTATIONS | {
    "type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items", "minItems", "maxItems",
    "uniqueItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip
FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


def check_schema(schema: Any, where: str = "schema") -> None:
    """InputError naming the place of the first keyword that is unknown or has a value of the wrong kind."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise InputError(f"{where} is no JSON schema: {schema!r} -> give an object")
    if unknown := sorted(schema.keys() - KEYWORDS):
        raise InputError(
            f"{where}: keyword {unknown[0]} is not checked here -> use {', '.join(sorted(KEYWORDS))}"
        )
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind not in TYPES:
            raise InputError(f"{where}: unknown type {kind!r} -> one of {', '.join(TYPES)}")
    if "pattern" in schema:
        try:
            re.compile(schema["pattern"])
        except (re.error, TypeError) as error:
            raise InputError(
                f"{where}: pattern {schema['pattern']!r} is no regular expression: {error}"
            ) from None
    for name, inner in schema.get("properties", {}).items():
        check_schema(inner, f"{where}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            check_schema(schema[name], f"{where}.{name}")
    for number, inner in enumerate(schema.get("anyOf", [])):
        check_schema(inner, f"{where}.anyOf[{number}]")


def read_answer(text: str, schema: dict[str, Any]) -> tuple[Any, str]:
    """(value, "") of a text that is JSON and fits `schema`, else (None, what is wrong).

    The whole text must be JSON, at most inside one Markdown fence: a JSON object found somewhere in prose is no answer.
    Repeated names, NaN and Infinity are no JSON here.
    """
    text = text.strip()
    if fenced := FENCE.fullmatch(text):
        text = fenced[1]
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
        json.dumps(
            value, ensure_ascii=False
        ).encode()  # half a surrogate pair is no text: no file could hold it
    except RecursionError:
        return None, "not JSON: nested too deeply"
    except ValueError as error:
        return None, f"not JSON: {error}"
    problem = violation(value, schema)
    return (None, problem) if problem else (value, "")


def violation(value: Any, schema: dict[str, Any] | bool, where: str = "answer") -> str:
    """The first rule of `schema` that `value` breaks, in words; empty when it fits."""
    if isinstance(schema, bool):
        return "" if schema else f"{where} is not allowed"
    kinds = schema.get("type")
    if kinds is not None:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not any(_is(value, kind) for kind in kinds):
            return f"{where} is {_kind(value)}, not {' or '.join(kinds)}"
    if "enum" in schema and not any(_equal(value, allowed) for allowed in schema["enum"]):
        return f"{where} is not one of the allowed values"
    if "const" in schema and not _equal(value, schema["const"]):
        return f"{where} is not {schema['const']!r}"
    if "anyOf" in schema and all(violation(value, inner, where) for inner in schema["anyOf"]):
        return f"{where} fits none of the alternatives"
    if isinstance(value, dict):
        return _object_violation(value, schema, where)
    if isinstance(value, list):
        return _array_violation(value, schema, where)
    if isinstance(value, str):
        return _string_violation(value, schema, where)
    if _is(value, "number"):
        return _number_violation(value, schema, where)
    return ""


def _object_violation(value: dict[str, Any], schema: dict[str, Any], where: str) -> str:
    for name in schema.get("required", []):
        if name not in value:
            return f"{where} has no {name}"
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, inner in value.items():
        if name not in properties and others is False:
            return f"{where} has a field {name} that the schema does not name"
        if problem := violation(inner, properties.get(name, others), f"{where}.{name}"):
            return problem
    return ""


def _array_violation(value: list[Any], schema: dict[str, Any], where: str) -> str:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        return f"{where} has {len(value)} entries"
    if schema.get("uniqueItems") and any(_equal(a, b) for i, a in enumerate(value) for b in value[:i]):
        return f"{where} repeats an entry"
    for number, inner in enumerate(value):
        if problem := violation(inner, schema.get("items", True), f"{where}[{number}]"):
            return problem
    return ""


def _string_violation(value: str, schema: dict[str, Any], where: str) -> str:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
        return f"{where} has {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{where} does not match {schema['pattern']}"
    return ""


def _number_violation(value: float, schema: dict[str, Any], where: str) -> str:
    inside = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
    strictly = schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
    return "" if inside and strictly else f"{where} is {value}, out of range"


def _is(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a schema type: 3.0 is an integer, true is no number."""
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[kind])


def _kind(value: Any) -> str:
    return next(kind for kind in ("boolean", "integer", *TYPES) if _is(value, kind))


def _equal(a: Any, b: Any) -> bool:
    """JSON equality: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    return a == b


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return made


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
