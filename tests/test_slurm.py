"""Jobs of a cluster: what is submitted, what a job runs, what happens to one that is told to stop. SLURM's programs are stand-ins."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.program import ROOT

SBATCH = """#!/usr/bin/env bash
count=$(cat "$LOG.count" 2>/dev/null || echo 100)
echo $((count + 1)) > "$LOG.count"
echo "$* MODEL=${MODEL:-} NAME=${NAME:-} DATASET=$DATASET" >> "$LOG"
echo "$((count + 1));cluster"
"""
SRUN = """#!/usr/bin/env bash
echo "srun $1 GPUS=${NUM_GPUS:-} NODES=${NUM_NODES:-} AT=${MASTER_ADDR:-}:${MASTER_PORT:-}" >> "$LOG"
shift
SLURM_NODEID=1 "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*" >> "$LOG"; fi
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has sbatch, srun and scontrol of ours; they write to $LOG."""
    for name, text in (
        ("sbatch", SBATCH),
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("python", '#!/bin/bash\necho "$*"\n'),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    kept = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": os.environ["HOME"],
        "LOG": str(tmp_path / "log"),
    }
    return kept | {"PYTHON": str(tmp_path / "python"), "OUTPUT_ROOT": str(tmp_path / "out")}


def bash(*command: str, code: int = 0, **variables: str) -> list[str]:
    done = subprocess.run(
        ["bash", *command], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stderr if code else done.stdout).splitlines()


def test_stages_become_jobs_that_wait_for_each_other(cluster):
    asked = cluster | {
        "SUBMIT": "slurm",
        "NUM_NODES": "2",
        "NUM_GPUS": "8",
        "DATASET": "office",
        "MODEL": "/base",
    }
    said = bash("scripts/chain.sh", **asked, STAGES="08 09 11")
    assert said[1:] == ["scripts/08_expand_vocab.sh: job 101", "sft.sh: job 102", "evaluate.sh: job 103"]
    vocab, sft, evaluate = Path(cluster["LOG"]).read_text().splitlines()
    end = "--kill-on-invalid-dep=yes scripts/slurm"
    assert (
        vocab
        == f"--parsable --job-name 08_expand_vocab {end}/cpu.sbatch scripts/08_expand_vocab.sh MODEL=/base NAME= DATASET=office"
    )
    gpus = "--nodes 2 --gpus-per-node 8 --dependency=afterok:"
    assert sft == f"--parsable --job-name sft {gpus}101 {end}/gpu.sbatch sft.sh MODEL= NAME= DATASET=office"
    assert evaluate.endswith(
        f"{gpus}102 {end}/gpu.sbatch evaluate.sh MODEL= NAME=sft_recommend DATASET=office"
    )


def test_a_dry_run_prints_every_command_and_submits_nothing(cluster):
    asked = cluster | {
        "SUBMIT": "slurm",
        "NUM_NODES": "2",
        "NUM_GPUS": "8",
        "DRY_RUN": "1",
        "DATASET": "office",
    }
    said = bash("scripts/chain.sh", **asked, STAGES="08 09")
    assert not Path(cluster["LOG"]).exists() and not Path(cluster["OUTPUT_ROOT"]).exists()
    jobs = [line for line in said if line.startswith("sbatch --parsable")]
    assert len(jobs) == 2 and "--dependency=afterok:JOB_OF_08_expand_vocab" in jobs[1]
    machine = "--num_processes 16 --num_machines 2 --machine_rank 0 --main_process_ip FIRST_MACHINE"
    (train,) = [line for line in said if "-m train.sft" in line]
    assert train.startswith(f"    {cluster['PYTHON']} -m accelerate.commands.launch") and machine in train
    assert bash("sft.sh", **cluster, DRY_RUN="1")[1].split()[:3] == [
        cluster["PYTHON"], "-m", "train.sft",
    ]  # fmt: skip
    assert "SUBMIT=pbs -> slurm" in bash("scripts/chain.sh", **cluster, SUBMIT="pbs", code=2)[-1]


def job(cluster: dict[str, str], kind: str, *command: str, code: int = 0) -> list[str]:
    """A job script as SLURM would start it on two machines of four GPUs, here the second of them."""
    given = {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "31",
    }
    bash(
        f"scripts/slurm/{kind}.sbatch",
        *command,
        code=code,
        **cluster,
        **given,
        SLURM_JOB_NODELIST="node[7-8]",
    )
    return Path(cluster["LOG"]).read_text().splitlines()


def test_a_job_starts_every_machine_and_goes_back_to_the_queue_when_told_to_stop(cluster, tmp_path):
    asks = tmp_path / "asks.sh"
    asks.write_text('echo "rank $NODE_RANK: $*" >> "$LOG"; exit "${1:-0}"\n')
    start = "srun --kill-on-bad-exit=1 GPUS=4 NODES=2 AT=node7:20031"
    assert job(cluster, "gpu", str(asks), "0", "--flag") == [start, "rank 1: 0 --flag"]
    assert job(cluster, "gpu", str(asks), "143", code=143)[-2:] == ["rank 1: 143", "scontrol requeue 31"]
    assert job(cluster, "gpu", str(asks), "2", code=2)[-1] == "rank 1: 2", "an error is not tried again"
    plain = tmp_path / "plain.sh"
    plain.write_text("exit 143\n")
    assert job(cluster, "cpu", str(plain), code=143)[-1] == "scontrol requeue 31"


def test_what_follows_the_work_of_several_machines_is_done_on_the_first(cluster):
    several = {"NUM_NODES": "2", "MASTER_ADDR": "node7", "LAUNCH_ID": "1", "DATASET": "office"}
    first, second = (bash("evaluate.sh", **cluster, **several, NODE_RANK=rank) for rank in "01")
    assert [
        sum(f"-m infer.{name}" in line for line in first) for name in ("recommend", "evaluate", "report")
    ] == [1, 1, 1]
    assert [
        sum(f"-m infer.{name}" in line for line in second) for name in ("recommend", "evaluate", "report")
    ] == [1, 0, 0]


def test_a_notice_reaches_those_who_listen_and_the_script_says_143(cluster, tmp_path):
    """SLURM tells the task alone. The launcher ignores it, and hides the exit code of the process below it that does not."""
    launcher, program = tmp_path / "python", tmp_path / "program"
    program.write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: (print('saved', flush=True), os._exit(143)))\n"
        "pathlib.Path(os.environ['LOG']).touch()\ntime.sleep(20)\n"
    )
    launcher.write_text(
        f'#!/bin/bash\nif [ "$2" = configs.parallel ]; then exit; fi\n{sys.executable} {program} || exit 1\n'
    )
    asked = cluster | {"NUM_GPUS": "2", "DATASET": "office"}
    command = ["bash", "scripts/slurm/notice.sh", "bash", "sft.sh"]
    running = subprocess.Popen(command, env=asked, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while running.poll() is None and not Path(cluster["LOG"]).exists():
        time.sleep(0.05)
    running.send_signal(10)
    out, _ = running.communicate(timeout=60)
    assert out.splitlines()[-1] == "saved" and running.returncode == 143
    assert subprocess.run([*command[:2], "bash", "-c", "exit 7"], cwd=ROOT).returncode == 7


def test_stages_of_rows_go_to_ray_and_others_are_refused(cluster):
    asked = cluster | {"PYTHON": sys.executable, "ENGINE": "ray", "DRY_RUN": "1", "DATASET": "office"}

    def told(name: str, **more: str) -> list[list[str]]:
        calls = [shlex.split(line)[1:] for line in bash(name, **asked, **more)[1:]]
        return [call for call in calls if call[:2] == ["-m", "configs.ray_tasks"]]

    (recommend,) = told("evaluate.sh", NUM_GPUS="4")
    assert recommend[2:6] == ["--processes", "4", "--together", "false"]
    assert json.loads(recommend[-1])[0] == "infer.recommend" and "--output_dir" in json.loads(recommend[-1])
    (embed,) = told("scripts/02_embed_items.sh", NUM_GPUS="2")
    assert embed[2:6] == ["--processes", "2", "--together", "true"]
    (tids,) = told("scripts/05_generate_tids.sh")
    assert tids[3] == "1" and json.loads(tids[-1])[0] == "preprocess.generate_tids"
    assert "ENGINE=ray is nothing for train.sft" in bash("sft.sh", **asked, code=2)[-1]
    assert (
        "ENGINE=dask is nothing for data.prepare"
        in bash("scripts/01_prepare_data.sh", **asked | {"ENGINE": "dask"}, code=2)[-1]
    )
    spark = bash("scripts/01_prepare_data.sh", **asked | {"ENGINE": "spark"})[-1]
    assert "--engine spark" in spark


@pytest.mark.long
def test_two_processes_of_a_real_launch_leave_together_and_go_on(chain, tmp_path):
    """bash sft.sh under accelerate, on a CPU: SIGUSR1 to the task alone ends it with 143; again, it ends like another."""
    flags = [
        "--trainer.max_steps",
        "40",
        "--trainer.eval_steps",
        "20",
        "--trainer.logging_steps",
        "1",
        "--valid_rows",
        "16",
    ]
    kept = {name: os.environ[name] for name in ("PATH", "HOME")} | {
        "PYTHON": sys.executable,
        "NUM_GPUS": "2",
        "QUIET": "1",
    }
    kept |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PAPER": "toy", "DATASET": "toystore"}

    def start(output: Path) -> subprocess.Popen[str]:
        command = [
            "bash",
            "scripts/slurm/notice.sh",
            "bash",
            "sft.sh",
            *map(str, chain.flags()),
            *flags,
            "--output_dir",
            str(output),
        ]
        return subprocess.Popen(
            command,
            env=kept,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def steps(output: Path) -> list[int]:
        file = output / "metrics.jsonl"
        return (
            [json.loads(line)["step"] for line in file.read_text().splitlines() if '"loss"' in line]
            if file.exists()
            else []
        )

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=1800) == 0, whole.stdout.read()
    run = start(tmp_path / "run")
    while run.poll() is None and len(steps(tmp_path / "run")) < 3:
        time.sleep(0.05)
    os.kill(run.pid, 10)
    said, _ = run.communicate(timeout=900)
    left = steps(tmp_path / "run")[-1]
    assert run.returncode == 143 and 3 <= left < 40, said
    assert (tmp_path / f"run/checkpoint-{left}/COMPLETE.json").exists(), said
    again = start(tmp_path / "run")
    assert again.wait(timeout=1800) == 0, again.stdout.read()
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        for name in ("whole", "run")
    ]  # fmt: skip
    assert losses[0] == losses[1]
