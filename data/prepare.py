"""01  Raw dump or tables -> items, interactions, sequences.

reads   a raw folder of any adapter: Amazon review dumps (2014, 2018, 2023), a user's own tables (parquet or csv), ...
writes  items.parquet interactions.parquet sequences.parquet users.parquet funnel.json manifest.json; with
        --<adapter>.skip_bad_rows the lines that were left out: rejects.jsonl

python -m data.prepare --config configs/minionerec/industrial/prepare.yaml --raw RAW --output_dir data/industrial

Amazon dumps: title filter, time window, k-core, order by time, split, sliding windows. Users are numbered by first
appearance in the filtered reviews, items by first appearance while walking the users in that order. Tables: ids become
dense, a published split and its sequences are kept word for word. The columns are those of `data.artifacts`.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs import program
from configs.program import InputError
from data.adapters.build import build
from data.adapters.recipe import Recipe
from data.shaping.assemble import Prepared
from data.shaping.findings import raise_first
from data.shaping.spark import survivors
from data.store.configuration import pace
from data.store.csv_text import is_csv
from data.store.output import open_output

STAGE = "prepare"


@dataclass(frozen=True, kw_only=True)
class PrepareArgs(Recipe):
    """Arguments of data.prepare: a recipe, where the raw files lie, where the data set goes."""

    raw: str
    """folder of the raw files"""
    output_dir: str
    """where the prepared data set goes"""
    engine: Literal["own", "spark"] = pace("own")
    """own: this machine, in streaming blocks; spark: the k-core of adapter `tables` is taken on Spark (SPARK_MASTER) before"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "own":
            return
        if self.adapter != "tables" or max(self.filters.user_k, self.filters.item_k) <= 1:
            raise InputError(
                f"engine spark takes the k-core of adapter tables; here are adapter {self.adapter}, filters.user_k "
                f"{self.filters.user_k}, item_k {self.filters.item_k} -> engine own"
            )
        if "order" in self.tables.interactions.columns:
            raise InputError(
                "engine spark leaves rows out, and an order column must have no gaps -> leave it out to go by time, or engine own"
            )

    def input_files(self) -> list[Path]:
        """Every raw file that is read, in order."""
        return self.entry.load().files(self.raw, self.options)


def reduced(args: PrepareArgs) -> AbstractContextManager[str | Path]:
    """The raw folder, or with engine spark one that holds the rows of the k-core only."""
    if args.engine == "own":
        return nullcontext(args.raw)
    tables, columns = args.tables, args.tables.interactions.columns
    return survivors(
        args.raw, interactions=tables.interactions.file, others=[spec.file for spec in (tables.items, tables.users) if spec.file],
        user=columns.get("user_id", "user_id"), item=columns.get("item_id", "item_id"), user_k=args.filters.user_k,
        item_k=args.filters.item_k,
    )  # fmt: skip


def prepare(args: PrepareArgs) -> Prepared:
    """Everything but the output directory: what tests and the bench call."""
    with reduced(args) as raw:
        prepared, findings = build(raw, args)
    raise_first(findings, more="python -m data.validate lists all")
    assert prepared is not None, "a folder that cannot be used has findings"
    return prepared


def version(args: PrepareArgs) -> int:
    """Of the stage: 1, and 1 more where times are finer than seconds, which once did not tell the order within one, 2 more where
    items are a csv, in which the price `12,50` was once 1250."""
    unit = getattr(args.options, "unit", getattr(args.options, "time_unit", "s"))
    return 1 + (unit != "s") + 2 * (args.adapter == "tables" and is_csv(Path(args.tables.items.file)))


def main(args: PrepareArgs) -> None:
    """Read, prepare, write."""
    with open_output(args, STAGE, version=version(args), inputs={"raw": args.input_files()}) as out:
        prepared = prepare(args)
        for note in prepared.funnel.notes:
            program.say(f"prepare: {note}")
        for name in ("items", "interactions", "sequences", "users"):
            out.write_table(f"{name}.parquet", getattr(prepared, name))
        out.write_json("funnel.json", {"steps": prepared.funnel.steps, **prepared.funnel.facts})
        out.counts |= prepared.counts()
        if getattr(args.options, "skip_bad_rows", None) is not None:
            rejects = prepared.funnel.rejects
            lines = (json.dumps(line, ensure_ascii=False) for line in rejects)
            out.write_text("rejects.jsonl", "".join(f"{line}\n" for line in lines))
            out.counts["rejected lines"] = len(rejects)
        out.facts["funnel"] = {"steps": prepared.funnel.steps, **prepared.funnel.facts}


if __name__ == "__main__":
    program.run(PrepareArgs, main)
