"""LICENCES.md names every pinned package, as its own metadata does."""

from __future__ import annotations

import pytest

from configs import licences
from configs.pins import read_pins
from configs.program import ROOT, InputError


def rows(document: str) -> dict[tuple[str, str, str], str]:
    """{(package, version, file): licence}"""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in document.splitlines()
        if line.startswith("| ")
    ]
    return {(package, version, file): licence for package, version, licence, file in cells[1:]}


def test_every_pin_has_its_licence():
    found = rows((ROOT / "LICENCES.md").read_text())
    pinned = {
        (package, version, file.name)
        for file in ROOT.glob("requirements*.txt")
        for package, version in read_pins(file.read_text()).items()
    }
    assert found.keys() == pinned, "run python -m configs.licences > LICENCES.md"
    assert all(licence not in ("", "not stated") for licence in found.values())
    now = rows(licences.licence_table())
    stated = [key for key in now if key[0] not in licences.FROM_REPOSITORY]
    assert {key: now[key] for key in stated} == {key: found[key] for key in stated}


def test_a_package_of_an_unknown_licence_is_named():
    with pytest.raises(InputError, match="no-such-package is not installed and its licence is not known"):
        licences.licence_of("no-such-package")
