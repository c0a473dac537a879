"""Scripts of tables: what they run, that READMEs show what the files say, and the plan of a new data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs import program
from configs.plans import Counts, plan_of, seconds_of
from configs.program import ROOT
from infer.tables import sheet
from infer.tables.stored import read_stored
from tests.handmade import prepared, refuse
from tests.test_configs import args_class

TABLES = sorted(
    path.stem for path in (ROOT / "scripts/reproduce").glob("*_*.sh") if path.stem != "which_sids"
)
PAPERS = sorted(path.parent for path in (ROOT / "configs").glob("*/rows.csv"))


def dry(name: str, *flags: str, code: int = 0, **variables: str) -> list[str]:
    """What a script says that it would do."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/reproduce" / f"{name}.sh"), *flags],
        env=kept | {"PYTHON": sys.executable, "DRY": "1", "RAW": "/r"} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stderr if code else done.stdout).splitlines()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_made_by_stages_and_records_what_its_plan_has(name):
    lines = dry(name, SEEDS="0 2")
    assert "scripts/01_prepare_data.sh" in lines[1]
    kept = [line for line in lines if "--record" in line]
    (file,) = {line.split("--record ")[1].split()[0] for line in kept}
    paper, dataset = file.split("/")[1], Path(file).stem
    rows = [line.split("/eval/")[1].split(".test")[0] for line in kept]
    planned = {row.row for row in sheet.read_plan(ROOT / "configs" / paper)[dataset] if not row.needs}
    assert set(rows) == planned
    for row, line in zip(rows, kept, strict=True):
        assert f"bash scripts/reproduce/{name}.sh" in line and line.count(f"/eval/{row}.test") in (1, 2)
    scripts = {
        word for line in lines for word in line.split() if word.endswith(".sh") and "reproduce" not in word
    }
    assert all((ROOT / script).is_file() for script in scripts)


def test_a_row_brings_what_it_needs_and_verify_runs_one_seed_of_it():
    lines = dry("minionerec_industrial", SEEDS="0 1", ROWS="compact_distilled")
    train, *students = [line for line in lines if "train_teacher" in line or "train_compact" in line]
    assert "RUN=minionerec-industrial bash scripts/train_teacher.sh" in train
    assert [f"RUN=minionerec-industrial-s{seed} TEACHER=outputs/minionerec-industrial/baselines/teacher" in line
            for seed, line in enumerate(students)] == [True, True]  # fmt: skip
    lines = dry("verify", "minionerec_industrial", ROW="text")
    assert lines[-1].endswith("--verify configs/minionerec/results/industrial.json --tolerance 0.004")
    assert '["outputs/verify/minionerec-industrial-s0/eval/text.test"]' in lines[-1]
    assert "there is no" in dry("verify", "nowhere", code=2, ROW="compact")[-1]
    assert "which table and which row" in dry("verify", "minionerec_industrial", code=2)[-1]


@pytest.mark.parametrize("name", TABLES)
def test_what_a_table_cannot_make_is_refused_before_anything_runs(name):
    (told,) = dry(name, code=2, ROWS="baselines tigr")
    assert told.startswith(f"ERROR 2: {name}.sh: ROWS has tigr -> baselines") and "rows.csv" in told
    (told,) = dry(name, code=2, ROWS="baselines", SEEDS="0 one")
    assert "SEEDS has one" in told
    (told,) = dry(name, code=2, ROW="baselines")
    assert "-> ROWS=baselines" in told
    (told,) = dry("verify", name, code=2, ROW="tigr")
    assert "ROWS has tigr" in told


def test_other_wrong_values_of_tables():
    assert "MINUTES=1.5" in dry("minionerec_industrial", code=2, MINUTES="1.5")[-1]
    assert "SEEDS is empty" in dry("minionerec_industrial", code=2, SEEDS=" ")[-1]
    assert "ROWS has grpo_published" in dry("minionerec_industrial", code=2, ROWS="grpo_published")[-1]
    assert "quantizer_blanced" in dry("which_sids", code=2, KINDS="rqkmeans blanced")[-1]
    assert "PUBLISHED_SIDS=" in dry("which_sids", code=2, KINDS="published")[-1]


