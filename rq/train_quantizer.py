"""Stage 04, first program: train the codebooks that turn item vectors into semantic IDs.

reads   an embeddings directory (stage 02); for plum <data>/sequences.parquet (train rows), for hidvae a tags directory
        (stage 03), for rqkmeans_plus another quantizer if one is given
writes  <output_dir>/quantizer.safetensors, quantizer.json, manifest.json; balanced: trained_codes.npy; trained by gradients:
        checkpoint-*/, best_collisions.safetensors, best_loss.safetensors, metrics.jsonl

  rqkmeans       residual k-means (faiss)
  balanced       residual k-means whose codes are all used by nearly the same number of items
  opq            rotation, then independent codes per piece of the vector
  rvq            residual codebooks by moving averages, no encoder
  rqvae          RQ-VAE: encoder, residual codebooks, decoder
  rqkmeans_plus  RQ-VAE whose encoder starts as the identity on balanced codebooks
  plum           RQ-VAE with coarse-to-fine code counts, random depth, co-occurrence contrast
  hidvae         RQ-VAE whose levels are supervised by tags

An interrupted training resumes from its newest checkpoint. rq.assign_sids reads the result.

python -m rq.train_quantizer --embeddings data/toystore/embeddings/text_cooc \\
    --output_dir data/toystore/quantizers/rqkmeans --config configs/toy/toystore/quantizer.yaml
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Literal

from configs import program
from configs.program import InputError
from data.store import output
from data.store.lineage import require_common_data, require_same_data
from rq import constructors
from rq.constructors import CONSTRUCTORS
from rq.constructors.balanced import Balanced
from rq.constructors.hidvae.options import HidVaeOptions
from rq.constructors.opq import Opq
from rq.constructors.rqkmeans import RqKmeans
from rq.constructors.rqvae import Plum, RqKmeansPlus, RqVae, Rvq
from rq.quality import measures as quality
from rq.stack import residual
from rq.stack.options import Source
from rq.vectors.embeddings import read_embeddings

STAGE, VERSION = "train_quantizer", 2


@dataclass
class TrainQuantizerArgs:
    """Arguments of the quantizer training. Of the option groups only the constructor's own may be given."""

    embeddings: str
    """Embeddings directory (stage 02)."""
    output_dir: str
    """Where to write, e.g. data/<set>/quantizers/<name>."""
    constructor: Literal["rqkmeans", "balanced", "opq", "rvq", "rqvae", "rqkmeans_plus", "plum", "hidvae"] = (
        "rqkmeans"
    )
    """How the codebooks are made."""
    data: str | None = None
    """Prepared data set (stage 01), whose train sequences plum learns from."""
    tags: str | None = None
    """Tags directory (stage 03) that hidvae learns from."""
    warm_start: str | None = None
    """Quantizer (rqkmeans or balanced) that rqkmeans_plus starts from; without it, one is made by its `start`."""
    rqkmeans: RqKmeans = field(default_factory=RqKmeans)
    """Options of residual k-means."""
    balanced: Balanced = field(default_factory=Balanced)
    """Options of balanced residual k-means."""
    opq: Opq = field(default_factory=Opq)
    """Options of optimised product quantization."""
    rvq: Rvq = field(default_factory=Rvq)
    """Options of residual VQ without an encoder."""
    rqvae: RqVae = field(default_factory=RqVae)
    """Options of RQ-VAE."""
    rqkmeans_plus: RqKmeansPlus = field(default_factory=RqKmeansPlus)
    """Options of RQ-Kmeans+."""
    plum: Plum = field(default_factory=Plum)
    """Options of RQ-VAE in PLUM's manner."""
    hidvae: HidVaeOptions = field(default_factory=HidVaeOptions)
    """Options of HiD-VAE."""
    seed: int = 0
    """Seed of the k-means starts (the same for every level), of weights, and of the order of items."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.name not in CONSTRUCTORS or entry.name == self.constructor:
                continue
            if entry.default_factory is not MISSING and getattr(self, entry.name) != entry.default_factory():
                raise InputError(
                    f"options of {entry.name} are given, but the constructor is {self.constructor} "
                    f"-> --constructor {entry.name}, or leave them out"
                )
        for name in ("data", "tags", "warm_start"):
            if getattr(self, name) is not None and name not in CONSTRUCTORS[self.constructor].reads:
                raise InputError(f"{self.constructor} does not read --{name} -> leave it out")

    def not_chosen(self) -> set[str]:
        """Option groups of the other constructors."""
        return set(CONSTRUCTORS) - {self.constructor}


def main(args: TrainQuantizerArgs) -> None:
    """Read, train, write."""
    optional = {name: getattr(args, name) for name in ("data", "tags", "warm_start")}
    with output.open_output(
        args, STAGE, version=VERSION, inputs={"embeddings": args.embeddings} | optional
    ) as out:
        x_ND = read_embeddings(args.embeddings)
        if args.data is not None:
            require_same_data(args.embeddings, args.data, again="scripts/02_embed_items.sh")
        if args.tags is not None:
            require_common_data(args.embeddings, args.tags, again="scripts/03_complete_tags.sh")
        options = getattr(args, args.constructor)
        quantizer = constructors.fit(
            args.constructor, Source(x_ND, **optional), options, seed=args.seed, out=out
        )
        residual.save(out, quantizer, made_by={"name": args.constructor} | asdict(options))
        out.counts |= {"items": len(x_ND), "codes": sum(quantizer.sizes)}
        out.facts |= {
            "constructor": args.constructor,
            "sizes": list(quantizer.sizes),
            "dim": quantizer.dim,
            "reconstruction_error": quality.reconstruction_error(x_ND, quantizer.encode(x_ND), quantizer),
        }


if __name__ == "__main__":
    program.run(TrainQuantizerArgs, main)
