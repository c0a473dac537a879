"""Arguments, errors, sizes and the machine; what every other package may import."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

# Libraries report runs to their makers (TRL each trainer, vLLM and Ray each start), from a thread that may wait for a network that
# is not there. They do so only for somebody who asks for it: DO_NOT_TRACK=0 RAY_USAGE_STATS_ENABLED=1.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


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
