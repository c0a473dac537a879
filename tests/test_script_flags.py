"""Scripts without flags of their own: --help names their variables and runs nothing, any other word is refused before anything runs."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml

from configs.program import ROOT
from tests.shell import script

WITHOUT_FLAGS = [
    "scripts/chain.sh",
    "scripts/quickstart.sh",
    "scripts/quickstart_instruct.sh",
    "scripts/quickstart_media.sh",
    "scripts/quickstart_reasoning.sh",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts/reproduce").glob("*_*.sh")),
    "scripts/reproduce/scaling.sh",
]
HEADS = ["scripts/setup.sh", "scripts/test.sh", "scripts/reproduce/verify.sh"]


@pytest.mark.parametrize("name", [*WITHOUT_FLAGS, *HEADS])
def test_help_is_the_head_of_the_script_and_runs_nothing(echo, name):
    head = [line[1:].strip() for line in (ROOT / name).read_text().splitlines()[1:6]]
    told = [line.strip() for line in script(echo, name, "--help")]
    assert head[0] in told and told[told.index(head[0]) :][:5] == head
    assert not [line for line in told if line.startswith("-m ")]


@pytest.mark.parametrize("name", WITHOUT_FLAGS)
def test_a_flag_of_a_script_without_flags_is_an_error(echo, name):
    for flags in (["--overwrite"], [""]):
        (told,) = script(echo, name, *flags, code=2)
        assert told.startswith("ERROR 2: ") and "takes variables and no flags" in told and "--help" in told
        if flags[0]:  # what the programs of its stages advise
            advice = (
                "OVERWRITE=1 bash " if name == "scripts/chain.sh" else "give it to the script of that stage"
            )
            assert f"was given: --overwrite -> {advice}" in told


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("scripts/merge.sh", ["train.merge"]),
        ("scripts/smollm2.sh", ["preprocess.convert_gguf"]),
        ("scripts/train_teacher.sh", ["infer.run_baselines", "train.train_sequential", "infer.fuse"]),
    ],
)
def test_help_needs_no_input(echo, name, programs):
    calls = [line for line in script(echo, name, "--help") if line.startswith("-m ")]
    assert calls == [f"-m {program} --help" for program in programs]


def test_overwrite_of_a_teacher_reaches_its_members(echo):
    calls = [
        line
        for line in script(echo, "scripts/train_teacher.sh", "--overwrite")
        if "train.train_sequential" in line or "--models [mixture" in line or "infer.fuse" in line
    ]
    assert len(calls) == 4 and all("--overwrite" in call for call in calls), calls


def test_the_list_of_downloads_and_the_help_name_no_data_set(echo):
    assert script(echo, "scripts/download.sh", "--help") == [
        "-m data.download --name  --output_dir data//raw --help"
    ]
    assert script(echo, "scripts/download.sh", "ml1m", "--timeout", "5")[1:] == [
        "-m data.download --name ml1m --output_dir data/ml1m/raw --timeout 5"
    ]


def test_an_unknown_data_set_says_which_there_are_and_how_to_make_one(echo):
    told = script(echo, "scripts/01_prepare_data.sh", code=2, DATASET="shop")[-1]
    assert "configs/minionerec/shop -> DATASET is one of all_beauty" in told and "industrial" in told
    assert told.endswith("cp -r configs/template_tables configs/minionerec/shop")
    told = script(echo, "scripts/01_prepare_data.sh", code=2, DATASET="shop", PAPER="gpr")[-1]
    assert "configs/gpr/shop -> DATASET is one of all_beauty" in told, (
        "a paper without data sets of its own is like one that has"
    )


@pytest.mark.parametrize(
    ("paper", "own"), [("best", []), ("minionerec", []), ("lcrec", ["rqvae_lcrec"]), ("toy", ["hidvae"])]
)
def test_an_unknown_recipe_says_which_there_are_in_the_paper_and_in_the_one_it_is_like(echo, paper, own):
    told = script(echo, "scripts/04_build_sids.sh", code=2, PAPER=paper, QUANTIZER="balancd")[-1]
    assert told.startswith(f"ERROR 2: no quantizer_balancd.yaml in configs/{paper} or ")
    there = told.split(" -> there are: ")[1].split()
    assert {f"quantizer_{name}.yaml" for name in ("balanced", "rqvae", *own)} < set(there), there
    assert len(set(there)) == len(there) and "quantizer.yaml" in there


def test_a_recipe_that_no_paper_of_these_has_is_said_to_be_of_another(echo):
    told = script(echo, "scripts/06_write_reasoning.sh", code=2, PAPER="minionerec")[-1]
    assert told.endswith(" -> there are: none of that kind, another PAPER has them")


def test_an_unknown_paper_is_told_papers_only(echo):
    told = script(echo, "scripts/04_build_sids.sh", code=2, PAPER="minionrec")[-1]
    named = set(told.split(" -> PAPER is a folder of configs/: ")[1].split())
    assert {"minionerec", "best", "toy"} < named
    assert not any(name == "accelerate" or name.startswith(("template_", "__")) for name in named)


@pytest.mark.parametrize(("name", "forecasts"), [("06_write_reasoning", 1), ("06_enrich_texts", 2)])
def test_a_forecast_of_a_stage_of_teachers_asks_by_none_of_its_programs(echo, name, forecasts):
    """Those that read what was not written are left out."""
    for flags, variables in ((["--dry_run"], {}), ([], {"ASK_ARGS": "--dry_run true"})):
        calls = script(echo, f"scripts/{name}.sh", *flags, **variables)[1:]
        assert len(calls) == forecasts and all("--dry_run" in call for call in calls), calls
    assert len(script(echo, f"scripts/{name}.sh", "--dry_run", "false")[1:]) == 3


def test_rl_reads_its_configs_in_silence(echo):
    done = subprocess.run(
        ["bash", str(ROOT / "rl.sh")], env=os.environ | {"PYTHON": str(echo)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr and "-m train.grpo --config" in done.stdout


def test_stages_are_known_before_the_first_one_runs(echo):
    (told,) = script(echo, "scripts/chain.sh", code=2, STAGES="01 2")
    assert told.startswith("ERROR 2: STAGES has 2 -> 01 02")


def test_without_runs_the_list_of_runs_says_how_to_make_one(echo, tmp_path):
    told = script(echo, "scripts/status.sh", OUTPUT_ROOT=str(tmp_path / "none"))
    assert told == [
        f"no runs yet: {tmp_path / 'none'} is not there (bash scripts/quickstart.sh makes the first)"
    ]
    assert script(echo, "scripts/status.sh", OUTPUT_ROOT=str(tmp_path)) == [
        f"-m infer.status --root {tmp_path}"
    ]
    assert script(echo, "scripts/status.sh", RUN="r", OUTPUT_ROOT=str(tmp_path / "none")) == [
        f"-m infer.status --root {tmp_path / 'none'}/r"
    ]


TEACHER = ["r/baselines/mixture", "r-s0/baselines/text", "r-s1/baselines/text", "r/baselines/trend"]


@pytest.mark.parametrize(
    ("name", "flag", "listed", "variables"),
    [
        ("train_teacher", "members", TEACHER, {"TEACHER_SEEDS": "0 1"}),
        ("train_sequential", "models", ["r/baselines/sasrec"], {}),
        ("compare", "runs", ["a", "b"], {"RUNS": "a,b"}),
        ("07_build_examples", "reasoning", ["industrial/reasoning/teacher_histories"], {"TASKS": "think", "PAPER": "sidreasoner"}),
        ("reproduce/scaling", "runs", ["scaling-industrial-s0", "scaling-industrial-s1"], {"SEEDS": "0 1"}),
    ],
)  # fmt: skip
def test_a_folder_may_have_any_character_but_a_comma(echo, tmp_path, name, flag, listed, variables):
    root = f"{tmp_path}/aus & gabe #1 [x]: 'y' \"z\" \\"
    variables = variables | {"OUTPUT_ROOT": root, "DATA_ROOT": root, "RUN": "r", "RAW": "raw"}
    lines = script(echo, f"scripts/{name}.sh", **variables)
    given = [line.split(f" --{flag} ")[1].split(" --")[0] for line in lines if f" --{flag} " in line]
    found = [folders for folders in map(yaml.safe_load, given) if folders[0].startswith(root)]
    assert found == [[f"{root}/{folder}" for folder in listed]]


@pytest.mark.parametrize("name", ["OUTPUT_ROOT", "RUN"])
def test_a_comma_in_the_folder_of_runs_is_refused_before_anything_runs(echo, name):
    (told,) = script(echo, "scripts/train_teacher.sh", code=2, **{name: "a,b"})
    assert told.startswith("ERROR 2: ") and "a,b" in told and "without a comma" in told


@pytest.mark.parametrize("name", ["train_baselines", "train_sequential", "train_teacher", "fuse"])
def test_missing_semantic_ids_are_refused_before_anything_runs(echo, tmp_path, name):
    (tmp_path / "shop/sids/balanced").mkdir(parents=True)
    (tmp_path / "shop/manifest.json").touch()
    shop = {"DATA_ROOT": str(tmp_path), "OUTPUT_ROOT": str(tmp_path / "out"), "DATASET": "shop"}
    (told,) = script(echo, f"scripts/{name}.sh", code=2, SIDS="nixda", **shop)
    assert told.startswith("ERROR 2: ") and "shop/sids/nixda ->" in told and "one of: balanced;" in told
    assert len(script(echo, f"scripts/{name}.sh", SIDS="balanced", **shop)) > 1
    for silent in ({"DRY_RUN": "1"}, {"EVALUATE_ARGS": "--sids elsewhere"}):
        script(echo, f"scripts/{name}.sh", SIDS="nixda", **shop | silent)