def test_one_recommender_on_the_ids_of_every_constructor_and_a_scaling_curve():
    lines = dry("which_sids", PUBLISHED_SIDS="/p.parquet", SEEDS="0 1")
    assert (
        sum("train_compact.sh" in line for line in lines) == 2 * 11
        and sum("07_build_examples" in line for line in lines) == 11
    )
    assert (
        sum("SIDS=rqkmeans NAME=compact_keywords" in line and "--text.table init" in line for line in lines)
        == 2
    )
    assert any("SIDS=shuffled ASSIGN_ARGS=--repair shuffled" in line for line in lines)
    assert any("rq.import_sids --source /p.parquet" in line for line in lines)
    assert (
        '--runs ["outputs/which-industrial-s0", "outputs/which-industrial-s1"] --split valid' in lines[-1]
        and "--quality true" in lines[-1]
    )
    lines = dry("scaling", WIDTHS="32 64", SHARES="0.5 1", SEEDS="0")
    assert [line.split("NAME=")[1].split()[0] for line in lines[1:-1]] == [
        "compact_w32_d0.5", "compact_w32_d1", "compact_w64_d0.5", "compact_w64_d1",
    ]  # fmt: skip
    assert "--model.hidden 32 --user_share 0.5" in lines[1]
    lines = dry("scaling", PAPER="toy", DATASET="toystore", WIDTHS="32", SHARES="1", SEEDS="0")
    assert "RUN=scaling-toystore-s0" in lines[1] and "compare/scaling.toystore" in lines[-1], (
        "a paper without a table"
    )


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_every_table_is_in_its_readme_as_it_is_rendered(paper):
    readme = (paper / "README.md").read_text()
    tables = sheet.tables_of(paper)
    made = sheet.with_tables(readme, tables, sheet.group_tables_of(paper), where=str(paper))
    assert made == readme, "python -m infer.compare --table"
    shown = [found["dataset"] for found in sheet.BLOCK.finditer(readme) if found["kind"] == "rows"]
    assert set(shown) == set(tables)


def test_there_are_tables_and_every_result_says_how_it_was_made():
    assert {path.name for path in PAPERS} >= {
        "minionerec",
        "mimigenrec",
        "sidreasoner",
        "navigen",
        "gpr",
        "hidvae",
        "best",
    }
    for paper in PAPERS:
        for file in (paper / "results").glob("*.json"):
            for name, row in read_stored(file).items():
                lacks = [key for key in ("command", "commit", "hardware", "fitted_on") if not row[key]]
                assert not lacks and row["looks"] >= 1 and row["hours"] > 0, (file, name, lacks)


def test_sizes_follow_the_data():
    industrial = plan_of(Counts(3_686, 6_764, 30_882, 1.0, 9_065), minutes=60, speed=1.0)
    assert (industrial.codes, industrial.hidden, industrial.text, industrial.teachers) == (256, 128, True, 2)
    assert (industrial.sequential_epochs, industrial.generator_epochs) == (14, 13), "the recipe itself"
    assert industrial.overlays()["compact_distilled"] == {"model": {"hidden": 128}, "loop": {"epochs": 13}}
    shop = Counts(10_000, 20_000, 120_000, 0.2, 40_000)
    long, short = plan_of(shop, minutes=600, speed=1.0), plan_of(shop, minutes=1, speed=1.0)
    assert long.overlays()["compact_distilled"] == {
        "model": {"hidden": 128, "dropout": 0.4},
        "text": {"kernel": False},
        "soft_targets": {"share": 0.3},
        "augment": {"ratio": 0.0},
        "soft_draws": 16,
        "loop": {"epochs": long.generator_epochs},
    }, "more than 8,000 items"
    assert long.generator_epochs == 13 and (
        short.generator_epochs,
        short.sequential_epochs,
        short.teachers,
    ) == (7, 5, 1)
    assert short.overlays()["embed"]["parts"] == [{"method": "cooccurrence", "dim": 64}]
    assert short.variables() == {"SEQUENTIAL": "companions", "TEACHER_SEEDS": "0", "TREND": "trend"}
    assert "sequential_sasrec" not in short.overlays(), "the baseline keeps its own recipe"
    large = plan_of(Counts(26_000, 87_000, 418_000, 0.1, 174_000), minutes=30, speed=1.0).overlays()
    assert large["compact"]["loop"] == {"valid_rows": 40_000}
    assert large["compact_distilled"]["loop"] == {"epochs": 7, "valid_rows": 40_000}
    assert "loop" not in short.overlays()["compact"], "20,000 valid rows all choose"
    assert industrial.overlays()["sequential_text"]["scorer"] == {"hidden": 128, "companions": 128}
    assert plan_of(shop, minutes=600, speed=2.0).total == pytest.approx(long.total / 2)
    some = plan_of(shop, minutes=long.total / 60 * 0.8, speed=1.0)
    assert some.total <= long.total * 0.8 and some.teachers == 2 and some.generator_epochs < 13


