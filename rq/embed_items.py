"""Stage 02: item vectors from item text and from train co-occurrence.

reads   <data>/items.parquet, <data>/sequences.parquet (train rows only, for co-occurrence)
writes  <output_dir>/embeddings.npy float32 [N, d] (row i is item i, memory-mappable), manifest.json

An embedding is a list of parts side by side, each of length 1 per item times its weight:
  tfidf_svd     TF-IDF of title, brand, categories and description, reduced by SVD; nothing to download
  cooccurrence  positive PMI of items in the users' train sequences, reduced by SVD
  given         an embeddings directory made before (or by another program), by `path`
An item without train rows has no co-occurrence: that part of it becomes what its `fill_neighbours` nearest items in the
other parts have there (0 leaves zeros). Rows that stay zero throughout are counted as `zero_rows`.

python -m rq.embed_items --data data/toystore --output_dir data/toystore/embeddings/text_cooc \\
    --config configs/toy/toystore/embed.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import InputError
from data import artifacts, output
from rq import embeddings
from rq.cooccurrence import Cooccurrence, cooccurrence_svd
from rq.embeddings import Tfidf

VERSION = 1


@dataclass
class Part:
    """One block of columns."""

    method: Literal["tfidf_svd", "cooccurrence", "given"]
    """How it is made."""
    dim: int | None = None
    """Columns; 128 unless said. A given part has the width of its file."""
    weight: float = 1.0
    """Length of its rows: how much it counts beside the other parts."""
    path: str | None = None
    """Embeddings directory of a given part."""

    def __post_init__(self) -> None:
        if (self.method == "given") != (self.path is not None):
            raise InputError(
                f"embedding part {self.method}: `path` belongs to a `given` part, and it needs one"
            )
        if self.method == "given" and self.dim is not None:
            raise InputError(f"embedding part {self.path}: `dim` is fixed by the file -> leave it out")
        if self.dim is not None and self.dim < 1 or self.weight <= 0:
            raise InputError(
                f"embedding part {self.method}: dim {self.dim} must be >= 1, weight {self.weight} > 0"
            )


@dataclass
class EmbedArgs:
    """Arguments of stage 02."""

    data: str
    """Prepared data set (stage 01)."""
    output_dir: str
    """Where to write, e.g. data/<set>/embeddings/<name>."""
    parts: list[Part] = field(default_factory=lambda: [Part("tfidf_svd")])
    """The blocks of columns, in order."""
    tfidf: Tfidf = field(default_factory=Tfidf)
    """Options of tfidf_svd parts."""
    cooccurrence: Cooccurrence = field(default_factory=Cooccurrence)
    """Options of cooccurrence parts."""
    fill_neighbours: int = 5
    """Neighbours in the other parts that stand in for a missing co-occurrence; 0 leaves zeros."""
    seed: int = 0
    """Seed of the randomised SVD."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("parts is empty -> give at least one, e.g. --parts '[{method: tfidf_svd}]'")
        if self.fill_neighbours < 0:
            raise InputError(f"fill_neighbours {self.fill_neighbours} is negative -> 0 or more")


def embed(args: EmbedArgs, items: pa.Table, sequences: pa.Table | None) -> tuple[np.ndarray, dict[str, int]]:
    """(float32 [N, d], counts) of all parts; `sequences` may be None when no part is co-occurrence."""
    made = [make_part(part, args, items, sequences) for part in args.parts]
    behaviour = [part.method == "cooccurrence" for part in args.parts]
    weights = [part.weight for part in args.parts]
    guides = [(x_ND, w) for x_ND, w, b in zip(made, weights, behaviour, strict=True) if not b]
    cold = filled = 0
    for number in np.flatnonzero(behaviour):
        cold = int(embeddings.zero_rows(made[number]).sum())
        if args.fill_neighbours and guides:
            guide_NE = embeddings.unit_rows(embeddings.side_by_side(*map(list, zip(*guides, strict=True))))
            made[number] = embeddings.fill_zero_rows(made[number], guide_NE, neighbours=args.fill_neighbours)
            filled = cold - int(embeddings.zero_rows(made[number]).sum())
    x_ND = embeddings.side_by_side(made, weights)
    embeddings.require_finite(x_ND, where="new embeddings")
    counts = {"items": len(x_ND), "zero_rows": int(embeddings.zero_rows(x_ND).sum())}
    if any(behaviour):
        counts |= {"items_without_cooccurrence": cold, "filled_from_neighbours": filled}
    return x_ND, counts


def make_part(part: Part, args: EmbedArgs, items: pa.Table, sequences: pa.Table | None) -> np.ndarray:
    """The unit rows of one part, float32 [N, dim]."""
    dim = part.dim or 128
    if part.method == "tfidf_svd":
        return embeddings.tfidf_svd(embeddings.item_texts(items), dim=dim, tfidf=args.tfidf, seed=args.seed)
    if part.method == "cooccurrence":
        return cooccurrence_svd(
            sequences, num_items=len(items), dim=dim, config=args.cooccurrence, seed=args.seed
        )
    x_ND = embeddings.read_embeddings(part.path)
    if len(x_ND) != len(items):
        raise InputError(
            f"{part.path} has {len(x_ND)} rows, {args.data} has {len(items)} items -> embed again"
        )
    return embeddings.unit_rows(x_ND)


def main(args: EmbedArgs) -> None:
    """Read, embed, write."""
    given = [part.path for part in args.parts if part.path is not None]
    inputs = {"data": args.data, "given": given or None}
    with output.open_output(
        args.output_dir,
        stage="embed_items",
        version=VERSION,
        args=args,
        inputs=inputs,
        overwrite=args.overwrite,
    ) as out:
        items = artifacts.read_items(args.data)
        uses_behaviour = any(part.method == "cooccurrence" for part in args.parts)
        sequences = artifacts.read_sequences(args.data, num_items=len(items)) if uses_behaviour else None
        x_ND, counts = embed(args, items, sequences)
        out.write_array(embeddings.FILE, x_ND)
        out.counts |= counts
        out.facts |= {"dim": x_ND.shape[1], "method": "+".join(part.method for part in args.parts)}


if __name__ == "__main__":
    program.run(EmbedArgs, main)
