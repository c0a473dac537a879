"""README.zh.md says what README.md says: the same commands, numbers, links and sections."""

from __future__ import annotations

import re

from configs.program import ROOT

ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))


def commands(text: str) -> list[str]:
    """The indented command lines, without their comments."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    found = [re.split(r"\s+# ", line)[0] for line in lines]
    return [
        line
        for line in found
        if re.match(r"([A-Z_]+=\S+ |[A-Z_]+=\"[^\"]*\" )*(bash|python|cp|export) ", line)
    ]


def test_the_commands_are_those_of_the_front_page():
    assert len(commands(ENGLISH)) > 20 and commands(CHINESE) == commands(ENGLISH)


def test_numbers_links_scripts_and_sections_are_the_same():
    for what in (r"\.\d{4}", r"\]\((?!README)(\S+?)\)", r"`([\w/<>]+\.sh)`"):
        assert re.findall(what, CHINESE) == re.findall(what, ENGLISH), what
    assert len(re.findall(r"^## ", CHINESE, re.M)) == len(re.findall(r"^## ", ENGLISH, re.M))
    assert "(README.zh.md)" in ENGLISH and "(README.md)" in CHINESE
