"""One example's whole way, as facts: its row, its user, its prompt, its beams level by level, its metrics.

Nothing is computed in a second way: prompts come from the renderer, lists from the engine, metrics from `infer.metrics.measure`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.artifacts import SPLITS
from data.predictions import Predictions
from data.rows import Rows, SequenceRow, sequence_row
from data.sid import SidTable
from data.store.output import require_manifest
from data.tasks import Example, from_row
from infer.engine import DecodeSettings, Engine
from infer.metrics.measure import KS, Settings, measure
from infer.metrics.placement import find_targets, place_items
from infer.tracing.raw_lines import find_raw_lines

SAME_SCORE = 1e-3  # batches of other sizes round differently, by far less than this


def find_row(sequences: pa.Table, example_id: int) -> SequenceRow:
    """The row of an example; InputError with the valid range of every split when there is none."""
    position = pc.index(sequences["example_id"], example_id).as_py() if abs(example_id) < 1 << 63 else -1
    if position < 0:
        raise InputError(f"no example {example_id} -> {valid_ids(sequences)}")
    return sequence_row(sequences, position)


def valid_ids(sequences: pa.Table) -> str:
    """`train 0..41, valid 42..60, test 61..80`."""
    ranges = []
    for split in SPLITS:
        ids = sequences["example_id"].filter(pc.equal(sequences["split"], split))
        if len(ids):
            low, high = pc.min_max(ids).as_py().values()
            gaps = "" if high - low + 1 == len(ids) else f" ({len(ids)} of them)"
            ranges.append(f"{split} {low}..{high}{gaps}")
    return ", ".join(ranges)


def user_walk(interactions: pa.Table, row: SequenceRow) -> list[dict[str, Any]]:
    """The user's interactions in order, each with its part in the row: older, history, target, later; "" where none fits."""
    mine = interactions.filter(pc.equal(interactions["user_id"], row.user_id)).sort_by("order")
    walk = mine.drop_columns(["user_id"]).to_pylist()
    at = _target_place(walk, row)
    for place, step in enumerate(walk):
        if isinstance(step.get("rating"), float) and math.isnan(step["rating"]):
            step["rating"] = None
        if at is None:
            step["part"] = ""
        elif place == at:
            step["part"] = "target"
        elif place > at:
            step["part"] = "later"
        else:
            step["part"] = "history" if place >= at - len(row.history) else "older"
        step["date"] = date_of(step.get("timestamp"))
    return walk


def _target_place(walk: list[dict[str, Any]], row: SequenceRow) -> int | None:
    """Where in the walk the row's target stands: the place whose item, time and items before are the row's."""
    items = [step["item_id"] for step in walk]
    for place, step in enumerate(walk):
        begin = place - len(row.history)
        if begin < 0 or step["item_id"] != row.target or tuple(items[begin:place]) != row.history:
            continue
        if row.timestamp is None or step.get("timestamp") in (None, row.timestamp):
            return place
    return None


def date_of(timestamp: int | None) -> str:
    """2018-04-01 12:30 of UTC seconds; empty for none."""
    return "" if timestamp is None else datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M")


def split_reason(config: dict[str, Any], row: SequenceRow, walk: list[dict[str, Any]]) -> str:
    """Why the row is in its split, by the rule of the data set's manifest."""
    rule = config.get("split") or {}
    place = next((at for at, step in enumerate(walk, start=1) if step["part"] == "target"), None)
    where = f"the target is interaction {place} of the user's {len(walk)}" if place else ""
    if rule.get("kind") == "leave_one_out":
        return f"leave one out: the last interaction of a user is test, the last but one valid; {where or 'unknown'}"
    if rule.get("kind") == "global_temporal":
        train, valid = rule["train_share"], rule["valid_share"]
        return (
            f"global temporal: of {row.rows:,} windows by the time of their target the first {train:.0%} are train, the next "
            f"{valid:.0%} valid, the rest test; this is number {row.position + 1:,} ({(row.position + 1) / row.rows:.2%})"
        )
    if rule.get("kind") == "published":
        return "published: the data set was shipped with this split"
    return f"the data set's manifest names no rule; {where or 'the split is as it was given'}"


@dataclass(frozen=True)
class TracedTables:
    """What of the data set a trace reads."""

    config: dict[str, Any]
    items: Any
    walk: list[dict[str, Any]]
    user: str | None


