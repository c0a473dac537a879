"""Baselines: popularity, last-item transitions, item-kNN plain and tuned; predictions like a model's.

reads   the prepared data set (train rows to count, rows of each split to answer)
writes  <output_root>/{pop,last,itemknn,itemknn_tuned}.<split>/ with predictions and a manifest

Fitted on train rows only; nothing is masked, so an item of the history can be recommended again; zero scores
are ordered by popularity and ties share their mean rank. `itemknn` is the plain cosine (last ten items, no
decay, no shrinkage); `itemknn_tuned` takes the shrinkage and the decay (by position, or by time where times
exist) with the best NDCG@10 on valid.

python -m infer.run_baselines --data data/toystore --output_root outputs/quickstart/eval --splits [valid,test]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import AlreadyComplete, Clock, InputError
from data import artifacts
from data.predictions import ranked_items_table, write_predictions
from data.rows import Rows, TrainLog, read_rows, read_train_log, sample_rows
from data.store.output import Output, open_output
from infer.metrics.ranking import ndcg_at_k
from infer.models.recency import with_ages

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

VERSION = 1
NAMES = ("pop", "last", "itemknn", "itemknn_tuned")
MORE = ("repeat",)
BLOCK_ROWS = 4096
TUNE_K = 10


@dataclass
class TuneArgs:
    """The grid of itemknn_tuned, searched on valid."""

    decays: list[float] = field(default_factory=lambda: [1.0, 0.8, 0.7, 0.6, 0.5])
    """weight of the next older history item relative to the newer one"""
    shrinks: list[float] = field(default_factory=lambda: [0.0, 5.0, 20.0, 50.0])
    """users added to the denominator of the cosine"""
    half_lives: list[float] = field(default_factory=lambda: [30.0, 90.0, 365.0])
    """days in which a history item loses half its weight, tried with the best shrinkage where the data has times; items
    without a time keep the decay by position; [] = by position only"""
    max_rows: int = 5000
    """valid rows that are scored, a seeded sample"""

    def __post_init__(self) -> None:
        if (
            not self.decays
            or not self.shrinks
            or min(self.decays) <= 0
            or min(self.shrinks) < 0
            or min(self.half_lives, default=1.0) <= 0
            or self.max_rows < 1
        ):
            raise InputError(
                f"tune {self}: decays, half_lives and max_rows must be positive, shrinks not negative, decays and shrinks "
                "not empty"
            )


@dataclass
class RunBaselinesArgs:
    """Predictions of the baselines."""

    data: str
    """prepared data set"""
    output_root: str
    """folder of the prediction directories, outputs/<run>/eval"""
    models: list[str] = field(default_factory=lambda: list(NAMES))
    """which baselines: pop, last, itemknn, itemknn_tuned, repeat (the user's own history, newest first)"""
    splits: list[str] = field(default_factory=lambda: ["valid", "test"])
    """which rows to answer"""
    depth: int = 50
    """every item whose mean rank is at most this is written"""
    max_rows: int | None = None
    """answer a seeded sample of this many rows per split only; null = all"""
    seed: int = 0
    """of that sample and of the tuning rows"""
    tune: TuneArgs = field(default_factory=TuneArgs)
    """grid of itemknn_tuned"""
    overwrite: bool = False
    """replace outputs of another configuration"""

    def __post_init__(self) -> None:
        unknown = set(self.models) - {*NAMES, *MORE}
        if unknown:
            raise InputError(f"unknown baseline {sorted(unknown)[0]!r} -> one of {', '.join(NAMES + MORE)}")
        if wrong := set(self.splits) - set(artifacts.SPLITS):
            raise InputError(f"unknown split {sorted(wrong)[0]!r} -> one of {', '.join(artifacts.SPLITS)}")
        if self.depth < 1:
            raise InputError(f"depth {self.depth} must be at least 1")


@dataclass(frozen=True)
class OneBaseline:
    """What decides one prediction directory; its hash is the identity in the manifest."""

    data: str
    model: str
    split: str
    depth: int
    max_rows: int | None
    seed: int
    tune: TuneArgs | None
    overwrite: bool


Scorer = Callable[[Rows], "csr_matrix"]


class Fitted:
    """The baselines of one data set; each is fitted when it is first asked for."""

    def __init__(self, data: str, tune: TuneArgs, seed: int) -> None:
        self.data = data
        self.num_items = artifacts.read_items(data).num_rows
        self.train: TrainLog = read_train_log(data, num_items=self.num_items)
        self._tune = tune
        self._seed = seed
        self.scorer = cache(self._scorer)

    def rows(self, split: str) -> Rows:
        rows = read_rows(self.data, split, num_items=self.num_items)
        return with_ages(rows, self.data, num_items=self.num_items)

    def _scorer(self, model: str) -> tuple[Scorer, dict[str, Any]]:
        """(history -> scores, the chosen settings)."""
        from infer.models import counting

        if model == "pop":
            return lambda rows: counting.score_popularity(rows, self.train), {}
        if model == "repeat":
            return lambda rows: counting.score_repeat(rows, self.num_items), {}
        if model == "last":
            transitions = counting.transition_matrix(self.train)
            return lambda rows: counting.score_last(rows, transitions), {}
        if model == "itemknn":
            similarity = counting.item_similarity(self.train)
            return lambda rows: counting.score_itemknn(rows, similarity), {"decay": 1.0, "shrink": 0.0}
        rows = self.rows("valid")
        sample = rows.take(sample_rows(len(rows), self._tune.max_rows, self._seed))
        shrink, weights, ndcg = tune_itemknn(sample, self.train, self._tune)
        similarity = counting.item_similarity(self.train, shrink=shrink)
        chosen = {"shrink": shrink, **weights, f"valid_ndcg@{TUNE_K}": round(ndcg, 6), "tuned_on": "valid"}
        return lambda rows: counting.score_itemknn(rows, similarity, **weights), chosen


def tune_itemknn(rows: Rows, train: TrainLog, grid: TuneArgs) -> tuple[float, dict[str, float | None], float]:
    """(shrink, {decay, half_life}, NDCG@10 on `rows`) of the best point; the first of equal ones.

    Shrinkage and decay by position first, then half-lives at the best of them, where any age is known.
    """
    from infer.models import counting

    alone = np.ones(len(rows), np.int64)

    def ndcg(similarity: csr_matrix, **weights: float | None) -> float:
        scores = counting.score_itemknn(rows, similarity, **weights)
        rank = counting.target_ranks(scores, rows.target_R, train.popularity_N)
        return float(ndcg_at_k(rank - 1, alone, TUNE_K).mean())

    points = []
    for shrink in program.progress(grid.shrinks, label="tune item-kNN", unit="shrink"):
        similarity = counting.item_similarity(train, shrink=shrink)
        for decay in grid.decays:
            points.append((ndcg(similarity, decay=decay), shrink, {"decay": decay, "half_life": None}))
    best = max(points, key=lambda point: point[0])
    if rows.age_H is not None and not np.isnan(rows.age_H).all():
        similarity = counting.item_similarity(train, shrink=best[1])
        for half_life in grid.half_lives:
            weights = {"decay": best[2]["decay"], "half_life": half_life}
            points.append((ndcg(similarity, **weights), best[1], weights))
    value, shrink, weights = max(points, key=lambda point: point[0])
    return shrink, weights, value


def predict(rows: Rows, scorer: Scorer, train: TrainLog, depth: int, *, label: str | None = None) -> pa.Table:
    """Ranked items of every row in long form, block by block."""
    from infer.models import counting

    starts = range(0, len(rows), BLOCK_ROWS)
    tables = []
    for start in program.progress(starts, label=label, unit="block") if label else starts:
        block = rows.take(np.arange(start, min(start + BLOCK_ROWS, len(rows))))
        lists = counting.ranked_lists(scorer(block), train.popularity_N, depth)
        tables.append(
            ranked_items_table(block.example_ids_R, lists.offsets, lists.item_E, lists.rank_E, lists.score_E)
        )
    return pa.concat_tables(tables)


def write_one(out: Output, fitted: Fitted, one: OneBaseline) -> None:
    """Fit (once per program), predict and write one directory."""
    scorer, chosen = fitted.scorer(one.model)
    rows = fitted.rows(one.split)
    rows = rows.take(sample_rows(len(rows), one.max_rows, one.seed))
    clock = Clock()
    table = predict(rows, scorer, fitted.train, one.depth, label=f"{one.model}.{one.split}")
    seconds = clock.seconds
    write_predictions(out, table)
    out.counts |= {"examples": len(rows), "predictions": table.num_rows}
    out.facts |= {
        "split": one.split,
        "model": one.model,
        "fitted_on": "train",
        "max_rows": one.max_rows,
        "depth": min(one.depth, fitted.num_items),
        "users_per_second": round(len(rows) / seconds, 1),
        **chosen,
    }


def main(args: RunBaselinesArgs) -> None:
    fitted = cache(lambda: Fitted(args.data, args.tune, args.seed))
    for model in args.models:
        for split in args.splits:
            tune = args.tune if model == "itemknn_tuned" else None
            one = OneBaseline(
                args.data, model, split, args.depth, args.max_rows, args.seed, tune, args.overwrite
            )
            directory = Path(args.output_root) / f"{model}.{split}"
            stage, inputs = f"baseline {model}", {"data": args.data}
            try:
                with open_output(one, stage, version=VERSION, inputs=inputs, directory=directory) as out:
                    write_one(out, fitted(), one)
            except AlreadyComplete as complete:
                print(f"run_baselines: {complete}", flush=True)


if __name__ == "__main__":
    program.run(RunBaselinesArgs, main)
