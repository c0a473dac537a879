"""Answers of another system become predictions of ours, to be scored by the same protocol.

reads   a prediction file of MiniOneRec, MIMIGenRec, SIDReasoner (JSON), NaviGen (JSON lines) or RecBole (.inter), or its
        shards in order; the data set and the semantic IDs that system used
writes  <output_dir>/predictions-*.parquet, manifest.json (parse rates, duplicates, whose places stay empty)

A RecBole top-k (`topk.test.inter` of `data.export --to recbole`: examples and items) needs no SIDs: rows are known by their
example. Other rows are recognised by the semantic IDs of their history and target, so another order does no harm; a missing or
foreign row does. Answers outside the catalogue are kept, and infer.evaluate then fails: fix the decoding instead.

python -m infer.import_predictions --files [final_result.json] --data data/industrial \
    --sids data/industrial/sids/published --output_dir outputs/minionerec/eval/released.test
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import InputError, say
from data import artifacts
from data.predictions import unanswered, write_predictions
from data.releases.answers import read_answers
from data.releases.atomic import read_topk
from data.rows import read_rows
from data.sid import read_sids, sid_format
from data.store.output import open_output
from infer.tables.foreign import Reader, item_table, match_rows, prediction_table

STAGE, VERSION = "import_predictions", 1


@dataclass
class ImportPredictionsArgs:
    """Predictions of another system."""

    files: list[str]
    """prediction files (.json, .jsonl, .inter, .gz): one, or the shards in order"""
    data: str
    """prepared data set with that system's split"""
    output_dir: str
    """where predictions go, e.g. outputs/<run>/eval/<model>.<split>"""
    sids: str | None = None
    """SID directory with that system's semantic IDs (rq.import_sids); .inter files name items and need none"""
    split: str = "test"
    """which rows were answered"""
    model: str | None = None
    """name in tables; null = the output directory's"""
    fitted_on: str = "train"
    """which rows that model was fitted on, as its authors say: train, train+valid, unknown, ..."""
    sid_format: str = "letters"
    """how semantic IDs are written: letters, navigen"""
    repair: bool = False
    """accept an answer that holds exactly one semantic ID among other text"""
    ordinal_last: bool = False
    """the last token is an ordinal that only colliding items carry (MiniOneRec's constrained k-means)"""
    settings: dict[str, str] = field(default_factory=dict)
    """what is known of the decoding, kept beside the metrics, e.g. {beams: 50, repetition_penalty: 1.1}"""
    seed: int | None = None
    """the seed of that model's training, where known"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("files is empty -> name at least one prediction file")
        items = {file.removesuffix(".gz").endswith(".inter") for file in self.files}
        if len(items) > 1:
            raise InputError("files of items (.inter) and of texts together -> one system at a time")
        if items == {self.sids is not None}:
            fix = "leave sids out" if self.sids else "name the SID directory that system used: --sids"
            raise InputError(f"{self.files[0]} with sids {self.sids} -> {fix}")
        if self.split not in artifacts.SPLITS:
            raise InputError(f"unknown split {self.split!r} -> one of {', '.join(artifacts.SPLITS)}")


def read_items(args: ImportPredictionsArgs) -> tuple[pa.Table, np.ndarray, int, dict[str, Any]]:
    """(predictions, example ids, list length, facts) of files that name examples and items."""
    num_items = artifacts.read_items(args.data).num_rows
    rows = read_rows(args.data, args.split, num_items=num_items)
    answers: dict[int, list[int]] = {}
    for file in args.files:
        found = read_topk(file)
        if twice := answers.keys() & found.keys():
            raise InputError(
                f"{file}: example {min(twice)} is in an earlier file too -> pass each shard once"
            )
        answers |= found
    table, reading = item_table(
        answers, rows, num_items, where=", ".join(Path(file).name for file in args.files)
    )
    return table, rows.example_ids_R, max(map(len, answers.values())), reading.facts()


def read_texts(args: ImportPredictionsArgs) -> tuple[pa.Table, np.ndarray, int, dict[str, Any]]:
    """(predictions, example ids, list length, facts) of files that hold semantic IDs as text."""
    sids = read_sids(args.sids)
    rows = read_rows(args.data, args.split, num_items=sids.num_items)
    fmt = sid_format(args.sid_format)
    reader = Reader(sids, fmt, repair=args.repair, ordinal_last=args.ordinal_last)
    foreign = [row for file in args.files for row in read_answers(file)]
    positions = match_rows(foreign, rows, reader, where=", ".join(Path(file).name for file in args.files))
    table, reading = prediction_table(foreign, rows.example_ids_R[positions], reader)
    if reading.invalid:
        say(f"WARNING: {reading.invalid} of {reading.answers} answers are no item of {args.sids}")
    facts = {"sids_sha256": sids.sha256, "sid_format": args.sid_format, **reading.facts()}
    return table, rows.example_ids_R, max(len(row.answers) for row in foreign), facts


def main(args: ImportPredictionsArgs) -> None:
    """Read, match, write."""
    inputs = {"files": [Path(file) for file in args.files], "data": args.data, "sids": args.sids}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        table, examples, depth, facts = read_items(args) if args.sids is None else read_texts(args)
        write_predictions(out, table)
        out.counts |= {"examples": len(examples), "predictions": table.num_rows}
        out.facts |= args.settings | {
            "split": args.split,
            "model": args.model or Path(args.output_dir).name.removesuffix(f".{args.split}"),
            "fitted_on": args.fitted_on,
            "depth": depth,
            **facts,
            **unanswered(examples, table),
        }


if __name__ == "__main__":
    program.run(ImportPredictionsArgs, main)
