"""Semantic IDs under the magnifying glass: one set, or several side by side, ours or published ones.

reads   sids directories (rq.assign_sids, rq.import_sids), the data set that they are of, their embeddings where they still exist,
        a tags directory and predictions if given
writes  <output_dir>/quality_report.json, quality.png, index.html (self-contained), manifest.json; prints the table

Per level used codes, perplexity, entropy and Gini; collisions, their groups and the targets that they affect; reconstruction
error; purity and NMI of prefixes against categories and tags; lift on held-out consecutive pairs; neighbours that share a
prefix; spread of lists over prefixes; items below a prefix in words; codebook usage and an embedding map coloured by first code.
Definitions: rq/quality/measures.py, rq/quality/neighbours.py.

python -m rq.report_quality data/toystore/sids/rqkmeans data/toystore/sids/other --output_dir outputs/quality
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs import program
from configs.program import InputError
from data import artifacts
from data.sid import SidTable, read_sids
from data.store import output
from data.store.lineage import input_directory, require_same_data
from data.tags import read_tags
from rq.quality import assessment
from rq.quality import page as quality_page
from rq.quality.assessment import Evidence
from rq.quality.page import Shown
from rq.stack import residual
from rq.vectors import embedding_map
from rq.vectors.embeddings import read_embeddings

STAGE, VERSION = "report_quality", 2
LIST_LENGTH = 10


@dataclass
class QualityArgs:
    """The quality report."""

    sids: list[str] = field(default_factory=list)
    """Sids directories; also the words that are neither a flag nor its value."""
    output_dir: str = "outputs/quality"
    """Where the report goes."""
    data: str | None = None
    """Prepared data set of these IDs; null = the one that the first of them was made from."""
    embeddings: str | None = None
    """Item vectors for the map and for neighbours, the same for all sets; null = each set's own, where they still exist."""
    tags: str | None = None
    """Tags directory (stage 03) to compare prefixes with, beside the categories."""
    predictions: str | None = None
    """Predictions directory (stage 11) whose lists are measured for spread; null = items next to each other in held-out rows."""
    split: Literal["train", "valid", "test"] = "valid"
    """Split of the held-out pairs."""
    neighbours: int = 10
    """Neighbours per item."""
    prefixes: int = 8
    """First codes whose items are shown in words."""
    titles: int = 5
    """Items shown per first code."""
    map: embedding_map.MapMethod = "tsne"
    """Coordinates of the map: `tsne` or `pca`."""
    seed: int = 0
    """Of the map and of the items shown."""
    overwrite: bool = True
    """Replace an older report (it is derived from other outputs and holds nothing of its own)."""

    def __post_init__(self) -> None:
        if not self.sids:
            raise InputError("no sids directory -> python -m rq.report_quality data/<set>/sids/<name> ...")
        if len(set(self.sids)) != len(self.sids):
            raise InputError(f"sids {', '.join(self.sids)} name a directory twice")
        if min(self.neighbours, self.titles) < 1 or self.prefixes < 0:
            raise InputError(
                f"neighbours {self.neighbours} and titles {self.titles} must be >= 1, prefixes {self.prefixes} >= 0"
            )


def positional(argv: list[str]) -> list[str]:
    """`argv` with the words that are neither a flag nor its value as `--sids`; as it is where `--sids` is given."""
    words, rest, value_next = [], [], False
    for word in argv:
        if not value_next and not word.startswith("-"):
            words.append(word)
            continue
        rest.append(word)
        value_next = not value_next and "=" not in word and word not in ("-h", "--help")
    given = any(word.split("=")[0] == "--sids" for word in rest)
    return ["--sids", json.dumps(words), *rest] if words and not given else argv


def names_of(paths: list[str]) -> list[str]:
    """The last folder of every path, with as many folders before it as tell them all apart."""
    parts = [Path(path).resolve().parts for path in paths]
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def input_of(sids: str, name: str) -> str | None:
    """Path of an input of a sids directory as its manifest has it, if it is still there."""
    record = (output.read_manifest(sids) or {}).get("inputs", {}).get(name)
    path = (record or {}).get("path")
    return path if path is not None and Path(path).exists() else None


def own_embeddings(sids: str) -> str | None:
    """The vectors that the IDs were given to, if they are still there; other ones by now are said and left out."""
    path, unchanged = input_of(sids, "embeddings"), input_directory(sids, "embeddings")
    if path is not None and unchanged is None:
        program.warn(f"{path} is no longer what {sids} was assigned on: measured without these vectors")
    return None if unchanged is None else str(unchanged)


