"""Every config parses with the program that reads it, its trainer settings exist, and its header says how it is run."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import program
from configs.program import ROOT, InputError

PROGRAM_OF = {
    "prepare": "data.prepare",
    "embed*": "rq.embed_items",
    "tags*": "preprocess.complete_tags",
    "tids*": "preprocess.generate_tids",
    "enrich_items": "preprocess.enrich_items",
    "enrich_histories": "preprocess.enrich_histories",
    "reason*": "preprocess.reason_identifiers",
    "search*": "preprocess.search_prompts",
    "distill*": "preprocess.distill_reasoning",
    "quantizer*": "rq.train_quantizer",
    "assign*": "rq.assign_sids",
    "tiger*_examples": "preprocess.build_examples",
    "tiger*_base": "preprocess.init_base_model",
    "tiger*_recommend": "infer.recommend",
    "tiger*": "train.train_tiger",
    "retriever*_examples": "preprocess.build_examples",
    "retriever*_base": "preprocess.init_base_model",
    "retriever*_recommend": "infer.recommend",
    "retriever*": "train.train_tiger",
    "examples*": "preprocess.build_examples",
    "base_model": "preprocess.init_base_model",
    "vocab": "preprocess.expand_vocab",
    "sft_*": "train.sft",
    "grpo*": "train.grpo",
    "recommend": "infer.recommend",
    "instruct*": "infer.instruct",
    "images": "generation.generate_images",
    "videos": "generation.generate_videos",
    "evaluate": "infer.evaluate",
    "baselines": "infer.run_baselines",
    "sequential_*": "train.train_sequential",
    "compact*": "train.train_compact",
    "report": "infer.report",
}
HEADER = {
    "command": r"\b(bash|python -m) \S",
    "hardware": r"\bhardware\b",
    "expected result": r"\bexpected\b",
}
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
STAGES = [path for path in CONFIGS if path.parent.name != "accelerate"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def program_of(path: Path) -> str | None:
    """The module that reads a config, by the file's name."""
    return next((module for pattern, module in PROGRAM_OF.items() if path.match(f"{pattern}.yaml")), None)


def args_class(module: str) -> type:
    """The dataclass that a program gives to `program.run`."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (run,) = [call for call in calls if ast.unparse(call.func) == "program.run"]
    return getattr(importlib.import_module(module), run.args[0].id)


def layers(path: Path) -> list[Path]:
    """The files that a script reads for a config: the paper's recipe first, where there is one, then the data set's."""
    below = path.parent.parent / path.name
    like = path.parent.parent / "like"  # of a data set's overlay: its paper may take another's recipe
    if below not in STAGES and like.exists():
        below = ROOT / "configs" / like.read_text().strip() / path.name
    return [below, path] if below in STAGES else [path]


def parse_config(path: Path) -> Any:
    """The program's arguments from a config, with a made-up path for every required field it leaves to the shell."""
    cls = args_class(program_of(path))
    hints = typing.get_type_hints(cls)
    given = {key for file in layers(path) for key in yaml.safe_load(file.read_text()) or {}}
    argv = [part for file in layers(path) for part in ("--config", str(file))]
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            argv += [f"--{field.name}", "made-up" if hints[field.name] in (str, Path) else "[made-up]"]
    if given & {"answers"}:  # the command names the data set whose titles these are
        argv += ["--data", "made-up"]
    if path.stem.endswith("_distilled"):  # the command names the teacher
        argv += ["--soft_targets.teacher", "made-up"]
    if path.match("grpo*.yaml") and "history_to_instruction" in path.read_text():  # and the terms
        argv += ["--tids", "made-up"]
    return program.parse(cls, argv)[0]


def header(path: Path) -> str:
    """The comment lines that a file begins with."""
    lines = path.read_text().splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])


def missing_from_header(text: str) -> list[str]:
    return [what for what, pattern in HEADER.items() if not re.search(pattern, text)]


def check_trainer(args: Any, module: str, output_dir: Path) -> None:
    """Build the trainer arguments of a config as the program does."""
    from transformers import TrainingArguments
    from trl import SFTConfig

    from train.arguments import trainer_arguments
    from train.safety import selection

    cls = SFTConfig if module == "train.sft" else TrainingArguments
    fixed = selection(args.trainer)
    trainer_arguments(cls, args.trainer, output_dir=output_dir, seed=0, **fixed)


