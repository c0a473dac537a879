"""The exact pins of a requirements file. Standard library only: the doctor reads them where nothing is installed."""

from __future__ import annotations

import re

PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;#]+)")


def read_pins(requirements: str) -> dict[str, str]:
    """{package: exact version} of a requirements file's text."""
    return {match[1]: match[2] for line in requirements.splitlines() if (match := PIN.match(line))}
