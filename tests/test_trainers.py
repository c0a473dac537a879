"""SFT and GRPO as a user runs them: they learn, they survive a kill, they stop on bad numbers and bad input."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from configs.program import ROOT, InputError
from data.store.checkpoints import fault
from tests import handmade

STEPS = {"max_steps": 24, "eval_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 16}
SFT = ["--valid_rows", "20", "--trainer.learning_rate", "5e-3", "--trainer.weight_decay", "0.01"]
GRPO = [
    "--max_rows",
    "16",
    "--valid_rows",
    "20",
    "--rollout.num_generations",
    "4",
    "--trainer.learning_rate",
    "1e-3",
    "--eval_share",
    "1",
]
FLAGS = {"train.sft": SFT, "train.grpo": GRPO}


def steps(**changes: int) -> list[str]:
    return [part for key, value in (STEPS | changes).items() for part in (f"--trainer.{key}", str(value))]


def weights(directory: Path) -> str:
    return hashlib.sha256((directory / "final/model.safetensors").read_bytes()).hexdigest()


def log(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def series(directory: Path, key: str) -> list[float]:
    return [line[key] for line in log(directory) if key in line]


@pytest.fixture(scope="session")
def trained(chain, tmp_path_factory):
    """Uninterrupted reference runs of both trainers."""
    root = tmp_path_factory.mktemp("trained")
    sft, grpo = root / "sft", root / "grpo"
    handmade.succeed("train.sft", *chain.flags(), *steps(), *SFT, "--output_dir", sft)
    handmade.succeed("train.grpo", *chain.flags(model=sft / "final"), *steps(), *GRPO, "--output_dir", grpo)
    return {"train.sft": (chain.model, sft), "train.grpo": (sft / "final", grpo)}


def test_sft_learns_and_moves_every_parameter(chain, trained):
    from safetensors.torch import load_file

    _, run = trained["train.sft"]
    losses = series(run, "loss")
    assert losses[-1] < 0.7 * losses[0]
    before, after = load_file(chain.model / "model.safetensors"), load_file(run / "final/model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    facts = json.loads((run / "manifest.json").read_text())["facts"]
    assert facts["best_ndcg@10"] == max(series(run, "eval_ndcg@10"))
    assert not list(run.glob("final/*.bin")), "no pickles in a model that is passed on"


def test_grpo_raises_its_reward(chain, trained):
    _, run = trained["train.grpo"]
    rewards = series(run, "reward")
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert 0 < series(run, "kl")[0] < max(series(run, "kl"))
    measured = [line["step"] for line in log(run) if "eval_ndcg@10" in line]
    assert measured == list(range(0, 25, 4)), "the model as it came in first, then each evaluation once"


SILENT = """
def silent(batch):
    return [[None] * 4 for _ in batch.rows]