def test_there_are_configs():
    assert len(STAGES) > 5 and len(CONFIGS) > len(STAGES)


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_config_parses(path):
    assert program_of(path), f"no program reads {path.name}: name it after a stage or add the stage here"
    parse_config(path)


def test_headers_say_command_hardware_and_result():
    assert {name(path): lacks for path in CONFIGS if (lacks := missing_from_header(header(path)))} == {}


def test_headers_name_variables_that_choose_the_file():
    """QUANTIZER=x in the command of quantizer_x.yaml, EMBED=x in that of embed_x.yaml, the folder in that of an overlay."""
    for path in STAGES:
        kind, _, variant = path.stem.partition("_")
        if (
            kind in ("quantizer", "embed")
            and variant
            and "bash" in (command := header(path).split("# hardware")[0])
        ):
            assert f"{'QUANTIZER' if kind == 'quantizer' else 'EMBED'}={variant} " in command, name(path)
        if path.parent.parent.parent.name == "configs":
            assert f"={path.parent.name} " in header(path), name(path)


def test_a_recipe_is_written_once():
    """No config repeats what another file of its paper says, and no overlay repeats its recipe."""
    read = {path: yaml.safe_load(path.read_text()) for path in STAGES if path.stem != "prepare"}
    for path, content in read.items():
        paper = path.relative_to(ROOT / "configs").parts[0]
        same = [name(other) for other, text in read.items() if text == content and other != path]
        assert not [other for other in same if other.startswith(f"{paper}/")], name(path)
        below = read.get(layers(path)[0], {}) if len(layers(path)) == 2 else {}
        assert not [key for key, value in content.items() if below.get(key, ...) == value], name(path)


def test_trainer_settings_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "train.arguments.cpu_has_bfloat16", lambda: True
    )  # a recipe may ask for it; this machine may lack it
    trained = [path for path in STAGES if "trainer" in (yaml.safe_load(path.read_text()) or {})]
    assert len(trained) >= 2
    for path in trained:
        try:
            check_trainer(parse_config(path), program_of(path), tmp_path)
        except InputError as error:
            pytest.fail(f"{name(path)}: {error}")


def test_reward_names_exist(monkeypatch):
    from train.rewards import needs
    from train.rewards.mixture import build_mixture
    from train.rewards.needs import Sources
    from train.rewards.spec import read_specs

    configs = [path for path in STAGES if program_of(path) == "train.grpo"]
    assert configs
    for need in needs.RESOLVERS:  # what they are given comes from flags, which no config has
        monkeypatch.setitem(needs.RESOLVERS, need, lambda sources: None)
    for path in configs:
        assert build_mixture(read_specs(parse_config(path).rewards), Sources(None)).members


def environment_of(path: Path) -> dict[str, str]:
    """What `accelerate launch` would tell two processes about a config: its own parser and its own function."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    flags = ["--config_file", str(path), "--num_processes", "2", "-m", "train.sft"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""  # launch_command sets it, then calls what we call
        return prepare_deepspeed_cmd_env(args)[1]
    return prepare_multi_gpu_env(args)


def accelerate_faults(path: Path) -> list[str]:
    """Why a config is not one of ours: keys that accelerate does not know, processes or formats that are others' choice."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        config = load_config_from_file(str(path))
    except ValueError as error:
        return [str(error)]
    known = {action.dest for action in launch_command_parser()._actions}
    nested = {**(config.fsdp_config or {}), **(config.deepspeed_config or {})}
    faults = [f"{key} is no option of accelerate launch" for key in nested if key not in known]
    if config.num_processes != -1:
        faults.append("the script says how many processes")
    if config.mixed_precision != "no":
        faults.append("the program chooses the number format")
    return faults


