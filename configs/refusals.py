"""What the parser of arguments complains about, in the words of its user: which key, what it was given, what it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

ASK_HELP = "see `--help`"
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list, as in [a, b]",
    "dict": "a mapping, as in {a: 1}", "NoneType": "null",
}  # fmt: skip
COMPLAINT = re.compile(r'Parser key "([^"]+)": (?:Expected an? |Does not validate .*? Subtypes: \[)(.*)', re.DOTALL)  # fmt: skip
GIVEN = re.compile(r"\]? ?(?:Errors: .*)?(?:Got|Given) value: (.*)$", re.DOTALL)
TYPE = re.compile(r"<class '(\w+)'>|Literal\[([^\]]*)\]")


def in_words(message: str) -> tuple[str, str]:
    """(what is wrong, what to do) of one line of jsonargparse; a message of another form stays as it is.

    >>> in_words('''Parser key "tracker": Expected a typing.Literal['none', 'wandb']. Got value: wandbb''')
    ('tracker is wandbb', 'none or wandb')
    >>> in_words('Parser key "a.b": Expected a <class \\'int\\'>. Got value: 1.5')
    ('a.b is 1.5', 'a whole number')
    >>> in_words('unrecognized arguments: extra')
    ('unrecognized arguments: extra', 'see `--help`')
    """
    found = COMPLAINT.match(message)
    given = found and GIVEN.search(found[2])
    if not found or not given:
        return message, ASK_HELP
    takes: list[str] = []
    for kind, choices in TYPE.findall(found[2][: given.start()]):
        takes += re.findall(r"'([^']*)'", choices) if choices else [KINDS.get(kind, kind)]
    if not takes:
        return message, ASK_HELP
    *others, last = dict.fromkeys(takes)
    return f"{found[1]} is {given[1]}", f"{', '.join(others)} or {last}" if others else last


def named_in(argv: Sequence[str], message: str) -> str:
    """` (in a.yaml)` for the last --config file that names the key a parser's message complains about."""
    keys = {key.split(".")[-1] for key in re.findall(r"""['"`]([\w.]+)['"`]""", message)}
    keys -= {flag.split("=")[0].lstrip("-").split(".")[-1] for flag in argv if flag.startswith("--")}
    for flag, path in reversed(list(zip(argv, argv[1:], strict=False))):
        if flag == "--config" and Path(path).is_file():
            words = set(re.findall(r"^\s*([\w.]+):", Path(path).read_text(errors="replace"), re.MULTILINE))
            if keys & words or "config" in message:
                return f" (in {path})"
    return ""