def read_example(examples: str, row: SequenceRow) -> Example:
    """The row of the split's examples; InputError when it is missing or tells another history or target."""
    table = artifacts.read_split(examples, row.split)
    at = pc.index(table["example_id"], row.example_id).as_py()
    if at < 0:
        raise InputError(
            f"example {row.example_id} is a row of the data set, but not of {row.split} of {examples}"
            " -> its history is empty, or build the examples again"
        )
    example = from_row(table.slice(at, 1).to_pylist()[0])
    if example.target != (row.target,) or example.history != row.history[-len(example.history) :]:
        raise InputError(
            f"example {row.example_id} has another history or target in {examples} than in the data set"
            " -> pass the --data that the examples were built from"
        )
    return example


def read_tables(data: str, row: SequenceRow) -> TracedTables:
    """Items, the user's interactions and raw id, and how the data set was made."""
    config = require_manifest(data, written_by=artifacts.ITEMS.written_by)["config"]
    walk = user_walk(artifacts.read(data, artifacts.INTERACTIONS), row)
    user = None
    if (Path(data) / artifacts.USERS.file).exists():
        users = artifacts.read(data, artifacts.USERS)
        at = pc.index(users["user_id"], row.user_id).as_py()
        user = users["raw_id"][at].as_py() if at >= 0 else None
    return TracedTables(config, artifacts.read_items(data), walk, user)


def item_facts(tables: TracedTables, row: SequenceRow, engine: Engine) -> list[dict[str, Any]]:
    """The items of the history, oldest first, then the target: raw id, title, categories, semantic ID."""
    facts = []
    for place, item in enumerate([*row.history, row.target]):
        line = tables.items.slice(item, 1).select(["item_id", "raw_id", "title", "categories", "brand"])
        codes = engine.sids.codes_NL[item].tolist()
        sharing = engine.sids.items_of(codes).tolist()
        facts.append(
            line.to_pylist()[0]
            | {"part": "history" if place < len(row.history) else "target", "codes": codes}
            | {"sid": engine.sids.text(item, engine.renderer.vocab.format), "items_of_sid": sharing}
        )
    return facts


