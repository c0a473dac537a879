"""Open-Sora in its own checkout and environment, as a program beside ours: it cannot share one with a current torch.

`v2` is the 11B model of the main branch (text, a FLUX picture of it, video), `v13` the 1B model of branch opensora/v1.3, which is what
NaviGen drives. A call gets a file of prompts and a configuration that says only what is changed in one of the checkout's own
(`_base_`); it runs under OPENSORA_PYTHON in OPENSORA_HOME with some of the GPUs that this process may see, and calls run side by
side. Files are found again by their number, checked, and moved.

A call has one seed of noise (of its first prompt), and loads the model anew: `rows_per_call` 1 gives every video a seed of its own,
more rows share one, which the index names for each. Differs from NaviGen: its settings are the defaults of v13, but a call that
fails is an error, a video that is cut short is none, and CUDA_VISIBLE_DEVICES is kept to. Not run: no machine with Open-Sora was at
hand; commands and files are tested with a stand-in.
"""

from __future__ import annotations

import csv
import os
import queue
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.program import EnvironmentFault, InputError
from data.store.configuration import pace
from generation.makers import frames
from generation.pictures import Facts
from generation.requests import MediaRequest

HOME, PYTHON = "OPENSORA_HOME", "OPENSORA_PYTHON"
PROGRAMS = {"v2": "scripts/diffusion/inference.py", "v13": "scripts/inference.py"}
BASES = {"v2": "configs/diffusion/inference/t2i2v_{}.py", "v13": "configs/opensora-v1-3/inference/t2v.py"}
PROMPTS = {"v2": "prompts.csv", "v13": "prompts.txt"}
BRANCHES = {"v2": "main", "v13": "opensora/v1.3"}
RESOLUTIONS = {"v2": ("256px", "768px"), "v13": ("240p", "360p", "480p", "720p")}
USUAL = {
    "v2": {"resolution": "256px"},
    "v13": {"resolution": "720p", "steps": 30, "guidance": 4.0, "oscillation": False},
}
MOST_FRAMES = 129  # of v2
LAUNCHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PYTHONPATH",
)


@dataclass
class OpenSoraSettings:
    """How Open-Sora is called. Null is NaviGen's value for v13, and what Open-Sora's own configuration says for v2."""

    version: Literal["v2", "v13"] = "v13"
    """main branch (11B) or branch opensora/v1.3 (1B)"""
    resolution: str | None = None
    """v13: 240p, 360p, 480p, 720p (null); v2: 256px (null) or 768px"""
    aspect_ratio: str = "9:16"
    """width to height"""
    num_frames: int = 81
    """frames; v2 takes 4k + 1, 129 at most"""
    steps: int | None = None
    """denoising steps; v13: null = 30"""
    guidance: float | None = None
    """classifier-free guidance; v13: null = 4"""
    oscillation: bool | None = None
    """vary the guidance from step to step, as Open-Sora's own recipes do (with guidance 7.5); v13: null = false"""
    fps: int = 24
    """frames per second"""
    motion_score: int | None = None
    """v2: how much moves, 1 to 7"""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """number format of the models"""
    t5: str | None = None
    """directory of the text encoder (NaviGen's NAVIGEN_OPENSORA_T5_PATH)"""
    vae: str | None = None
    """of the autoencoder"""
    dit: str | None = None
    """of the diffusion transformer"""
    offload: bool = False
    """v2: move models to the GPU when they are used"""
    rows_per_call: int = 1
    """videos of one call: they share a seed, and the time to load the model"""
    gpus_per_call: int = pace(1)
    """GPUs that share one video"""
    num_gpus: int | None = pace(None)
    """of those that this process may see; null = all"""
    timeout_minutes: float = pace(120.0)
    """longest call"""

    def __post_init__(self) -> None:
        if self.resolution not in (None, *RESOLUTIONS[self.version]):
            raise InputError(
                f"opensora {self.version}: resolution {self.resolution!r} -> {', '.join(RESOLUTIONS[self.version])}"
            )
        if self.version == "v2" and (self.num_frames % 4 != 1 or self.num_frames > MOST_FRAMES):
            raise InputError(f"opensora v2: num_frames {self.num_frames} -> 4k + 1, {MOST_FRAMES} at most")
        if self.version == "v13" and (self.motion_score is not None or self.offload):
            raise InputError("opensora v13: motion_score and offload are options of v2")
        if min(self.num_frames, self.steps or 1, self.fps, self.rows_per_call, self.gpus_per_call) < 1:
            raise InputError(
                "opensora: num_frames, steps, fps, rows_per_call and gpus_per_call must be at least 1"
            )


@dataclass(frozen=True)
class Checkout:
    """Where Open-Sora is."""

    home: Path
    python: str


def recipe(settings: OpenSoraSettings) -> dict[str, Any]:
    """resolution, steps, guidance and oscillation, null where Open-Sora's own configuration decides."""
    usual = USUAL[settings.version]
    chosen = {name: getattr(settings, name) for name in ("resolution", "steps", "guidance", "oscillation")}
    return {name: usual.get(name) if value is None else value for name, value in chosen.items()}


