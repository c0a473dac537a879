"""One example's whole way: raw lines -> items -> semantic IDs -> prompt ids -> beams level by level -> rank and metrics.

reads   a prepared data set, its examples and semantic IDs, a model; with --raw the raw files, with --predictions what
        infer.recommend stored
writes  text to the terminal; with --json a file

With --predictions the search repeats the decode settings that are stored there and the stored list is compared with the one
made now. The metrics are those of infer.evaluate for this row alone; a metric of a split is the mean over its rows.

python -m infer.trace 47916 --data data/toystore --examples data/toystore/examples/rqkmeans \
    --sids data/toystore/sids/rqkmeans --model outputs/quickstart/grpo/final --raw data/toystore/raw \
    --predictions outputs/quickstart/eval/grpo.test
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs import program
from configs.program import InputError, say
from data import artifacts
from data.predictions import Predictions, read_predictions
from data.rows import SequenceRow, read_train_log
from data.store.fingerprints import plain
from data.store.inputs import fingerprint, same_input
from data.store.output import require_manifest
from infer.engine import DecodeSettings, Engine
from infer.models.retrievers.engines import open_engine
from infer.search.prefixes import Prefixes
from infer.tracing.beams import beam_facts, level_beams, list_of
from infer.tracing.facts import (
    compare,
    find_row,
    item_facts,
    list_facts,
    metric_values,
    place_of,
    prompt_facts,
    raw_facts,
    read_example,
    read_tables,
    split_reason,
    traceable,
)
from infer.tracing.text import as_text


@dataclass
class TraceArgs:
    """One example's whole way."""

    example_id: int
    """which example; may stand first without its flag"""
    data: str
    """prepared data set"""
    examples: str
    """examples directory of that data set"""
    sids: str
    """SID directory that the model was expanded with"""
    model: str
    """model directory with SID tokens, or a compact generator (decode.score_space trie)"""
    raw: str | None = None
    """folder of the raw files: the user's and the items' lines are looked up there"""
    predictions: str | None = None
    """prediction directory of that model: compared with what is found now"""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """beams, score space, ...; with predictions theirs are used"""
    mode: str = "direct"
    """where the answer starts: direct or empty_think; with predictions theirs is used"""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; null = a GPU when there is one"""
    show: int = 5
    """how many beams per level are printed; the JSON has all"""
    json: str | None = None
    """file for the whole trace as JSON"""

    def __post_init__(self) -> None:
        if self.show < 1:
            raise InputError(f"show {self.show} must be at least 1")


def stored_facts(
    args: TraceArgs, now: Predictions, row: SequenceRow, engine: Engine
) -> tuple[dict[str, Any], Predictions]:
    """(comparison with the stored list, the stored list); InputError when the example is not among the predictions."""
    predictions, manifest = read_predictions(args.predictions)
    at = np.flatnonzero(predictions.example_ids_R == row.example_id)
    if not len(at):
        raise InputError(
            f"{args.predictions} has no example {row.example_id} (its split: {manifest['facts'].get('split')})"
            " -> the predictions of its split, or without --max_rows"
        )
    stored, facts = predictions.take(at), manifest["facts"]
    made_by = facts.get("model_hash")
    same = {
        "model": made_by is None or same_input(args.model, made_by, fingerprint(args.model)),
        "semantic IDs": facts.get("sids_sha256") in (None, engine.sids.sha256),
    }
    return compare(now, stored, same), stored


def trace(args: TraceArgs) -> dict[str, Any]:
    """The whole trace as one JSON value. Raises InputError for an unknown example and for inputs that do not fit."""
    sequences = artifacts.read_sequences(args.data)
    row = find_row(sequences, args.example_id)
    tables, example = read_tables(args.data, row), read_example(args.examples, row)
    config = None
    if args.predictions:
        config = require_manifest(args.predictions, written_by=artifacts.PREDICTIONS.written_by)["config"]
    settings, mode = traceable(config, args.decode, args.mode, where=args.predictions)
    engine = open_engine(args.model, args.sids, args.examples, settings, device=args.device, mode=mode)
    if tables.items.num_rows != engine.sids.num_items:
        raise InputError(
            f"{args.sids} has {engine.sids.num_items} items, {args.data} {tables.items.num_rows} -> assign the SIDs again"
        )
    prefixes, prompt = Prefixes(engine.sids), prompt_facts(engine, example)
    items = item_facts(tables, row, engine)
    levels = level_beams(engine, prefixes, prompt["ids"])
    now = list_of(engine, levels[-1], row.example_id)
    popularity_N = read_train_log(args.data, num_items=tables.items.num_rows).popularity_N

    def ranked(predictions: Predictions, where: str) -> dict[str, Any]:
        metrics = metric_values(
            predictions, row, popularity_N, engine.sids, depth=len(predictions.rank_E), where=where
        )
        return place_of(predictions, row.target) | {"metrics": metrics}

    facts = {
        "example": asdict(row) | {"user_raw_id": tables.user, "tokens": len(prompt["ids"])},
        "split_reason": split_reason(tables.config, row, tables.walk),
        "raw": raw_facts(args.raw, tables, items) if args.raw else None,
        "interactions": tables.walk,
        "items": items,
        "prompt": prompt,
        "decode": asdict(settings),
        "search": beam_facts(engine, prefixes, levels, tuple(items[-1]["codes"]), prompt["ids"]),
        "list": list_facts(now, tables, row),
        "result": ranked(now, "the list found now"),
        "stored": None,
    }
    if args.predictions:
        comparison, stored = stored_facts(args, now, row, engine)
        facts["stored"] = comparison | ranked(stored, args.predictions)
    return plain(facts)


def with_flag(argv: list[str]) -> list[str]:
    """`argv` with `--example_id=` before a first argument that is no flag: `infer.trace 12 --data ...`."""
    return [f"--example_id={argv[0]}", *argv[1:]] if argv and not argv[0].startswith("--") else argv


def main(args: TraceArgs) -> None:
    facts = trace(args)
    if args.json:
        path = Path(args.json)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        os.replace(temporary, path)
    say(as_text(facts, show=args.show))


if __name__ == "__main__":
    program.run(TraceArgs, main, with_flag(sys.argv[1:]))
