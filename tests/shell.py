"""Shell scripts as a user starts them, with a program in place of Python that prints its own command line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

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