def require_checkout(version: str) -> Checkout:
    """The checkout that OPENSORA_HOME names; EnvironmentFault that says what to set."""
    home = os.environ.get(HOME, "")
    how = (
        f"git clone -b {BRANCHES[version]} https://github.com/hpcaitech/Open-Sora, install it in an environment of its own, then "
        f"set {HOME}=/path/to/Open-Sora and {PYTHON}=/path/to/that/environment/bin/python"
    )
    if not home:
        raise EnvironmentFault(f"{HOME} is not set: Open-Sora {version} runs in its own checkout -> {how}")
    for file in (PROGRAMS[version], BASES[version].format("256px")):
        if not (Path(home) / file).is_file():
            raise EnvironmentFault(
                f"{HOME}={home} has no {file}: it is no checkout of Open-Sora {version} -> {how}"
            )
    python = os.environ.get(PYTHON, "")
    if not python or shutil.which(python) is None:
        raise EnvironmentFault(f"{PYTHON}={python or '(not set)'} is no Python that can be run -> {how}")
    return Checkout(Path(home).resolve(), python)


def visible_gpus(count: int | None) -> list[str]:
    """The names of the GPUs that calls may use: of CUDA_VISIBLE_DEVICES where it is set, else 0, 1, ..."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        found = [name.strip() for name in told.split(",") if name.strip()]
    else:
        import torch

        found = [str(number) for number in range(torch.cuda.device_count())]
    if not found:
        raise EnvironmentFault(
            "Open-Sora needs a GPU, and this process sees none -> CUDA_VISIBLE_DEVICES, or another machine"
        )
    if count is not None and not 0 < count <= len(found):
        raise InputError(
            f"opensora: num_gpus {count} -> 1 to {len(found)} ({', '.join(found)} are to be seen)"
        )
    return found[:count]


def gpu_slots(settings: OpenSoraSettings) -> list[list[str]]:
    """The GPUs of each call that runs beside others."""
    gpus, each = visible_gpus(settings.num_gpus), settings.gpus_per_call
    if each > len(gpus):
        raise InputError(f"opensora: gpus_per_call {each} of {len(gpus)} GPUs that are to be seen")
    return [gpus[start : start + each] for start in range(0, len(gpus) - each + 1, each)]


def overrides(settings: OpenSoraSettings, checkout: Checkout, *, save_dir: Path, seed: int) -> str:
    """A configuration of mmengine: one of the checkout's, and what is changed in it."""
    told = recipe(settings)
    base = checkout.home / BASES[settings.version].format(told["resolution"])
    shared: dict[str, object] = {"save_dir": str(save_dir), "seed": seed, "dtype": settings.dtype}
    models = {name: {"from_pretrained": path} for name, path in _models(settings).items() if path is not None}
    if settings.version == "v2":
        sampling = {
            "resolution": told["resolution"], "aspect_ratio": settings.aspect_ratio, "num_frames": settings.num_frames,
            "num_steps": told["steps"], "guidance": told["guidance"], "text_osci": told["oscillation"], "seed": seed,
        }  # fmt: skip
        sampling = {name: value for name, value in sampling.items() if value is not None}
        shared |= {"sampling_option": sampling, "fps_save": settings.fps, "offload_model": settings.offload}
        if settings.motion_score is not None:
            shared["motion_score"] = str(settings.motion_score)
    else:
        scheduler = {
            "num_sampling_steps": told["steps"], "cfg_scale": told["guidance"],
            "use_oscillation_guidance": told["oscillation"],
        }  # fmt: skip
        shared |= {
            "resolution": told["resolution"], "aspect_ratio": settings.aspect_ratio, "num_frames": settings.num_frames,
            "fps": settings.fps, "scheduler": scheduler,
        }  # fmt: skip
    lines = [
        f"_base_ = [{str(base)!r}]",
        *(f"{name} = {value!r}" for name, value in (shared | models).items()),
    ]
    return "\n".join(lines) + "\n"


def _models(settings: OpenSoraSettings) -> dict[str, str | None]:
    names = ("t5", "ae", "model") if settings.version == "v2" else ("text_encoder", "vae", "model")
    return dict(zip(names, (settings.t5, settings.vae, settings.dit), strict=True))


def command(settings: OpenSoraSettings, checkout: Checkout, *, config: Path, prompts: Path) -> list[str]:
    """What is run inside the checkout."""
    launcher = [
        checkout.python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(settings.gpus_per_call),
    ]
    given = "--dataset.data-path" if settings.version == "v2" else "--prompt-path"
    if settings.version == "v13" and settings.gpus_per_call == 1:
        launcher = [checkout.python]
    return [*launcher, PROGRAMS[settings.version], str(config), given, str(prompts)]


