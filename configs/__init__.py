"""Arguments, errors, sizes and the machine; what every other package may import."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def need_packages() -> None:
    """Leave with 3 where a program of ours was started (`python -m`) by a Python that has none of our packages.

    Every package but this one calls it as it is imported; sys.argv[0] is "-m" as long as Python looks for the program.
    """
    if sys.argv[:1] == ["-m"] and find_spec("numpy") is None:
        print(
            f"ERROR 3: {sys.executable} has none of the packages -> source .venv/bin/activate (bash scripts/setup.sh makes .venv)",
            file=sys.stderr,
        )
        raise SystemExit(3)