def test_answers_are_forecast_as_they_were_measured():
    """CPU seconds of drawn answers by machines .76 and .7 times as fast, made histories' too: Instruments, no texts, two sequential models, 460;
    Beauty, texts, one, 606. Without those .40 and .34 of it, as measured later beside another program. Eight times the mixture is counted again for a fold besides: .2 and 5.2 s by a
    third machine."""
    instruments, beauty = (
        Counts(9_922, 24_772, 131_837, 0.0, 49_544),
        Counts(12_101, 22_363, 131_413, 1.0, 44_726),
    )
    for counts, speed, teachers, measured in (
        (instruments, 0.76, 2, 0.40 * 460 + 8 * 0.2 / 0.76),
        (beauty, 0.7, 1, 0.34 * 606 + 8 * 5.2 / 0.7),
    ):
        plan = replace(plan_of(counts, minutes=600, speed=speed), teachers=teachers)
        told = seconds_of(plan, counts, speed=speed)["what the teacher says"]
        assert told == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(
    ("titled", "items", "long"), [(1.0, 5_000, 0.0), (1.0, 5_000, 0.9), (0.4, 5_000, 0.0), (0.0, 12_000, 0.9)]
)
def test_what_a_plan_changes_are_options_of_the_recipes(titled, items, long, tmp_path):
    counts = Counts(items, 9_000, 50_000, titled, 9_000, timed=False, long=long, longest=40)
    made = plan_of(counts, minutes=20, speed=1.0)
    data, sids = ("--data", "d"), ("--sids", "s")
    needed = {
        "quantizer": ("rq.train_quantizer", "--embeddings", "e"),
        "quantizer_balanced": ("rq.train_quantizer", "--embeddings", "e"),
        "embed": ("rq.embed_items", *data),
        "examples": ("preprocess.build_examples", *data, *sids),
        "compact": ("train.train_compact", *data, *sids),
        "compact_distilled": ("train.train_compact", *data, *sids, "--soft_targets.teacher", "t"),
    }
    for name, overlay in made.overlays().items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(overlay))
        module, *flags = needed.get(name, ("train.train_sequential", *data))
        files = ["--config", f"configs/minionerec/{name}.yaml", "--config", str(tmp_path / f"{name}.yaml")]
        program.parse(args_class(module), [*files, *flags, "--output_dir", "o"])
    assert (made.draws is None) == (items <= 8_000), "drawn answers have options of their own"
    assert ("examples" in made.overlays()) == (titled == 0), "items with a title have examples of it"
    assert ("embed" in made.overlays()) == (titled < 0.5) and made.variables()["TREND"] == ""


def test_a_plan_is_written_once_and_kept(tmp_path):
    data, plan = prepared(tmp_path / "data", untitled=120, timed=0.0), tmp_path / "plan"
    command = [sys.executable, "-m", "configs.sizes", "--data", str(data), "--output_dir", str(plan)]
    told = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert (
        told[1] == f"{told[0]}kept as {plan / 'plan.json'} has it: remove the folder {plan} to plan again\n"
    )
    assert "3 x 50 codes, hidden 64" in told[0] and "forecast" in told[0]
    assert (plan / "choices.sh").read_text().splitlines() == [
        'export SEQUENTIAL="companions"', 'export TEACHER_SEEDS="0 1"', 'export TREND=""',
    ]  # fmt: skip
    prepared(data, items=201)
    told = refuse("configs.sizes", "--data", data, "--output_dir", plan)
    assert "the plan of other data" in told and f"-> remove the folder {plan}, or another RUN" in told
    (plan / "plan.json").write_text('{"counts": {')
    told = refuse("configs.sizes", "--data", data, "--output_dir", plan)
    assert "plan.json is no plan" in told and told.rstrip().endswith(f"-> remove the folder {plan}")
    assert "no prepared data set" in refuse("configs.sizes", "--data", tmp_path)
    assert "without data" in refuse("configs.sizes", "--data", data, "--size", "1.7B")


