"""Stage 14 with a stand-in for Open-Sora: commands, GPUs, lengths, failures; videos as files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.program import EnvironmentFault, InputError
from data import artifacts
from generation.makers import frames
from generation.makers.opensora import OpenSoraSettings, recipe, visible_gpus
from generation.pictures import BLANK, Faulty
from tests.handmade import run, succeed

PROGRAM = "generation.generate_videos"
FFMPEG = shutil.which("ffmpeg")
SHORT = ("--opensora.num_frames", 5)
# What Open-Sora would do: read its configuration and its prompts, write numbered files. Frames are WebP in files named mp4.
STAND_IN = """
import csv, json, os, sys
import numpy as np
from PIL import Image
config, given, prompts = sys.argv[1:]
values = {}
exec(open(config).read(), values)
with open(prompts, newline="") as file:
    rows = [row["text"] for row in csv.DictReader(file)] if given == "--dataset.data-path" else file.read().splitlines()
told = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "RANK")}
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps({"argv": sys.argv[1:], "rows": rows, "seed": values["seed"], "base": values["_base_"], **told}) + "\\n")
if any("BREAK" in row for row in rows):
    sys.exit("CUDA driver is not what it was")
length = values.get("sampling_option", values)["num_frames"]
folder = os.path.join(values["save_dir"], "video_256px") if "sampling_option" in values else values["save_dir"]
os.makedirs(folder)
noise = np.random.default_rng(values["seed"])
for number, row in enumerate(rows):
    made = [Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(length - ("SHORT" in row))]
    path = f"{folder}/sample_{number:04d}.mp4"
    made[0].save(path, "WEBP", save_all=True, append_images=made[1:])
    if "CUT" in row:
        with open(path, "r+b") as file:
            file.truncate(60)
