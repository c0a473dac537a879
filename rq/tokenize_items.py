"""After stage 04, for HiD-VAE: item IDs in a layout with tags, and every item's path of codes in words.

reads   a sids directory (rq.assign_sids) whose quantizer is HiD-VAE's, <data>/items.parquet for samples, and for gold tags
        the tags directory (stage 03)
writes  <output_dir>/sids.parquet (item_id, codes: the whole ID, one number per position), tag_paths.parquet (item_id, codes,
        tags, confidence), layout.json (what every position holds), manifest.json; prints `samples` items

Later stages read the result like any sids directory: positions are levels, tag positions too. Layouts: see rq/ids/layouts.py.

python -m rq.tokenize_items --data data/scientific --sids data/scientific/sids/hidvae \\
    --output_dir data/scientific/sids/hidvae_concatenated --layout concatenated
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import InputError
from data import artifacts
from data.sid import SidTable, read_sids, write_sids
from data.store import output
from data.tags import TagSet, read_tags
from rq.constructors.hidvae import quantizer as hidvae
from rq.ids.layouts import LaidOut, Layout, lay_out
from rq.stack import residual

STAGE, VERSION = "tokenize_items", 1


@dataclass
class TokenizeArgs:
    """Arguments of the tokenizer."""

    data: str
    """Prepared data set (stage 01)."""
    sids: str
    """Semantic IDs of HiD-VAE's codes (stage 04)."""
    output_dir: str
    """Where to write, e.g. data/<set>/sids/<name>."""
    layout: Layout = "concatenated"
    """sid, sid_dedup, concatenated (codes, then tags) or interleaved (code, tag, code, tag, ...)."""
    tag_source: Literal["predicted", "gold"] = "predicted"
    """Tags that the codes predict (also of cold items), or those of `tags`, unknown ones as a class of their own."""
    tags: str | None = None
    """Tags directory (stage 03); only gold tags are read from it."""
    dedup: bool = False
    """Add a digit that tells items of equal ID apart, in any layout."""
    samples: int = 5
    """Items printed with their ID and path."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        gold = self.tag_source == "gold"
        if gold != (self.tags is not None):
            raise InputError("tag_source gold and tags go together -> give both, or neither")
        if gold and self.layout in ("sid", "sid_dedup"):
            raise InputError(f"layout {self.layout} has no place for tags -> leave tag_source and tags out")
        if self.samples < 0:
            raise InputError(f"samples {self.samples} is negative -> 0 or more")


def ids_of(
    sids: SidTable, quantizer: hidvae.HidVaeQuantizer, args: TokenizeArgs, gold: TagSet | None
) -> LaidOut:
    """The IDs of all items in the layout of `args`."""
    classes_NT, class_sizes = None, ()
    if args.layout in ("concatenated", "interleaved"):
        predicted_NT, _ = quantizer.predict_tags(sids.codes_NL)
        classes_NT = predicted_NT if gold is None else gold.classes_NL
        class_sizes = quantizer.vocab.sizes
    return lay_out(
        sids.codes_NL, sids.sizes, layout=args.layout, classes_NT=classes_NT, class_sizes=class_sizes, dedup=args.dedup
    )  # fmt: skip


def read_quantizer(directory: str) -> hidvae.HidVaeQuantizer:
    """The HiD-VAE quantizer of a sids directory; InputError for one of another kind."""
    quantizer, _ = residual.load(directory)
    if not isinstance(quantizer, hidvae.HidVaeQuantizer):
        raise InputError(
            f"{directory} was made by a quantizer of kind {quantizer.kind}, which knows no tags "
            "-> rq.train_quantizer --constructor hidvae"
        )
    return quantizer


def samples(ids: LaidOut, paths: pa.Table, titles: list[str], count: int) -> list[str]:
    """One line per item, spread over the catalogue: ID, path, title."""
    lines = []
    for item in np.unique(np.linspace(0, len(titles) - 1, min(count, len(titles))).astype(int)):
        row = paths.slice(item, 1).to_pylist()[0]
        path = hidvae.path_text(row["codes"], row["tags"], row["confidence"])
        lines.append(f"item {item}: {ids.table.codes_NL[item].tolist()}  {path}  {titles[item][:60]}")
    return lines


def main(args: TokenizeArgs) -> None:
    """Read, lay out, write, print samples."""
    with output.open_output(
        args, STAGE, version=VERSION, inputs={"data": args.data, "sids": args.sids, "tags": args.tags}
    ) as out:
        items, sids = artifacts.read_items(args.data), read_sids(args.sids)
        quantizer = read_quantizer(args.sids)
        if len(items) != sids.num_items:
            raise InputError(
                f"{args.sids} has {sids.num_items} items, {args.data} {len(items)} -> pass their data set"
            )
        gold = None if args.tags is None else read_tags(args.tags, num_items=len(items))
        if gold is not None and gold.vocab != quantizer.vocab:
            raise InputError(
                f"{args.tags} has other classes than {args.sids} was trained with -> train again"
            )
        ids = ids_of(sids, quantizer, args, gold)
        paths = hidvae.item_paths(quantizer, sids.codes_NL)
        write_sids(out, ids.table)
        out.write_table(hidvae.PATHS, paths)
        out.write_json("layout.json", {"kinds": ids.kinds, "token_types": ids.token_types.tolist()})
        out.facts["layout"] = args.layout
        for line in samples(ids, paths, items["title"].to_pylist(), args.samples):
            program.say(line)


if __name__ == "__main__":
    program.run(TokenizeArgs, main)
