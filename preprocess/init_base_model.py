"""Stage 08, first half: make a small base model where no pretrained one is given.

    python -m preprocess.init_base_model --config configs/toy/base_model.yaml \\
        --data data/toystore --output_dir outputs/quickstart/base

reads   <data>/items.parquet
writes  <output_dir>/  a Hugging Face directory: Qwen3 with random float32 weights, a byte-level BPE tokenizer trained
        on the items' titles, descriptions, brands and categories and on the words of the prompts, and a chat template
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

from configs import program
from configs.program import InputError
from data import artifacts
from data.prompts import wording
from data.store.models import write_model
from data.store.output import open_output
from preprocess.base_model import (
    ModelShape,
    instruction_texts,
    item_texts,
    random_model,
    train_tokenizer,
)

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
    shape: ModelShape = field(default_factory=ModelShape)
    """sizes of the model"""
    seed: int = 0
    """decides the random weights"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if unknown := [task for task in self.tasks if task not in wording(self.wording).templates]:
            raise InputError(f"tasks {unknown} have no words in wording {self.wording} -> leave them out")


def main(args: InitBaseModelArgs) -> None:
    items = artifacts.read_items(args.data)
    with open_output(args, STAGE, version=VERSION, inputs={"data": args.data}) as out:
        instructions = instruction_texts(wording(args.wording), tasks=args.tasks, times=len(items))
        tokenizer = train_tokenizer(
            chain(item_texts(items), [instructions]),
            vocab_size=args.vocab_size,
            max_positions=args.shape.max_positions,
        )
        model = random_model(tokenizer, args.shape, seed=args.seed)
        write_model(out, model, tokenizer)
        out.counts |= {"tokens": len(tokenizer), "parameters": model.num_parameters()}


if __name__ == "__main__":
    program.run(InitBaseModelArgs, main)
