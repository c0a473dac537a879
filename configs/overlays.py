"""Several --config files become one configuration, and misspelt keys and flags are told what was meant.

    merged(SftArgs, ["--config", "configs/minionerec/sft_recommend.yaml", "--config", "mine.yaml", "--seed", "1"])
    ["--config", '{"trainer": {"learning_rate": 0.001, ...}}', "--seed", "1"]

A later file wins over an earlier one, and flags win over both, wherever they stand. Nested options and free mappings such as
`trainer` merge key by key; lists are replaced; null removes a key of a free mapping (and is a value anywhere else).
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from configs.program import InputError

ALWAYS = ("config", "debug", "help", "print_config")


def merged(args_class: type, argv: list[str]) -> list[str]:
    """`argv` with one --config in front that holds all of them; InputError for a file or key that cannot be."""
    files, rest, position = [], [], 0
    while position < len(argv):
        name, given, value = argv[position].partition("=")
        if name == "--config" and (given or position + 1 < len(argv)):
            position += 0 if given else 1
            files.append(value if given else argv[position])
        else:
            rest.append(argv[position])
        position += 1
    whole: dict[str, Any] = {}
    for file in files:
        whole = overlay(whole, read_config(file), args_class, where=file)
    words = {value for value in whole.values() if isinstance(value, str)}
    words |= {part.split("=")[-1] for part in rest}
    for flag in rest:
        if flag.startswith("--"):
            _require_flag(args_class, flag.split("=")[0], words)
    return (["--config", json.dumps(whole, default=str)] if files else []) + rest


def read_config(file: str) -> dict[str, Any]:
    """The mapping in a YAML file, {} for an empty one; InputError when it cannot be read."""
    from jsonargparse import get_loader

    try:
        found = get_loader("yaml")(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror} -> check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--config {file} is no text -> name a YAML file") from error
    except Exception as error:  # the loader's own kinds are no public names
        raise InputError(
            f"--config {file} is no YAML ({' '.join(str(error).split())}) -> correct it"
        ) from error
    if found is not None and not isinstance(found, dict):
        raise InputError(f"--config {file} holds no mapping of options -> write `name: value` lines")
    return found or {}


def overlay(
    below: dict[str, Any], above: dict[str, Any], args_class: type | None, *, where: str, prefix: str = ""
) -> dict[str, Any]:
    """`above` laid over `below`; `args_class` is the dataclass that the keys are fields of, None for a free mapping."""
    result = dict(below)
    for key, value in above.items():
        inner = None
        if args_class is not None:
            key, _, rest = str(key).partition(".")
            value = {rest: value} if rest else value
            if key not in {entry.name for entry in dataclasses.fields(args_class)}:
                meant = nearest(f"{prefix}{key}", dotted_names(args_class, prefix))
                hint = f"did you mean {meant}?" if meant else "see `--help`"
                raise InputError(f"{where}: unknown key {prefix}{key} -> {hint}")
            inner = nested(args_class, key)
        if isinstance(value, dict):
            earlier = result.get(key)
            base = earlier if isinstance(earlier, dict) else {}
            result[key] = overlay(base, value, inner, where=where, prefix=f"{prefix}{key}.")
        elif value is None and args_class is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def nested(args_class: type, name: str) -> type | None:
    """The dataclass that a field holds, also where it may be None; None for every other field."""
    hint = typing.get_type_hints(args_class)[name]
    options = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
    return options[0] if options and typing.get_origin(hint) not in (list, dict, tuple) else None


def dotted_names(args_class: type, prefix: str = "") -> Iterator[str]:
    """Every option of a dataclass and of those nested in it: seed, rollout, rollout.beta, ..."""
    for entry in dataclasses.fields(args_class):
        yield f"{prefix}{entry.name}"
        inner = nested(args_class, entry.name)
        if inner is not None:
            yield from dotted_names(inner, f"{prefix}{entry.name}.")


def nearest(name: str, names: Iterable[str], words: Collection[str] = ()) -> str | None:
    """The name that was most likely meant: the same word elsewhere in the tree, first in a group that is one of the `words` given
    (`--constructor hidvae` chooses among the groups of constructors), or the closest spelling."""
    names = list(names)
    last = name.split(".")[-1]
    elsewhere = [other for other in names if other.split(".")[-1] == last]
    elsewhere.sort(key=lambda other: other.split(".")[0] not in words)
    return next(iter(elsewhere or get_close_matches(name, names, n=1)), None)


def _require_flag(args_class: type, flag: str, words: Collection[str]) -> None:
    name = flag[2:].rstrip("+")
    level: type | None = args_class
    if name in ALWAYS or not name:
        return
    for part in name.split("."):
        if level is None:
            return  # below a free mapping, a list or a plain value: the parser knows
        if part not in {entry.name for entry in dataclasses.fields(level)}:
            meant = nearest(name, [*dotted_names(args_class), *ALWAYS], words)
            hint = f"did you mean --{meant}?" if meant else "see `--help`"
            raise InputError(f"unknown flag {flag} -> {hint}")
        level = nested(level, part)
