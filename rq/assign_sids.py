"""Stage 04, second program: give every item its semantic ID and measure how good the IDs are.

reads   an embeddings directory (stage 02), a quantizer (rq.train_quantizer), <data>/items.parquet and
        <data>/sequences.parquet (valid rows: agreement of the IDs with held-out behaviour)
writes  <output_dir>/sids.parquet (item_id int32, codes list<int32>), quality.json, quantizer.safetensors,
        quantizer.json, manifest.json

Every item gets the nearest code at each level; items that then share all codes are repaired as `repair` says
(rq/collisions.py). quality.json describes both assignments, `nearest` and `assigned`; its measures are defined in
rq/quality.py.

python -m rq.assign_sids --data data/toystore --embeddings data/toystore/embeddings/text_cooc \\
    --quantizer data/toystore/quantizers/rqkmeans --output_dir data/toystore/sids/rqkmeans \\
    --config configs/toy/toystore/assign.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import InputError
from data import artifacts, output
from data.sid import SidTable
from rq import quality, residual
from rq.collisions import Repair, repair_collisions
from rq.embeddings import item_texts, read_embeddings
from rq.residual import ResidualQuantizer

VERSION = 1


@dataclass
class AssignArgs:
    """Arguments of the assignment."""

    data: str
    """Prepared data set (stage 01)."""
    embeddings: str
    """Embeddings directory (stage 02)."""
    quantizer: str
    """Quantizer directory (rq.train_quantizer)."""
    output_dir: str
    """Where to write, e.g. data/<set>/sids/<name>."""
    repair: Repair = "reassign"
    """What becomes of items with equal codes: `reassign`, `collision_level` or `none`."""
    overwrite: bool = False
    """Replace an output of another configuration."""


def measure(
    x_ND: np.ndarray,
    nearest_NL: np.ndarray,
    table: SidTable,
    quantizer: ResidualQuantizer,
    items: pa.Table,
    pairs_P2: np.ndarray,
) -> dict[str, Any]:
    """quality.json: the nearest codes and the assigned ones, each with its use of codes, collisions and distortion."""
    texts = item_texts(items)
    own_NL = table.codes_NL[:, : nearest_NL.shape[1]]
    moved = int((own_NL != nearest_NL).any(1).sum())
    both = {}
    for name, codes_NL, sizes in (
        ("nearest", nearest_NL, quantizer.sizes),
        ("assigned", table.codes_NL, table.sizes),
    ):
        error = quality.reconstruction_error(x_ND, codes_NL, quantizer)
        both[name] = quality.describe_codes(codes_NL, sizes, texts) | {"reconstruction_error": error}
    return {
        "items": table.num_items,
        "sizes": table.sizes,
        **both,
        "moved": moved,
        "moved_share": moved / table.num_items,
        "behaviour": quality.behaviour(table.codes_NL, pairs_P2),
        "purity": quality.purity(table.codes_NL, items["categories"].to_pylist()),
    }


def summary(report: dict[str, Any]) -> str:
    """One line of the measures that matter most."""
    before, after = (report[name]["collisions"] for name in ("nearest", "assigned"))
    line = (
        f"collisions {report['items'] - before['distinct']} -> {report['items'] - after['distinct']}, "
        f"{report['moved_share']:.1%} of items moved off their nearest code, perplexity "
        + " / ".join(f"{level['perplexity']:.0f}" for level in report["assigned"]["levels"])
    )
    if report["behaviour"]:
        lifts = [depth["lift"] for key, depth in report["behaviour"].items() if key.startswith("depth_")]
        line += ", lift on valid pairs " + " / ".join(
            "-" if lift is None else f"{lift:.1f}" for lift in lifts
        )
    return line


def main(args: AssignArgs) -> None:
    """Read, assign, repair, measure, write."""
    inputs = {"data": args.data, "embeddings": args.embeddings, "quantizer": args.quantizer}
    with output.open_output(
        args.output_dir,
        stage="assign_sids",
        version=VERSION,
        args=args,
        inputs=inputs,
        overwrite=args.overwrite,
    ) as out:
        items = artifacts.read_items(args.data)
        x_ND = read_embeddings(args.embeddings)
        if len(x_ND) != len(items):
            raise InputError(
                f"{args.embeddings} has {len(x_ND)} rows, {args.data} has {len(items)} items "
                "-> run scripts/02_embed_items.sh on this data"
            )
        quantizer, description = residual.load(args.quantizer)
        nearest_NL = quantizer.encode(x_ND)
        codes_NL, sizes = repair_collisions(x_ND, nearest_NL, quantizer, repair=args.repair)
        table = SidTable(codes_NL, sizes)
        sequences = artifacts.read_sequences(args.data, num_items=len(items))
        pairs_P2 = quality.held_out_pairs(sequences, split="valid")
        report = measure(x_ND, nearest_NL, table, quantizer, items, pairs_P2)

        codes = artifacts.int_rows(codes_NL)
        out.write_table(
            "sids.parquet", pa.table({"item_id": np.arange(len(items), dtype=np.int32), "codes": codes})
        )
        residual.save(out, quantizer, made_by=description["made_by"])
        out.write_json("quality.json", report)
        out.counts |= {
            "items": len(items),
            "distinct": len(table.sids_SL),
            "collisions_before": len(items) - report["nearest"]["collisions"]["distinct"],
            "collisions_after": len(items) - len(table.sids_SL),
            "moved": report["moved"],
        }
        out.facts |= {"sizes": list(sizes), "levels": len(sizes), "sids_sha256": table.sha256}
        print(f"assign_sids: {summary(report)}")


if __name__ == "__main__":
    program.run(AssignArgs, main)
