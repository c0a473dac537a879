"""Is this machine ready? Python, packages against their pins, GPUs, memory, disk, data sets, keys; one line per finding.

reads   requirements.txt, $DATA_ROOT, the environment and .env (which keys are set, never their values)
writes  nothing

Needs nothing but the standard library, so it also runs before the set-up. Exit code 0 ready, 3 not ready.

bash scripts/doctor.sh        (python -m configs.doctor --memory_gib 64 --disk_gib 200 for a run of your own)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from configs.integrity import Check, verify_outputs
from configs.memory import MemoryPlan, Shape, estimate
from configs.pins import read_pins
from configs.program import ROOT
from configs.recipes import SIZES, recipe

GIB = 2**30
MEMORY_GIB = 4.0  # what the quickstart may take at its peak
DISK_GIB = 1.0  # room for the quickstart's data set, checkpoints and report
# .venv is 2.0 GB with CPU wheels; the CUDA wheels alone are 2.8 GB before they are unpacked.
SETUP_GIB = {"cpu": 3.0, "cuda": 9.0}
HASH_GIB = 4.0  # bytes of data sets that are hashed without --deep: seconds
KEYS = {
    "OPENAI_API_KEY": "only a teacher or judge model behind an API needs it",
    "WANDB_API_KEY": "only TRACKER=wandb online needs it",
    "SWANLAB_API_KEY": "only TRACKER=swanlab online needs it",
    "HF_TOKEN": "only gated models need it",
    "DASHSCOPE_API_KEYS": "only the teacher of configs/navigen needs it",
}
OPTIONAL = ("requirements-gpu.txt", "requirements-serve.txt", "requirements-cluster.txt")
KEY_LINE = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*$")


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report; `level` is ok, warn or FAIL, and FAIL means not ready."""

    level: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.subject:<9} {self.text}"


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi, memory in GiB."""

    name: str
    total_gib: float
    free_gib: float


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """{package: version} of those of `packages` that this Python can import."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_python(version: tuple[int, int], executable: str) -> Diagnosis:
    text = f"{version[0]}.{version[1]} ({executable})"
    if (3, 11) <= version <= (3, 13):
        return Diagnosis("ok", "python", text)
    return Diagnosis("FAIL", "python", f"{text} is not 3.11-3.13 -> delete .venv, then bash scripts/setup.sh")


