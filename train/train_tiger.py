"""Encoder-decoders over semantic IDs: TIGER, HiD-VAE's retriever, any T5- or BART-class model with SID tokens.

reads   a model directory with SID tokens (preprocess.init_base_model --kind t5 and preprocess.expand_vocab make one), its SIDs,
        examples (07; rows of task history_to_sid)
writes  <output_dir>/{config.json, model.safetensors, tokenizer, sid_vocab.json, item_model.json, codes.npy, config.yaml,
        metrics.jsonl, manifest.json}: infer.recommend runs it, and as an item model it scores every item exactly

Every prefix of a history is a row (sliding windows). The decoder writes the levels of the ID; with `score_space: level` each
level has its own softmax over its own rows of the output table, which is one head per level; `trie`: over the codes that may
follow. The state with the best item-level NDCG@10 of trie-constrained beams on valid rows is kept; test rows are never read.
A killed run resumes to the same weights.
Differs from the published code: beams cannot leave the catalogue, no de-duplication digit (stage 04 moves colliding items), hits
are those of items. HiD-VAE: relative positions instead of learned ones; a token type is part of the token, since every position
of an ID has rows of its own.

python -m train.train_tiger --config configs/minionerec/tiger.yaml --model outputs/minionerec-industrial/tiger.vocab \\
    --examples data/industrial/examples/rqkmeans.tiger --sids data/industrial/sids/rqkmeans \\
    --output_dir outputs/minionerec-industrial/tiger
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data.store.output import Output, open_output
from infer.search.trie import SCORE_SPACES
from train.scratch.options import EpochOptions

STAGE, VERSION = "train_tiger", 2
SELECT_BY = ("ndcg@10", "hr@10")


@dataclass
class TrainTigerArgs:
    """Training of an encoder-decoder."""

    model: str
    """encoder-decoder with SID tokens"""
    examples: str
    """examples directory (stage 07); its rows of task history_to_sid are learned"""
    sids: str
    """SID directory that model and examples were made with"""
    output_dir: str
    """where the model goes, e.g. outputs/<run>/tiger"""
    score_space: Literal["full", "level", "trie"] = "level"
    """softmax of every step: over the codes of the level (TIGER), those that may follow (trie), or the whole vocabulary (full)"""
    dropout: float | None = None
    """share of activations dropped; null = as the model's config says"""
    label_smoothing: float = 0.0
    """share of a code's probability that is spread over the codes that may follow"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of forward and backward; auto: bfloat16 where the processor computes in it"""
    valid_beams: int = 20
    """beams of the validation that chooses the state"""
    loop: EpochOptions = field(default_factory=EpochOptions)
    """how it is trained"""
    seed: int = 0
    """of batches, dropout and the valid sample; the weights are those of `model`"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if self.score_space not in SCORE_SPACES:
            raise InputError(f"unknown score space {self.score_space!r} -> one of {', '.join(SCORE_SPACES)}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"dropout {self.dropout} must lie in [0, 1)")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing {self.label_smoothing} must lie in [0, 1)")
        if self.loop.select_by not in SELECT_BY:
            raise InputError(f"loop.select_by {self.loop.select_by} -> one of {', '.join(SELECT_BY)}")
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(
                ("loop.evidence_rate", "loop.repeats"), False, "train.train_sequential or train.train_compact"
            )
        ]


def read_train(args: TrainTigerArgs, engine: Any) -> tuple[Any, dict[str, int]]:
    """(HistoryRows, counts); InputError where there is nothing to learn."""
    from infer.work.decoding import select_rows
    from train.scratch.tiger import HistoryRows
    from train.supervised.tokens import render, say_shortened

    table = artifacts.read_split(args.examples, "train")
    table = select_rows(table, max_rows=None, seed=0, where=f"train of {args.examples}")
    rendered = render(table, engine.renderer)
    say_shortened(rendered.shortened, engine.renderer.max_prompt)
    _, codes = artifacts.ragged(pc.struct_field(table["answer"], "sid"))
    answers_R = codes.astype(np.int64).reshape(table.num_rows, -1)
    rows = HistoryRows(
        rendered.tokens_S,
        rendered.starts_N,
        rendered.prompts_N,
        answers_R,
        table["weight"].to_numpy().astype(np.float32),
        table["example_id"].to_numpy(),
    )
    return rows, {"train rows": len(rows), "histories_cut": sum(rendered.shortened.values())}


def load(args: TrainTigerArgs, device: str) -> Any:
    """The engine around the model in float32; InputError for a model that is no encoder-decoder."""
    from infer.engine import DecodeSettings, load_engine

    settings = DecodeSettings(beams=args.valid_beams, score_space=args.score_space, batch_size=256)
    engine = load_engine(args.model, args.sids, args.examples, settings, device="cpu")
    if not engine.model.config.is_encoder_decoder:
        raise InputError(f"{args.model} is a causal LM -> train.sft, or preprocess.init_base_model --kind t5")
    engine.model.to(device)
    if args.dropout is not None:
        set_dropout(engine.model, args.dropout)
    return engine


def set_dropout(model: Any, share: float) -> None:
    """The share of every dropout inside a T5- or BART-class model; its config says the same."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = share
    for name in ("dropout_rate", "dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, share)


def computes_in_bfloat16(precision: str) -> bool:
    """Whether forward and backward compute in bfloat16; InputError where that was asked of a processor without it."""
    from train.arguments import bfloat16

    if precision == "auto":
        try:
            return bfloat16(True)
        except InputError:
            return False
    return bfloat16(precision == "bfloat16")


def train(args: TrainTigerArgs, out: Output) -> None:
    """Train to the end (resuming), save the best state."""
    import torch

    from data.store.models import write_model
    from infer.loading import default_device, usable_device
    from infer.models.retrievers.tiger import save
    from train.scratch.loop import Run
    from train.scratch.tiger import EncoderDecoderTask
    from train.validation import Validator

    device = default_device() if args.loop.device == "auto" else usable_device(args.loop.device)
    engine = load(args, device)
    rows, counts = read_train(args, engine)
    validator = Validator(engine, args.examples, rows=args.loop.valid_rows, seed=args.seed)
    bf16 = computes_in_bfloat16(args.precision)
    task = EncoderDecoderTask(
        engine, rows, validator, rows=args.loop.rows, smoothing=args.label_smoothing, bf16=bf16
    )
    facts = Run(task, args.loop, out=out, seed=args.seed).to_the_end()
    write_model(out, engine.model.cpu(), engine.renderer.tokenizer)
    out.write_json("sid_vocab.json", engine.renderer.vocab.to_json())
    save(out, engine)
    out.counts |= counts
    out.facts |= {
        "fitted_on": "train",
        "sids_sha256": engine.sids.sha256,
        "parameters": engine.model.num_parameters(),
        "bfloat16": bf16,
        "threads": torch.get_num_threads(),
    } | facts | validator.facts()  # fmt: skip


def main(args: TrainTigerArgs) -> None:
    inputs = {"model": args.model, "examples": args.examples, "sids": args.sids}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        out.write_text("config.yaml", program.as_yaml(args))
        train(args, out)


if __name__ == "__main__":
    program.run(TrainTigerArgs, main)
