"""Stage 04, second program: give every item its semantic ID and measure how good the IDs are.

reads   an embeddings directory (stage 02), a quantizer (rq.train_quantizer), <data>/items.parquet and
        <data>/sequences.parquet (valid rows: agreement of the IDs with held-out behaviour), a tags directory if one is given
writes  <output_dir>/sids.parquet (item_id int32, codes list<int32>), quality.json, quality.png, map.parquet,
        quantizer.safetensors, quantizer.json, manifest.json; with --append and items that left: retired.parquet

Every item gets the nearest code at each level; items that then share all codes are repaired as `repair` says
(rq/ids/collisions.py). quality.json describes both assignments, `nearest` and `assigned`; its measures are defined in
rq/quality/measures.py and rq/quality/neighbours.py.

--append SIDS gives codes to the items of `--data` that SIDS does not know (by raw_id) and keeps every ID that it has: frozen
codebooks, free IDs only (rq/ids/append.py). Its embeddings must lie in the space of the old ones: the same encoder, or
`rq.embed_items --like`. SIDS itself is never changed.

python -m rq.assign_sids --data data/toystore --embeddings data/toystore/embeddings/text_cooc \\
    --quantizer data/toystore/quantizers/rqkmeans --output_dir data/toystore/sids/rqkmeans \\
    --config configs/toy/assign.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs import program
from configs.integrity import sha256
from configs.program import InputError
from data import artifacts
from data.rows import read_train_log
from data.sid import SidTable, read_sids, write_sids
from data.store import output
from data.store.lineage import require_own_space, require_same_data
from data.tags import read_tags
from rq.ids import append
from rq.ids.collisions import Repair, repair_collisions
from rq.quality import assessment
from rq.quality import page as quality_page
from rq.quality.assessment import Evidence
from rq.stack import residual
from rq.stack.residual import ResidualQuantizer
from rq.vectors import embedding_map
from rq.vectors.embeddings import read_embeddings

STAGE, VERSION = "assign_sids", 2


@dataclass
class AssignArgs:
    """Arguments of the assignment."""

    data: str
    """Prepared data set (stage 01)."""
    embeddings: str
    """Embeddings directory (stage 02)."""
    output_dir: str
    """Where to write, e.g. data/<set>/sids/<name>."""
    quantizer: str | None = None
    """Quantizer directory (rq.train_quantizer). With append: left out, or the very one that made the existing IDs."""
    append: str | None = None
    """Existing sids directory whose items keep their IDs; only new items get one."""
    repair: Repair = "reassign"
    """What becomes of items with equal codes: `reassign`, `sinkhorn`, `collision_level`, `collision_rank`, `popularity`
    (last codes by train rows), `shuffled` (a control) or `none`. With append, what the existing IDs were
    told holds: new items get free codes, or free ranks."""
    tags: str | None = None
    """Tags directory (stage 03) whose agreement with the prefixes is measured."""
    map: embedding_map.MapMethod = "tsne"
    """Coordinates of the embedding map: `tsne` (of at most 2,000 items, some seconds) or `pca` (at once, says less)."""
    seed: int = 0
    """Seed of that map, and of `shuffled`."""
    overwrite: bool = False
    """Replace an output of another configuration."""


@dataclass(frozen=True)
class Assigned:
    """IDs of all items, their codes before repair, and facts for the manifest."""

    table: SidTable
    nearest_NL: np.ndarray
    quantizer: ResidualQuantizer
    made_by: dict[str, Any]
    counts: dict[str, int]
    facts: dict[str, Any]
    retired: pa.Table | None = None


def assign(args: AssignArgs, x_ND: np.ndarray) -> Assigned:
    """Codes of every item, repaired."""
    quantizer, description = residual.load(args.quantizer)
    nearest_NL = quantizer.encode(x_ND)
    popularity_N = None
    if args.repair == "popularity":
        popularity_N = read_train_log(args.data, num_items=len(x_ND)).popularity_N
    codes_NL, sizes = repair_collisions(
        x_ND, nearest_NL, quantizer, repair=args.repair, popularity_N=popularity_N, seed=args.seed
    )
    return Assigned(SidTable(codes_NL, sizes), nearest_NL, quantizer, description["made_by"], {}, {})


def extend(args: AssignArgs, x_ND: np.ndarray, raw_ids: list[str]) -> Assigned:
    """The IDs of `args.append`, and free ones for the items that it does not know."""
    quantizer, description = residual.load(args.append)
    if args.quantizer is not None:
        own, given = (sha256(Path(path) / residual.WEIGHTS) for path in (args.append, args.quantizer))
        if own != given:
            raise InputError(
                f"quantizer {args.quantizer} is not the one of {args.append} ({given[:12]} against {own[:12]}) "
                "-> leave --quantizer out"
            )
    repair, direct = append.repair_of(args.append), read_sids(args.append)
    old, old_raw_ids = append.with_retired(args.append, direct, known_raw_ids(args.append))
    quantizer.require_dim(x_ND)
    row_N = append.matched_rows(old_raw_ids, raw_ids)
    new = np.flatnonzero(row_N < 0)
    agreement = append.require_same_space(x_ND, old, row_N, quantizer)
    codes_NL = old.codes_NL[row_N]
    popularity_W = None
    if repair == "popularity":
        popularity_W = read_train_log(args.data, num_items=len(x_ND)).popularity_N[new]
    codes_NL[new] = append.append_codes(
        np.asarray(x_ND)[new], old.codes_NL, quantizer, popularity_W=popularity_W
    )
    before = output.read_manifest(args.append)["facts"]
    return Assigned(
        SidTable(codes_NL, old.sizes),
        quantizer.encode(x_ND),
        quantizer,
        description["made_by"],
        {"new_items": len(new), "retired_items": old.num_items - int((row_N >= 0).sum())},
        {
            "extends": [direct.sha256, *before.get("extends", [])],
            "repair": repair,
            "first_code_agreement": agreement,
        },
        append.retired_table(old, old_raw_ids, row_N),
    )


def known_raw_ids(sids: str) -> list[str]:
    """raw_id of every item of an existing sids directory."""
    path = Path(sids) / embedding_map.FILE
    if not path.exists():
        raise InputError(
            f"{sids} does not say which items it has (no {path.name}) -> assign it again, then append"
        )
    return artifacts.read_file(path, columns=["raw_id"])["raw_id"].to_pylist()


def summary(report: dict[str, Any]) -> str:
    """One line of the measures that matter most."""
    before, after = (report[name]["collisions"] for name in ("nearest", "assigned"))
    line = (
        f"collisions {before['surplus']} -> {after['surplus']}, "
        f"{report['moved_share']:.1%} of items moved off their nearest code, perplexity "
        + " / ".join(f"{level['perplexity']:.0f}" for level in report["assigned"]["levels"])
    )
    if report["behaviour"]:
        lifts = [report["behaviour"].get(f"depth_{depth}", {}).get("lift") for depth in (1, 2)]
        line += ", lift on valid pairs " + " / ".join(
            "-" if lift is None else f"{lift:.1f}" for lift in lifts
        )
    return line


def main(args: AssignArgs) -> None:
    """Read, assign, repair, measure, write."""
    if args.append is None and args.quantizer is None:
        raise InputError(
            "quantizer is missing -> pass --quantizer, or --append with an existing sids directory"
        )
    if args.append is not None and Path(args.append).resolve() == Path(args.output_dir).resolve():
        raise InputError(
            f"output_dir is {args.append}, the very IDs that are appended to -> choose another directory"
        )
    inputs = {"data": args.data, "embeddings": args.embeddings, "quantizer": args.quantizer}
    inputs |= {"append": args.append, "tags": args.tags}
    with output.open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        items = artifacts.read_items(args.data)
        x_ND = read_embeddings(args.embeddings)
        if len(x_ND) != len(items):
            raise InputError(
                f"{args.embeddings} has {len(x_ND)} rows, {args.data} has {len(items)} items "
                "-> run scripts/02_embed_items.sh on this data"
            )
        require_same_data(args.embeddings, args.data, again="scripts/02_embed_items.sh")
        if args.append is None and args.quantizer is not None:
            require_own_space(args.quantizer, args.embeddings, args.data, again="scripts/04_build_sids.sh")
        if args.tags is not None:
            require_same_data(args.tags, args.data, again="scripts/03_complete_tags.sh")
        raw_ids = items["raw_id"].to_pylist()
        made = assign(args, x_ND) if args.append is None else extend(args, x_ND, raw_ids)
        table = made.table
        sequences = artifacts.read_sequences(args.data, num_items=len(items))
        tags = None if args.tags is None else read_tags(args.tags, num_items=len(items)).tags
        report = assessment.with_distortion(
            assessment.assess(table, Evidence(items, sequences, tags=tags), x_ND=x_ND),
            assessment.distortion(x_ND, made.nearest_NL, table, made.quantizer, items),
        )
        xy_N2 = embedding_map.coordinates(x_ND, method=args.map, seed=args.seed)

        write_sids(out, table)
        out.write_table(embedding_map.FILE, embedding_map.map_table(raw_ids, xy_N2))
        if made.retired is not None and made.retired.num_rows:
            out.write_table(append.RETIRED, made.retired)
        residual.save(out, made.quantizer, made_by=made.made_by)
        out.write_json("quality.json", report)
        shown = quality_page.Shown(Path(args.output_dir).name, report, table.codes_NL, xy_N2)
        quality_page.write_png(out, "quality.png", [shown])
        out.counts |= {
            "collisions_before": report["nearest"]["collisions"]["surplus"],
            "collisions_after": len(items) - len(table.sids_SL),
            "moved": report["moved"],
        } | made.counts
        out.facts |= made.facts
        print(f"assign_sids: {summary(report)}")


if __name__ == "__main__":
    program.run(AssignArgs, main)
