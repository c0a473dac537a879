"""A checkpoint's semantic IDs as a bundle that plain transformers, or vLLM, decodes with: no code of this repository needed.

reads   a model directory with SID tokens (whole: scripts/merge.sh first for an adapter), its SID directory, the examples that
        it was trained on (how a prompt is written), the prepared data set (raw ids and titles)
writes  <output_dir>/bundle.json, trie.safetensors, items.parquet, tokenizer/, quantizer.{safetensors,json} where the SID
        directory has them, trie_processor.py (for vLLM: infer/text/vllm_trie.py), README.md (the card, with a program of 40
        lines that gives the same top-10), manifest.json (the hash of every file). Formats: data/releases/bundle.py.
        Weights stay where they are; bundle.json has their hashes

python -m train.export_bundle --model outputs/quickstart/grpo/final --sids data/toystore/sids/rqkmeans \\
    --examples data/toystore/examples/rqkmeans --data data/toystore --output_dir outputs/quickstart/bundle
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs import program
from configs.integrity import sha256
from configs.program import ROOT, InputError
from data import artifacts
from data.releases import bundle
from data.store.adapters import is_adapter
from data.store.checkpoints import found_model
from data.store.lineage import require_same_data
from data.store.manifest import read_manifest
from data.store.output import Output, open_output
from infer.engine import DecodeSettings, Engine, load_engine

STAGE, VERSION = "export_bundle", 1
QUANTIZER = ("quantizer.safetensors", "quantizer.json")
PROCESSOR = ROOT / "infer" / "text" / "vllm_trie.py"
CHECKED = 64  # histories of the data set whose prompts the template must give


@dataclass
class ExportBundleArgs:
    """What is bundled."""

    model: str
    """model directory with SID tokens; of a training's own directory its final/, or best checkpoint"""
    sids: str
    """its SID directory"""
    examples: str
    """examples directory that it was trained on"""
    data: str
    """prepared data set"""
    output_dir: str
    """where to write"""
    name: str = "recommender"
    """title of the card"""
    mode: Literal["direct", "empty_think"] = "direct"
    """where the answer starts: right behind the prompt, or behind an empty think block"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        self.model = found_model(self.model)


def open_model(args: ExportBundleArgs) -> Engine:
    """The model with all that decides about its prompts; InputError for what a bundle has no place for."""
    if is_adapter(args.model):
        raise InputError(
            f"{args.model} is an adapter, a bundle is of a whole model -> scripts/merge.sh first"
        )
    engine = load_engine(args.model, args.sids, args.examples, DecodeSettings(), device="cpu", mode=args.mode)
    if engine.model.config.is_encoder_decoder:
        raise InputError(
            f"{args.model} is an encoder-decoder, the bundle's program is of causal LMs -> a causal LM"
        )
    if engine.histories.context.signals is not None:
        raise InputError(
            f"the prompts of {args.examples} have tokens of users, items or times besides their semantic IDs, which a bundle "
            "has no place for -> use the checkpoint through infer.engine"
        )
    return engine


def card(name: str, facts: dict[str, Any], trained: dict[str, Any]) -> str:
    """README.md of the bundle: what is in it, how it is used, what it was made from."""
    rows = {
        "items, distinct semantic IDs": f"{facts['items']:,}, {facts['distinct']:,}",
        "codes by level": " x ".join(map(str, facts["sizes"])),
        "semantic IDs, SHA-256": facts["sids_sha256"],
        **{f"{file}, SHA-256": digest for file, digest in facts["weights"].items()},
        "checkpoint of": f"stage {trained.get('stage')}, commit {(trained.get('git') or {}).get('commit')}",
    }
    text = Path(bundle.__file__).with_name("bundle_card.md").read_text()
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    return text.replace("{name}", name).replace("{table}", table)


def write_bundle(args: ExportBundleArgs, out: Output) -> None:
    """Every file of the bundle."""
    from safetensors.numpy import save_file

    engine, items = open_model(args), artifacts.read_items(args.data)
    sids, renderer = engine.sids, engine.renderer
    require_same_data(args.sids, args.data, again="rq.assign_sids or rq.import_sids")
    if len(items) != sids.num_items:
        raise InputError(f"{args.sids} has {sids.num_items} items, {args.data} {len(items)} -> pass its own")
    walks = artifacts.read_sequences(args.data, num_items=len(items))["history"].slice(0, CHECKED).to_pylist()
    facts = {
        "format": bundle.FORMAT, "version": bundle.VERSION, "sizes": list(sids.sizes), "items": sids.num_items,
        "distinct": len(sids.sids_SL), "sids_sha256": sids.sha256, "suffix_ids": list(renderer.answer_vocab.suffix_ids),
        "stop_ids": renderer.terminator_ids(), "prompt": bundle.prompt_parts(engine.histories, [w for w in walks if w]),
        "weights": {file.name: sha256(file) for file in sorted(Path(args.model).glob("*.safetensors"))},
    }  # fmt: skip
    with out.replacing(bundle.TRIE) as temporary:
        save_file(bundle.trie_arrays(sids, renderer.vocab), temporary)
    out.write_table(bundle.ITEMS, bundle.items_table(items, sids, renderer.vocab))
    shutil.rmtree(out.path / bundle.TOKENIZER, ignore_errors=True)
    renderer.tokenizer.save_pretrained(out.path / bundle.TOKENIZER)
    copies = {name: Path(args.sids, name) for name in QUANTIZER} | {bundle.PROCESSOR: PROCESSOR}
    for name, source in copies.items():
        if source.exists():
            with out.replacing(name) as temporary:
                shutil.copyfile(source, temporary)
    trained = read_manifest(args.model) or read_manifest(Path(args.model).parent) or {}
    out.write_json(bundle.FACTS, facts)
    out.write_text(bundle.CARD, card(args.name, facts, trained))
    out.counts |= {"items": sids.num_items, "distinct": len(sids.sids_SL)}
    out.facts |= {"bundle_version": bundle.VERSION, "sids_sha256": sids.sha256}


def main(args: ExportBundleArgs) -> None:
    inputs = {"model": args.model, "sids": args.sids, "examples": args.examples, "data": args.data}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        write_bundle(args, out)


if __name__ == "__main__":
    program.run(ExportBundleArgs, main)
