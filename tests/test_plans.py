"""The plan of a data set: which one a table was made with, what its folder holds, and who takes it."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import sizes
from configs.plans import Counts, plan_of
from configs.program import ROOT, InputError
from rq.stack.options import warn_of_sizes
from tests.handmade import prepared, refuse, succeed
from tests.shell import script

# What stage 01 makes of the sets, and the plan that configs/best/README.md names: sequential models, their epochs, the generator's.
MADE = {
    "beauty14": (
        Counts(12_101, 22_363, 131_413, 1.0, 44_726, timed=False, long=0.2269, longest=20),
        (2, 7, 7),
    ),
    "toys14": (Counts(11_924, 19_412, 109_361, 1.0, 38_824, timed=False, long=0.2185, longest=20), (2, 7, 7)),
    "instruments18": (
        Counts(9_922, 24_772, 131_837, 0.0, 49_544, timed=False, long=0.1567, longest=20),
        (2, 7, 7),
    ),
    "yelp": (Counts(20_033, 30_431, 225_061, 1.0, 60_862, timed=False, long=0.3066, longest=20), (1, 5, 7)),
    "office_full": (
        Counts(25_986, 87_346, 418_266, 0.1276, 174_692, timed=False, long=0.1254, longest=20),
        (1, 5, 7),
    ),
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
        assert plan.positions is None, "ten history items, as the recipes"
    assert plan.draws == 16 and minutes == 30
    assert {f"best_{name}" for name in MADE} == {
        path.stem for path in (ROOT / "scripts/reproduce").glob("best_*.sh")
    }


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


def test_nothing_of_an_older_plan_is_left_and_no_file_of_others_is_touched(tmp_path):
    folder = tmp_path / "plan"
    flags = ["--output_dir", folder, "--speed", 1]
    data = prepared(tmp_path / "d", untitled=200)
    succeed("configs.sizes", "--data", data, *flags)
    assert (folder / "embed.yaml").exists() and (folder / "examples.yaml").exists(), "no titles"
    prepared(data)
    (folder / "plan.json").unlink()
    succeed("configs.sizes", "--data", data, *flags)
    assert not (folder / "embed.yaml").exists() and not (folder / "examples.yaml").exists()
    assert 'SEQUENTIAL="text"' in (folder / "choices.sh").read_text()
    (folder / "choices.sh").unlink()
    told = refuse("configs.sizes", "--data", data, *flags)
    assert "no whole plan" in told and f"{folder} " in told
    assert (folder / "compact.yaml").exists()
    with pytest.raises(InputError, match="no whole plan"):
        counts = Counts(200, 50, 900, 1.0)
        sizes.write_plan(plan_of(counts, minutes=1, speed=1), counts, ROOT / "configs/minionerec")


def test_long_histories_are_read(tmp_path):
    """Where more than half of the train rows have more than ten items: as many as the longest has, 50 at most, users' rows in one pass."""
    for histories, told, positions in (
        ((3, 10, 11, 12), (0.5, 12), None),
        ((3, 11, 12, 12), (0.75, 12), 12),
        ((60, 70, 80, 80), (1.0, 80), 50),
        ((), (0.0, 0), None),
    ):
        counts = sizes.counts_of(prepared(tmp_path / "d", histories=histories))
        assert (counts.long, counts.longest) == told
        overlays = plan_of(counts, minutes=30, speed=1.0).overlays()
        for name, group in (
            ("sequential_text", "scorer"),
            ("compact", "model"),
            ("compact_distilled", "model"),
        ):
            assert overlays[name][group].get("positions") == positions, name
            assert overlays[name].get("windows") == ("cut" if positions else None), name
    drawn = plan_of(
        Counts(9_000, 900, 90_000, 0.0, 900, long=0.9, longest=50), minutes=30, speed=1.0
    ).overlays()
    assert drawn["compact_distilled"]["model"] == {"hidden": 128, "positions": 50, "dropout": 0.4}
    assert drawn["sequential_companions"]["windows"] == "cut"


def test_long_histories_take_longer():
    counts = Counts(1_682, 943, 97_171, 1.0, 1_886, long=0.9, longest=50)
    long, short = (
        plan_of(one, minutes=600, speed=1.0).seconds for one in (counts, replace(counts, long=0.4))
    )
    part = "what the teacher says"
    assert long["generator"] == pytest.approx(1.4 * short["generator"])
    assert short[part] < long[part] < 2.08 * short[part], "counts are made anew as fast as before"
    assert long["sequential models"] == short["sequential models"]


