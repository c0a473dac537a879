"""`--plan` before a training starts: what it counts, and its memory against a run that is measured."""

from __future__ import annotations

import doctest
import re
import shutil

import pytest
from transformers import AutoConfig, Qwen3ForCausalLM

from configs.memory import MemoryPlan, Shape
from data.store.manifest import read_manifest
from infer.work.metric_lines import fields_of
from tests.handmade import call, process, refuse
from train.scale import planning
from train.scale.planning import Load, Machine, told

SHAPE = Shape(1024, 3072, 28, 16, 8, 128, 151936, tied=True, head_norms=True)  # Qwen3-0.6B


def test_worked_examples():
    found = doctest.testmod(planning)
    assert found.attempted == 2 and not found.failed


def test_time_and_memory_of_a_card_by_hand():
    load = Load(steps=1000, tokens=8 * 16384.0, labels=8 * 1024.0, slots=16384, validation_tokens=16384)
    given = {"train_what": "all", "eval_share": 0.15}
    lines = told(Machine.of("8xH100"), SHAPE, load, MemoryPlan(), **given)
    trunk, table = 28 * SHAPE.layer, 151936 * 1024
    seconds = 1000 * 6 * (8 * 16384 * trunk + 8 * 1024 * table) / (8 * 989e12)
    assert lines[2].startswith(
        f"time: {seconds / 0.5 / 60:.1f} min to {seconds / 0.2 / 60:.1f} min, at 50% to 20%"
    )
    assert (
        "of 80 GB" in lines[1]
        and "DOES NOT FIT" not in lines[1]
        and "596.0M parameters, 1,000 steps" in lines[0]
    )
    small = told(Machine.of("1xL4"), SHAPE, load, MemoryPlan(), **given)
    assert "DOES NOT FIT" in small[1], "56 GiB, as the table of recipes says"
    shared = told(Machine.of("8xH100 fsdp2"), SHAPE, load, MemoryPlan(), **given)
    assert float(re.search(r"about ([\d.]+)", shared[1])[1]) < float(
        re.search(r"about ([\d.]+)", lines[1])[1]
    )


@pytest.fixture(scope="module")
def wider(chain, tmp_path_factory):
    """The chain's model with layers wide enough to be seen beside what Python itself holds."""
    model = tmp_path_factory.mktemp("wider") / "model"
    shutil.copytree(chain.model, model)
    for name in ("model.safetensors", "manifest.json", "COMPLETE.json"):
        (model / name).unlink(missing_ok=True)
    config = AutoConfig.from_pretrained(chain.model)
    config.hidden_size, config.intermediate_size, config.head_dim = 512, 1536, 64
    config.num_attention_heads = config.num_key_value_heads = 8
    config.num_hidden_layers, config.layer_types = 4, None
    Qwen3ForCausalLM(
        type(config)(**{k: v for k, v in config.to_dict().items() if k != "layer_types"})
    ).save_pretrained(model)
    return model


# gradients of one part are alive while the next one computes, moments of Adam from the second step on
FLAGS = [
    "--trainer.max_steps", 2, "--trainer.eval_steps", 2, "--trainer.gradient_accumulation_steps", 2,
    "--trainer.per_device_train_batch_size", 128, "--valid_rows", 16, "--samples", 0, "--max_length", 128,
]  # fmt: skip


@pytest.mark.long
def test_a_plan_is_near_what_a_run_takes(chain, wider, tmp_path, capsys):
    """On a CPU, in float32, peak memory of the whole process and of what the training adds to it."""
    flags = [*chain.flags(model=wider), "--output_dir", tmp_path / "run", *FLAGS]
    planned = process("train.sft", *flags, "--plan", "cpu")
    assert planned.returncode == 0, planned.stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "tokens").exists()
    parts = dict(
        re.findall(
            r"(weights|gradients|optimizer|activations|output layer|validation) ([\d.]+)", planned.stdout
        )
    )
    foretold = float(re.search(r"memory: about ([\d.]+) GiB a process", planned.stdout)[1])
    done = process("train.sft", *flags)
    assert done.returncode == 0, done.stderr
    measured = read_manifest(tmp_path / "run")["peak_mib"] / 1024
    added = 1.1 * sum(
        float(parts[name]) for name in ("weights", "gradients", "optimizer", "activations", "output layer")
    )
    assert abs(foretold - measured) <= 0.25 * measured
    # what Python and its libraries hold is most of it: looser, but not blind
    assert abs(added - (measured - (foretold - added))) <= 0.35 * added
    assert fields_of(tmp_path / "run/metrics.jsonl") >= {"loss", "eval_ndcg@10"}


def test_a_plan_of_rollouts_counts_branches_and_the_reference(chain, tmp_path, capsys):
    flags = [
        *chain.flags(),
        "--output_dir",
        tmp_path / "run",
        "--trainer.max_steps",
        3,
        "--rollout.num_generations",
        4,
    ]
    flags += ["--trainer.per_device_train_batch_size", 8]
    call("train.grpo", *flags, "--plan", "2xA100")
    plan, memory, time = capsys.readouterr().out.splitlines()[-3:]
    assert plan.startswith("plan: 2 x A100") and " 3 steps of " in plan
    assert f"{2 * 8 * (1 + 4 * 2)} of them scored" in plan, (
        "the last prompt token and two inner levels of four branches"
    )
    assert "an estimate" in memory and "an estimate" in time and not (tmp_path / "run").exists()


def test_plans_that_cannot_be_made_are_refused(chain, tmp_path):
    flags = [*chain.flags(), "--output_dir", tmp_path / "run"]
    assert "COUNTxCARD" in refuse("train.sft", *flags, "--plan", "8xABACUS")
