"""Stage 13: a picture for every instruction, by a local Z-Image pipeline.

reads   a diffusers directory, outputs/<run>/instructions/<name> (stage 12) or a file of prompts; the examples for a teacher's
        instructions (source oracle)
writes  <output_dir>/files/<dataset>/<uid>.png, index.parquet (schema data.artifacts.MEDIA: prompt, seed, status, size, ... of every
        row), prompts.jsonl (what was asked for; --prompts reads it again), contact_sheet.jpg, manifest.json

Several processes share the rows; a run that was killed makes what is missing. Every picture is checked: decodable, of the size that
was asked for, not blank. A row that fails is recorded, the others go on, and the program ends with exit code 4: run again, it
makes those only. Rows whose prompt is empty or too long are refused for good (exit code 2 at the end, unless --skip_refused).

Differs from NaviGen: the Turbo recipe (8 steps, no guidance; theirs is 20 steps at 3.5), batches, seeds that do not collide, several
GPUs, resume, and no row in an index that is written only at the end.

python -m generation.generate_images --model /path/to/Z-Image-Turbo --instructions outputs/quickstart/instructions/sft_dual.test \\
    --output_dir outputs/quickstart/images/sft_dual.test
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from configs import program
from configs.program import say
from data.store.claim import rank_and_world
from data.store.configuration import pace
from data.store.output import open_output
from generation.makers.pipelines import adapter_file, require_pipeline
from generation.makers.zimage import CLASSES, ZImage, ZImageSettings
from generation.production import already_said, conclude, produce, require_no_refusals
from generation.requests import RequestSettings, read_requests

STAGE, VERSION = "generate_images", 1


@dataclass
class GenerateImagesArgs:
    """Pictures of instructions."""

    output_dir: str
    """where they go, e.g. outputs/<run>/images/<name>"""
    model: str
    """local diffusers directory of Z-Image"""
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
    zimage: ZImageSettings = field(default_factory=ZImageSettings)
    """how they are drawn"""
    seed: int = 42
    """of the noise, hashed with uid and prompt"""
    device: str | None = pace(None)
    """cpu, cuda, cuda:1, ...; null = this process's GPU when there is one"""
    skip_refused: bool = pace(False)
    """rows without a prompt that can be drawn are no error"""
    dry_run: bool = pace(False)
    """print what would be drawn and write nothing"""
    overwrite: bool = False
    """replace an output of another configuration"""


def main(args: GenerateImagesArgs) -> None:
    requests = read_requests(
        args.requests, kind="image", instructions=args.instructions, examples=args.examples, prompts=args.prompts,
        dataset=args.dataset,
    )  # fmt: skip
    if args.dry_run:
        for request in requests:
            say(
                f"{request.name}.png seed {request.noise_seed(args.seed)}: {request.prompt or '(empty: refused)'}"
            )
        return
    names = ("model", "instructions", "prompts", "examples")
    inputs = {name: getattr(args, name) for name in names} | {"ids": args.requests.ids}
    require_pipeline(args.model, CLASSES)
    if args.zimage.adapter is not None:
        inputs["adapter"] = adapter_file(args.zimage.adapter)[0]
    with already_said(), open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        maker = ZImage(args.model, args.zimage, device=args.device)
        model = Path(args.model).name
        produce(out, requests, maker, seed=args.seed, model=model)
        if out.leads:
            conclude(out, requests, maker, seed=args.seed, model=model)
    if rank_and_world()[0] == 0:
        require_no_refusals(args.output_dir, skip=args.skip_refused)


if __name__ == "__main__":
    program.run(GenerateImagesArgs, main)
