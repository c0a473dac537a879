"""Two processes of which one is killed, or slow: the launch ends, the next one goes on, and nothing is different."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.program import ROOT
from data.store.checkpoints import fault
from tests import handmade
from tests.test_trainers import log, weights

pytestmark = pytest.mark.long
FLAGS = [
    "--valid_rows", 16, "--trainer.max_steps", 24, "--trainer.eval_steps", 4, "--trainer.logging_steps", 2,
    "--trainer.per_device_train_batch_size", 8, "--trainer.learning_rate", 5e-3, "--dropout", 0.1,
]  # fmt: skip
LAUNCH = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "train.sft",
]
SECONDS = 240


@contextmanager
def launched(chain, place: Path) -> Iterator[subprocess.Popen]:
    """Two processes that train into `place`; those that are left afterwards are killed."""
    command = [*LAUNCH, *map(str, [*chain.flags(), *FLAGS, "--output_dir", place])]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=handmade.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()


def fields_of(pid: int) -> list[str]:
    """State, parent, ... of a process as the kernel tells them; [] where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def lives(pid: int) -> bool:
    return fields_of(pid)[:1] not in ([], ["Z"])


def children(parent: int) -> list[int]:
    pids = [int(place.name) for place in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if fields_of(pid)[1:2] == [str(parent)] and lives(pid)]


def rank_of(pid: int) -> str | None:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((one.decode().split("=")[1] for one in variables if one.startswith(b"RANK=")), None)


def wait_for(path: Path, process: subprocess.Popen) -> dict[str, int]:
    """{rank: its process} once `path` is there."""
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.01)
    ranks = {rank_of(pid): pid for pid in children(process.pid)}
    assert {"0", "1"} <= ranks.keys()
    return ranks


@pytest.fixture(scope="module")
def whole(chain, tmp_path_factory) -> Path:
    """The run that nobody disturbs."""
    place = tmp_path_factory.mktemp("whole") / "run"
    with launched(chain, place) as process:
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
    return place


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_is_killed_ends_the_launch_and_the_next_one_goes_on(rank, chain, whole, tmp_path):
    place = tmp_path / "run"
    with launched(chain, place) as process:
        ranks = wait_for(place / "checkpoint-8/COMPLETE.json", process)
        os.kill(ranks[rank], signal.SIGKILL)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode != 0 and f"rank      : {rank}" in said and "Signal 9" in said
        assert not any(map(lives, ranks.values())), "no process is left"
    assert not (place / "manifest.json").exists()
    assert any(fault(one) is None for one in place.glob("checkpoint-*"))
    with launched(chain, place) as process:
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
    assert weights(place) == weights(whole) and log(place) == log(whole)


def test_a_slow_rank_changes_nothing(chain, whole, tmp_path):
    place = tmp_path / "run"
    with launched(chain, place) as process:
        slow = wait_for(place / "checkpoint-4/COMPLETE.json", process)["1"]
        for _ in range(4):
            os.kill(slow, signal.SIGSTOP)
            time.sleep(1)
            os.kill(slow, signal.SIGCONT)
            time.sleep(0.2)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
    assert weights(place) == weights(whole) and log(place) == log(whole)
