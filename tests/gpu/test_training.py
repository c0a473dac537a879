"""What trains and embeds, on a CUDA device: programs in bfloat16, compiled, k-means of faiss-gpu, beside the same on the CPU.

python -m pytest tests/gpu/test_training.py -s      # the last test prints one JSON line: seconds of a step, eager and compiled

No path of ours reads flash-attention: its kernels take no mask for every pair of tokens (infer/loading.py refuses them).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rq.stack.vq import nearest_codes, train_codebook
from tests.handmade import process

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
COMMON = [
    "--valid_rows",
    16,
    "--trainer.max_steps",
    4,
    "--trainer.eval_steps",
    4,
    "--trainer.logging_steps",
    1,
    "--samples",
    0,
]
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def trained(module: str, flags: list[object], run: Path, **variables: str) -> list[float]:
    """The losses of a program's training; what it wrote is there."""
    done = process(module, *flags, "--output_dir", run, **variables)
    assert done.returncode == 0, done.stderr
    assert (run / "final/model.safetensors").exists()
    return losses(run)


@pytest.mark.parametrize(
    ("number_format", "tolerance"), [("false", 1e-3), ("true", 3e-2)], ids=["float32", "bfloat16"]
)
def test_supervised_losses_are_those_of_the_cpu(chain, tmp_path, number_format, tolerance):
    flags = [*chain.flags(), *COMMON]
    expected = trained("train.sft", flags, tmp_path / "cpu", **ON_CPU)
    found = trained("train.sft", [*flags, "--trainer.bf16", number_format], tmp_path / "gpu")
    assert found == pytest.approx(expected, rel=tolerance)


def test_a_compiled_model_trains_as_an_eager_one(chain, tmp_path):
    flags = [*chain.flags(), *COMMON, "--trainer.bf16", "true"]
    eager = trained("train.sft", flags, tmp_path / "eager")
    compiled = trained("train.sft", [*flags, "--trainer.torch_compile", "true"], tmp_path / "compiled")
    assert compiled == pytest.approx(eager, rel=3e-2)


def test_policy_optimisation_in_bfloat16(chain, tmp_path):
    flags = [
        *chain.flags(),
        *COMMON[:-2],
        "--rollout.num_generations",
        4,
        "--max_rows",
        16,
        "--trainer.bf16",
        "true",
    ]
    assert np.isfinite(trained("train.grpo", flags, tmp_path / "gpu")).all()


def test_recommendations_in_bfloat16_are_nearly_those_of_the_cpu(chain, tmp_path):
    flags = ["infer.recommend", *chain.flags(), "--split", "test", "--decode.beams", 10, "--output_dir"]
    for name, variables in (("cpu", ON_CPU), ("gpu", {})):
        assert process(*flags, tmp_path / name, **variables).returncode == 0
    found = []
    for name in ("cpu", "gpu"):
        (part,) = (tmp_path / name).glob("predictions-*")
        items: dict[int, set[int]] = {}
        for row in pq.read_table(part, columns=["example_id", "item_ids"]).to_pylist():
            items.setdefault(row["example_id"], set()).update(row["item_ids"])
        found.append(items)
    cpu, gpu = found
    shared = [len(cpu[key] & gpu[key]) / len(cpu[key]) for key in cpu]
    assert np.mean(shared) > 0.9


def test_kmeans_of_faiss_gpu_is_as_good_as_that_of_the_cpu(monkeypatch):
    faiss = pytest.importorskip("faiss")
    if not faiss.get_num_gpus():
        pytest.skip("this faiss sees no GPU (faiss-cpu)")
    x_ND = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    found = nearest_codes(x_ND, train_codebook(x_ND, 256, iterations=25, restarts=1, seed=0))[1].sum()
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    expected = nearest_codes(x_ND, train_codebook(x_ND, 256, iterations=25, restarts=1, seed=0))[1].sum()
    assert found <= 1.02 * expected


@pytest.mark.long
def test_seconds_of_a_step(chain, tmp_path, capsys):
    seconds = {}
    for name, more in (("eager", []), ("compiled", ["--trainer.torch_compile", "true"])):
        steps = {"--trainer.max_steps": 60, "--trainer.eval_steps": 60}
        flags = [
            *chain.flags(),
            *COMMON,
            *(part for pair in steps.items() for part in pair),
            "--trainer.bf16",
            "true",
            *more,
        ]
        started = time.perf_counter()
        trained("train.sft", flags, tmp_path / name)
        seconds[name] = round((time.perf_counter() - started) / 60, 3)
    with capsys.disabled():
        print(
            json.dumps(
                {"step_seconds": seconds, "device": torch.cuda.get_device_name(), "processes": os.cpu_count()}
            )
        )
