"""Decoding a split: which rows are answered, the search over them, and the tables that come out.

Legend: N examples, K beams, R returned semantic IDs of all examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.predictions import THOUGHTS, ranked_items_table
from data.rows import sample_rows
from data.sid import SidTable
from data.store.output import require_manifest
from data.tasks import Answer, Example, TaskWindow, from_row, titles_to_title
from infer.engine import Engine
from infer.loading import context_length
from infer.text.thinking import read_thoughts, thoughts_table
from infer.text.titles import Titles, decode_titles, nearest_titles

TASK = "history_to_sid"
WRITTEN_BY = ("max_tokens", "temperature", "top_p", "top_k", "seed")  # settings that decide what a thought is


def selected_rows(
    task: pa.ChunkedArray, *, max_rows: int | None, seed: int, where: str, wanted: str = TASK
) -> np.ndarray:
    """Positions int64 of the rows of a task column that are `wanted`, or of a seeded sample of `max_rows` of them, ascending.

    InputError naming `where` (the split) when there are none.
    """
    rows = np.flatnonzero(pc.equal(task, wanted).to_numpy())
    if not len(rows):
        empty = "no rows at all" if not len(task) else f"no {wanted} rows"
        raise InputError(
            f"{where} has {empty} -> prepare the data with that split, build the examples with that task"
        )
    return rows[sample_rows(len(rows), max_rows, seed)]


def select_rows(examples: pa.Table, *, max_rows: int | None, seed: int, where: str) -> pa.Table:
    """The history_to_sid rows, or a seeded sample of `max_rows` of them in their own order."""
    return examples.take(selected_rows(examples["task"], max_rows=max_rows, seed=seed, where=where))


def shortened_rows(engine: Engine, examples: str | Path, split: str, rows_N: np.ndarray) -> int:
    """How many of the rows of a split at positions `rows_N` have a history that the model cannot read whole: known before any is decoded."""
    most = engine.histories.most_items()
    if most is None:
        return 0
    lengths = pc.list_value_length(
        artifacts.read_split(examples, split, columns=["history"])["history"]
    ).to_numpy()
    return int((lengths[rows_N] > most).sum())


def prompts_of(engine: Engine, examples: pa.Table) -> list[list[int]]:
    """Prompt ids of every example, in the engine's mode; the known answer has no part in them."""
    return engine.renderer.prompts(unanswered(examples), engine.mode)


def unanswered(examples: pa.Table) -> list[Example]:
    """The rows without what is to be found."""
    return [replace(from_row(row), answer=Answer()) for row in examples.to_pylist()]


def predict(
    engine: Engine, examples: pa.Table, **restricted: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nodes int64 [N, K] with -1 where there is none, scores float32 [N, K], example ids int64 [N]).

    `restricted`: trie, roots_B, exclude of Engine.rank. Not for mode think, whose thoughts come first.
    """
    ids = examples["example_id"].to_numpy()
    return *engine.rank(prompts_of(engine, examples), keys=ids.tolist(), **restricted), ids


def think(engine: Engine, writer: Any, examples: pa.Table) -> pa.Table:
    """Step 1 of modes think and race: the thoughts of every example, as data.predictions.THOUGHTS."""
    prompts, ids = prompts_of(engine, examples), examples["example_id"].to_pylist()
    engine.check_context(max(map(len, prompts)), before_answer=engine.thought_room)
    return thoughts_table(ids, writer.write(prompts, ids), engine.renderer)


def thoughts_of(directory: str, *, made_as: dict[str, Any]) -> pa.Table:
    """The thoughts of a finished output; InputError where another model or other settings than `made_as` wrote them."""
    facts = require_manifest(directory, written_by=THOUGHTS.written_by)["facts"]
    for name in (
        "split",
        "model_hash",
        "sids_sha256",
        "max_prompt",
        *(f"think_{part}" for part in WRITTEN_BY),
    ):
        if facts.get(name) != made_as[name]:
            raise InputError(
                f"{directory} has thoughts of {name} {facts.get(name)}, this run is of {made_as[name]} -> the same settings, or "
                "write new thoughts"
            )
    return artifacts.conform(artifacts.read_file(Path(directory) / THOUGHTS.file), THOUGHTS, where=directory)


def first_thoughts(given: pa.Table, examples: pa.Table, *, count: int, where: str) -> pa.Table:
    """The first `count` thoughts of every example, in the order of the examples; InputError where there are fewer."""
    ids = examples["example_id"].to_pylist()
    chosen = given.filter(
        pc.and_(pc.less(given["thought_index"], count), pc.is_in(given["example_id"], pa.array(ids)))
    )
    if chosen.num_rows != count * len(ids):
        raise InputError(
            f"{where} has no {count} thoughts for each of these rows -> a smaller think.thoughts, or the rows it was made for"
        )
    order = {example: place for place, example in enumerate(ids)}
    places = pa.array([order[example] for example in chosen["example_id"].to_pylist()])
    return chosen.take(
        pc.sort_indices(
            pa.table({"row": places, "at": chosen["thought_index"]}),
            [("row", "ascending"), ("at", "ascending")],
        )
    )


def predict_behind(
    engine: Engine, examples: pa.Table, thoughts: pa.Table, *, where: str, **restricted: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step 2 of modes think and race: as `predict`, behind the thoughts of a table."""
    prompts, ids = prompts_of(engine, examples), examples["example_id"].to_pylist()
    read = read_thoughts(thoughts, ids, where=where)
    plain = engine.plain_prompts(unanswered(examples)) if engine.races else None
    nodes_NK, scores_NK = engine.rank_thoughts(prompts, read, keys=ids, without=plain, **restricted)
    return nodes_NK, scores_NK, np.array(ids, np.int64)