def test_histories_that_were_cut_short_are_said(tmp_path):
    whole = {"kind": "leave_one_out", "max_history": 10, "stride": 0}
    for histories, split, said in (
        ((10, 10, 10, 3), whole, True),
        ((3, 3, 10, 10), whole, False),
        ((10, 10, 10, 3), whole | {"kind": "published"}, False),
        ((10, 10, 10, 3), whole | {"stride": 4}, False),
        ((50, 50, 50, 3), whole | {"max_history": 50}, False),
        ((4, 4, 4, 3), whole | {"max_history": 4}, False),
    ):
        told = succeed(
            "configs.sizes", "--data", prepared(tmp_path / "d", histories=histories, **split), "--speed", 1
        )
        line = "75% of the train histories end at split.max_history 10 -> 50 in prepare.yaml, and up to 50 items of each are read"
        assert (line in told) == said, (histories, split)


def test_a_plan_that_counted_less_is_kept(tmp_path):
    data, folder = prepared(tmp_path / "d", histories=(20, 20)), tmp_path / "plan"
    flags = ["--data", data, "--output_dir", folder, "--speed", 1]
    assert "20 history items" in succeed("configs.sizes", *flags)
    stored = json.loads((folder / "plan.json").read_text())
    for name in ("long", "longest"):
        del stored["counts"][name]
    del stored["plan"]["positions"]
    (folder / "plan.json").write_text(json.dumps(stored))
    told = succeed("configs.sizes", *flags)
    assert (
        "kept as" in told and "10 history items" in told and "an older plan: a new one reads up to 50" in told
    )
    stored["counts"]["users"] = 49
    (folder / "plan.json").write_text(json.dumps(stored))
    assert "plan of other data" in refuse("configs.sizes", *flags)
    stored["counts"] = {}
    (folder / "plan.json").write_text(json.dumps(stored))
    assert "is no plan" in refuse("configs.sizes", *flags)


def test_histories_that_are_none_are_no_data_set(tmp_path):
    data = prepared(tmp_path / "d")
    pq.write_table(pa.table({"split": ["train"], "history": ["a b"]}), data / "sequences.parquet")
    assert "no prepared data set" in refuse("configs.sizes", "--data", data)
    (data / "sequences.parquet").unlink()
    assert "no prepared data set" in refuse("configs.sizes", "--data", data)


@pytest.fixture
def planner(tmp_path) -> Path:
    """In place of Python: plans as it does, prepares a data set of 201 items at once, prints the other programs."""
    prepared(tmp_path / "new", items=201)
    path = tmp_path / "planner"
    path.write_text(
        f'#!/usr/bin/env bash\ncase $2 in\nconfigs.sizes) exec {sys.executable} "$@" ;;\n'
        f"data.prepare) cp {tmp_path}/new/* {tmp_path}/data/shop ;;\nesac\n"
        'echo "$*"\n'
    )
    path.chmod(0o755)
    return path


def test_a_chain_takes_a_whole_plan_of_its_data(planner, tmp_path):
    data, plan = prepared(tmp_path / "data/shop"), tmp_path / "out/best-shop/plan"
    shop = {"PAPER": "best", "DATASET": "shop", "CONFIG": "magazine", "OUTPUT_ROOT": str(tmp_path / "out"),
            "DATA_ROOT": str(tmp_path / "data"), "PLAN_SPEED": "1.0"}  # fmt: skip
    assert "--speed" not in "".join(script(planner, "scripts/chain.sh", STAGES="04", **shop))
    told = script(planner, "scripts/chain.sh", STAGES="plan 04", **shop)
    assert any(f"--config {plan}/quantizer_balanced.yaml" in line for line in told)
    (plan / "plan.json").rename(tmp_path / "plan.json")
    told = script(planner, "scripts/chain.sh", STAGES="04", **shop)
    assert not any(str(plan) in line for line in told), "half a plan is none"
    (tmp_path / "plan.json").rename(plan / "plan.json")
    prepared(data, items=300)
    for stages in ("04", "04 plan", "plan 04"):
        told = script(planner, "scripts/chain.sh", code=2, STAGES=stages, **shop)[-1]
        assert "plan of other data" in told and f"-> remove the folder {plan}, or another RUN" in told
    told = script(planner, "scripts/chain.sh", code=2, STAGES="01 04", **shop)[-1]
    assert "plan of other data" in told, "01 has brought other data than those of the plan"
    prepared(tmp_path / "new")
    told = script(planner, "scripts/chain.sh", STAGES="01 plan 04", **shop)
    assert any(f"--config {plan}/quantizer_balanced.yaml" in line for line in told), (
        "01 has brought the plan's data"
    )
    (data / "manifest.json").unlink()
    script(planner, "scripts/chain.sh", STAGES="04", **shop)
    lines = script(planner, "scripts/chain.sh", STAGES="04", DRY_RUN="1", **shop)
    assert any(str(plan) in line for line in lines)


def test_the_chain_says_a_fixed_speed_to_its_plan(echo):
    best = {"PAPER": "best", "DATASET": "shop", "CONFIG": "magazine", "STAGES": "plan"}
    assert "--speed" not in script(echo, "scripts/chain.sh", **best)[-1]
    assert " --minutes 30 --speed 1.1 " in script(echo, "scripts/chain.sh", PLAN_SPEED="1.1", **best)[-1]