class OpenSora:
    """Makes videos by calls of Open-Sora, as many side by side as there are GPUs for."""

    suffix, outside = ".mp4", True

    def __init__(self, settings: OpenSoraSettings, *, scratch: Path) -> None:
        self.settings, self.scratch = settings, scratch
        self.checkout = require_checkout(settings.version)
        frames.require_ffmpeg()
        self.slots = gpu_slots(settings)
        self.per_seed = settings.rows_per_call
        self.batch = self.per_seed * len(self.slots)
        self._running: set[subprocess.Popen[bytes]] = set()

    def refusal(self, prompt: str) -> str | None:
        return None  # its text encoder cuts what is too long

    def make(
        self, requests: Sequence[MediaRequest], seeds: Sequence[int], files: Sequence[Path]
    ) -> list[str | None]:
        free: queue.Queue[list[str]] = queue.Queue()
        for slot in self.slots:
            free.put(slot)
        rows = self.per_seed
        starts = range(0, len(requests), rows)

        def run(start: int) -> list[str | None]:
            slot, part = free.get(), slice(start, start + rows)
            try:
                return self.call(requests[part], seeds[start], files[part], slot)
            finally:
                free.put(slot)

        with ThreadPoolExecutor(len(self.slots)) as pool:
            try:
                return [reason for outcome in pool.map(run, starts) for reason in outcome]
            except BaseException:  # an interruption: nobody waits for hours of GPU work that nobody collects
                for running in list(self._running):
                    _end(running)
                raise

    def call(
        self, requests: Sequence[MediaRequest], seed: int, files: Sequence[Path], gpus: Sequence[str]
    ) -> list[str | None]:
        """One run of Open-Sora; per request None, or why it has no file."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            argv, environment = self.prepared(requests, seed, folder, gpus)
            said = self.run(argv, environment, folder / "log.txt")
            outcome: list[str | None] = []
            for number, file in enumerate(files):
                found = sorted((folder / "made").rglob(f"*_{number:04d}.mp4"))
                if said is None and found:
                    os.replace(found[0], file)
                outcome.append(said or (None if found else "Open-Sora ended without this video"))
            return outcome
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, argv: Sequence[str], added: dict[str, str], log: Path) -> str | None:
        """Run a command inside the checkout; None, or why it failed. Its own words go to a log."""
        minutes = self.settings.timeout_minutes
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER} | added
        with open(log, "wb") as said:
            running = subprocess.Popen(
                argv,
                cwd=self.checkout.home,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(running)
            try:
                code = running.wait(minutes * 60)
            except subprocess.TimeoutExpired:
                return f"Open-Sora took more than {minutes:g} minutes"
            finally:
                _end(running)
                self._running.discard(running)
        return f"Open-Sora left with code {code}: {_last_line(log)}" if code else None

    def prepared(
        self, requests: Sequence[MediaRequest], seed: int, folder: Path, gpus: Sequence[str]
    ) -> tuple[list[str], dict[str, str]]:
        """Write prompts and configuration of a call; (its command, the variables that it adds)."""
        prompts = folder / PROMPTS[self.settings.version]
        folder.mkdir(parents=True, exist_ok=True)
        with open(prompts, "w", encoding="utf-8", newline="") as file:
            if self.settings.version == "v2":
                csv.writer(file).writerows([["text"], *([request.prompt] for request in requests)])
            else:
                file.writelines(f"{' '.join(request.prompt.split())}\n" for request in requests)
        config = folder / "config.py"
        config.write_text(
            overrides(self.settings, self.checkout, save_dir=(folder / "made").resolve(), seed=seed)
        )
        argv = command(self.settings, self.checkout, config=config.resolve(), prompts=prompts.resolve())
        return argv, {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}

    def check(self, file: Path) -> Facts:
        return frames.check_video(file, frames=self.settings.num_frames, size=None)


def _end(running: subprocess.Popen[bytes]) -> None:
    """The program and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no word")[-160:]


def planned_calls(
    settings: OpenSoraSettings, requests: Sequence[MediaRequest], seeds: Sequence[int]
) -> list[str]:
    """Per call its prompts, its configuration and its command for a shell; nothing is written. DIR stands for its folder."""
    checkout, slots = require_checkout(settings.version), gpu_slots(settings)
    told, rows, folder = [], settings.rows_per_call, Path("DIR")
    for number, start in enumerate(range(0, len(requests), rows)):
        config = overrides(settings, checkout, save_dir=folder / "made", seed=seeds[start])
        told += [
            f"# call {number}",
            *(f"#   {request.name}: {request.prompt}" for request in requests[start : start + rows]),
        ]
        told += [f"#   DIR/config.py: {line}" for line in config.splitlines()]
        argv = command(
            settings, checkout, config=folder / "config.py", prompts=folder / PROMPTS[settings.version]
        )
        gpus = ",".join(slots[number % len(slots)])
        told.append(f"cd {shlex.quote(str(checkout.home))} && CUDA_VISIBLE_DEVICES={gpus} {shlex.join(argv)}")
    return told
