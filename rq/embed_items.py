"""Stage 02: item vectors from item text, behaviour, images, or another program.

reads   <data>/items.parquet, <data>/sequences.parquet (train rows only, for co-occurrence; of windows with a stride
        interactions.parquet), model directories, image files
writes  <output_dir>/embeddings.npy float32 [N, d] (row i is item i, memory-mappable), fitted.json, fitted.safetensors,
        manifest.json

An embedding is a list of parts side by side, each of length 1 per item (unless `normalize: false`) times its weight:
  tfidf_svd     TF-IDF of `text_fields`, reduced by SVD; nothing to download
  cooccurrence  positive PMI of items in the users' train sequences, reduced by SVD
  hf            any local text encoder directory: mean, last-token or cls pooling (--hf.*)
  clip          images by a local CLIP or SigLIP directory (--clip.*); an item without image is a zero row, and counted
  external      vectors of another program (.npy, .parquet, or a folder with embeddings.npy), matched by item, e.g. SASRec's
  column        a column of items.parquet that holds numbers, e.g. the genre_flags of MovieLens (`normalize: false` keeps 0 and 1)
  given         an embeddings directory of this stage, by `path`
An item without train rows has no co-occurrence: that part of it becomes what its `fill_neighbours` nearest items in the
other parts have there (0 leaves zeros). `reduce` then applies PCA, with or without whitening. Rows that stay zero throughout
are counted as `zero_rows`; no value is ever NaN.

--like EMBEDDINGS embeds new items in the space of an earlier output: items known there (by raw_id) keep their vectors, new
ones go through its fitted TF-IDF, encoders and PCA. `rq.assign_sids --append` needs such vectors. Encoders share the work
with torchrun or accelerate (NUM_GPUS of scripts/02_embed_items.sh); any number of processes gives the same rows.

python -m rq.embed_items --data data/toystore --output_dir data/toystore/embeddings/text_cooc \\
    --config configs/toy/embed.yaml
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data.rows import has_stride
from data.store import output
from data.store.fingerprints import sha256_json
from rq.vectors import embeddings, encoders, extend, parts
from rq.vectors.cooccurrence import Cooccurrence, read_chains
from rq.vectors.embeddings import Projection, Tfidf
from rq.vectors.encoders import ImageEncoder, TextEncoder
from rq.vectors.extend import Fitted, Reduce
from rq.vectors.parts import Part, Recipe

STAGE, VERSION = "embed_items", 2


@dataclass
class EmbedArgs:
    """Arguments of stage 02."""

    data: str
    """Prepared data set (stage 01)."""
    output_dir: str
    """Where to write, e.g. data/<set>/embeddings/<name>."""
    parts: list[Part] = field(default_factory=lambda: [Part("tfidf_svd")])
    """The blocks of columns, in order."""
    text_fields: list[str] = field(default_factory=lambda: list(embeddings.TEXT_FIELDS))
    """Columns of items.parquet that make an item's text, in order, one per line."""
    tfidf: Tfidf = field(default_factory=Tfidf)
    """Options of tfidf_svd parts."""
    cooccurrence: Cooccurrence = field(default_factory=Cooccurrence)
    """Options of cooccurrence parts."""
    hf: TextEncoder = field(default_factory=TextEncoder)
    """Options of hf parts."""
    clip: ImageEncoder = field(default_factory=ImageEncoder)
    """Options of clip parts."""
    reduce: Reduce = field(default_factory=Reduce)
    """PCA of all parts together."""
    fill_neighbours: int = 5
    """Neighbours in the other parts that stand in for a missing co-occurrence; 0 leaves zeros."""
    like: str | None = None
    """Embeddings directory whose fitted space new items are put into; its parts and options hold instead of those here."""
    seed: int = 0
    """Seed of the randomised SVD and of word_drop."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        if not self.parts or not self.text_fields:
            raise InputError(
                "parts and text_fields must name at least one, e.g. --parts '[{method: tfidf_svd}]'"
            )
        if self.fill_neighbours < 0:
            raise InputError(f"fill_neighbours {self.fill_neighbours} is negative -> 0 or more")
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        options = {"tfidf_svd": "tfidf", "cooccurrence": "cooccurrence", "hf": "hf", "clip": "clip"}
        methods, alike = (
            {part.method for part in self.parts},
            ("parts", "text_fields", "reduce", "fill_neighbours"),
        )
        of_parts = [
            Need((group,), method in methods, f"a part {method}") for method, group in options.items()
        ]
        return [*of_parts, Need((*options.values(), *alike), self.like is None, "without `like`")]

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.text_fields, self.tfidf, self.cooccurrence, self.hf, self.clip, self.seed)


@dataclass
class Seen(EmbedArgs):
    """The arguments, and what else decides the rows. image_listing: the image files, where some are read; without_text: what items
    without text are in TF-IDF, where there are any (in earlier outputs they all had one text); chains: where pairs of items are counted,
    if the windows have a stride (in earlier outputs once per window that holds them)."""

    image_listing: str = ""
    without_text: str = ""
    chains: str = ""


def embed(args: EmbedArgs, *, shards: Path) -> tuple[np.ndarray | None, Fitted | None, dict[str, int]]:
    """(float32 [N, d], what was fitted, counts); (None, None, {}) on ranks other than 0."""
    items = artifacts.read_items(args.data)
    uses_behaviour = any(part.method == "cooccurrence" for part in args.parts)
    chains = read_chains(args.data, num_items=len(items)) if uses_behaviour else None
    alone = all(part.method == "tfidf_svd" for part in args.parts)
    made = [
        parts.make_part(
            part,
            args.recipe,
            items,
            chains,
            shards=shards / f"part_{number}",
            where=args.data,
            texts_alone=alone,
        )
        for number, part in enumerate(args.parts)
    ]
    if any(one.x_ND is None for one in made):
        return None, None, {}
    blocks, filled = parts.fill_behaviour(
        args.parts, [one.x_ND for one in made], neighbours=args.fill_neighbours
    )
    x_ND = embeddings.side_by_side(blocks, [part.weight for part in args.parts])
    projection: Projection | None = None
    if args.reduce.dim is not None:
        projection = embeddings.principal_directions(x_ND, dim=args.reduce.dim, whiten=args.reduce.whiten)
        x_ND = args.reduce.finish(projection.apply(x_ND))
    counts = {"items": len(x_ND), "zero_rows": int(embeddings.zero_rows(x_ND).sum())}
    counts |= {name: value for one in made for name, value in one.counts.items()}
    if uses_behaviour:
        counts["filled_from_neighbours"] = filled
    fitted = Fitted(
        parts=args.parts,
        recipe=args.recipe,
        reduce=args.reduce,
        fill_neighbours=args.fill_neighbours,
        widths=[block.shape[1] for block in blocks],
        raw_ids=items["raw_id"].to_pylist(),
        spaces=[one.fitted for one in made],
        projection=projection,
    )
    return x_ND, fitted, counts


def inputs_of(args: EmbedArgs) -> dict[str, object]:
    """Paths whose content decides the output, by name."""
    if args.like is not None:
        return {"data": args.data, "like": args.like}
    read = [Path(part.path) for part in args.parts if part.method in ("given", "hf", "clip")]
    for part in args.parts:
        if part.method == "external":
            path = Path(part.path)
            read.append(path / embeddings.FILE if path.is_dir() else path)
            read += [Path(part.ids)] if part.ids else []
    return {"data": args.data, "given": read or None}


def seen(args: EmbedArgs) -> EmbedArgs:
    """`args`, with a hash of the image files' names, sizes and times where images are read, a word of items without text, and one of
    where co-occurrence is counted when rows alone would say it wrongly."""
    methods, found = {part.method for part in args.parts}, {}
    if args.like is not None:
        return args
    if "clip" in methods:
        paths = parts.images_of(artifacts.read_items(args.data), folder=args.clip.images)
        listing = [
            [path.name, stat.st_size, stat.st_mtime_ns] for path in paths if path and (stat := path.stat())
        ]
        found["image_listing"] = sha256_json(listing)
    if "tfidf_svd" in methods and embeddings.EMPTY_TEXT in embeddings.item_texts(
        artifacts.read_items(args.data), args.text_fields
    ):
        found["without_text"] = "zero rows"
    if "cooccurrence" in methods and has_stride(args.data):
        found["chains"] = "interactions"
    return Seen(**vars(args), **found) if found else args


def main(args: EmbedArgs) -> None:
    """Read, embed, write."""
    earlier = extend.read_fitted(args.like) if args.like is not None else None
    used = earlier.parts if earlier else args.parts
    together = any(part.method in parts.ENCODED for part in used)
    with output.open_output(seen(args), STAGE, version=VERSION, inputs=inputs_of(args)) as out:
        shards = out.path / "shards"
        with encoders.process_group() if together else nullcontext():
            if earlier is not None:
                x_ND, fitted, counts = extend.embed_new(
                    earlier, artifacts.read_items(args.data), like=args.like, shards=shards
                )
            else:
                x_ND, fitted, counts = embed(args, shards=shards)
        if x_ND is None:
            return
        shutil.rmtree(shards, ignore_errors=True)
        embeddings.require_finite(x_ND, where="new embeddings")
        out.write_array(embeddings.FILE, x_ND)
        extend.write_fitted(out, fitted)
        out.counts |= counts
        out.facts |= {"dim": x_ND.shape[1], "method": "+".join(part.method for part in used)}


if __name__ == "__main__":
    program.run(EmbedArgs, main)