def test_what_the_environment_says_is_not_planned(echo, tmp_path):
    plan = tmp_path / "best-shop/plan"
    plan.mkdir(parents=True)
    (plan / "choices.sh").write_text(
        'export SEQUENTIAL="companions"\nexport TEACHER_SEEDS="0"\nexport TREND="trend"\n'
    )
    (plan / "plan.json").touch()
    shop = {"PAPER": "best", "DATASET": "shop", "OUTPUT_ROOT": str(tmp_path), "STAGES": "teacher"}
    for more, models, trend in (
        ({}, ["-s0/baselines/companions"], True),
        ({"SEQUENTIAL": "", "TEACHER_SEEDS": ""}, ["-s0/baselines/companions"], True),
        ({"SEQUENTIAL": "hstu"}, ["-s0/baselines/hstu"], True),
        (
            {"TEACHER_SEEDS": "3 4", "TREND": ""},
            ["-s3/baselines/companions", "-s4/baselines/companions"],
            False,
        ),
    ):
        calls = script(echo, "scripts/chain.sh", **shop, **more)
        (fused,) = (call for call in calls if "infer.fuse" in call)
        assert re.findall(r"best-shop(-s\d/baselines/\w+)", fused) == models, more
        assert ("baselines/trend" in fused) == trend, more


def test_a_row_takes_the_plans_sequential_model_unless_it_was_told_one(planner, tmp_path):
    """rows.sh has a default of its own, which is for the data sets without a plan."""
    prepared(tmp_path / "data/yelp", untitled=200)
    plan = tmp_path / "out/best-yelp/plan"
    succeed("configs.sizes", "--data", tmp_path / "data/yelp", "--output_dir", plan, "--speed", 1)
    shop = {"DRY": "1", "RAW": "/r", "ROWS": "fusion", "SEEDS": "0", "DATA_ROOT": str(tmp_path / "data"),
            "OUTPUT_ROOT": str(tmp_path / "out")}  # fmt: skip
    for more, model in (({}, "companions"), ({"SEQUENTIAL": "hstu"}, "hstu")):
        told = script(planner, "scripts/reproduce/best_yelp.sh", **shop, **more)
        assert any(f"NAME={model} RUN=best-yelp-s0" in line for line in told), more


def test_changed_data_make_all_of_a_chain_anew(planner, tmp_path):
    """OVERWRITE=1: another plan in place of that of other data, and every program is told."""
    data, plan = prepared(tmp_path / "data/shop"), tmp_path / "out/best-shop/plan"
    shop = {"PAPER": "best", "DATASET": "shop", "CONFIG": "magazine", "OUTPUT_ROOT": str(tmp_path / "out"),
            "DATA_ROOT": str(tmp_path / "data"), "PLAN_SPEED": "1.0"}  # fmt: skip
    script(planner, "scripts/chain.sh", STAGES="plan", **shop)
    (plan / "notes.txt").write_text("mine")
    prepared(data, items=300)
    script(planner, "scripts/chain.sh", STAGES="01 plan 02 04", OVERWRITE="1", DRY_RUN="1", **shop)
    assert json.loads((plan / "plan.json").read_text())["counts"]["items"] == 200, "a dry run changes nothing"
    told = script(planner, "scripts/chain.sh", STAGES="plan 02 04 report", OVERWRITE="1", **shop)
    assert json.loads((plan / "plan.json").read_text())["counts"]["items"] == 300
    assert (plan / "notes.txt").exists()
    programs = [line for line in told if line.startswith("-m ")]
    assert len(programs) >= 4 and all("--overwrite" in line for line in programs)
    assert "--overwrite" not in "".join(script(planner, "scripts/chain.sh", STAGES="02 report", **shop))
    for wrong, said in ((("yes", ""), "OVERWRITE=yes -> 1"), (("1", "slurm"), "not for jobs")):
        told = script(
            planner, "scripts/chain.sh", code=2, STAGES="02", OVERWRITE=wrong[0], SUBMIT=wrong[1], **shop
        )
        assert said in told[-1]


def test_a_small_catalogue_has_no_more_codes_than_its_items_can_fill(capsys):
    """By the rule of stage 04's warning; 256 items fill what is the least above."""
    for items, codes in ((16, 4), (100, 25), (233, 58), (256, 64), (1_000, 64)):
        overlays = plan_of(Counts(items, 50, 900, 1.0), minutes=1, speed=1).overlays()
        sizes = overlays["quantizer"]["rqkmeans"]["sizes"]
        assert sizes == overlays["quantizer_balanced"]["balanced"]["sizes"] == [codes] * 3
        warn_of_sizes(sizes, np.arange(items, dtype=np.float32)[:, None])
        assert "codes in a level" not in capsys.readouterr().err
