"""Stage 04, first program: train the codebooks that turn item vectors into semantic IDs.

reads   an embeddings directory (stage 02)
writes  <output_dir>/quantizer.safetensors, quantizer.json, manifest.json

Residual k-means: every level is k-means on what the levels before it left over. rq.assign_sids reads the result.

python -m rq.train_quantizer --embeddings data/toystore/embeddings/text_cooc \\
    --output_dir data/toystore/quantizers/rqkmeans --config configs/toy/toystore/quantizer.yaml
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from configs import program
from data import output
from rq import quality, residual
from rq.embeddings import read_embeddings
from rq.rqkmeans import RqKmeans, train_rqkmeans

VERSION = 1


@dataclass
class TrainQuantizerArgs:
    """Arguments of the quantizer training."""

    embeddings: str
    """Embeddings directory (stage 02)."""
    output_dir: str
    """Where to write, e.g. data/<set>/quantizers/<name>."""
    rqkmeans: RqKmeans = field(default_factory=RqKmeans)
    """Options of residual k-means."""
    seed: int = 0
    """Seed of the k-means starts, the same for every level."""
    overwrite: bool = False
    """Replace an output of another configuration."""


def main(args: TrainQuantizerArgs) -> None:
    """Read, train, write."""
    with output.open_output(
        args.output_dir,
        stage="train_quantizer",
        version=VERSION,
        args=args,
        inputs={"embeddings": args.embeddings},
        overwrite=args.overwrite,
    ) as out:
        x_ND = read_embeddings(args.embeddings)
        quantizer = train_rqkmeans(x_ND, args.rqkmeans, seed=args.seed)
        residual.save(out, quantizer, made_by={"name": "rqkmeans"} | asdict(args.rqkmeans))
        out.counts |= {"items": len(x_ND), "codes": sum(quantizer.sizes)}
        out.facts |= {
            "sizes": list(quantizer.sizes),
            "dim": quantizer.dim,
            "reconstruction_error": quality.reconstruction_error(x_ND, quantizer.encode(x_ND), quantizer),
        }


if __name__ == "__main__":
    program.run(TrainQuantizerArgs, main)