def raw_facts(raw: str, tables: TracedTables, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The raw lines of the user and the items; what became of each of the user's lines where that can be told."""
    found = find_raw_lines(raw, tables.config, user=tables.user, items=[item["raw_id"] for item in items])
    kept = {
        (tables.items["raw_id"][step["item_id"]].as_py(), step.get("timestamp")): step for step in tables.walk
    }
    user = []
    for line in found.user:
        key, became = line.event, None
        if line.broken:
            became = f"broken, not read: {line.broken}"
        elif key is not None and key in kept:
            became = f"interaction {kept[key]['order']}"
        elif key is not None:
            known = pc.index(tables.items["raw_id"], key[0]).as_py() >= 0
            became = (
                "left out: a repeat, or outside the time window"
                if known
                else "left out: its item is not in the data set"
            )
        user.append({"file": line.file, "line": line.line, "text": line.text, "became": became})
    items = [{name: getattr(line, name) for name in ("file", "line", "key", "text")} for line in found.items]
    return {"user": user, "items": items}


def prompt_facts(engine: Engine, example: Example) -> dict[str, Any]:
    """Text and token ids of the prompt and the answer; whether items were cut and whether serving renders the same."""
    renderer = engine.renderer
    ids = renderer.prompt_ids(example, engine.mode)
    uncut = renderer.uncut([example], engine.mode)[0]
    answer = renderer.answer_ids(example)
    return {
        "wording": engine.wording,
        "mode": engine.mode,
        "ids": ids,
        "text": engine.told(ids),
        "tokens_cut": len(uncut) - len(ids),
        "served_alike": engine.histories.prompt_ids(example.history) == ids,
        "answer_ids": answer,
        "answer_text": engine.told(answer),
    }


def metric_values(
    predictions: Predictions,
    row: SequenceRow,
    popularity_N: np.ndarray,
    sids: SidTable | None,
    *,
    depth: int,
    where: str,
) -> dict[str, float]:
    """What the row adds to every ranking metric of `infer.evaluate`: {"item_level/hr@10": 1.0, ...}.

    Without `item_level_unseen` where the target is in the history.
    """
    offsets = np.array([0, len(row.history)])
    history = np.array(row.history, np.int32)
    rows = Rows(np.array([row.example_id]), np.array([row.user_id]), offsets, history, np.array([row.target]))
    ks = tuple(k for k in KS if k <= depth) or (depth,)
    metrics = measure(
        predictions,
        rows,
        popularity_N=popularity_N,
        sids=sids,
        settings=Settings(ks, resamples=1, seed=0),
        depth=depth,
        where=where,
    ).metrics
    plain = {name: entry["value"] for name, entry in metrics.items() if name.count("/") == 1}
    return {name: value for name, value in plain.items() if not name.startswith("all/")}


def place_of(predictions: Predictions, target: int) -> dict[str, Any]:
    """{rank, items_before, group} of the target in the one row of `predictions`; rank None where it is not there."""
    found = find_targets(predictions, np.array([target]))
    if not found.hit_R[0]:
        return {"rank": None, "items_before": None, "group": None}
    placed = place_items(predictions, found)
    rank = float(predictions.rank_E[found.entry_R[0]])
    return {"rank": rank, "items_before": float(placed.before_R[0]), "group": int(placed.group_R[0])}


def list_facts(predictions: Predictions, tables: TracedTables, row: SequenceRow) -> list[dict[str, Any]]:
    """{rank, items: [{item_id, title}], target, seen} of every entry of the one row of `predictions`."""
    titles = tables.items["title"]
    return [
        {
            "rank": float(rank),
            "items": [{"item_id": item, "title": titles[item].as_py()} for item in members.tolist()],
            "target": row.target in members,
            "seen": bool(set(members.tolist()) & set(row.history)),
        }
        for rank, members in zip(
            predictions.rank_E, np.split(predictions.items_M, predictions.item_offsets[1:-1]), strict=True
        )
    ]


def traceable(
    config: dict[str, Any] | None, asked: DecodeSettings, mode: str, *, where: str | None
) -> tuple[DecodeSettings, str]:
    """(decode settings, mode) of a trace: those of stored predictions (`config` of their manifest), else those asked for.

    InputError where others were asked for than are stored, and for what does not come out alike twice.
    """
    stored = (config or {}).get("decode") or {}
    known = {field.name for field in fields(DecodeSettings)}
    settings = DecodeSettings(**{name: value for name, value in stored.items() if name in known})
    if stored and asked not in (DecodeSettings(), settings):
        raise InputError(
            f"{where} was decoded with other settings than --decode -> leave out --decode or --predictions"
        )
    stored_mode = (config or {}).get("mode") or mode
    if mode not in ("direct", stored_mode):
        raise InputError(f"{where} was decoded with mode {stored_mode} -> leave out --mode or --predictions")
    settings, mode = settings if stored else asked, stored_mode
    if (config or {}).get("allowed"):
        raise InputError(
            f"{where} was decoded with --allowed, a trace searches the whole catalogue -> leave out --predictions"
        )
    if settings.strategy != "beam" or mode in ("think", "race"):
        raise InputError(
            f"a trace follows a beam search behind a fixed prompt, not strategy {settings.strategy}, mode {mode}"
            " -> strategy beam, mode direct or empty_think"
        )
    return settings, mode


def compare(now: Predictions, stored: Predictions, same: dict[str, bool]) -> dict[str, Any]:
    """Whether a stored row and the row made now are one list: {verdict, first_difference, max_score_difference}.

    same: {what: whether it is the same} of inputs, such as the model; named in the verdict.
    """
    if stored.codes_EL is None:
        return {
            "verdict": "stored lists are of items, not of semantic IDs: another kind of model",
            "differs": None,
        }
    both = min(len(now.codes_EL), len(stored.codes_EL))
    equal = (now.codes_EL[:both] == stored.codes_EL[:both]).all(1)
    first = int(np.argmin(equal)) + 1 if not equal.all() else None
    if first is None and len(now.codes_EL) != len(stored.codes_EL):
        first = both + 1
    scores = float(np.abs(now.score_E[:both] - stored.score_E[:both])[equal].max(initial=0.0))
    others = ", ".join(name for name, is_same in same.items() if not is_same)
    differs = first is not None or scores > SAME_SCORE
    if not differs:
        verdict = f"the same list in the same order; scores differ by at most {scores:.1e}"
    elif first is None:
        verdict = f"the same order, but scores differ by up to {scores:.3g}"
    else:
        verdict = f"differs from place {first} on ({len(stored.codes_EL)} stored, {len(now.codes_EL)} now)"
    if others:
        verdict += f"; made with another {others}"
    return {
        "verdict": verdict,
        "differs": differs,
        "first_difference": first,
        "max_score_difference": scores,
    }
