"""Shell scripts as a user starts them, with a program in place of Python that prints its own command line."""

from __future__ import annotations

import os
import subprocess
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

from configs import program
from configs.program import ROOT


def stand_in(folder: Path) -> Path:
    """Stands in for Python: prints its arguments, one program a line."""
    path = folder / "python"
    path.write_text('#!/usr/bin/env bash\necho "$*"\n')
    path.chmod(0o755)
    return path


def script(echo: Path, name: str, *flags: str, code: int = 0, **variables: str) -> list[str]:
    """The lines that a script prints, of stderr where it must fail."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        ["bash", str(ROOT / name), *flags],
        env=kept | {"PYTHON": str(echo)} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stderr if code else done.stdout).splitlines()


def programs_of(command: str, folder: Path) -> list[list[str]]:
    """[program, flags...] of every one that a command would start, in order."""
    python = folder / "python"
    python.write_text("#!/usr/bin/env bash\nprintf '%s\\037' \"$@\"\necho\n")
    python.chmod(0o755)
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ} | {"PYTHON": str(python)}
    done = subprocess.run(
        ["bash", "-c", command.replace("python -m", "$PYTHON -m")], cwd=ROOT, env=kept, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = []
    for name, *flags in (line.split("\037")[1:-1] for line in done.stdout.splitlines() if "\037" in line):
        if name == "accelerate.commands.launch":  # the program that it starts on every GPU
            name, *flags = flags[flags.index("-m") + 1 :]
        found.append([name, *flags])
    return found


def parsed_programs(command: str, folder: Path) -> list[str]:
    """The programs that a command would start, in order; each must take its recipe and its flags, names and values."""
    found = programs_of(command, folder)
    for name, *flags in found:
        program.parse(get_type_hints(import_module(name).main)["args"], [flag for flag in flags if flag])
    return [name for name, *_ in found]