"""


def test_a_model_that_no_checkpoint_beats_is_handed_on(chain, tmp_path, capsys):
    """Without a reward nothing is learned: the run says so, and final/ is the model that came in."""
    from safetensors.torch import load_file

    from infer.engine import DecodeSettings, load_engine

    (tmp_path / "mine.py").write_text(SILENT)
    flags = ["--rewards", f"[{tmp_path}/mine.py:silent]", "--rollout.num_generations", 4, "--max_rows", 8]
    run, short = tmp_path / "run", steps(max_steps=2, eval_steps=1, logging_steps=1)
    handmade.call("train.grpo", *chain.flags(), *short, *flags, "--valid_rows", 20, "--output_dir", run)
    before, after = load_file(chain.model / "model.safetensors"), load_file(run / "final/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    facts = json.loads((run / "manifest.json").read_text())["facts"]
    assert facts["best_step"] == 0 and facts["final_is"] == "the model as it came in"
    assert facts["best_ndcg@10"] == series(run, "eval_ndcg@10")[0]
    said = capsys.readouterr()
    assert "no checkpoint beat the model as it came in" in said.out
    assert "nothing was learned" in said.err
    assert "NaN" not in (run / "metrics.jsonl").read_text() and series(run, "reward") == [None, None]
    manifest = json.loads((run / "manifest.json").read_text())
    assert any("mine.py" in name for name in manifest["inputs"]), "the file of the reward is an input"
    engine = load_engine(run / "checkpoint-2", chain.sids, chain.examples, DecodeSettings(beams=4))
    assert len(engine.recommend([[1, 2]], 4)[0]) == 4, "a checkpoint is a model directory"


def test_models_that_cannot_be_trained_are_refused_at_load(chain, tmp_path):
    from tests import families

    families.model("t5", vocab_size=400).save_pretrained(tmp_path / "t5")
    (tmp_path / "t5/sid_vocab.json").write_text((chain.model / "sid_vocab.json").read_text())
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text("{}")
    for module in ("train.sft", "train.grpo"):
        for model, words in (("t5", "is an encoder-decoder"), ("lora", "merge the adapter")):
            with pytest.raises(InputError, match=words):
                flags = chain.flags(model=tmp_path / model)
                handmade.call(module, *flags, "--output_dir", tmp_path / "out")


def start(module: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=handmade.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.01)


@pytest.mark.parametrize("module", ["train.sft", "train.grpo"])
def test_a_killed_run_resumes_to_the_same_weights_and_log(module, chain, trained, tmp_path):
    model, reference = trained[module]
    arguments = [*chain.flags(model=model), *steps(), *FLAGS[module], "--output_dir", tmp_path / "run"]
    process = start(module, *arguments)
    wait_for(tmp_path / "run/checkpoint-8/COMPLETE.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    newest = max((tmp_path / "run").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (newest / "optimizer.pt").unlink(
        missing_ok=True
    )  # the stock trainer would go on with a fresh optimizer, silently
    done = handmade.run(module, *arguments)
    assert done.returncode == 0, done.stderr
    assert f"skipping {newest}" in done.stderr and "resuming from" in done.stdout
    assert weights(tmp_path / "run") == weights(reference)
    assert (tmp_path / "run/metrics.jsonl").read_text() == (reference / "metrics.jsonl").read_text()
    again = handmade.run(module, *arguments)
    assert again.returncode == 0 and "already complete" in again.stdout


@pytest.mark.long
def test_a_run_that_saves_by_epoch_resumes_with_its_dropout(chain, tmp_path):
    epochs = [
        "--trainer.num_train_epochs",
        "3",
        "--trainer.per_device_train_batch_size",
        "32",
        "--dropout",
        "0.2",
    ]
    arguments = [*chain.flags(), *SFT, *epochs, "--output_dir"]
    handmade.succeed("train.sft", *arguments, tmp_path / "reference")
    process = start("train.sft", *arguments, tmp_path / "run")
    first = json.loads((tmp_path / "reference/manifest.json").read_text())["counts"]["steps"] // 3
    wait_for(tmp_path / f"run/checkpoint-{first}/COMPLETE.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "resuming from" in handmade.succeed("train.sft", *arguments, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "reference")
    assert log(tmp_path / "run") == log(tmp_path / "reference")


def test_sigterm_leaves_a_complete_checkpoint_and_exit_143(chain, trained, tmp_path):
    model, reference = trained["train.sft"]
    arguments = [*chain.flags(model=model), *steps(), *SFT, "--output_dir", tmp_path / "run"]
    process = start("train.sft", *arguments)
    wait_for(tmp_path / "run/checkpoint-4/COMPLETE.json", process)
    process.terminate()
    _, error = process.communicate()
    assert process.returncode == 143 and "INTERRUPTED 143" in error.splitlines()[-1]
    assert all(fault(directory) is None for directory in (tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run/manifest.json").exists()
    handmade.succeed("train.sft", *arguments)
    assert weights(tmp_path / "run") == weights(reference)


@pytest.mark.parametrize("module", ["train.sft", "train.grpo"])
def test_a_non_finite_loss_stops_before_the_optimizer(module, chain, trained, tmp_path):
    model, _ = trained[module]
    flags = [*FLAGS[module], "--trainer.learning_rate", "1e30", "--trainer.max_grad_norm", "0"]
    line = handmade.run(module, *chain.flags(model=model), *steps(), *flags, "--output_dir", tmp_path / "run")
    assert line.returncode == 4, line.stderr
    assert "not finite" in line.stderr or " is nan at step" in line.stderr or " is inf at step" in line.stderr
    assert not (tmp_path / "run/final").exists()


def test_validation_labels_never_reach_training(chain, trained, tmp_path):
    """GRPO on examples whose valid and test targets are shuffled trains to the same weights (last step, not best)."""
    import shutil

    import pyarrow.parquet as pq

    examples = tmp_path / "examples"
    shutil.copytree(chain.examples, examples)
    for split in ("valid", "test"):
        table = pq.read_table(examples / f"{split}.parquet")
        reversed_targets = table["target"].combine_chunks().take(list(range(table.num_rows))[::-1])
        pq.write_table(
            table.set_column(table.column_names.index("target"), "target", reversed_targets),
            examples / f"{split}.parquet",
        )
    handmade.resign(examples)
    model, reference = trained["train.grpo"]
    run = tmp_path / "run"
    handmade.succeed(
        "train.grpo", *chain.flags(model=model, examples=examples), *steps(), *GRPO, "--output_dir", run
    )
    assert series(run, "reward") == series(reference, "reward")
    assert series(run, "loss") == series(reference, "loss")
    assert series(run, "eval_ndcg@10") != series(reference, "eval_ndcg@10")


def test_bad_input_is_refused_in_one_line(chain, trained, tmp_path):
    import numpy as np

    other = tmp_path / "other_sids"
    sizes = (8, 8, 4)
    codes = np.stack(np.unravel_index(np.arange(40), sizes), axis=1).astype(np.int32)
    handmade.write_sids(other, data=chain.data, codes=codes, sizes=sizes)
    out = tmp_path / "run"

    def refuse(*changes: object, **paths: Path) -> str:
        line = handmade.refuse("train.sft", *chain.flags(**paths), *SFT, "--output_dir", out, *changes)
        assert not out.exists(), "nothing is written"
        return line

    assert "other_sids" in refuse(sids=other)
    assert "no SID tokens" in refuse(model=chain.model.with_name("base"))
    assert "trainer.learning_rat " in refuse("--trainer.learning_rat", "1")
    assert "--outptu_dir" in refuse("--outptu_dir", "x")
    assert "max_length" in refuse("--max_length", "5")


def test_an_output_in_use_or_of_another_configuration_is_refused(chain, trained):
    from data.store.output import locked

    model, run = trained["train.sft"]
    same = ["train.sft", *chain.flags(model=model), *steps(), *SFT, "--output_dir", run]
    assert "seed 0 -> 7" in handmade.refuse(*same, "--seed", "7")
    with locked(run):
        assert "in use by pid" in handmade.refuse(*same)
