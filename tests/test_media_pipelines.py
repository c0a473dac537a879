"""Stages 13 and 14 on tiny random weights: real diffusers code, real processes, kills; what they refuse."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import program
from data import artifacts
from generation.generate_images import GenerateImagesArgs, main
from generation.init_tiny_models import CLIP, WAN, ZIMAGE
from generation.makers import pipelines
from generation.makers.frames import read_video
from generation.makers.zimage import ZImage, ZImageSettings
from tests.handmade import call, refuse, run, succeed

PROGRAM = "generation.generate_images"
SMALL = ("--zimage.width", 32, "--zimage.height", 32, "--zimage.steps", 2)
TINY = ZImageSettings(width=32, height=32, steps=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tiny") / "models"
    call("generation.init_tiny_models", "--output_dir", place)
    return place


@pytest.fixture(scope="module")
def pipeline(tiny) -> ZImage:
    return ZImage(str(tiny / ZIMAGE), TINY, device="cpu")


def prompts_file(folder: Path, count: int) -> Path:
    file = folder / "prompts.jsonl"
    words = ("bolt", "drum", "brass washer", "lamp")
    lines = ({"uid": f"u{i}", "prompt": f"a {words[i % 4]} number {i}"} for i in range(count))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def difference(first: Path | Image.Image, second: Path | Image.Image) -> int:
    """Largest difference of two pictures in levels."""
    a, b = (np.asarray(Image.open(p) if isinstance(p, Path) else p, np.int16) for p in (first, second))
    return int(np.abs(a - b).max())


def test_pictures_depend_on_seed_and_prompt_not_on_their_batch(pipeline):
    prompts, seeds = ["a red bolt", "a red bolt", "a much longer prompt about a drum"], [5, 6, 5]
    together, alone = (
        pipeline.draw(prompts, seeds),
        [pipeline.draw([p], [s])[0] for p, s in zip(prompts, seeds, strict=True)],
    )
    assert [difference(a, b) <= 1 for a, b in zip(together, alone, strict=True)] == [True] * 3
    assert difference(together[0], together[1]) > 1 and difference(together[0], together[2]) > 1
    assert prompts[0] == "a red bolt", "the pipeline's own template stays out of the caller's list"


@pytest.mark.parametrize(
    ("settings", "calls", "rows"),
    [(ZImageSettings(), 8, 1), (ZImageSettings(recipe="base", steps=3, negative_prompt="text"), 3, 2)],
)
def test_recipes(pipeline, monkeypatch, settings, calls, rows):
    """Turbo is 8 passes without guidance; base runs the model for prompt and negative prompt together."""
    seen, forward = [], pipeline.pipeline.transformer.forward
    monkeypatch.setattr(pipeline, "settings", ZImageSettings(**vars(settings) | {"width": 32, "height": 32}))
    monkeypatch.setattr(
        pipeline.pipeline.transformer,
        "forward",
        lambda x, *a, **k: (seen.append(len(x)), forward(x, *a, **k))[1],
    )
    pipeline.draw(["a bolt"], [1])
    assert seen == [rows] * calls


def test_a_stage_of_two_data_sets(tiny, tmp_path):
    file = tmp_path / "p.jsonl"
    lines = [
        {"uid": uid, "prompt": "a bolt", "dataset": d} for uid, d in (("ab", "x"), ("ba", "x"), ("ab", "y"))
    ]
    file.write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"uid": "long", "prompt": "a " * 600}])
    )
    flags = ("--model", tiny / ZIMAGE, "--prompts", file, "--output_dir", tmp_path / "o", *SMALL)
    planned = succeed(PROGRAM, *flags, "--dry_run")
    assert "x/ba.png seed" in planned and not (tmp_path / "o").exists()
    done = run(PROGRAM, *flags)
    assert done.returncode == 2 and "1 of 4 rows were refused (first: long: the prompt has" in done.stderr
    again = run(PROGRAM, *flags)
    assert again.returncode == 2 and "already complete" in again.stdout, (
        "finished, and still not as it was asked for"
    )
    assert "WARNING: 1 of 4 rows" in run(PROGRAM, *flags, "--skip_refused").stderr
    rows = artifacts.read(tmp_path / "o", artifacts.MEDIA).to_pylist()
    assert [row["path"] for row in rows] == ["files/x/ab.png", "files/x/ba.png", "files/y/ab.png", None]
    assert {row["model"] for row in rows} == {ZIMAGE}, "what tiny weights drew says so"
    ab, ba, other = (tmp_path / "o" / row["path"] for row in rows[:3])
    assert difference(ab, ba) > 1 and difference(ab, other) == 0
    assert Image.open(tmp_path / "o/contact_sheet.jpg").size == (3 * 160, 160)


def test_an_adapter_is_merged_as_peft_merges_it(tiny, tmp_path, capsys):
    import torch
    from diffusers import ZImageTransformer2DModel
    from peft import LoraConfig, PeftModel, get_peft_model

    def transformer():
        return ZImageTransformer2DModel.from_pretrained(tiny / ZIMAGE / "transformer")

    wrapped = get_peft_model(
        transformer(), LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_out.0"])
    )
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "a")
    config = tmp_path / "a/adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/srv/author/Z-Image"})
    )
    ours = transformer()
    pipelines.merge_adapter_into(ours, str(tmp_path / "a"), scale=1.0)
    assert "trained on /srv/author/Z-Image by its own word" in capsys.readouterr().out
    merged = PeftModel.from_pretrained(transformer(), tmp_path / "a").merge_and_unload().state_dict()
    assert (
        max(float((ours.state_dict()[name] - tensor).abs().max()) for name, tensor in merged.items()) < 1e-6
    )
    assert any(not torch.equal(tensor, transformer().state_dict()[name]) for name, tensor in merged.items())


def test_an_adapter_of_another_model_is_refused(tiny, tmp_path):
    import torch
    from safetensors.torch import save_file

    name = "layers.0.attention.to_q"
    for key, tensors in (
        ("width", {f"{name}.lora_A.weight": torch.zeros(2, 99), f"{name}.lora_B.weight": torch.zeros(64, 2)}),
        (
            "name",
            {
                "double.0.to_q.lora_A.weight": torch.zeros(2, 64),
                "double.0.to_q.lora_B.weight": torch.zeros(64, 2),
            },
        ),
    ):
        folder = tmp_path / key
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/srv/author/Flux"}')
        line = refuse(
            PROGRAM,
            "--model",
            tiny / ZIMAGE,
            "--prompts",
            prompts_file(tmp_path, 1),
            "--output_dir",
            tmp_path / "o",
            *SMALL,
            "--zimage.adapter",
            folder,
        )
        assert "has no place in this model" in line and "names /srv/author/Flux as its base" in line
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        (("--model", "{}/nowhere"), 2, "does not exist"),
        (("--model", "{}/" + CLIP), 2, "has no model_index.json -> pass a diffusers pipeline"),
        (("--model", "{}/tiny-random-wan"), 2, "is a WanPipeline -> pass a ZImagePipeline"),
        (("--zimage.width", 30), 2, "30x32 -> width and height in multiples of 4"),
        (("--zimage.negative_prompt", "text"), 2, "negative_prompt does nothing at guidance 0"),
        (("--zimage.adapter", "{}"), 2, "has none of pytorch_lora_weights.safetensors"),
        (("--device", "cuda"), 3, "no GPU that torch can use"),
        (("--zimage.dtype", "fp8"), 3, "dtype fp8 needs a GPU"),
        (("--zimage.offload", "true"), 3, "offload moves components to a GPU"),
        (("--instructions", "{}"), 2, "prompts come from one place"),
        (("--requests.first", 0), 2, "at least 1"),
        (("--output_dir", "{}/manifest.json/o"), 2, "which is a file -> choose another directory"),
        (("--requests.ids", "{}/none"), 2, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(tiny, tmp_path, flags, code, complaint):
    usual = (
        "--model",
        tiny / ZIMAGE,
        "--prompts",
        prompts_file(tmp_path, 1),
        "--output_dir",
        tmp_path / "o",
        *SMALL,
    )
    given = [flag.format(tiny) if isinstance(flag, str) else flag for flag in flags]
    assert complaint in refuse(PROGRAM, *usual, *given, code=code)
    assert not list((tmp_path / "o").glob("files/**/*.png"))


def one_rank(args: GenerateImagesArgs, rank: int, launch: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(launch), "QUIET": "1"}
    try:
        main(args)
    except program.AlreadyComplete:
        pass
    finally:
        os._exit(0)


def launch(args: GenerateImagesArgs, number: int) -> list[multiprocessing.Process]:
    context = multiprocessing.get_context("fork")  # what is imported here need not be imported there
    children = [context.Process(target=one_rank, args=(args, rank, number)) for rank in range(2)]
    for child in children:
        child.start()
    return children


def killed_and_resumed(tiny: Path, folder: Path, count: int) -> None:
    """Two processes, both killed in the middle, two new ones: against one process that nobody stopped."""
    file = prompts_file(folder, count)
    settings = ZImageSettings(width=32, height=32, steps=2, batch=2)
    made = GenerateImagesArgs(str(folder / "killed"), str(tiny / ZIMAGE), prompts=str(file), zimage=settings)
    children = launch(made, 1)
    while len(list(folder.glob("killed/files/*/*.png"))) < count // 3 and any(c.is_alive() for c in children):
        time.sleep(0.005)
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("killed/files/*/*.png")}
    assert 0 < len(before) < count and not (folder / "killed/manifest.json").exists()
    recorded = {
        json.loads(p.read_text())["name"].removeprefix("items/")
        for p in folder.glob("killed/chunks/row-*.json")
    }
    for child in launch(made, 2):
        child.join(300)
    rows = artifacts.read(folder / "killed", artifacts.MEDIA).to_pylist()
    assert [row["uid"] for row in rows] == [f"u{i}" for i in range(count)] and {
        row["status"] for row in rows
    } == {"made"}
    assert len(list(folder.glob("killed/files/*/*"))) == count, "every picture once, nothing else"
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path.stem in recorded)
    main(GenerateImagesArgs(str(folder / "whole"), str(tiny / ZIMAGE), prompts=str(file), zimage=settings))
    for row in rows:
        assert difference(folder / "killed" / row["path"], folder / "whole" / row["path"]) <= 1


def test_two_processes_killed_and_resumed(tiny, tmp_path):
    killed_and_resumed(tiny, tmp_path, 8)


@pytest.mark.long
def test_two_processes_killed_and_resumed_at_length(tiny, tmp_path):
    killed_and_resumed(tiny, tmp_path, 32)


VIDEOS = "generation.generate_videos"
SHORT = (
    "--video.width",
    32,
    "--video.height",
    32,
    "--video.num_frames",
    5,
    "--video.steps",
    2,
    "--video.container",
    "webp",
)


def test_videos_of_a_pipeline_in_this_process(tiny, tmp_path, monkeypatch):
    file = tmp_path / "p.jsonl"
    file.write_text(
        "".join(
            json.dumps({"uid": "u1", "dataset": d, "prompt": p}) + "\n"
            for d, p in (("x", "a bolt"), ("y", "a drum"))
        )
    )
    flags = ("--maker", "diffusers", "--prompts", file, "--device", "cpu", *SHORT, "--model", tiny / WAN)
    succeed(VIDEOS, *flags, "--output_dir", tmp_path / "o")
    rows = artifacts.read(tmp_path / "o", artifacts.MEDIA).to_pylist()
    assert [(row["frames"], row["width"], row["height"], row["path"]) for row in rows] == [
        (5, 32, 32, f"files/{d}/u1.webp") for d in "xy"
    ]
    first, second = (np.stack(list(read_video(tmp_path / "o" / row["path"]))) for row in rows)
    assert first.shape == (5, 32, 32, 3) and np.abs(first.astype(int) - second).max() > 20
    length = refuse(VIDEOS, *flags, "--output_dir", tmp_path / "a", "--video.num_frames", 82)
    assert (
        "82 frames of 32x32 -> 4k + 1 frames, width and height in multiples of 16 for WanPipeline" in length
    )
    other = refuse(VIDEOS, *flags[:-1], tiny / ZIMAGE, "--output_dir", tmp_path / "a")
    assert (
        "is a ZImagePipeline -> pass a WanPipeline or LTXPipeline" in other and not (tmp_path / "a").exists()
    )
    monkeypatch.setenv("PATH", "/nowhere")
    line = refuse(VIDEOS, *flags, "--video.container", "mp4", "--output_dir", tmp_path / "b", code=3)
    assert (
        "ffmpeg, which is not installed" in line and "also writes --video.container webp without it" in line
    )
