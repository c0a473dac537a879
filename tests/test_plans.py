"""The plan of a data set: which one a table was made with, what its folder holds, and who takes it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from configs import sizes
from configs.plans import Counts, plan_of
from configs.program import ROOT
from tests.handmade import refuse, succeed
from tests.shell import script

# What stage 01 makes of the sets, and the plan that configs/best/README.md names: sequential models, their epochs, the generator's.
MADE = {
    "beauty14": (Counts(12_101, 22_363, 131_413, 1.0, 44_726, timed=False), (2, 7, 7)),
    "toys14": (Counts(11_924, 19_412, 109_361, 1.0, 38_824, timed=False), (2, 7, 7)),
    "instruments18": (Counts(9_922, 24_772, 131_837, 0.0, 49_544, timed=False), (2, 7, 7)),
    "yelp": (Counts(20_033, 30_431, 225_061, 1.0, 60_862, timed=False), (1, 5, 7)),
    "office_full": (Counts(25_986, 87_346, 418_266, 0.1276, 174_692, timed=False), (1, 5, 7)),
}


@pytest.mark.parametrize("dataset", MADE)
def test_a_table_is_planned_as_it_was_made(dataset):
    """Whatever the machine: the script says how fast, and not a value that a hair's breadth divides from another plan."""
    text = (ROOT / f"scripts/reproduce/best_{dataset}.sh").read_text()
    minutes, speed = (
        float(re.search(rf"^export {name}=\$\{{{name}:-([\d.]+)\}}", text, re.MULTILINE)[1])
        for name in ("PLAN_MINUTES", "PLAN_SPEED")
    )
    counts, documented = MADE[dataset]
    for near in (0.97 * speed, speed, 1.03 * speed):
        plan = plan_of(counts, minutes=minutes, speed=near)
        assert (plan.teachers, plan.sequential_epochs, plan.generator_epochs) == documented
    assert plan.draws == 16 and minutes == 30
    assert {f"best_{name}" for name in MADE} == {
        path.stem for path in (ROOT / "scripts/reproduce").glob("best_*.sh")
    }


def prepared(folder: Path, *, items: int = 200, untitled: int = 0) -> Path:
    """What stage 01 says of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"items": items, "users": 50, "train": 900, "valid": 50, "test": 50}
    facts = {"funnel": {"items_without_title": untitled}}
    (folder / "manifest.json").write_text(json.dumps({"counts": counts, "facts": facts}))
    return folder


def test_a_speed_that_is_given_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "probe", lambda: pytest.fail("a probe"))
    data = prepared(tmp_path / "d", items=12_000)
    seconds = [
        float(re.search(r"generator (\d+) s", succeed("configs.sizes", "--data", data, "--minutes", 999, "--speed", speed))[1])
        for speed in (0.1, 0.05)
    ]  # fmt: skip
    assert seconds[1] == pytest.approx(2 * seconds[0], rel=0.05)
    assert "speed 0.0 -> above 0" in refuse("configs.sizes", "--data", data, "--speed", 0)
    assert "data" in refuse("configs.sizes", "--speed", 1)


def test_the_probe_counts_no_first_round_and_takes_the_fastest(monkeypatch):
    ends = iter([9.0, 0.3, 0.2, 0.4])
    clock = (value for end in ends for value in (0.0, end))
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    assert sizes.probe() == 0.2


def test_the_chain_says_a_fixed_speed_to_its_plan(echo):
    best = {"PAPER": "best", "DATASET": "shop", "CONFIG": "magazine", "STAGES": "plan"}
    assert "--speed" not in script(echo, "scripts/chain.sh", **best)[-1]
    assert " --minutes 30 --speed 1.1 " in script(echo, "scripts/chain.sh", PLAN_SPEED="1.1", **best)[-1]
