"""Real stages, killed at every write event, on their own and while they replace an older output; and two at once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.program import InputError
from data.store import output
from tests import handmade
from tests.crashes import each_kill
from tests.test_crashes import state

pytestmark = pytest.mark.long
TRAINER = {"max_steps": 3, "eval_steps": 1, "per_device_train_batch_size": 8}
ENOUGH = {"tags": 15, "examples": 20, "sids": 30, "sft": 60}  # events that a run has at least


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
def sources(chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[object], list[object]]]:
    """{stage: (its command, flags that make it another run)}; output_dir is still to come."""
    root = tmp_path_factory.mktemp("sources")
    forked(lambda: handmade.call("rq.embed_items", "--data", chain.data, "--output_dir", root / "e", "--parts",
                                 "[{method: tfidf_svd, dim: 8}]"))  # fmt: skip
    forked(lambda: handmade.call("rq.train_quantizer", "--embeddings", root / "e", "--output_dir", root / "q",
                                 "--rqkmeans.sizes", "[4,4,4]"))  # fmt: skip
    steps = [part for key, value in TRAINER.items() for part in (f"--trainer.{key}", value)]
    data = ["--data", chain.data]
    return {
        "tags": (["preprocess.complete_tags", *data, "--classes.rare_threshold", 1], ["--seed", 7]),
        "examples": (["preprocess.build_examples", *data, "--sids", chain.sids], ["--max_history", 2]),
        "sids": (
            ["rq.assign_sids", *data, "--embeddings", root / "e", "--quantizer", root / "q", "--map", "pca"],
            ["--seed", 7],
        ),
        "sft": (["train.sft", *chain.flags(), *steps, "--valid_rows", 4], ["--seed", 7]),
    }


def outcome(place: Path) -> dict[str, object]:
    """`state` without the seconds that trainers keep in checkpoints and facts, and the hashes of files that hold them."""
    found = state(place)
    for name in found:
        if name.startswith("checkpoint-") and name.endswith((".json", ".bin")):
            found[name] = None
    if any(name.startswith("checkpoint-") for name in found):
        found["manifest.json"] = {
            **found["manifest.json"],
            "files": None,
            "content_hash": None,
            "facts": None,
        }
    return found


@pytest.mark.parametrize("replaces", [False, True], ids=["alone", "overwrite"])
@pytest.mark.parametrize("stage", ENOUGH)
def test_killed_at_every_write_event(stage: str, replaces: bool, sources, tmp_path: Path) -> None:
    command, other = sources[stage]
    place, old = tmp_path / "place", None

    def run() -> None:
        handmade.call(*command, "--output_dir", place, *(["--overwrite"] if replaces else []))

    if replaces:
        old = tmp_path / "old"
        assert forked(lambda: handmade.call(*command, *other, "--output_dir", old)) == 0
        shutil.copytree(old, place)
    assert forked(run) == 0
    expected, events = outcome(place), 0
    for event in each_kill(old, place, run):
        events += 1
        assert forked(run) == 0, f"blocked after a kill at event {event}"
        assert outcome(place) == expected, f"event {event}"
    print(f"{stage}{' --overwrite' if replaces else ''}: {events} kills, 0 blocked, 0 leftovers, 0 different")
    assert events >= ENOUGH[stage]


@pytest.mark.parametrize("stage", ENOUGH)
def test_two_at_once(stage: str, sources, tmp_path: Path) -> None:
    """One of them does the work; the other is told who does, or finds it done."""
    command, _ = sources[stage]
    place, children = tmp_path / "place", []
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
            finally:
                os._exit(code)
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes in ([0, 0], [0, 2])
    assert outcome(place) == expected
