"""Every program explains itself, and quickly: --help of all of them."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.test_layering import PROGRAMS, ROOT

HELP_SECONDS = 2.0  # it takes a fraction of a second of processor time
# `python -m module --help` of each module in a process of its own, forked where what all of them need is imported.
HELPS = """
import json, os, runpy, sys
import jsonargparse, numpy, pyarrow.parquet

for module in sys.argv[1:]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 1)
        sys.argv = [module, "--help"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    _, status, used = os.wait4(child, 0)
    print(json.dumps([module, status, text, used.ru_utime + used.ru_stime]), flush=True)
"""


def test_every_help_is_quick():
    """In processor time: a machine that is busy with other things takes longer, but not more."""
    command = [sys.executable, "-c", HELPS, *PROGRAMS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [name for name, *_ in told] == PROGRAMS
    bad = [name for name, status, text, _ in told if status or f"usage: python -m {name} " not in text]
    assert bad == []
    slow = {name: seconds for name, *_, seconds in told if seconds > HELP_SECONDS}
    assert slow == {}, "import heavy packages inside functions"
