"""A generated store: raw review dumps in the 2018 or 2023 Amazon form, for the quickstart, the tests and the benches; or beads.

writes  Toystore.json meta_Toystore.json (2018) or Toystore.jsonl meta_Toystore.jsonl (2023), with --gzip true .gz;
        manifest.json; with --size beads a SIDReasoner folder with a thought for every train row, answers of a teacher about its items
        and rows (teacher/*.jsonl, for backend recorded of stage 06) and a corpus of chats (general/)

python -m data.toy --size small --format 2018 --seed 0 --output_dir data/toystore/raw
python -m data.toy --size beads --output_dir data/beads/raw        # FROM=sidreasoner DATASET=beads bash scripts/import_release.sh

Customers follow two projects at a time through twelve stages, mostly taking turns between them, finish and replace them,
come back for follow-ups and refills, prefer certain brands and seasons, and sometimes buy anything. Projects, stages and
half of the follow-ups show in behaviour only; leaf categories, brands, kinds of product and the other half also in text.
Sizes: tiny (tests), small (about 1,900 items, 7,900 users and 62,000 interactions are left by a 5-core), large (streamed,
any number of --interactions). The same seed gives the same bytes.

beads: 96 items of which the next one follows from a rule that their descriptions state (data/generator/rules.py), 2,000 users.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from configs import program
from configs.program import InputError, progress
from data.generator.catalogue import Catalogue, make_catalogue
from data.generator.files import DAYS, Form, ReviewLines, metadata_lines
from data.generator.rules import DESCRIPTION, make_beads, sums
from data.generator.users import CHUNK_USERS, simulate
from data.reasoning import rendered
from data.releases.index import write_index
from data.releases.minionerec import csv_text
from data.releases.sidreasoner import texts_csv
from data.sid import FORMATS
from data.store.output import Output, open_output

STAGE, VERSION = "toy", 1
# Purchases per user on average, a little low so that a stream never runs dry before its number of interactions.
PURCHASES_PER_USER = 5.0
INTERACTIONS_PER_ITEM = 25


@dataclass(frozen=True)
class Size:
    """Items and users before any filter."""

    items: int
    users: int


BEAD_USERS = 2000
REGISTRY = {
    "sums": {
        "file_name": "chats.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
    }
}
LETTERS = FORMATS["letters"]
SIZES = {"tiny": Size(185, 700), "small": Size(2600, 13_000)}


@dataclass(frozen=True)
class ToyArgs:
    """Arguments of data.toy."""

    output_dir: str
    """where the raw files go"""
    size: Literal["tiny", "small", "large", "beads"] = "small"
    """tiny, small or large; or beads, another store, whose next item follows from a rule"""
    format: Form = 2018
    """form of the lines, 2018 or 2023"""
    seed: int = 0
    """decides everything"""
    interactions: int | None = None
    """number of review lines before duplicates, size large only"""
    gzip: bool = False
    """compress the files"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if (self.size == "large") != (self.interactions is not None):
            raise InputError("--interactions goes with --size large, and only with it")
        if self.interactions is not None and self.interactions < 1:
            raise InputError(f"--interactions is {self.interactions} -> at least 1")
        if self.size == "beads" and (self.format != 2018 or self.gzip):
            raise InputError(
                "format and gzip are of review dumps, which --size beads does not write -> leave them out"
            )
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed} -> 0 or more")

    @property
    def store(self) -> Size:
        """Items and users of this size."""
        if self.interactions is None:
            return SIZES[self.size]
        users = int(self.interactions / PURCHASES_PER_USER) + CHUNK_USERS
        return Size(max(SIZES["tiny"].items, self.interactions // INTERACTIONS_PER_ITEM), users)


def file_names(args: ToyArgs) -> tuple[str, str]:
    """(reviews, metadata)."""
    suffix = (".json" if args.format == 2018 else ".jsonl") + (".gz" if args.gzip else "")
    return f"Toystore{suffix}", f"meta_Toystore{suffix}"


def review_lines(args: ToyArgs, catalogue: Catalogue) -> Iterator[str]:
    """All review lines, with `interactions` purchases for size large."""
    lines = ReviewLines(catalogue, args.format)
    left = args.interactions
    chunks = simulate(catalogue, args.store.users, days=DAYS)
    total = -(-args.store.users // CHUNK_USERS)
    for number, bought in enumerate(progress(chunks, label="customers", total=total, unit="chunk")):
        if left is not None:
            bought = bought.first(left)
            left -= len(bought.user)
        yield from lines.of_chunk(number, bought)
        if left == 0:
            return


@contextlib.contextmanager
def text_writer(path: Path, *, compress: bool) -> Iterator[IO[bytes]]:
    """A binary file; compressed bytes carry neither name nor time, so that equal seeds give equal files."""
    with open(path, "wb") as plain:
        if not compress:
            yield plain
            return
        with gzip.GzipFile(filename="", fileobj=plain, mode="wb", mtime=0, compresslevel=6) as packed:
            yield packed  # type: ignore[misc]


def write_lines(lines: Iterable[str], path: Path, *, compress: bool) -> int:
    """Write the lines in batches; returns their number."""
    count = 0
    batch: list[str] = []
    with text_writer(path, compress=compress) as file:
        for line in lines:
            batch.append(line)
            if len(batch) == 8192:
                file.write("".join(batch).encode())
                count += len(batch)
                batch.clear()
        file.write("".join(batch).encode())
    return count + len(batch)


def write_beads(args: ToyArgs, out: Output) -> None:
    """The SIDReasoner folder of the beads: rows of the last four of each user, thoughts of the train rows."""
    beads = make_beads(BEAD_USERS, seed=args.seed)
    titles = [beads.title(bead) for bead in range(len(beads.colour_N))]
    sids = [LETTERS.text(codes) for codes in beads.codes_NL.tolist()]
    items = {
        str(at): {"title": title, "description": DESCRIPTION, "brand": "", "categories": ""}
        for at, title in enumerate(titles)
    }
    out.write_text("index/Beads.item.json", json.dumps(items, indent=2) + "\n")
    with out.replacing("index/Beads.index.json") as path:
        write_index(path, beads.codes_NL)
    lines, answers = [], {}
    for split, places in (("train", (2, 3)), ("valid", (4,)), ("test", (5,))):
        rows = [
            (f"A{user}", walk[:place], walk[place])
            for user, walk in enumerate(beads.walks_UT.tolist())
            for place in places
        ]
        out.write_text(f"{split}/Beads.csv", csv_text(rows, titles, sids))
        out.counts[split] = len(rows)
        if split == "train":
            lines = [
                (*row, "", rendered(beads.thought(*row[1][-2:]), lambda bead: sids[bead])) for row in rows
            ]
            answers = {
                "histories": [(f"{at} write", beads.thought(*row[1][-2:])) for at, row in enumerate(rows)],
                "narratives": [
                    (f"{at} write", beads.story(*row[1][-2:], row[2])) for at, row in enumerate(rows)
                ],
            }
    out.write_text("index/Beads.integrated_narrative.csv", texts_csv(lines, titles, sids))
    answers["items"] = [pair for bead in range(len(titles)) for pair in beads.told(bead)]
    for name, pairs in answers.items():
        told = [json.dumps({"key": key, "text": text}) + "\n" for key, text in pairs]
        out.write_text(f"teacher/{name}.jsonl", "".join(told))
    out.write_text("general/chats.jsonl", "".join(json.dumps({"messages": chat}) + "\n" for chat in sums()))
    out.write_text("general/registry.json", json.dumps(REGISTRY, indent=2) + "\n")


def main(args: ToyArgs) -> None:
    """Write both files, or the folder of beads."""
    if args.size == "beads":
        with open_output(args, STAGE, version=VERSION, inputs={}) as out:
            write_beads(args, out)
        return
    catalogue = make_catalogue(args.store.items, days=DAYS, seed=args.seed)
    reviews, metadata = file_names(args)
    with open_output(args, STAGE, version=VERSION, inputs={}) as out:
        with out.replacing(reviews) as path:
            out.counts["review_lines"] = write_lines(review_lines(args, catalogue), path, compress=args.gzip)
        items = progress(metadata_lines(catalogue, args.format), label="items", total=catalogue.size)
        with out.replacing(metadata) as path:
            out.counts["metadata_lines"] = write_lines(items, path, compress=args.gzip)


if __name__ == "__main__":
    program.run(ToyArgs, main)