def keep_room(engine: Engine, behind: int, *, chosen: int | None, told: str, smaller: str) -> None:
    """Bound the prompts so that `behind` tokens have room after them in the model's context.

    InputError where nothing is left, or where the bound that the user has `chosen` leaves too little; told: what takes up the tokens, smaller: what would
    take fewer.
    """
    context = context_length(engine.model.config)
    if context is None:
        return
    room = context - behind
    if room < 1 or (chosen is not None and chosen > room):
        raise InputError(
            f"the model reads {context} tokens; {told} -> max_prompt of at most {room}, or {smaller}"
        )
    engine.renderer.max_prompt = min(engine.renderer.max_prompt or room, room)


def predict_titles(engine: Engine, examples: pa.Table, titles: Titles, *, how: str) -> pa.Table:
    """Predictions of titles, as data.artifacts.PREDICTIONS without codes: `title` of the catalogue by search, or `written` ones grounded.

    A history whose items have no titles is asked about with an empty list. Items of one title share their mean rank and, where scores are
    log-probabilities (`title`), its probability.
    """
    context = replace(engine.histories.context, titles=titles.by_item)
    asked = []
    for row in examples.to_pylist():
        window = TaskWindow(row["example_id"], row["history"], row["target"][0], row.get("user_id"))
        asked.append(replace(titles_to_title(context, window), answer=Answer(), target=()))
    prompts = engine.renderer.prompts(asked, engine.mode)
    search = decode_titles if how == "title" else nearest_titles
    settings = engine.settings
    found = search(engine.model, prompts, titles, beams=settings.beams, batch_size=settings.batch_size)
    items, ranks, scores, sizes = [], [], [], [0]
    for answers in found:
        above = 0
        for answer in answers:
            count = len(answer.item_ids)
            if above < settings.beams:
                items += answer.item_ids
                ranks += [above + (count + 1) / 2] * count
                scores += [answer.score - (np.log(count) if how == "title" else 0.0)] * count
            above += count
        sizes.append(len(items))
    ids = examples["example_id"].to_numpy()
    table = ranked_items_table(
        ids, np.array(sizes), np.array(items, np.int32), np.array(ranks), np.array(scores)
    )
    return artifacts.conform(table, artifacts.PREDICTIONS, where="predictions")


def prediction_table(
    nodes_NK: np.ndarray,
    scores_NK: np.ndarray,
    example_ids: np.ndarray | Sequence[int],
    sids: SidTable,
    *,
    allowed: np.ndarray | None = None,
) -> pa.Table:
    """Long form: a row per example and returned semantic ID, rank from 1; `allowed` bool [items] names those that count."""
    row_R, rank_R = np.nonzero(nodes_NK >= 0)
    distinct, which_R = np.unique(nodes_NK[row_R, rank_R], return_inverse=True)
    members = [sids.items_of_sid(sid) for sid in distinct.tolist()]
    if allowed is not None:
        members = [items[allowed[items]] for items in members]
    sizes = np.array([len(items) for items in members], np.int64)
    items = np.concatenate([members[sid] for sid in which_R]) if len(which_R) else np.empty(0, np.int32)
    offsets = np.concatenate([[0], np.cumsum(sizes[which_R])]) if len(which_R) else np.zeros(1, np.int64)
    table = pa.table(
        {
            "example_id": np.asarray(example_ids)[row_R],
            "rank": (rank_R + 1).astype(np.float32),
            "codes": artifacts.int_rows(sids.sids_SL[distinct[which_R]]),
            "item_ids": artifacts.int_lists(offsets, items),
            "score": scores_NK[row_R, rank_R],
        }
    )
    return artifacts.conform(table, artifacts.PREDICTIONS, where="predictions")
