"""What every bench shares: its flags, and the one JSON line that it ends with."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, NoReturn


def flags(doc: str | None, *, quick: str, repeats: int) -> argparse.ArgumentParser:
    """--quick and --repeats; `quick` says what is smaller then. Bars of the product are off while a bench runs."""
    os.environ.setdefault("QUIET", "1")
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--repeats", type=int, default=repeats, help="how often each side runs, interleaved")
    return parser


def finish(result: dict[str, Any]) -> NoReturn:
    """Print {"bench", "same", "ratios", "values", "threads", "device"}; exit 1 when both sides differ."""
    print(json.dumps(result), flush=True)
    sys.exit(0 if result["same"] else 1)