def check_packages(pins: Mapping[str, str], installed: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Pins that match share a line; each missing or differing one has its own. A local part (+cpu) does not differ."""
    if not installed:
        yield Diagnosis("FAIL", "packages", f"none of {len(pins)} is installed -> bash scripts/setup.sh")
        return
    same = [f"{name} {pin}" for name, pin in pins.items() if installed.get(name, "").split("+")[0] == pin]
    if same:
        yield Diagnosis("ok", "packages", f"{len(same)} of {len(pins)} as pinned: {', '.join(same)}")
    for name, pin in pins.items():
        have = installed.get(name)
        if have is None:
            yield Diagnosis("FAIL", "packages", f"{name} {pin} is missing -> bash scripts/setup.sh")
        elif have.split("+")[0] != pin:
            level = "warn" if have.split(".")[0] == pin.split(".")[0] else "FAIL"
            yield Diagnosis(level, "packages", f"{name} is {have}, the pin is {pin} -> bash scripts/setup.sh")


def check_optional(pins: Mapping[str, str], installed: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Packages of the other requirements files, which only some switches need: those that are installed in another version."""
    for name, pin in pins.items():
        have = installed.get(name)
        if have is not None and have.split("+")[0] != pin:
            yield Diagnosis(
                "warn",
                "packages",
                f"{name} is {have}, the pin is {pin}: what needs it was not tried with that",
            )


def find_gpus() -> list[Gpu]:
    """What nvidia-smi lists; empty where there is none. torch is not asked: importing it takes seconds."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(result.stdout) if result.returncode == 0 else []


def parse_gpus(text: str) -> list[Gpu]:
    """GPUs of nvidia-smi's csv lines `name, total MiB, free MiB`; a GPU that tells no memory counts as 0."""
    rows = [line.rsplit(",", 2) for line in text.splitlines() if line.count(",") >= 2]
    return [Gpu(name.strip(), _mib(total) / 1024, _mib(free) / 1024) for name, total, free in rows]


def _mib(text: str) -> float:
    return float(text) if text.strip().replace(".", "", 1).isdigit() else 0.0


def check_gpus(gpus: list[Gpu], torch: str | None, index_url: str | None) -> Iterator[Diagnosis]:
    """GPUs, and whether the torch build (its version's local part) fits them."""
    for position, gpu in enumerate(gpus):
        memory = f"{gpu.free_gib:.0f} of {gpu.total_gib:.0f} GiB free"
        yield Diagnosis("ok", "gpu", f"{position}: {gpu.name}, {memory}")
    cpu_build = torch is not None and torch.endswith("+cpu")
    if gpus and cpu_build:
        text = f"torch {torch} has no CUDA -> without TORCH_INDEX_URL: delete .venv, bash scripts/setup.sh"
        yield Diagnosis("warn", "gpu", text)
    if not gpus:
        yield Diagnosis("ok", "gpu", "none: everything runs on the CPU")
        if torch is None and not index_url and platform.system() == "Linux":
            text = "set-up would download CUDA wheels -> set TORCH_INDEX_URL to PyTorch's index of CPU wheels"
            yield Diagnosis("warn", "torch", text)


def check_sizes(gpu: Gpu) -> Iterator[Diagnosis]:
    """Which sizes of model can be trained on a GPU alone, by estimate."""
    found = {size: recipe(size, round(gpu.total_gib)) for size in SIZES}
    fits = [
        f"{size} ({'all' if one.plan.train_what == 'all' else 'LoRA'})" for size, one in found.items() if one
    ]
    if fits:
        yield Diagnosis("ok", "gpu", f"trains {', '.join(fits)}: estimates, see python -m configs.sizes")


def available_memory() -> int | None:
    """Bytes a new process can take: the machine's, and no more than its container's or job's limit; None if unknown."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    available = re.search(r"^MemAvailable:\s+(\d+)", meminfo, re.M)
    free = [int(available[1]) * 1024] if available else []
    return min(free + list(_free_in_groups()), default=None)


def _free_in_groups() -> Iterator[int]:
    """What each control group (v2) around this process leaves free; cached file pages count as free."""
    try:
        own = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.M)
    except OSError:
        return
    top = Path("/sys/fs/cgroup")
    group = top / own[1] if own else top
    for folder in (group, *group.parents[: len(group.relative_to(top).parts)]):
        try:
            limit = int((folder / "memory.max").read_text())  # "max" is no limit, and no int
            used = int((folder / "memory.current").read_text())
            cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
        except (OSError, ValueError):
            continue
        yield limit - used + (int(cached[1]) if cached else 0)


def check_memory(available: int | None, needed_gib: float) -> Diagnosis:
    if available is None:
        return Diagnosis("warn", "memory", f"unknown here -> make sure that {needed_gib:g} GiB are free")
    text = f"{available / GIB:.1f} GiB free, {needed_gib:g} GiB needed"
    if available >= needed_gib * GIB:
        return Diagnosis("ok", "memory", text)
    return Diagnosis("FAIL", "memory", f"{text} -> close programs or take a larger machine")


def needs_of(model: Path, *, processes: int, on_gpu: bool) -> tuple[float, float]:
    """(memory, disk) in GiB of a training of a model directory: by its config.json, as configs/memory.py counts.

    Memory of the machine: on a CPU all of the training, on GPUs the float32 weights that every process loads first. Disk: checkpoints
    of weights and both moments (two, the best one, one being written) and final/.
    """
    try:
        shape = Shape.of(json.loads((model / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        Parser(prog="python -m configs.doctor").error(
            f"--model {model} has no config.json of a decoder like Qwen3"
        )
    held = 4.0 * shape.parameters if on_gpu else estimate(shape, MemoryPlan(device="cpu")).total
    return max(MEMORY_GIB, processes * held / GIB + 1), DISK_GIB + (4 * 12 + 4) * shape.parameters / GIB


def check_cores(cores: int) -> Diagnosis:
    threads = os.environ.get("OMP_NUM_THREADS")
    return Diagnosis("ok", "cores", f"{cores}{f' (OMP_NUM_THREADS={threads})' if threads else ''}")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_directory(name: str, directory: Path, needed_gib: float) -> Diagnosis:
    """Can files be written in `directory` (or, before it exists, where it would be made), and is there room?"""
    present = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    shown = f"{name} = {directory}"
    try:
        with tempfile.TemporaryFile(dir=present):
            pass
    except OSError as error:
        return Diagnosis(
            "FAIL", "disk", f"{shown}: cannot write ({error.strerror}) -> point {name} elsewhere"
        )
    free = shutil.disk_usage(present).free
    text = f"{shown}: {free / GIB:.1f} GiB free, {needed_gib:g} GiB needed"
    if free >= needed_gib * GIB:
        return Diagnosis("ok", "disk", text)
    return Diagnosis("FAIL", "disk", f"{text} -> free space or point {name} elsewhere")


def check_data(root: Path, *, deep: bool) -> Iterator[Diagnosis]:
    """Every data set below `root`: the files of its finished outputs against their manifests."""
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    # data/ of the repository holds rooms of code too: they are no data sets
    sets = [p for p in folders if p.name[0] not in "._" and not (p / "__init__.py").exists()]
    if not sets:
        yield Diagnosis("ok", "data", f"no data set below {root} yet: scripts/01_prepare_data.sh makes one")
    budget = sys.maxsize if deep else int(HASH_GIB * GIB)
    for directory in sets:
        if not (directory / "manifest.json").exists():
            text = f"{directory} is unfinished (no manifest.json) -> run stage 01 again"
            yield Diagnosis("warn", "data", text)
        check = verify_outputs(directory, hash_budget=budget)
        budget -= check.hashed
        for fault in check.faults:
            yield Diagnosis("FAIL", "data", f"{fault} -> delete that output and run its stage again")
        if check.outputs and not check.faults:
            yield sound_data(directory, check)


def sound_data(directory: Path, check: Check) -> Diagnosis:
    """The line of a data set without faults."""
    text = f"{directory}: {check.outputs} outputs, {check.files} files, {check.bytes / 2**20:.0f} MiB"
    left = check.bytes - check.hashed
    if left:
        return Diagnosis(
            "warn", "data", f"{text}, sizes as written; {left / GIB:.1f} GiB unread -> add --deep"
        )
    return Diagnosis("ok", "data", f"{text}, sizes and hashes as written")


def check_keys(environment: Mapping[str, str], env_file: Path) -> Iterator[Diagnosis]:
    """Where each key is set. Values are compared with the empty string and go nowhere else."""
    in_file = {}
    if env_file.is_file():
        lines = (KEY_LINE.match(line) for line in env_file.read_text(errors="replace").splitlines())
        in_file = {match[1]: match[2].strip("'\"") for match in lines if match}
        if os.name == "posix" and env_file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield Diagnosis("warn", "keys", f"{env_file} can be read by others -> chmod 600 {env_file}")
    for key, purpose in KEYS.items():
        where = "environment" if environment.get(key) else ".env" if in_file.get(key) else None
        yield Diagnosis("ok", "keys", f"{key}: {f'set in {where}' if where else f'not set ({purpose})'}")


def diagnose(args: argparse.Namespace, environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    """All findings, the quick ones first."""
    pins = read_pins((ROOT / "requirements.txt").read_text())
    installed, gpus = installed_versions(pins), find_gpus()
    index_url = environment.get("TORCH_INDEX_URL")
    yield check_python(sys.version_info[:2], sys.executable)
    yield from check_packages(pins, installed)
    optional = {
        k: v for file in OPTIONAL for k, v in read_pins((ROOT / file).read_text()).items() if k not in pins
    }
    yield from check_optional(optional, installed_versions(optional))
    yield from check_gpus(gpus, installed.get("torch"), index_url)
    yield from (finding for gpu in gpus for finding in check_sizes(gpu))
    yield check_cores(usable_cores())
    memory_gib, disk_gib = args.memory_gib, args.disk_gib
    if args.model is not None:
        memory_gib, disk_gib = needs_of(Path(args.model), processes=max(1, len(gpus)), on_gpu=bool(gpus))
        yield Diagnosis(
            "ok",
            "run",
            f"training {args.model} needs {memory_gib:.1f} GiB of memory and {disk_gib:.1f} GiB of disk, by estimate",
        )
    yield check_memory(available_memory(), memory_gib)
    if "torch" not in installed:
        yield check_directory(".venv", ROOT / ".venv", SETUP_GIB["cpu" if index_url else "cuda"])
    data_root = Path(environment.get("DATA_ROOT") or "data")
    yield check_directory("DATA_ROOT", data_root, DISK_GIB if args.model else disk_gib)
    yield check_directory("OUTPUT_ROOT", Path(environment.get("OUTPUT_ROOT") or "outputs"), disk_gib)
    yield from check_keys(environment, ROOT / ".env")
    yield from check_data(data_root, deep=args.deep)


class Parser(argparse.ArgumentParser):
    """Errors in one line, like every other program's."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ERROR 2: {message} -> see `--help`\n")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m configs.doctor", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--memory_gib", type=float, default=MEMORY_GIB, help="free memory the run needs")
    parser.add_argument("--disk_gib", type=float, default=DISK_GIB, help="free disk the run needs")
    parser.add_argument(
        "--model", help="model directory that would be trained: memory and disk are what that needs"
    )
    parser.add_argument("--deep", action="store_true", help=f"hash data beyond {HASH_GIB:g} GiB too")
    args = parser.parse_args(argv)
    os.chdir(ROOT)  # relative roots mean the repository
    failures = 0
    for finding in diagnose(args, os.environ):
        print(finding, flush=True)
        failures += finding.level == "FAIL"
    print(f"not ready: {failures} to fix, see FAIL above" if failures else "ready")
    return 3 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