ACCELERATE = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def test_accelerate_configs_load():
    assert {path.stem for path in ACCELERATE} == {"ddp", "zero2", "zero3", "fsdp2"}
    assert {name(path): faults for path in ACCELERATE if (faults := accelerate_faults(path))} == {}
    sharded = [path for path in ACCELERATE if path.stem != "ddp"]
    assert all(header(path).count("not run") == 2 for path in sharded), "they need GPUs that nobody here has"


def test_accelerate_configs_say_what_they_are_named_for(monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType

    told = {path.stem: environment_of(path) for path in ACCELERATE}
    assert [told[stage]["ACCELERATE_DEEPSPEED_ZERO_STAGE"] for stage in ("zero2", "zero3")] == ["2", "3"]
    assert told["zero3"]["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert "ACCELERATE_USE_FSDP" not in told["ddp"] and told["fsdp2"]["ACCELERATE_USE_FSDP"] == "true"
    for key, value in told["fsdp2"].items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT, "final/ is written from whole weights"


def test_control_accelerate_configs(tmp_path):
    text = (ROOT / "configs/accelerate/fsdp2.yaml").read_text()
    for good, bad in (
        ("fsdp_version: 2", "fsdp_versoin: 2"),
        ("use_cpu: false", "use_cqu: false"),
        ('"no"', '"bf16"'),
    ):
        assert good in text
        (tmp_path / "x.yaml").write_text(text.replace(good, bad))
        assert accelerate_faults(tmp_path / "x.yaml"), bad


# Controls: what these tests must refuse.


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("sft_x.yaml", "max_lenght: 8\n", "max_lenght"),
        ("sft_x.yaml", "max_length: long\n", "max_length"),
        ("sft_x.yaml", "- 1\n", "no mapping"),
        ("grpo_x.yaml", "rollout: {num_generation: 8}\n", "num_generation"),
    ],
    ids=["unknown key", "wrong type", "no mapping", "unknown nested key"],
)
def test_control_bad_configs(tmp_path, file, text, complaint):
    path = tmp_path / file
    path.write_text(text)
    argv = ["--config", str(path), "--model", "m", "--examples", "e", "--sids", "s", "--output_dir", "o"]
    with pytest.raises(InputError, match=complaint):
        program.parse(args_class(program_of(path)), argv)


def test_control_bad_trainer(tmp_path):
    path = tmp_path / "grpo.yaml"
    path.write_text("trainer: {warmup_ratio: 0.1, max_steps: 5}\n")
    with pytest.raises(InputError, match="warmup_ratio"):
        check_trainer(parse_config(path), "train.grpo", tmp_path)


def test_control_header(tmp_path):
    path = tmp_path / "grpo.yaml"
    path.write_text("# bash rl.sh\n# hardware: 2 CPU cores\nseed: 1  # expected\n")
    assert missing_from_header(header(path)) == ["expected result"]
    assert program_of(Path("configs/x/unheard_of.yaml")) is None


def chat_clients(value: Any) -> Iterator[dict[str, Any]]:
    """The settings of every chat client in a config."""
    if isinstance(value, dict):
        if isinstance(value.get("client"), dict):
            yield value["client"]
        for one in value.values():
            yield from chat_clients(one)


def test_chat_models_that_think_by_default_are_told_not_to():
    """Answers have as many tokens as they need themselves: a thought before them would be cut off, and the answer with it."""
    configs = {path: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs").glob("*/*.yaml"))}
    named = {
        (path, client["model"]): client
        for path, value in configs.items()
        for client in chat_clients(value)
        if "model" in client
    }
    thinking = {where: client for where, client in named.items() if where[1].startswith("qwen3")}
    assert len(thinking) >= 6
    assert [
        where for where, client in thinking.items() if client.get("extra") != {"enable_thinking": False}
    ] == []


def test_the_second_stage_of_navigen_is_chosen_behind_thoughts():
    """What is taught behind a thought is measured behind one, as SIDReasoner's is."""
    taught = [ROOT / "configs/navigen/sft_dual.yaml", ROOT / "configs/sidreasoner/sft_think.yaml"]
    assert all(parse_config(path).valid_thought >= 512 for path in taught)
    first = (ROOT / "configs/navigen/recommend.yaml").read_text().split("\n", 1)[0]
    assert "NAME=sft_dual" in first and "MODE=think" in first
