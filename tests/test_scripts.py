"""What every stage script does before its program runs: which recipe, data and run it says, what it refuses, whose flags are whose.

The programs are replaced by one that prints its own command line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from configs.program import ROOT
from tests.shell import parsed_programs, script

STAGES = {
    "scripts/01_prepare_data.sh": ["data.prepare"],
    "scripts/02_embed_items.sh": ["rq.embed_items"],
    "scripts/03_complete_tags.sh": ["preprocess.complete_tags"],
    "scripts/04_build_sids.sh": ["rq.train_quantizer", "rq.assign_sids"],
    "scripts/05_generate_tids.sh": ["preprocess.generate_tids"],
    "scripts/06_write_reasoning.sh": [
        "preprocess.reason_identifiers",
        "preprocess.search_prompts",
        "preprocess.distill_reasoning",
    ],
    "scripts/06_enrich_texts.sh": ["preprocess.enrich_items", "preprocess.enrich_histories"],
    "scripts/07_build_examples.sh": ["preprocess.build_examples"],
    "scripts/08_expand_vocab.sh": ["preprocess.init_base_model", "preprocess.expand_vocab"],
    "scripts/train_baselines.sh": ["infer.run_baselines", "infer.evaluate"],
    "scripts/train_sequential.sh": ["train.train_sequential", "infer.run_baselines", "infer.evaluate"],
    "scripts/train_tiger.sh": [
        "preprocess.build_examples",
        "preprocess.init_base_model",
        "preprocess.expand_vocab",
        "train.train_tiger",
        "infer.recommend",
        "infer.evaluate",
    ],
    "scripts/train_compact.sh": ["train.train_compact", "infer.recommend", "infer.evaluate"],
    "scripts/fuse.sh": ["infer.fuse", "infer.evaluate"],
    "scripts/13_generate_images.sh": ["generation.generate_images", "generation.evaluate_media"],
    "scripts/14_generate_videos.sh": ["generation.generate_videos", "generation.evaluate_media"],
    "sft.sh": ["train.sft"],
    "rl.sh": ["train.grpo"],
    "evaluate.sh": ["infer.recommend", "infer.evaluate", "infer.report"],
    "scripts/12_instruct.sh": ["infer.instruct", "infer.grade"],
}
FLAGGED = {
    "scripts/train_tiger.sh": "train.train_tiger"
}  # who gets trailing flags, where it is not the first program
SEVERAL = [script for script, programs in STAGES.items() if len(programs) > 1]


@pytest.mark.parametrize("name", STAGES)
def test_the_choice_is_said_first_and_the_programs_follow(echo, name):
    dataset = {"scripts/03_complete_tags.sh": {"DATASET": "scientific"}}.get(name, {"DATASET": "office"})
    first, *calls = script(echo, name, **dataset)
    papers = {"scripts/03_complete_tags.sh": "hidvae"}
    numbers = (
        "05_generate_tids",
        "06_write_reasoning",
        "12_instruct",
        "13_generate_images",
        "14_generate_videos",
    )
    papers |= dict.fromkeys((f"scripts/{number}.sh" for number in numbers), "navigen")
    papers["scripts/06_enrich_texts.sh"] = "sidreasoner"
    paper = papers.get(name, "minionerec")
    assert first.startswith(
        f"{Path(name).name}: PAPER={paper} DATASET={dataset['DATASET']} CONFIG={dataset['DATASET']}"
    )
    called = [call.split()[1] for call in calls]
    assert list(dict.fromkeys(called)) == STAGES[name]
    if name in ("sft.sh", "evaluate.sh"):
        assert first.split()[4:] == [
            "RUN=minionerec-office",
            f"NAME={'sft_recommend' if name == 'sft.sh' else 'grpo'}",
        ]


def test_a_data_set_reads_the_recipe_then_its_own_overlay(echo, tmp_path):
    (call,) = script(echo, "sft.sh", DATASET="nowhere")[1:]
    assert re.findall(r"--config (\S+)", call) == ["configs/minionerec/sft_recommend.yaml"]
    (call,) = script(echo, "scripts/01_prepare_data.sh", DATASET="magazine10", CONFIG="magazine")[1:]
    assert re.findall(r"--config (\S+)", call) == ["configs/minionerec/magazine/prepare.yaml"]
    assert "--raw data/magazine10/raw --output_dir data/magazine10" in call
    (call,) = script(echo, "scripts/01_prepare_data.sh", PAPER="best", DATASET="magazine")[1:]
    assert re.findall(r"--config (\S+)", call) == ["configs/minionerec/magazine/prepare.yaml"], (
        "best is like it"
    )
    copy = tmp_path / "root"
    for folder in ("scripts", "configs/paper/shop"):
        (copy / folder).mkdir(parents=True)
    for file in ("scripts/env.sh", "scripts/flags.sh", "rl.sh"):
        (copy / file).write_text((ROOT / file).read_text())
    for file in ("grpo.yaml", "shop/grpo.yaml"):
        (copy / "configs/paper" / file).touch()
    (call,) = script(echo, str(copy / "rl.sh"), PAPER="paper", DATASET="d", CONFIG="shop")[1:]
    assert re.findall(r"--config (\S+)", call) == ["configs/paper/grpo.yaml", "configs/paper/shop/grpo.yaml"]
    (copy / "configs/paper/grpo_published.yaml").touch()
    (call,) = script(echo, str(copy / "rl.sh"), PAPER="paper", DATASET="d", NAME="grpo_published")[1:]
    assert re.findall(r"--config (\S+)", call) == ["configs/paper/grpo_published.yaml"], (
        "a recipe of the output's name"
    )


def test_the_stages_of_dual_identifiers_follow_each_other(echo):
    shop = {"PAPER": "navigen", "DATASET": "office", "TIDS": "words", "RUN": "r"}
    (call,) = script(echo, "scripts/05_generate_tids.sh", **shop)[1:]
    assert "--config configs/navigen/tids.yaml" in call and "--given" not in call
    (call,) = script(echo, "scripts/05_generate_tids.sh", GIVEN="/t.json", **shop)[1:]
    assert "--config" not in call and "--given /t.json" in call, "the recipe says who is asked, and nobody is"
    (call,) = script(echo, "scripts/05_generate_tids.sh", "--given=/t.json", **shop)[1:]
    assert "--config" not in call and call.endswith("tids/words --given=/t.json")
    (call,) = script(echo, "scripts/07_build_examples.sh", TASKS="identifiers", **shop)[1:]
    assert "configs/navigen/examples_identifiers.yaml --tids data/office/tids/words" in call
    assert call.endswith("examples/identifiers") and "--reasoning" not in call
    (call,) = script(echo, "scripts/07_build_examples.sh", TASKS="dual", **shop)[1:]
    kinds = ", ".join(
        f'"data/office/reasoning/words_{kind}"' for kind in ("identifiers", "instructions", "thoughts")
    )
    assert f"--reasoning [{kinds}]" in call and call.endswith("examples/dual")
    (call,) = script(echo, "sft.sh", STAGE="identifiers", EXAMPLES="identifiers", **shop)[1:]
    assert "--model outputs/r/vocab " in call and "--output_dir outputs/r/sft_identifiers " in call
    (call,) = script(
        echo, "sft.sh", STAGE="identifiers_rows", NAME="sft_identifiers", EXAMPLES="identifiers", **shop
    )[1:]
    assert "sft_identifiers_rows.yaml" in call and "--output_dir outputs/r/sft_identifiers " in call
    for stage in ("dual", "dual_published"):
        (call,) = script(echo, "sft.sh", STAGE=stage, EXAMPLES="dual", **shop)[1:]
        assert (
            "--model outputs/r/sft_identifiers/final " in call
            and f"--output_dir outputs/r/sft_{stage} " in call
        )
    instruct, grade = script(echo, "scripts/12_instruct.sh", INSTRUCT_MODE="two_stage", **shop)[1:]
    assert (
        "--model outputs/r/sft_dual/final " in instruct
        and "outputs/r/instructions/sft_dual.test.two_stage" in instruct
    )
    assert (
        "--instructions outputs/r/instructions/sft_dual.test.two_stage --tids data/office/tids/words" in grade
    )


def test_evaluation_and_instructions_have_modes_of_their_own(echo):
    calls = script(
        echo,
        "scripts/chain.sh",
        PAPER="navigen",
        DATASET="office",
        MODE="think",
        STAGES="11 12 13",
        IMAGE_MODEL="/z",
    )
    found = {
        name: next(call for call in calls if name in call)
        for name in ("recommend ", "instruct ", "generate_images ")
    }
    assert "--mode think" in found["recommend "] and "sft_recommend.test.think" in found["recommend "]
    assert "--mode direct_json_prefix" in found["instruct "] and "--output_dir" in found["instruct "]
    assert not any(".think" in call for name, call in found.items() if name != "recommend ")


def test_media_are_named_after_their_instructions(echo):
    variables = {
        "RUN": "r",
        "INSTRUCT_MODE": "two_stage",
        "SOURCE": "oracle",
        "CLIP": "/clip",
        "DATASET": "office",
    }
    draw, show = script(echo, "scripts/13_generate_images.sh", "--seed", "7", MODEL="/z", **variables)[1:]
    assert "--model /z --instructions outputs/r/instructions/sft_dual.test.two_stage " in draw
    assert "--requests.source oracle --dataset office" in draw
    assert draw.endswith("--output_dir outputs/r/images/sft_dual.test.two_stage.oracle --seed 7")
    assert "--media outputs/r/images/sft_dual.test.two_stage.oracle --data data/office --model /clip" in show
    assert show.endswith("--output_dir outputs/r/gallery/images.sft_dual.test.two_stage.oracle")
    (call,) = script(echo, "scripts/14_generate_videos.sh", "--dry_run", MAKER="diffusers", MODEL="/w")[1:]
    assert "--maker diffusers --model /w " in call and call.endswith("videos/sft_dual.test --dry_run")


def test_names_of_variants_and_outputs(echo):
    train, assign = script(echo, "scripts/04_build_sids.sh", QUANTIZER="balanced")[1:]
    assert "--config configs/minionerec/quantizer_balanced.yaml" in train and "quantizers/balanced" in train
    assert "--config configs/minionerec/assign.yaml" in assign and assign.endswith(
        "--output_dir data/industrial/sids/balanced"
    )
    (call,) = script(echo, "scripts/02_embed_items.sh", EMBED="published", EMBEDDINGS="mean")[1:]
    assert "embed_published.yaml" in call and call.endswith("embeddings/mean")
    calls = script(echo, "evaluate.sh", "--decode.beams", "10", NAME="beams10", MODEL="m/final", RUN="r")[1:]
    assert "--model m/final" in calls[0] and "outputs/r/eval/beams10.test --decode.beams 10" in calls[0]
    assert "--predictions outputs/r/eval/beams10.test" in calls[1] and "--decode.beams" not in calls[1]
    call = script(echo, "rl.sh", NAME="grpo_teacher", TEACHER="outputs/r/baselines/text")[1]
    assert (
        "--config configs/minionerec/grpo_teacher.yaml" in call
        and "--teacher outputs/r/baselines/text" in call
    )
    assert "--config configs/minionerec/grpo.yaml" in script(echo, "rl.sh", NAME="free")[1]
    assert script(echo, "rl.sh", NAME="free", RUN="r", TRACKER="wandb")[1].endswith(
        "outputs/r/free --tracker wandb"
    )


FOREIGN = re.findall(
    r"^\|[^|]*\| `([^`|]*(?:bash|python) [^`|]*)` \|$", (ROOT / "data/README.md").read_text(), flags=re.M
)


@pytest.mark.parametrize("command", FOREIGN)
def test_commands_for_those_who_come_from_elsewhere_are_understood(tmp_path, command):
    """Every program of the command takes its recipe and its flags, names and values."""
    assert parsed_programs(command, tmp_path)


def test_the_list_for_those_who_come_from_elsewhere_is_read():
    assert len(FOREIGN) > 20


def test_a_chain_hands_on_its_own_models(echo):
    """MODEL is that of the first stage that reads one; the others read what was trained before them."""
    variables = {"DATASET": "office", "MODEL": "/base", "OUTPUT_ROOT": "out", "RUN": "r"}
    read = []
    for line in script(echo, "scripts/chain.sh", **variables, STAGES="08 09 10 11"):
        if "--model " in line:
            read.append((line.split()[1], line.split("--model ")[1].split()[0]))
    assert read == [
        ("preprocess.expand_vocab", "/base"), ("train.sft", "out/r/vocab"), ("train.grpo", "out/r/sft_recommend/final"),
        ("infer.recommend", "out/r/grpo/final"),
    ]  # fmt: skip
    lines = script(echo, "scripts/chain.sh", **variables, STAGES="11")
    assert any("infer.recommend" in line and "--model /base" in line for line in lines)
    for more, maker in (({"VIDEO_MODEL": "/wan"}, "diffusers --model /wan"), ({}, "opensora --instructions")):
        lines = script(echo, "scripts/chain.sh", **variables, **more, PAPER="navigen", STAGES="14")
        assert any(f"--maker {maker}" in line for line in lines)


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart_instruct", "quickstart_media", "quickstart_reasoning"]
)
def test_a_quickstart_takes_no_recipe_from_the_shell(name):
    """Whatever the stages that it runs would read is set, unset or said in its header."""
    text = (ROOT / f"scripts/{name}.sh").read_text()
    numbers = re.findall(r'^STAGES="(.*)"', text, re.MULTILINE)
    stages = {stage for stage in STAGES if stage in text}
    for number in numbers[0].split() if numbers else ():
        own = {"09": "sft.sh", "10": "rl.sh", "11": "evaluate.sh", "baselines": "scripts/train_baselines.sh"}
        stages |= {stage for stage in STAGES if stage == own.get(number) or f"/{number}_" in stage}
    assert len(stages) >= 2
    known = re.search(r'VARIABLES="([^"]*)"', (ROOT / "scripts/env.sh").read_text())[1].split()
    read = {one for stage in stages for one in known if f"${{{one}:-" in (ROOT / stage).read_text()}
    settled = set(re.findall(r"\b([A-Z_]{3,})=", text)) | set(
        re.findall(r"^unset (.*)", text, re.MULTILINE)[0].split()
    )
    assert read - settled == set()


def test_members_of_a_fusion_are_models_or_all_predictions_of_one(echo, tmp_path):
    for place in ("baselines/text", "eval/text.test", "eval/grpo.valid", "eval/grpo.test"):
        (tmp_path / "r" / place).mkdir(parents=True)
        (tmp_path / "r" / place / "manifest.json").touch()
    variables = {
        "OUTPUT_ROOT": str(tmp_path),
        "RUN": "r",
        "NAME": "both",
        "MEMBERS": "text,grpo,other/knn",
        "SPLIT": "valid",
    }
    told = script(echo, "scripts/fuse.sh", **variables | {"SPLIT": ""}, SPLITS="valid test")
    assert "[valid,test] " in told[1] and "both.valid " in told[2] and "both.test " in told[3]
    fuse, evaluate = script(echo, "scripts/fuse.sh", "--how", "pool", **variables, SPLITS="valid test")[1:]
    folders = [f"{tmp_path}/r/{place}" for place in ("baselines/text", "eval/grpo.valid", "eval/grpo.test")]
    assert f"--members {json.dumps([*folders, 'other/knn'])} " in fuse and fuse.endswith("--how pool")
    assert (
        f"--splits [valid] --output_dir {tmp_path}/r/baselines/both --output_root {tmp_path}/r/eval" in fuse
    )
    assert f"--predictions {tmp_path}/r/eval/both.valid " in evaluate


def test_processes_of_one_or_several_machines(echo):
    """The config is asked about this machine first, then accelerate starts NUM_GPUS processes a machine."""
    several = {"NUM_GPUS": "4", "ACCELERATE_CONFIG": "configs/accelerate/zero2.yaml"}
    asked, call = script(echo, "sft.sh", **several)[1:]
    assert asked == "-m configs.parallel --config_file configs/accelerate/zero2.yaml"
    assert "--config_file configs/accelerate/zero2.yaml --num_processes 4 -m train.sft --config" in call
    node = {"NUM_NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    assert "LAUNCH_ID" in script(echo, "rl.sh", code=2, **several, **node)[-1]
    node["LAUNCH_ID"] = "monday-1"
    call = script(echo, "rl.sh", **several, **node)[2]
    machine = "--num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 --main_process_port 29500"
    assert f"--num_processes 8 {machine} -m train.grpo" in call
    assert "MASTER_ADDR" in script(echo, "sft.sh", code=2, NUM_NODES="2", NODE_RANK="0")[-1]
    assert "0 to 1" in script(echo, "sft.sh", code=2, **node | {"NODE_RANK": "2"})[-1]
    alone = script(echo, "sft.sh", code=2, ACCELERATE_CONFIG="configs/accelerate/zero2.yaml")
    assert "one process would be started" in alone[-1], "a config that nothing would read"


def test_a_size_and_a_card_become_flags(echo, tmp_path):
    """The program that knows them is asked; its first word is the accelerate config of several processes."""
    teller = tmp_path / "python"
    teller.write_text(
        '#!/usr/bin/env bash\nif [ "$2" = configs.sizes ]; then echo "configs/accelerate/zero2.yaml --lr 1"; '
        'echo "$*" >&2; else echo "$*"; fi\n'
    )
    teller.chmod(0o755)
    said, call = script(teller, "sft.sh", SIZE="1.7B", CARD="24")[1:]
    assert said == "SIZE=1.7B CARD=24: --lr 1" and "sft_recommend.yaml --lr 1 --model" in call
    calls = script(teller, "sft.sh", SIZE="1.7B", CARD="24", NUM_GPUS="8")[2:]
    assert calls[0].endswith("configs/accelerate/zero2.yaml") and "--num_processes 8" in calls[1]
    mine = script(teller, "sft.sh", SIZE="1.7B", CARD="24", NUM_GPUS="8", ACCELERATE_CONFIG="mine.yaml")[2]
    assert mine.endswith("mine.yaml")
    assert "both" in script(echo, "sft.sh", code=2, SIZE="1.7B")[-1]


@pytest.mark.parametrize("name", SEVERAL)
def test_help_of_a_script_is_that_of_all_its_programs_and_overwrite_reaches_them(echo, name):
    assert script(echo, name, "--seed", "1", "--help")[1:] == [
        f"-m {program} --help" for program in STAGES[name]
    ]
    calls = script(echo, name, "--overwrite", "true", "--seed", "3")[1:]
    (flagged,) = [call for call in calls if "--seed" in call]
    assert (
        flagged.endswith("--overwrite true --seed 3")
        and f"-m {FLAGGED.get(name, STAGES[name][0])} " in flagged
    )
    assert all("--overwrite true" in call for call in calls if "infer.report" not in call)
    assert not [call for call in script(echo, name)[1:] if "--overwrite" in call]
    kinds = ("ASSIGN", "EXPAND", "EVALUATE", "DISTILL", "GRADE", "GALLERY", "HISTORY")
    extra = {f"{kind}_ARGS": "--resamples 7" for kind in kinds}
    calls = script(echo, name, "--overwrite", **extra)[1:]
    assert any(call.endswith("--overwrite --resamples 7") for call in calls[1:])


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"DATSET": "office"}, ["DATSET", "DATASET"]),
        ({"DATASTE": "office"}, ["DATASTE", "DATASET"]),
        ({"NUM_GPU": "4"}, ["NUM_GPU", "NUM_GPUS"]),
        ({"EMBEDDING": "x"}, ["EMBEDDING", "EMBEDDINGS"]),
        ({"ASIGN_ARGS": "x"}, ["ASIGN_ARGS", "ASSIGN_ARGS"]),
        ({"PAPER": "minionrec"}, ["no configs/minionrec", "minionerec"]),
        ({"CONFIG": "industral"}, ["no configs/minionerec/industral"]),
        ({"QUANTIZER": "balnced"}, ["quantizer_balnced.yaml", "quantizer_balanced.yaml"]),
        ({"DATASET": "adapters"}, ["name of a module"]),
        ({"DATASET": "prepare"}, ["name of a module"]),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_misspelt_variable_or_choice_is_named_with_what_was_meant(echo, variables, said):
    lines = script(echo, "scripts/04_build_sids.sh", code=2, **variables)
    assert lines[-1].startswith("ERROR 2: ") and all(word in lines[-1] for word in said), lines


def test_other_variables_are_left_alone(echo):
    usual = {
        "PAGER": "less",
        "MODELS": "/m",
        "TERM": "xterm",
        "LANG": "C",
        "USER": "me",
        "RAWS": "1",
        "NODE": "n",
    }
    script(echo, "scripts/04_build_sids.sh", **usual)


def test_a_plan_that_is_there_is_taken_and_its_ensembles_are_weighed_by_likelihood(echo, tmp_path):
    plan = tmp_path / "best-shop/plan"
    plan.mkdir(parents=True)
    (plan / "choices.sh").write_text(
        'export SEQUENTIAL="companions"\nexport TEACHER_SEEDS="0"\nexport TREND=""\n'
    )
    (plan / "sequential_companions.yaml").touch()
    (plan / "plan.json").touch()
    shop = {"PAPER": "best", "DATASET": "shop", "OUTPUT_ROOT": str(tmp_path), "STAGES": "teacher ensemble"}
    calls = script(echo, "scripts/chain.sh", **shop)
    (trained,) = (call for call in calls if "train.train_sequential" in call)
    assert re.findall(r"--config (\S+)", trained) == [
        "configs/minionerec/sequential_companions.yaml", f"{plan}/sequential_companions.yaml",
    ]  # fmt: skip
    teacher, ensemble = (call for call in calls if "infer.fuse" in call)
    assert 'best-shop-s0/baselines/companions"]' in teacher and "trend" not in teacher
    assert 'baselines/teacher", ' in ensemble and 'baselines/compact_distilled"]' in ensemble
    assert all(call.endswith("--weights likelihood") for call in (teacher, ensemble))
    measured = [call for call in calls if "infer.evaluate" in call and "eval/ensemble." in call]
    assert [call.split("eval/ensemble.")[1].split()[0] for call in measured] == ["valid", "test"]
    jobs = script(echo, "scripts/chain.sh", SUBMIT="slurm", DRY_RUN="1", **shop)
    assert sum("--weights likelihood" in line for line in jobs) == 2 and any(
        "plan/sequential_companions.yaml" in line for line in jobs
    )
    fixed = next(
        call for call in script(echo, "scripts/chain.sh", WEIGHTS="", **shop) if "infer.fuse" in call
    )
    assert fixed.endswith("--weights [0.5,1] --scale fitted")
    for name in ("scripts/chain.sh", "scripts/train_teacher.sh"):
        assert "WEIGHTS=[1,2] ->" in script(echo, name, code=2, WEIGHTS="[1,2]", **shop)[-1]
    (call,) = script(echo, "scripts/01_prepare_data.sh", PAPER="best", DATASET="m", CONFIG="magazine")[1:]
    assert "--config configs/minionerec/magazine/prepare.yaml" in call