def generated_tables(folder: Path) -> Path:
    """The small generated store as two csv files in the columns of configs/template_tables."""
    raw = folder / "reviews"
    subprocess.run(
        [sys.executable, "-m", "data.toy", "--size", "tiny", "--output_dir", str(raw)], cwd=ROOT, check=True
    )

    def lines(name: str) -> list[dict]:
        found = []
        for line in (raw / name).read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # the store has broken lines on purpose
                continue
        return found

    titles: dict[str, str] = {}
    for item in lines("meta_Toystore.json"):
        titles.setdefault(item["asin"], item.get("title", "").replace(",", " ").replace('"', " ") or "thing")
    log = [
        f"{row['reviewerID']},{row['asin']},{row['unixReviewTime']}"
        for row in lines("Toystore.json")
        if row["asin"] in titles
    ]
    (folder / "items.csv").write_text(
        "\n".join(["item_id,title", *(",".join(item) for item in titles.items())]) + "\n"
    )
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *log]) + "\n")
    return folder


@pytest.mark.long
def test_the_best_recipe_from_tables_to_its_page_and_a_table_of_it(tmp_path):
    tables = generated_tables(tmp_path)
    variables = {"PYTHON": sys.executable, "PAPER": "best", "DATASET": "shop", "QUIET": "1", "DATA_ROOT": str(tmp_path / "data"),
                 "OUTPUT_ROOT": str(tmp_path / "out")}  # fmt: skip

    def bash(command: str, code: int = 0, **more: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=os.environ | variables | more,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    prepare = [
        "data.prepare",
        "--config",
        "configs/template_tables/prepare.yaml",
        "--raw",
        tables,
        "--output_dir",
        tmp_path / "data/shop",
    ]
    bash(" ".join(["$PYTHON -m", *map(str, prepare), "--filters '{user_k: 3, item_k: 3}'"]))
    told = bash("bash scripts/chain.sh", STAGES="plan 02 04 07 baselines teacher generator ensemble report")
    assert "forecast" in told and (tmp_path / "out/best-shop/report/index.html").exists()
    metrics = {
        name: json.loads((tmp_path / f"out/best-shop/eval/{name}.test/metrics/metrics.json").read_text())
        for name in ("compact_distilled", "ensemble", "itemknn_tuned", "pop")
    }
    value = {name: found["item_level/ndcg@10"]["value"] for name, found in metrics.items()}
    assert min(value["compact_distilled"], value["ensemble"]) > value["itemknn_tuned"] > value["pop"]

    rows = {"ROWS": "baselines mixture compact_distilled fusion", "SEEDS": "0 1", "RESULTS": str(tmp_path / "paper"),
            "PLAN": str(tmp_path / "out/best-shop/plan")}  # fmt: skip
    make = "set -euo pipefail; source scripts/reproduce/rows.sh; make_rows"
    bash(make, **rows)
    stored = read_stored(tmp_path / "paper/results/shop.json")
    assert set(stored) == {
        "pop",
        "last",
        "recent",
        "itemknn",
        "itemknn_tuned",
        "mixture",
        "compact_distilled",
        "fusion",
    }
    assert [len(stored[name]["runs"]) for name in ("mixture", "compact_distilled", "fusion")] == [1, 2, 2]
    assert "WARNING" not in (again := bash(make, **rows)) and {row["looks"] for row in stored.values()} == {1}
    assert again.count("already complete") > 20, "what is finished is kept"
    held = bash(make, **rows, RECOMPUTE="1", VERIFY="1e-6")
    assert held.count("stored") == 4 * (6 + 2 + 2) and "NOT HELD" not in held


@pytest.mark.long
def test_the_best_recipe_without_a_single_title(tmp_path):
    tables = generated_tables(tmp_path)
    items = [line.split(",")[0] for line in (tables / "items.csv").read_text().splitlines()]
    (tables / "items.csv").write_text("\n".join(items) + "\n")
    command = [sys.executable, "-m", "data.prepare", "--config", "configs/template_tables/prepare.yaml", "--raw", str(tables),
               "--output_dir", str(tmp_path / "data/shop"), "--tables.items.columns", "{item_id: item_id}",
               "--filters", "{user_k: 3, item_k: 3}"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    variables = {"PYTHON": sys.executable, "PAPER": "best", "DATASET": "shop", "DATA_ROOT": str(tmp_path / "data"),
                 "OUTPUT_ROOT": str(tmp_path / "out"), "STAGES": "plan 02 04 07 baselines teacher generator ensemble report"}  # fmt: skip
    done = subprocess.run(
        ["bash", "scripts/chain.sh"], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/best-shop-s0/baselines/companions").is_dir(), "the sequential model without texts"
    value = {
        name: json.loads((tmp_path / f"out/best-shop/eval/{name}.test/metrics/metrics.json").read_text())[
            "item_level/ndcg@10"
        ]["value"]
        for name in ("compact_distilled", "itemknn_tuned")
    }
    assert value["compact_distilled"] > value["itemknn_tuned"]