class Vectors:
    """Item vectors and map coordinates by embeddings directory; each map is drawn up once."""

    def __init__(self, args: QualityArgs) -> None:
        self.args, self.maps = args, dict[Path, np.ndarray]()

    def of(self, sids: str, own: str | None, num_items: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(vectors [N, D], coordinates [N, 2]) of one set, None where there are none any more (`own`)."""
        path = self.args.embeddings or own
        if path is None:
            return None, None
        x_ND, key = read_embeddings(path), Path(path).resolve()
        if len(x_ND) != num_items:
            raise InputError(
                f"{path} has {len(x_ND)} rows, {sids} {num_items} items -> pass --embeddings of this data"
            )
        if key not in self.maps:
            self.maps[key] = embedding_map.coordinates(x_ND, method=self.args.map, seed=self.args.seed)
        return x_ND, self.maps[key]


def predicted_lists(directory: str) -> list[np.ndarray]:
    """The first items of every example's predictions: at most LIST_LENGTH, best first."""
    output.require_manifest(directory, written_by="evaluate.sh")
    files = sorted(Path(directory).glob("predictions*.parquet"))
    if not files:
        raise InputError(f"{directory} holds no predictions*.parquet -> run evaluate.sh")
    lists: list[np.ndarray] = []
    for file in files:
        table = artifacts.conform(artifacts.read_file(file), artifacts.PREDICTIONS, where=str(file))
        offsets, flat = artifacts.ragged(table["item_ids"])
        example, rank = table["example_id"].to_numpy(), table["rank"].to_numpy()
        order = np.lexsort((rank, example))
        ends = np.flatnonzero(np.diff(example[order])) + 1
        for entries in np.split(order, ends) if len(order) else []:
            items = [flat[offsets[entry] : offsets[entry + 1]] for entry in entries[:LIST_LENGTH]]
            lists.append(np.concatenate(items)[:LIST_LENGTH])
    return lists


def examine(args: QualityArgs, name: str, sids: str, evidence: Evidence, vectors: Vectors) -> Shown:
    """Everything that is shown of one set."""
    table: SidTable = read_sids(sids)
    if table.num_items != len(evidence.items):
        raise InputError(
            f"{sids} has {table.num_items} items, the data {len(evidence.items)} -> pass their --data"
        )
    own = own_embeddings(sids)
    x_ND, xy_N2 = vectors.of(sids, own, table.num_items)
    report = assessment.assess(table, evidence, x_ND=x_ND)
    if own is not None and (Path(sids) / residual.WEIGHTS).exists():
        quantizer, _ = residual.load(sids)
        own_ND = read_embeddings(own)
        nearest_NL = quantizer.encode(own_ND)
        measured = assessment.distortion(own_ND, nearest_NL, table, quantizer, evidence.items)
        report = assessment.with_distortion(report, measured)
    shown = assessment.samples(
        table.codes_NL,
        evidence.items,
        prefixes=args.prefixes,
        per_prefix=args.titles,
        seed=args.seed,
    )
    return Shown(name, report, table.codes_NL, xy_N2, shown)


def gather(args: QualityArgs, data: str) -> list[Shown]:
    """Every set, in the order given."""
    items = artifacts.read_items(data)
    for sids in args.sids:
        require_same_data(sids, data, again="scripts/04_build_sids.sh (or pass the --data of these IDs)")
    evidence = Evidence(
        items,
        artifacts.read_sequences(data, num_items=len(items)),
        split=args.split,
        neighbours=args.neighbours,
        tags=None if args.tags is None else read_tags(args.tags, num_items=len(items)).tags,
        lists=None if args.predictions is None else predicted_lists(args.predictions),
    )
    vectors, named = Vectors(args), list(zip(names_of(args.sids), args.sids, strict=True))
    return [
        examine(args, name, sids, evidence, vectors)
        for name, sids in program.progress(named, label="semantic IDs", unit="set")
    ]


def as_json(shown: list[Shown]) -> dict[str, Any]:
    """quality_report.json."""
    return {one.name: one.report | {"samples": list(one.samples)} for one in shown}


def main(args: QualityArgs) -> None:
    """Measure, write, print."""
    data = args.data or input_of(args.sids[0], "data")
    if data is None:
        raise InputError(f"{args.sids[0]} does not say where its data set is -> pass --data")
    inputs = {"sids": [Path(path) for path in args.sids], "data": data, "embeddings": args.embeddings}
    inputs |= {"tags": args.tags, "predictions": args.predictions}
    with output.open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        shown = gather(args, data)
        out.write_json("quality_report.json", as_json(shown))
        quality_page.write_png(out, "quality.png", shown)
        title = f"Semantic IDs of {Path(data).resolve().name}"
        out.write_text("index.html", quality_page.html_page(shown, title=title))
        out.counts |= {"sets": len(shown), "items": shown[0].report["items"]}
    print(quality_page.text_table(shown))
    print(f"page: {Path(args.output_dir) / 'index.html'}", flush=True)


if __name__ == "__main__":
    program.run(QualityArgs, main, positional(sys.argv[1:]))
