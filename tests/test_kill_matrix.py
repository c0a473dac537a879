"""Real stages, killed at every write event, on their own and while they replace an older output; and two at once."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.store import output
from tests import handmade
from tests.crashes import each_kill
from tests.kill_record import recorded
from tests.kill_stages import Stage, prepare, stages
from tests.test_crashes import state

pytestmark = pytest.mark.long
NAMES = (
    "embeddings", "quantizer", "tags", "sids", "tids", "identifiers", "prompts", "distilled", "examples", "base", "vocab", "sft",
    "grpo", "sequential", "compact", "tiger", "fuse", "recommend", "instruct", "images", "videos",
)  # fmt: skip
RANDOM_KILLS = 50


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_git_state", dict)


def forked(action: Callable[[], object]) -> int:
    """Exit status of `action` in a child: threads of compiled libraries that it starts would not outlive a later fork."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except Exception as error:
            print(error, file=sys.stderr)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def sources(chain, dual, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    root = tmp_path_factory.mktemp("sources")

    def run(*command: object) -> None:
        assert forked(lambda: handmade.call(*command)) == 0, command

    prepare(root, chain, dual, run)
    made = stages(root, chain, dual)
    assert tuple(made) == NAMES
    return made


TIMES = re.compile(r"second|throughput|_per_|forecast")


def without_times(facts: object) -> object:
    """Facts without what a clock measured."""
    if not isinstance(facts, dict):
        return facts
    return {key: without_times(value) for key, value in facts.items() if not TIMES.search(key)}


def answered(chat: dict[str, int]) -> dict[str, int]:
    """Questions by how they ended; that an answer was kept from the killed run before is how the work was cut, not what came of it."""
    well = sum(chat[name] for name in ("ok", "kept", "cached"))
    return {"answered": well} | {name: chat[name] for name in ("failed", "refused", "invalid", "changed")}


def outcome(place: Path) -> dict[str, object]:
    """`state` without what a clock measured: facts, logs of times, checkpoints of trainers, and the hashes of such files."""
    found = state(place)
    timed = [name for name in found if name.startswith("checkpoint-") and name.endswith((".json", ".bin"))]
    timed += [name for name in found if name in ("timing.jsonl", "index.parquet")]
    for name in timed:
        found[name] = None
        if name == "index.parquet":
            found[name] = pq.read_table(place / name).drop_columns("seconds").to_pylist()
    manifest = found["manifest.json"]
    facts = without_times(manifest["facts"])
    if "chat" in facts:
        facts["chat"] = answered(facts["chat"])
    manifest = manifest | {"facts": facts}
    found["manifest.json"] = manifest | ({"files": None, "content_hash": None} if timed else {})
    return found


@pytest.mark.parametrize("replaces", [False, True], ids=["alone", "overwrite"])
@pytest.mark.parametrize("stage", NAMES)
def test_killed_at_every_write_event(stage: str, replaces: bool, sources, tmp_path: Path) -> None:
    command, other = sources[stage].command, sources[stage].other
    place, old = tmp_path / "place", None

    def run() -> None:
        handmade.call(*command, "--output_dir", place, *(["--overwrite"] if replaces else []))

    with recorded(stage, f"every write, {'overwrite' if replaces else 'alone'}") as cell:
        if replaces:
            old = tmp_path / "old"
            assert forked(lambda: handmade.call(*command, *other, "--output_dir", old)) == 0
            shutil.copytree(old, place)
        assert forked(run) == 0
        expected = outcome(place)
        for event in each_kill(old, place, run, after=cell.kills):
            assert forked(run) == 0, f"blocked after a kill at event {event}"
            assert outcome(place) == expected, f"event {event}"
            cell.stood(event)
        print(
            f"{stage}{' --overwrite' if replaces else ''}: {cell.kills} kills, 0 blocked, 0 leftovers, 0 different"
        )
        assert cell.kills >= sources[stage].events


@pytest.mark.parametrize("stage", NAMES)
def test_killed_at_random_moments(stage: str, sources, tmp_path: Path) -> None:
    """Each run goes on from what the killed one before it left, until one of them ends; the moments are seeded."""
    place = tmp_path / "place"

    def run() -> None:
        handmade.call(*sources[stage].command, "--output_dir", place)

    with recorded(stage, "random moments") as cell:
        start = time.monotonic()
        assert forked(run) == 0
        whole, expected, kills, ends = time.monotonic() - start, outcome(place), cell.kills, 0
        rng = random.Random(f"{stage} {kills}")
        while kills < RANDOM_KILLS:
            shutil.rmtree(place, ignore_errors=True)
            for _ in range(3):
                kills += killed_after(rng.uniform(0, whole), run)
            assert forked(run) == 0, f"blocked after {kills} kills"
            assert outcome(place) == expected, f"after {kills} kills"
            cell.stood(kills)
            ends += 1
        print(f"{stage}: {kills} kills at random moments, {ends} ends, 0 blocked, 0 different")


def killed_after(seconds: float, action: Callable[[], object]) -> bool:
    """Start `action` in a child and kill it after so many seconds; False where it had ended well by then."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the run failed by itself"
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("stage", NAMES)
def test_two_at_once(stage: str, sources, tmp_path: Path) -> None:
    """One of them does the work; the other is told who does, or finds it done."""
    with recorded(stage, "two at once"):
        two_at_once(sources[stage].command, tmp_path / "place")


def two_at_once(command: list[object], place: Path) -> None:
    children = []
    assert forked(lambda: handmade.call(*command, "--output_dir", place)) == 0
    expected = outcome(place)
    shutil.rmtree(place)
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                handmade.call(*command, "--output_dir", place)
                code = 0
            except InputError as error:
                code = 2 if "is in use by pid" in str(error) else 1
                print(error, file=sys.stderr)
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes in ([0, 0], [0, 2])
    assert outcome(place) == expected
