"""Who writes an output directory: one process at a time, and of the ranks of one launch rank 0.

The lock names its holder. In a run of several processes (RANK, WORLD_SIZE set by the launcher) rank 0 decides what happens
to the directory and leaves the outcome in `.launch`, where the other ranks wait for it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from configs.program import AlreadyComplete, Clock, EnvironmentFault, InputError

LOCK, HOLDER, LAUNCH = ".lock", ".lock.holder", ".launch"
FOLLOW_SECONDS, HOLDER_SECONDS = 600, 1.0


def rank_and_world() -> tuple[int, int]:
    """(rank, number of processes) that a launcher set as RANK and WORLD_SIZE; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the directory's lock; InputError naming the holder when another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK)
    holder = path / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"output_dir {path} is in use by {_who(holder)} -> wait for it or choose another directory"
        ) from None
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        holder.write_text(f"pid {os.getpid()} on {platform.node()} since {now}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        (path / LOCK).unlink(
            missing_ok=True
        )  # while it is held: unlinked after, it might be another process's
        lock.release()


def _who(holder: Path) -> str:
    """What the holder of a lock wrote of itself. It takes the lock a moment before it writes that, and removes it a moment before it lets go."""
    clock = Clock()
    while clock.seconds < HOLDER_SECONDS:
        with suppress(FileNotFoundError):
            if found := holder.read_text().strip():
                return found
        time.sleep(0.01)
    return "another process"


def announced(path: Path, decide: Callable[[], bool], inputs: Mapping[str, str]) -> bool:
    """`decide()`, with the outcome and the hashes of the inputs left where the other ranks of this launch wait for them."""
    if rank_and_world()[1] == 1:
        return decide()
    outcome = "complete"
    try:
        resuming = decide()
        outcome = "resume" if resuming else "start"
        return resuming
    except InputError:
        outcome = "refused"
        raise
    finally:
        temporary = path / f"{LAUNCH}.tmp"
        temporary.write_text(json.dumps({"launch": _launch_id(), "outcome": outcome, "inputs": dict(inputs)}))
        os.replace(temporary, path / LAUNCH)


def follow(path: Path) -> tuple[bool, dict[str, str]]:
    """Wait for rank 0's decision on `path`: (True where it resumes, the hashes of its inputs)."""
    clock = Clock()
    while clock.seconds < FOLLOW_SECONDS:
        if (path / LAUNCH).exists():
            decision = json.loads((path / LAUNCH).read_text())
            if decision["launch"] == _launch_id():
                if decision["outcome"] in ("complete", "refused"):
                    raise AlreadyComplete(f"rank 0 found {path} {decision['outcome']}")
                return decision["outcome"] == "resume", decision["inputs"]
        time.sleep(0.05)
    raise EnvironmentFault(f"rank 0 did not claim {path} within {FOLLOW_SECONDS} s -> look at its log")


def require_same_inputs(found: Mapping[str, str], of_rank_0: Mapping[str, str]) -> None:
    """InputError where a machine's copy of an input is not the one that rank 0 reads."""
    for name, digest in of_rank_0.items():
        if found.get(name) != digest:
            raise InputError(
                f"input {name} of this machine ({platform.node()}, {str(found.get(name))[:12]}) is not that of rank 0 "
                f"({digest[:12]}) -> copy it again, or read it from a shared disk"
            )


def _launch_id() -> str:
    """The same for all ranks of one launch, different for the next: LAUNCH_ID where they have several parents (several machines,
    tasks of a cluster), else that of their parent."""
    if "LAUNCH_ID" in os.environ:
        return os.environ["LAUNCH_ID"]
    return f"{os.getppid()}:{os.environ.get('MASTER_PORT', '')}:{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}"
