"""Stage 08, first half: make a small base model where no pretrained one is given.

    python -m preprocess.init_base_model --config configs/toy/base_model.yaml \\
        --data data/toystore --output_dir outputs/quickstart/base

reads   <data>/items.parquet; with --like a local Hugging Face model
writes  <output_dir>/  a Hugging Face directory: Qwen3 (or T5 with --kind t5) with random float32 weights, a byte-level BPE
        tokenizer trained on the items' titles, descriptions, brands and categories and on the words of the prompts, and a chat
        template; with --like that model's architecture and tokenizer, its weights drawn anew (the ablation "from scratch" of papers)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import pyarrow as pa

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data.prompts import wording
from data.store.checkpoints import require_model
from data.store.models import write_model
from data.store.output import open_output
from preprocess.model.base_model import (
    ModelShape,
    instruction_texts,
    item_texts,
    random_model,
    redrawn_model,
    train_tokenizer,
)
from preprocess.model.encoder_decoder import EncoderDecoderShape, random_encoder_decoder

STAGE, VERSION = "init_base_model", 1


@dataclass(frozen=True, kw_only=True)
class InitBaseModelArgs:
    """Arguments of preprocess.init_base_model."""

    data: str
    """prepared data set (stage 01) whose text the tokenizer learns"""
    output_dir: str
    """where the model goes"""
    vocab_size: int = 2000
    """entries of the tokenizer, markers included; semantic IDs are added by preprocess.expand_vocab"""
    wording: str = "short"
    """the examples' wording (stage 07), whose words become tokens"""
    tasks: list[str] = field(default_factory=lambda: ["history_to_sid", "title_to_sid", "sid_to_title"])
    """the tasks of the examples whose words those are"""
    kind: Literal["qwen3", "t5"] = "qwen3"
    """qwen3: a causal LM, for train.sft; t5: an encoder-decoder, for train.train_tiger"""
    shape: ModelShape = field(default_factory=ModelShape)
    """sizes of the Qwen3"""
    t5: EncoderDecoderShape = field(default_factory=EncoderDecoderShape)
    """sizes of the T5"""
    like: str | None = None
    """local causal LM whose architecture and tokenizer are taken, without its weights; shape and vocab_size are not read then"""
    seed: int = 0
    """decides the random weights"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("t5",), self.kind == "t5", "kind t5"),
            Need(("shape",), self.kind == "qwen3", "kind qwen3"),
        ]

    def not_chosen(self) -> set[str]:
        """What a recipe says of a model that is then taken from elsewhere."""
        return {"shape", "vocab_size", "wording", "tasks"} if self.like is not None else set()

    def __post_init__(self) -> None:
        if self.like is not None and self.kind != "qwen3":
            raise InputError(f"like takes its architecture from a model -> leave out --kind {self.kind}")
        require_needs(self)
        if unknown := [task for task in self.tasks if task not in wording(self.wording).templates]:
            raise InputError(f"tasks {unknown} have no words in wording {self.wording} -> leave them out")


def main(args: InitBaseModelArgs) -> None:
    items = artifacts.read_items(args.data)
    like = args.like and require_model(args.like, written_by="its authors")
    with open_output(args, STAGE, version=VERSION, inputs={"data": args.data, "like": args.like}) as out:
        if like:
            model, tokenizer = redrawn_model(like, seed=args.seed)
        else:
            model, tokenizer = made_model(args, items)
        write_model(out, model, tokenizer)
        out.counts |= {"tokens": len(tokenizer), "parameters": model.num_parameters()}


def made_model(args: InitBaseModelArgs, items: pa.Table) -> tuple[Any, Any]:
    """(small Qwen3 or T5, tokenizer of the data's own words)."""
    instructions = instruction_texts(wording(args.wording), tasks=args.tasks, times=len(items))
    tokenizer = train_tokenizer(
        chain(item_texts(items), [instructions]),
        vocab_size=args.vocab_size,
        max_positions=(args.shape if args.kind == "qwen3" else args.t5).max_positions,
    )
    if args.kind == "t5":
        return random_encoder_decoder(tokenizer, args.t5, seed=args.seed), tokenizer
    return random_model(tokenizer, args.shape, seed=args.seed), tokenizer


if __name__ == "__main__":
    program.run(InitBaseModelArgs, main)
