"""A checkpoint of a training -> one complete Hugging Face model directory.

reads   <checkpoint>  an adapter: checkpoint-* or adapter/ of a run with train_what lora or new_rows, or one that PEFT wrote;
                      or weights that several processes wrote in parts: FSDP (torch.distributed.checkpoint) or DeepSpeed ZeRO
        <base>        the model that it belongs to; an adapter of ours knows its own; of parts: the model that was trained
writes  <output_dir>/ weights, tokenizer, sid_vocab.json and new_tokens.json where they are known, COMPLETE.json, manifest.json

The final/ of a run is merged already; this is for the checkpoints beside it, and for adapters whose base has moved.
Parts need neither the machines nor the packages that wrote them (train/scale/shards.py).

python -m train.merge --checkpoint outputs/qwen3/sft_lora/checkpoint-40 --output_dir outputs/qwen3/merged
python -m train.merge --checkpoint outputs/qwen3/grpo_beams --every 100 --base outputs/qwen3/sft_think/final --output_dir outputs/qwen3/merged
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from configs import program
from configs.program import InputError
from data.store.adapters import BASE, CONFIG, WEIGHTS, is_adapter
from data.store.checkpoints import MARK, checkpoints, mark_complete, require_model, require_sound, step_of
from data.store.directory import own_files
from data.store.fingerprints import read_record
from data.store.inputs import base_of, fingerprint
from data.store.models import load_tokenizer, load_weights, merge_adapter, untrained, write_model
from data.store.output import open_output
from infer.loading import PROMPTS

STAGE, VERSION = "merge", 1
TOKEN_LISTS = ("sid_vocab.json", "new_tokens.json", PROMPTS)


@dataclass
class MergeArgs:
    """One model directory from a checkpoint."""

    checkpoint: str
    """directory of an adapter, or of weights in parts; with `every` that of a training"""
    output_dir: str
    """where the model goes"""
    base: str | None = None
    """the model that was trained; null = where an adapter's base.json says, or the checkpoint's own config.json"""
    every: int | None = None
    """merge all checkpoints of a training whose step is a multiple of this, each into output_dir/checkpoint-<step>"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the weights written; auto = that of the base"""
    overwrite: bool = False
    """replace an output of another configuration"""


def checkpoints_of(training: Path, every: int) -> list[Path]:
    """The checkpoints of a training at multiples of `every` steps, in order; InputError where there is none."""
    if every < 1:
        raise InputError(f"every {every} -> a number of steps, 1 or more")
    found = [place for step, place in checkpoints(training) if step % every == 0]
    if not found:
        raise InputError(f"{training} has no checkpoint at a multiple of {every} steps -> another number")
    return found[::-1]


def adapter_base(args: MergeArgs) -> Path:
    """The base model; InputError where it is missing or is known to be another."""
    if args.base is None:
        return base_of(args.checkpoint)
    base = require_model(args.base)
    record = read_record(Path(args.checkpoint) / BASE)
    if record is not None and fingerprint(base) != record.get("sha256"):
        raise InputError(
            f"{base} is not the model that adapter {args.checkpoint} was trained on (its content is another) -> another base"
        )
    return base


def merged(args: MergeArgs, base: Path) -> Any:
    """The base model with the adapter in it, on the CPU."""
    from transformers import AutoModelForCausalLM

    require_sound(Path(args.checkpoint))
    model = load_weights(AutoModelForCausalLM, base, dtype="auto")
    model = merge_adapter(model.float() if args.dtype == "float32" else model, args.checkpoint)
    return model.bfloat16() if args.dtype == "bfloat16" else model


def joined(args: MergeArgs, base: Path) -> Any:
    """A model of the base's shape with the weights that lie in parts, on the CPU."""
    import torch

    from train.scale.shards import fitting, whole_weights

    model = untrained(base, dtype=None if args.dtype == "auto" else getattr(torch, args.dtype))
    model.load_state_dict(
        fitting(whole_weights(Path(args.checkpoint)), model, Path(args.checkpoint)), strict=False
    )
    model.tie_weights()
    return model


def tokens_from(checkpoint: Path, base: Path) -> Path:
    """Which of both directories has the tokenizer: the checkpoint where it was written with one."""
    return checkpoint if (checkpoint / "tokenizer_config.json").exists() else base


def parts_of(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint in parts; empty for anything else."""
    from train.scale.shards import fsdp_folder, zero_folder

    folder = fsdp_folder(checkpoint) or zero_folder(checkpoint)
    return [] if folder is None else sorted(file for file in folder.iterdir() if file.is_file())


def source_of(args: MergeArgs, checkpoint: Path, parts: list[Path]) -> tuple[list[Path], Path]:
    """(files that are read, the base model); InputError for what is no checkpoint of either kind."""
    if is_adapter(checkpoint):
        return [file for name in (CONFIG, WEIGHTS) if (file := checkpoint / name).is_file()], adapter_base(
            args
        )
    if not parts:
        state = "is a whole model already" if (checkpoint / "config.json").exists() else "holds no checkpoint"
        raise InputError(
            f"{checkpoint} {state} -> an adapter directory ({CONFIG}, {WEIGHTS}) or weights in parts (pytorch_model_fsdp_0/, "
            "or DeepSpeed's *_optim_states.pt)"
        )
    if args.base is None and not (checkpoint / "config.json").exists():
        raise InputError(
            f"{checkpoint} holds weights without a config.json -> --base, the model that was trained"
        )
    return parts, require_model(args.base or checkpoint)


def main(args: MergeArgs) -> None:
    if args.every is None:
        merge(args)
        return
    for one in checkpoints_of(Path(args.checkpoint), args.every):
        with suppress(program.AlreadyComplete):
            merge(
                replace(
                    args, checkpoint=str(one), output_dir=str(Path(args.output_dir, one.name)), every=None
                )
            )


def merge(args: MergeArgs) -> None:
    """One checkpoint."""
    checkpoint = Path(args.checkpoint)
    parts = [] if is_adapter(checkpoint) else parts_of(checkpoint)
    files, base = source_of(args, checkpoint, parts)
    inputs = {"checkpoint": files, "base": None if base == checkpoint else base}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        source = tokens_from(checkpoint, base)
        model = joined(args, base) if parts else merged(args, base)
        write_model(out, model, load_tokenizer(source))
        for name in TOKEN_LISTS:
            if (source / name).is_file():
                out.write_text(name, (source / name).read_text())
        (out.path / MARK).unlink(missing_ok=True)
        mark_complete(out.path, step=step_of(checkpoint), full=True, files=own_files(out.path))
        out.counts["parameters"] = model.num_parameters()
        out.facts["step"] = step_of(checkpoint)


if __name__ == "__main__":
    program.run(MergeArgs, main)
