"""What the documents tell a user to type exists, and the "your own data" snippet works as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow.parquet as pq
import pytest

from configs.program import ROOT

DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("[a-z]*/README.md"), *ROOT.glob("configs/*/README.md")])
SCRIPT = re.compile(r"\bbash ((?:[\w-]+/)*[\w$-]+\.sh)")
MODULE = re.compile(
    r"python -m ((?:configs|data|rq|infer|preprocess|train|generation|tests)\.[\w.]+)([^\n`#|]*)"
)
FLAG = re.compile(r"--([a-z_][\w.]*)")


def fields(cls: Any, prefix: str = "") -> set[str]:
    """Every dotted flag of an arguments dataclass."""
    names: set[str] = set()
    for name, hint in get_type_hints(cls).items():
        names.add(prefix + name)
        if is_dataclass(hint):
            names |= fields(hint, f"{prefix}{name}.")
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_document_exists(document):
    text = document.read_text().replace("\\\n", " ")
    for script in SCRIPT.findall(text):
        if "$" not in script:
            assert (ROOT / script).is_file(), script
    for name, arguments in MODULE.findall(text):
        module = import_module(name)
        if name.startswith("tests.") or not arguments.strip():
            continue
        known = fields(get_type_hints(module.main)["args"]) | {"config", "help", "debug"}
        for flag in FLAG.findall(arguments):
            mapping = flag.split(".")[0] in known and flag.split(".")[0] in ("trainer", "options")
            assert flag in known or mapping, f"{name} --{flag}"


def test_python_snippets_print_what_they_say():
    texts = [path.read_text() for path in DOCUMENTS]
    blocks = [block for text in texts for block in re.findall(r"```python\n(.*?)```", text, flags=re.S)]
    assert len(blocks) >= 2
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == block.rstrip().rsplit("# ", 1)[1]


def snippet(heading: str) -> list[str]:
    """The indented lines of a section of the README."""
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def shop(folder: Path) -> Path:
    """Two csv files in the columns that the template names: 8 users walk 6 of 8 items each."""
    folder.mkdir()
    walks = [[(user + step) % 8 for step in range(6)] for user in range(8)]
    log = [f"{u},{item},{1_500_000_000 + n}" for u, walk in enumerate(walks) for n, item in enumerate(walk)]
    items = [f"{item},Thing number {item}" for item in range(8)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *items]) + "\n")
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *log]) + "\n")
    return folder


def test_your_own_data_in_three_lines(tmp_path):
    copy = tmp_path / "checkout"
    for part in ("configs", "data", "scripts"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    tables = str(shop(tmp_path / "tables"))
    lines = [line.replace("/path/to/tables", tables) for line in snippet("Your own data")][:3]
    assert [line.split()[0] for line in lines] == ["cp", "python", "DATASET=shop"]
    script = "\n".join(["set -euo pipefail", *lines]).replace("python -m", "$PYTHON -m")
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=copy,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(copy), "QUIET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_metadata(copy / "data/shop/sequences.parquet").num_rows == 40
