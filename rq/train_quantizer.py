"""Stage 04, first program: train the codebooks that turn item vectors into semantic IDs.

reads   an embeddings directory (stage 02); for plum <data>/sequences.parquet (train rows; of windows with a stride
        interactions.parquet), for hidvae a tags directory (stage 03), for rqkmeans_plus another quantizer if one is given
writes  <output_dir>/quantizer.safetensors, quantizer.json, manifest.json; balanced: trained_codes.npy; trained by gradients:
        checkpoint-*/, best_collisions.safetensors, best_loss.safetensors, metrics.jsonl

The ways to make codebooks are those of rq/constructors/__init__.py, listed by `--help`, or a function of a file of one's own:
`--constructor mine.py:fit --options.sizes [64,64]`.

An interrupted training resumes from its newest checkpoint. rq.assign_sids reads the result.

python -m rq.train_quantizer --embeddings data/toystore/embeddings/text_cooc \\
    --output_dir data/toystore/quantizers/rqkmeans --config configs/toy/quantizer.yaml
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Any

from configs import program
from configs.functions import file_of, options_of
from configs.program import InputError
from data.rows import has_stride
from data.store import output
from data.store.lineage import require_common_data, require_same_data
from rq import constructors
from rq.constructors import CONSTRUCTORS
from rq.quality import measures as quality
from rq.stack import residual
from rq.stack.options import Source, warn_of_sizes
from rq.vectors.embeddings import read_embeddings

STAGE, VERSION = "train_quantizer", 2


@dataclass
class CommonArgs:
    """What every constructor is told."""

    embeddings: str
    """Embeddings directory (stage 02)."""
    output_dir: str
    """Where to write, e.g. data/<set>/quantizers/<name>."""
    constructor: str = "rqkmeans"
    """How the codebooks are made: the name of an option group below, or file.py:function."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of a constructor from a file."""
    data: str | None = None
    """Prepared data set (stage 01), whose train sequences plum learns from."""
    tags: str | None = None
    """Tags directory (stage 03) that hidvae learns from."""
    warm_start: str | None = None
    """Quantizer (rqkmeans or balanced) that rqkmeans_plus starts from; without it, one is made by its `start`."""
    seed: int = 0
    """Seed of the k-means starts (the same for every level), of weights, and of the order of items."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        entry = constructors.find(self.constructor)
        own = self.constructor if self.constructor in CONSTRUCTORS else "options"
        for option in fields(self):
            if option.name not in {*CONSTRUCTORS, "options"} - {own}:
                continue
            if getattr(self, option.name) != option.default_factory():
                raise InputError(
                    f"options of {'a file' if option.name == 'options' else option.name} are given, but the constructor is {self.constructor} "
                    f"-> {own}, or another --constructor"
                )
        for name in ("data", "tags", "warm_start"):
            if getattr(self, name) is not None and name not in entry.reads:
                raise InputError(f"{self.constructor} does not read --{name} -> leave it out")

    def not_chosen(self) -> set[str]:
        """Fields without meaning for this constructor: they are no part of the configuration."""
        return {*CONSTRUCTORS, "options"} - {
            self.constructor if self.constructor in CONSTRUCTORS else "options"
        }

    def chosen_options(self) -> Any:
        """The constructor's own options."""
        if self.constructor in CONSTRUCTORS:
            return getattr(self, self.constructor)
        return options_of(constructors.find(self.constructor).options, self.options, what=self.constructor)


TrainQuantizerArgs = make_dataclass(
    "TrainQuantizerArgs",
    [(name, entry.options, field(default_factory=entry.options)) for name, entry in CONSTRUCTORS.items()],
    bases=(CommonArgs,),
    namespace={
        "__module__": __name__,
        "__doc__": "Arguments of the quantizer training. Of the option groups only the constructor's own may be given.\n\nArgs:\n"
        + "".join(f"    {name}: {name}: {entry.about}\n" for name, entry in CONSTRUCTORS.items()),
    },
)


@dataclass
class ArgsWithPairs(TrainQuantizerArgs):
    """The arguments, and where plum finds its pairs if the windows have a stride (in earlier outputs in the rows, which lack most)."""

    pairs: str = ""


def seen(args: TrainQuantizerArgs) -> TrainQuantizerArgs:
    """`args`, with what else decides the codebooks where it is not what it was."""
    learns = args.constructor == "plum" and args.plum.contrast_weight and args.data is not None
    return ArgsWithPairs(**vars(args), pairs="interactions") if learns and has_stride(args.data) else args


def main(args: TrainQuantizerArgs) -> None:
    """Read, train, write."""
    optional = {name: getattr(args, name) for name in ("data", "tags", "warm_start")}
    inputs = {"embeddings": args.embeddings, "constructor_file": file_of(args.constructor)} | optional
    with output.open_output(seen(args), STAGE, version=VERSION, inputs=inputs) as out:
        x_ND = read_embeddings(args.embeddings)
        if args.data is not None:
            require_same_data(args.embeddings, args.data, again="scripts/02_embed_items.sh")
        if args.tags is not None:
            require_common_data(args.embeddings, args.tags, again="scripts/03_complete_tags.sh")
        options = args.chosen_options()
        warn_of_sizes(options.sizes, x_ND)
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