"""
PYTHON = """#!/usr/bin/env bash
while [ "${1#scripts/}" = "$1" ]; do shift; done
exec %s "$@"
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A stand-in checkout of both versions, its Python, two GPUs to be seen, and an ffmpeg that nobody calls."""
    home = tmp_path / "Open-Sora"
    for file in ("scripts/inference.py", "scripts/diffusion/inference.py"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(STAND_IN)
    for file in (
        "diffusion/inference/t2i2v_256px.py",
        "diffusion/inference/t2i2v_768px.py",
        "opensora-v1-3/inference/t2v.py",
    ):
        (home / "configs" / file).parent.mkdir(parents=True, exist_ok=True)
        (home / "configs" / file).touch()
    (tmp_path / "bin").mkdir()
    for name, text in (("python", PYTHON % sys.executable), ("ffmpeg", "#!/bin/sh\nexit 9\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    variables = {
        "OPENSORA_HOME": home,
        "OPENSORA_PYTHON": tmp_path / "bin/python",
        "CUDA_VISIBLE_DEVICES": "2,5",
        "CALLS": tmp_path / "calls",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path


def prompts_file(folder: Path, *prompts: str) -> Path:
    lines = [
        {"uid": "u1", "dataset": f"d{place}", "type": "video", "prompt": prompt}
        for place, prompt in enumerate(prompts)
    ]
    (folder / "p.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"uid": "u1", "type": "image", "prompt": "x"}])
    )
    return folder / "p.jsonl"


def calls(folder: Path) -> list[dict]:
    made = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    return sorted(made, key=lambda call: call["rows"])


def test_open_sora_makes_what_is_asked_for(checkout):
    flags = (
        "--prompts",
        prompts_file(checkout, "a bolt", "a drum", "a lamp"),
        "--output_dir",
        checkout / "o",
        *SHORT,
    )
    told = succeed(PROGRAM, *flags, "--dry_run")
    assert not (checkout / "o").exists() and not (checkout / "calls").exists()
    assert (
        f"cd {checkout}/Open-Sora && CUDA_VISIBLE_DEVICES=2 {checkout}/bin/python scripts/inference.py DIR/config.py --prompt-path DIR/prompts.txt"
        in told
    )
    succeed(PROGRAM, *flags)
    rows = artifacts.read(checkout / "o", artifacts.MEDIA).to_pylist()
    assert [row["path"] for row in rows] == ["files/d0/u1.mp4", "files/d1/u1.mp4", "files/d2/u1.mp4"], (
        "one uid, three data sets"
    )
    assert [(row["status"], row["frames"], row["poster"]) for row in rows][0] == (
        "made",
        5,
        "files/d0/u1.jpg",
    )
    found = calls(checkout)
    assert [call["rows"] for call in found] == [["a bolt"], ["a drum"], ["a lamp"]]
    assert [call["seed"] for call in found] == [row["seed"] for row in rows] and len(
        {row["sha256"] for row in rows}
    ) == 3
    assert {call["CUDA_VISIBLE_DEVICES"] for call in found} <= {"2", "5"} and {
        call["RANK"] for call in found
    } == {None}
    assert not list((checkout / "o").glob(".opensora*")) and "already complete" in succeed(PROGRAM, *flags)


def test_a_worker_that_fails_a_video_that_is_cut_and_one_too_short(checkout):
    prompts = ("a bolt", "BREAK", "CUT", "SHORT")
    flags = (
        "--prompts",
        prompts_file(checkout, *prompts),
        "--output_dir",
        checkout / "o",
        *SHORT,
        "--requests.suffix",
        ", 4k",
    )
    failed = run(PROGRAM, *flags)
    assert (
        failed.returncode == 5
        and "3 of 4 rows failed (first: d1/u1: Open-Sora left with code 1: CUDA driver" in failed.stderr
    )
    assert failed.stderr.startswith("to resume: python -m generation.generate_videos")
    rows = artifacts.read_file(checkout / "o/index.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["made", "failed", "failed", "failed"]
    assert rows[2]["reason"].startswith("not decodable") and rows[3]["reason"] == "4 frames in place of 5"
    assert [file.name for file in (checkout / "o/files").rglob("*.mp4")] == ["u1.mp4"]
    (checkout / "calls").unlink()
    assert run(PROGRAM, *flags).returncode == 5
    assert [call["rows"] for call in calls(checkout)] == [["BREAK, 4k"], ["CUT, 4k"], ["SHORT, 4k"]], (
        "what is done is kept"
    )


def test_version_two_in_calls_of_several_rows(checkout):
    prompts = ('a "bolt", red', "a drum", "a lamp")
    flags = ("--prompts", prompts_file(checkout, *prompts), "--output_dir", checkout / "o", "--opensora.version", "v2", *SHORT,
             "--opensora.resolution", "256px", "--opensora.rows_per_call", 2, "--opensora.motion_score", 4, "--opensora.dit", "/w/dit")  # fmt: skip
    succeed(PROGRAM, *flags)
    assert [call["rows"] for call in calls(checkout)] == [['a "bolt", red', "a drum"], ["a lamp"]]
    assert all(
        call["base"] == [f"{checkout}/Open-Sora/configs/diffusion/inference/t2i2v_256px.py"]
        for call in calls(checkout)
    )
    told = succeed(
        PROGRAM,
        *flags[:2],
        "--output_dir",
        checkout / "n",
        *flags[4:],
        "--opensora.gpus_per_call",
        2,
        "--dry_run",
    )
    assert (
        "CUDA_VISIBLE_DEVICES=2,5" in told
        and "-m torch.distributed.run --standalone --nproc_per_node 2 scripts/diffusion/inference.py" in told
    )
    sampling = "{'resolution': '256px', 'aspect_ratio': '9:16', 'num_frames': 5, 'seed': "
    assert f"sampling_option = {sampling}" in told, "steps and guidance are those of its own configuration"
    for line in (
        "motion_score = '4'",
        "model = {'from_pretrained': '/w/dit'}",
        "'num_frames': 5",
        "'seed': ",
    ):
        assert line in told


def test_rows_of_a_call_are_listed_with_the_seed_that_it_used(checkout):
    prompts = ("a bolt", "a drum", "", "a lamp", "SHORT", "a nut")
    flags = ("--prompts", prompts_file(checkout, *prompts), "--output_dir", checkout / "o", *SHORT, "--opensora.rows_per_call", 2,
             "--skip_refused", "true")  # fmt: skip
    planned = [
        line for line in succeed(PROGRAM, *flags, "--dry_run").splitlines() if "config.py: seed = " in line
    ]

    def used() -> dict[str, int]:
        return {row: call["seed"] for call in calls(checkout) for row in call["rows"]}

    def listed() -> dict[str, int]:
        rows = artifacts.read_file(checkout / "o/index.parquet").to_pylist()
        return {row["prompt"]: row["seed"] for row in rows if row["prompt"]}

    assert run(PROGRAM, *flags).returncode == 5
    first = used()
    assert listed() == first and first["a bolt"] == first["a drum"] != first["a lamp"] == first["SHORT"]
    assert [int(line.split()[-1]) for line in planned] == [
        first[row] for row in ("a bolt", "a lamp", "a nut")
    ]
    for row in ("d1/u1", "d3/u1"):
        (checkout / f"o/files/{row}.mp4").unlink()
    (checkout / "calls").unlink()
    assert run(PROGRAM, *flags).returncode == 5
    again = used()
    assert [call["rows"] for call in calls(checkout)] == [["SHORT"], ["a drum", "a lamp"]]
    assert listed() == first | again and again["a lamp"] == again["a drum"] != first["a drum"]


def test_all_settings_of_navigen_reach_version_13(checkout):
    flags = {
        "resolution": "480p",
        "aspect_ratio": "1:1",
        "num_frames": 51,
        "steps": 7,
        "guidance": 2.5,
        "fps": 8,
        "dtype": "fp16",
        "t5": "/w/t5",
        "vae": "/w/vae",
        "dit": "/w/dit",
    }
    told = succeed(PROGRAM, "--prompts", prompts_file(checkout, "a bolt"), "--output_dir", checkout / "o", "--dry_run",
                   *(part for name, value in flags.items() for part in (f"--opensora.{name}", value)))  # fmt: skip
    for line in (
        "resolution = '480p'", "aspect_ratio = '1:1'", "num_frames = 51", "fps = 8", "dtype = 'fp16'",
        "scheduler = {'num_sampling_steps': 7, 'cfg_scale': 2.5, 'use_oscillation_guidance': False}",
        "text_encoder = {'from_pretrained': '/w/t5'}", "vae = {'from_pretrained': '/w/vae'}", "model = {'from_pretrained': '/w/dit'}",
    ):  # fmt: skip
        assert f"#   DIR/config.py: {line}" in told
    usual = OpenSoraSettings()
    assert recipe(usual) == {"resolution": "720p", "steps": 30, "guidance": 4.0, "oscillation": False}
    assert (usual.version, usual.aspect_ratio, usual.num_frames) == ("v13", "9:16", 81)
    assert (usual.fps, usual.dtype) == (24, "bf16")


def test_gpus_that_this_process_may_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 3")
    assert visible_gpus(None) == ["GPU-a", "3"] and visible_gpus(1) == ["GPU-a"]
    with pytest.raises(InputError, match="num_gpus 3 -> 1 to 2"):
        visible_gpus(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EnvironmentFault, match="sees none"):
        visible_gpus(None)


@pytest.mark.parametrize(
    ("flags", "variables", "code", "complaint"),
    [
        ((), {"OPENSORA_HOME": ""}, 3, "OPENSORA_HOME is not set"),
        ((), {"OPENSORA_HOME": "/nowhere"}, 3, "has no scripts/inference.py: it is no checkout of Open-Sora v13"),
        ((), {"OPENSORA_PYTHON": "/nowhere/python"}, 3, "OPENSORA_PYTHON=/nowhere/python is no Python"),
        ((), {"PATH": "/nowhere"}, 3, "ffmpeg, which is not installed -> apt-get install ffmpeg"),
        (("--opensora.gpus_per_call", 4), {}, 2, "gpus_per_call 4 of 2 GPUs"),
        (("--opensora.resolution", "768px"), {}, 2, "resolution '768px' -> 240p, 360p"),
        (("--opensora.version", "v2", "--opensora.resolution", "256px", "--opensora.num_frames", 82), {}, 2, "4k + 1"),
        (("--maker", "diffusers"), {}, 2, "maker diffusers takes --model"),
        ((), {"WORLD_SIZE": "2"}, 2, "starts its own processes"),
    ],
)  # fmt: skip
def test_bad_input(checkout, flags, variables, code, complaint):
    done = run(
        PROGRAM,
        "--prompts",
        prompts_file(checkout, "a"),
        "--output_dir",
        checkout / "o",
        *SHORT,
        *flags,
        **variables,
    )
    assert done.returncode == code and complaint in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (checkout / "o/manifest.json").exists()


def test_frames_are_read_back(tmp_path):
    made = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), np.uint8)
    containers = ["webp", *(["mp4"] if FFMPEG else [])]
    for container in containers:
        file = tmp_path / f"a.{container}"
        frames.write_video(made, file, fps=8, container=container)
        facts = frames.check_video(file, frames=5, size=(32, 16))
        assert (facts.width, facts.height, facts.frames) == (32, 16, 5) and Path(facts.poster).exists()
        for asked, words in (
            ({"frames": 4, "size": None}, "5 frames in place of 4"),
            ({"frames": 5, "size": (16, 32)}, "32x16 pixels"),
        ):
            with pytest.raises(Faulty, match=words):
                frames.check_video(file, **asked)
        frames.write_video(made * 0, file, fps=8, container=container)
        with pytest.raises(Faulty, match="blank|frames in place"):  # WebP merges frames that are the same
            frames.check_video(file, frames=5, size=None)


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_frames_of_one_colour_each_are_blank(tmp_path, colour):
    levels = 200 + 5 * np.arange(5)  # frames that are the same would be merged
    made = np.broadcast_to(levels[:, None, None, None] * np.array(colour), (5, 32, 32, 3)).astype(np.uint8)
    frames.write_video(made, tmp_path / "a.webp", fps=8, container="webp")
    with pytest.raises(Faulty, match="blank .contrast 0"):
        frames.check_video(tmp_path / "a.webp", frames=5, size=(32, 32))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_video_shows_something_in_whichever_channel(tmp_path, channel):
    made = np.zeros((5, 32, 32, 3), np.uint8)
    made[..., channel] = np.random.default_rng(0).integers(0, 256, (5, 32, 32))
    frames.write_video(made, tmp_path / "a.webp", fps=8, container="webp")
    greys = [
        np.asarray(Image.fromarray(frame).convert("L")) for frame in frames.read_video(tmp_path / "a.webp")
    ]
    facts = frames.check_video(tmp_path / "a.webp", frames=5, size=(32, 32))
    assert facts.contrast == pytest.approx(max(grey.std() for grey in greys)) and facts.contrast > BLANK


@pytest.mark.skipif(FFMPEG is None, reason="ffmpeg is not installed")
def test_a_cut_mp4_is_not_decodable(tmp_path):
    file = tmp_path / "a.mp4"
    frames.write_video(
        np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8), file, fps=8, container="mp4"
    )
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(Faulty, match="not decodable|frames in place"):
        frames.check_video(file, frames=9, size=None)
