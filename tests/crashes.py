"""Kill -9 at every write event, without starting a process for each: a forked child kills itself at the n-th one.

An event is anything that Python's audit hooks report of a file below a directory: opened for writing, renamed, removed, a
folder made or removed. Compiled writers report nothing, but they only fill temporary files, which are renamed by Python.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MOVES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.move"}


def survives(action: Callable[[], object], root: Path, event: int) -> bool:
    """Run `action` in a child that dies before its `event`-th write below `root`; False when it was killed there."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _die_at(event, str(root))
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, f"the run that should have died at event {event} failed by itself"
    return True


def _die_at(event: int, root: str) -> None:
    seen = 0

    def hook(name: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if name == "open":
            if not isinstance(args[2], int) or not args[2] & WRITES:
                return
        elif name not in MOVES:
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if not path.startswith(root) and (os.path.isabs(path) or name == "open"):
            return  # removal of a tree names its files relative to a descriptor: those count
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def each_kill(
    start: Path | None, place: Path, action: Callable[[], object], *, after: int = 0
) -> Iterator[int]:
    """For every event behind `after`: `place` as `start` has it (None: absent), `action` killed there. Ends when it survives."""
    event = after
    while True:
        event += 1
        shutil.rmtree(place, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, place)
        if survives(action, place, event):
            return
        yield event
