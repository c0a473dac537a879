"""Stage 08, second half: give a model one token for every code of every level of the semantic IDs.

    python -m preprocess.expand_vocab --config configs/toy/vocab.yaml --model outputs/quickstart/base \\
        --sids data/toystore/sids/rqkmeans --output_dir outputs/quickstart/vocab

reads   <model>/  any local Hugging Face causal LM or encoder-decoder with safetensors weights and a tokenizer
        <sids>/   sids.parquet; quantizer.safetensors with --init codebook
        <embeddings>/  vectors of the items with --init vectors
writes  <output_dir>/  the model with the new tokens, in its own dtype, sid_vocab.json, and new_tokens.json, which lists them

One token per code is atomic granularity. One token per whole semantic ID: give semantic IDs of a single level, which
`rq.import_sids --whole true` makes. All codes get a token, also those that no item has yet, so a new item never needs a new token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data.prompts import plain_texts
from data.releases.text import read_json
from data.sid import SidTable, read_sids, sid_format
from data.store.checkpoints import require_model
from data.store.lineage import require_common_data
from data.store.models import load_config, load_tokenizer, load_weights, write_model
from data.store.output import open_output
from preprocess.examples.rows import check_belong
from preprocess.model.base_model import settle_generation
from preprocess.model.row_sources import (
    RowSource,
    code_keywords,
    code_titles,
    from_codebooks,
    from_item_vectors,
    from_words,
    read_codebooks,
)
from preprocess.model.vocabulary import add_sid_tokens, expand_model
from rq.vectors.embeddings import read_embeddings

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
    init: Literal["mean_noise", "codebook", "vectors", "titles", "keywords"] = "mean_noise"
    """new rows, all around the mean of the old ones: noise, the codes' own vectors, the mean vector of the items that have a
    code (tags too, in a layout with tags), the model's rows of the titles that a code has, or of the words that set its titles
    apart"""
    embeddings: str | None = None
    """embeddings directory whose vectors init vectors reads"""
    data: str | None = None
    """prepared data set whose titles init titles and keywords read"""
    keywords: int = 8
    """words per code"""
    scale: Literal["auto", "spread", "resize"] = "auto"
    """how far new rows lie from the mean: as old rows do (spread), or by half the length of the mean, so that they are about as
    long as rows that the library's own resize makes (resize); auto = resize for a trained table, spread for a random one"""
    noise_std: float | None = None
    """standard deviation of the noise; null = as scale says"""
    add_tokens: list[str] = field(default_factory=list)
    """further tokens"""
    add_tokens_list: str | None = None
    """JSON file with a list of further tokens, or signals.json of examples; overrides add_tokens"""
    tokenizer_only: bool = False
    """write the tokenizer and its lists, no model"""
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
        for name in ("pad_to_multiple_of", "keywords"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)} -> 1 or more")
        if (self.init in ("titles", "keywords")) != (self.data is not None):
            raise InputError("data goes with init titles or keywords -> give both or neither")
        if (self.init == "vectors") != (self.embeddings is not None):
            raise InputError("embeddings goes with init vectors -> give both or neither")
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [Need(("keywords",), self.init == "keywords", "init keywords")]


def main(args: ExpandVocabArgs) -> None:
    directory = require_model(args.model, written_by="preprocess.init_base_model")
    sids = read_sids(args.sids)
    more = read_tokens(args.add_tokens_list) if args.add_tokens_list else args.add_tokens
    words = read_words(args, sids)
    given = given_source(args, sids)
    inputs = {
        "model": args.model,
        "sids": args.sids,
        "data": args.data,
        "tokens": args.add_tokens_list,
        "embeddings": args.embeddings,
    }
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        model, tokenizer = load(directory, tokenizer_only=args.tokenizer_only)
        known = set(tokenizer.get_vocab())
        addition = add_sid_tokens(
            tokenizer, sid_format(args.format), sids.sizes, sids_sha256=sids.sha256, more=more
        )
        out.facts |= {"sids_sha256": sids.sha256, "format": args.format}
        out.counts |= {"new tokens": len(addition.new_ids), "reused tokens": addition.reused}
        if not args.tokenizer_only:
            out.facts["rows_before"] = model.get_input_embeddings().weight.shape[0]
            source = given or (from_words(tokenizer, words) if words else None)
            out.facts["scale"] = expand_model(
                model,
                addition,
                source=source,
                scale=args.scale,
                noise_std=args.noise_std,
                pad_to_multiple_of=args.pad_to_multiple_of,
                seed=args.seed,
            )
            settle_generation(model, tokenizer)
            out.counts["rows"] = model.get_input_embeddings().weight.shape[0]
        write_model(out, model, tokenizer)
        out.write_json("sid_vocab.json", addition.vocab.to_json())
        added = [
            token
            for token in tokenizer.convert_ids_to_tokens(addition.new_ids.tolist())
            if token not in known
        ]
        out.write_json("new_tokens.json", added)


def read_tokens(path: str) -> list[str]:
    """The tokens of a JSON list, or of an object with a list `tokens`."""
    listed = read_json(path)
    listed = listed.get("tokens") if isinstance(listed, dict) else listed
    if not isinstance(listed, list) or not all(isinstance(token, str) and token for token in listed):
        raise InputError(f"{path} is no JSON list of tokens -> correct it")
    return listed


def read_words(args: ExpandVocabArgs, sids: SidTable) -> dict[int, dict[int, list[str]]]:
    """level -> code -> texts, where `init` reads titles."""
    if args.data is None:
        return {}
    items = artifacts.read_items(args.data)
    check_belong(args.data, args.sids, num_items=len(items), num_sids=sids.num_items)
    titles = code_titles(sids, plain_texts(items["title"].to_pylist()))
    if not any(titles.values()):
        raise InputError(f"{args.data} has no titles -> init codebook or mean_noise")
    return titles if args.init == "titles" else code_keywords(titles, count=args.keywords)


def given_source(args: ExpandVocabArgs, sids: SidTable) -> RowSource | None:
    """Rows that vectors give, where `init` reads some."""
    if args.init == "codebook":
        return from_codebooks(read_codebooks(args.sids, sids.sizes))
    if args.init == "vectors":
        require_common_data(args.sids, args.embeddings, again="scripts/02_embed_items.sh")
        return from_item_vectors(sids, np.asarray(read_embeddings(args.embeddings)))
    return None


def load(directory: Path, *, tokenizer_only: bool = False) -> tuple[Any, Any]:
    """(model in its own dtype on the CPU, or None; tokenizer) of a local directory."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    tokenizer, model = load_tokenizer(directory), None
    if not tokenizer_only:
        encodes = load_config(directory).is_encoder_decoder
        kind = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
        model = load_weights(kind, directory, dtype="auto")
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {directory} has no eos token -> set `eos_token` in tokenizer_config.json"
        )
    return model, tokenizer


if __name__ == "__main__":
    program.run(ExpandVocabArgs, main)
