"""Stage 14: a video for every instruction, by Open-Sora in its own environment or by a diffusers pipeline in this process.

reads   outputs/<run>/instructions/<name> (stage 12) or a file of prompts; examples for a teacher's instructions (source oracle);
        diffusers: a local directory of Wan or LTX; Open-Sora: the checkout that OPENSORA_HOME names, run by OPENSORA_PYTHON
writes  <output_dir>/files/<dataset>/<uid>.mp4 (.webp) with a .jpg of its middle frame, index.parquet (schema data.artifacts.MEDIA),
        prompts.jsonl, contact_sheet.jpg, manifest.json

Resume, checks and exit codes are those of stage 13: a video counts where it can be decoded, has as many frames as were asked for and
shows something; where Open-Sora fails the exit code is 5. `--dry_run` prints the exact commands.

Differs from NaviGen: a seed per video, every file is checked (there a cut one counts as done), the same uid of two data sets are two
videos, rows for images are left out, a worker that fails is an error, CUDA_VISIBLE_DEVICES is kept to.

python -m generation.generate_videos --maker diffusers --model /path/to/Wan2.1-T2V-1.3B-Diffusers \\
    --instructions outputs/quickstart/instructions/sft_dual.test --output_dir outputs/quickstart/videos/sft_dual.test
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs import program
from configs.program import InputError, say
from data.store.claim import rank_and_world
from data.store.configuration import pace
from data.store.output import open_output
from generation.makers import opensora
from generation.makers.opensora import OpenSora, OpenSoraSettings
from generation.makers.pipelines import require_pipeline
from generation.makers.video_diffusers import CLASSES, VideoDiffusers, VideoSettings
from generation.production import already_said, conclude, produce, require_no_refusals
from generation.requests import MediaRequest, RequestSettings, read_requests

STAGE, VERSION = "generate_videos", 1
SCRATCH = ".opensora.tmp"


@dataclass
class GenerateVideosArgs:
    """Videos of instructions."""

    output_dir: str
    """where they go, e.g. outputs/<run>/videos/<name>"""
    maker: Literal["opensora", "diffusers"] = "opensora"
    """who makes them"""
    model: str | None = None
    """local diffusers directory of Wan or LTX, for maker diffusers"""
    instructions: str | None = None
    """directory that stage 12 wrote"""
    prompts: str | None = None
    """JSON lines of prompts in its place: uid, prompt, and ground_truth, dataset, type where known"""
    examples: str | None = None
    """examples directory with a teacher's instructions: source oracle, and ground_truth in prompts.jsonl"""
    dataset: str = "items"
    """name of the data set, a folder of the output; lines of prompts may name their own"""
    requests: RequestSettings = field(default_factory=RequestSettings)
    """whose prompts, and how they are worded"""
    opensora: OpenSoraSettings = field(default_factory=OpenSoraSettings)
    """how Open-Sora is called"""
    video: VideoSettings = field(default_factory=VideoSettings)
    """how a diffusers pipeline makes them"""
    seed: int = 42
    """of the noise, hashed with uid and prompt"""
    device: str | None = pace(None)
    """cpu, cuda, ... of maker diffusers; null = this process's GPU when there is one"""
    skip_refused: bool = pace(False)
    """rows without a prompt that can be used are no error"""
    dry_run: bool = pace(False)
    """print the commands, or what would be made, and write nothing"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if (self.model is not None) != (self.maker == "diffusers"):
            raise InputError(
                "maker diffusers takes --model, a local pipeline; Open-Sora's are in --opensora.{t5,vae,dit}"
            )
        if self.maker == "opensora" and rank_and_world()[1] > 1:
            raise InputError(
                "maker opensora starts its own processes -> one process of ours (NUM_GPUS=1), --opensora.num_gpus"
            )

    def not_chosen(self) -> set[str]:
        """Options of the other maker."""
        return {"video"} if self.maker == "opensora" else {"opensora"}


def main(args: GenerateVideosArgs) -> None:
    requests = read_requests(
        args.requests, kind="video", instructions=args.instructions, examples=args.examples, prompts=args.prompts,
        dataset=args.dataset,
    )  # fmt: skip
    if args.maker == "opensora":
        opensora.require_checkout(args.opensora.version)
    else:
        require_pipeline(args.model, tuple(CLASSES))
    if args.dry_run:
        for line in plan(args, requests):
            say(line)
        return
    names = ("model", "instructions", "prompts", "examples")
    inputs = {name: getattr(args, name) for name in names} | {"ids": args.requests.ids}
    name = f"open-sora-{args.opensora.version}" if args.model is None else Path(args.model).name
    with already_said(), open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        if args.maker == "opensora":
            maker = OpenSora(args.opensora, scratch=out.path / SCRATCH)
        else:
            maker = VideoDiffusers(args.model, args.video, device=args.device)
        produce(out, requests, maker, seed=args.seed, model=name)
        shutil.rmtree(out.path / SCRATCH, ignore_errors=True)
        if out.leads:
            conclude(out, requests, maker, seed=args.seed, model=name)
    if rank_and_world()[0] == 0:
        require_no_refusals(args.output_dir, skip=args.skip_refused)


def plan(args: GenerateVideosArgs, requests: list[MediaRequest]) -> list[str]:
    """The calls of Open-Sora with their prompts and configurations, or the rows that a pipeline would make."""
    if args.maker == "diffusers":
        return [
            f"{r.name} seed {r.noise_seed(args.seed)}: {r.prompt or '(empty: refused)'}" for r in requests
        ]
    drawn = [request for request in requests if request.prompt]
    return opensora.planned_calls(args.opensora, drawn, [r.noise_seed(args.seed) for r in drawn])


if __name__ == "__main__":
    program.run(GenerateVideosArgs, main)
