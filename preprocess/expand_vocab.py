"""Stage 08, second half: give a model one token for every code of every level of the semantic IDs.

    python -m preprocess.expand_vocab --config configs/toy/vocab.yaml --model outputs/quickstart/base \\
        --sids data/toystore/sids/rqkmeans --output_dir outputs/quickstart/vocab

reads   <model>/  any local Hugging Face causal LM with safetensors weights and a tokenizer
        <sids>/   sids.parquet; quantizer.safetensors with --init codebook
writes  <output_dir>/  the model with the new tokens, in its own dtype, and sid_vocab.json

All codes get a token, also those that no item has yet, so a new item never needs a new token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs import program
from configs.program import InputError
from data.sid import read_sids, sid_format
from data.store.checkpoints import require_model
from data.store.models import load_tokenizer, load_weights
from data.store.output import open_output
from preprocess.base_model import settle_generation, write_model
from preprocess.vocabulary import add_sid_tokens, expand_model, read_codebooks

STAGE, VERSION = "expand_vocab", 1


@dataclass(frozen=True, kw_only=True)
class ExpandVocabArgs:
    """Arguments of preprocess.expand_vocab."""

    model: str
    """local Hugging Face directory"""
    sids: str
    """semantic IDs (stage 04)"""
    output_dir: str
    """where the expanded model goes"""
    format: Literal["letters", "navigen"] = "letters"
    """how semantic IDs are written; must be that of the examples (stage 07)"""
    init: Literal["mean_noise", "codebook"] = "mean_noise"
    """new rows: mean_noise = mean of the old rows plus noise; codebook = the codes' own vectors, projected"""
    noise_std: float | None = None
    """standard deviation of the noise; null = the spread of the old rows"""
    pad_to_multiple_of: int = 1
    """where the embedding table has to grow, its rows become a multiple of this"""
    seed: int = 0
    """decides noise and projections"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if self.noise_std is not None and self.noise_std < 0:
            raise InputError(
                f"noise_std is {self.noise_std} -> 0 or more, or null for the spread of the old rows"
            )
        if self.pad_to_multiple_of < 1:
            raise InputError(f"pad_to_multiple_of is {self.pad_to_multiple_of} -> 1 or more")


def main(args: ExpandVocabArgs) -> None:
    directory = require_model(args.model, written_by="preprocess.init_base_model")
    sids = read_sids(args.sids)
    codebooks = read_codebooks(args.sids, sids.sizes) if args.init == "codebook" else {}
    with open_output(args, STAGE, version=VERSION, inputs={"model": args.model, "sids": args.sids}) as out:
        model, tokenizer = load(directory)
        addition = add_sid_tokens(tokenizer, sid_format(args.format), sids.sizes, sids_sha256=sids.sha256)
        rows_before = model.get_input_embeddings().weight.shape[0]
        expand_model(
            model,
            addition,
            codebooks=codebooks,
            noise_std=args.noise_std,
            pad_to_multiple_of=args.pad_to_multiple_of,
            seed=args.seed,
        )
        settle_generation(model, tokenizer)
        write_model(out, model, tokenizer)
        out.write_json("sid_vocab.json", addition.vocab.to_json())
        rows_after = model.get_input_embeddings().weight.shape[0]
        out.counts |= {
            "new tokens": len(addition.new_ids),
            "reused tokens": addition.reused,
            "rows": rows_after,
        }
        out.facts |= {"sids_sha256": sids.sha256, "format": args.format, "rows_before": rows_before}


def load(directory: Path) -> tuple[Any, Any]:
    """(model in its own dtype on the CPU, tokenizer) of a local directory."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(directory)
    model = load_weights(AutoModelForCausalLM, directory, dtype="auto")
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {directory} has no eos token -> set `eos_token` in tokenizer_config.json"
        )
    return model, tokenizer


if __name__ == "__main__":
    program.run(ExpandVocabArgs, main)
