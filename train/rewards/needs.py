"""What rewards may need besides rollouts, each resolved once before training starts.

sids        SidTable of the run
sid_format  how its texts write a semantic ID (data.sid.SidFormat)
embeddings  float32 [N, d], row i is item i (an embeddings directory of stage 02)
titles      title of every item
popularity  int64 [N], train interactions of every item (of --data)
judge       grades of instructions (train/rewards/judged.py), of --judge.client
teacher     an item model (infer/models/contract.py): teacher.score(batch.histories) -> float32 log-probabilities [P, N]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.program import InputError
from data import artifacts
from data.rows import read_train_log
from data.sid import SidFormat, SidTable
from data.store.lineage import require_common_data
from infer.models.contract import ItemModel, Recountable, load
from infer.models.folds import FoldedModel, Folds
from rq.vectors.embeddings import read_embeddings
from train.rewards.judged import RewardJudge
from train.soft_targets import data_of


@dataclass(frozen=True)
class Sources:
    """Where needs are read from; `sids` is the table of the run, `made_from` its examples or semantic IDs: a teacher must
    have learned on the data set that they come from. teacher_folds: of users, whose prompts it answers without their counts
    (infer/models/folds.py); 0: with them."""

    sids: SidTable
    data: str | None = None
    embeddings: str | None = None
    teacher: str | None = None
    made_from: str | None = None
    sid_format: SidFormat = SidFormat()
    judge: RewardJudge | None = None
    teacher_folds: int = 0

    def require(self, flag: str, need: str) -> str:
        """The path given by `--flag`; InputError where it is missing."""
        path = getattr(self, flag)
        if path is None:
            raise InputError(f"a reward needs {need} -> say where they are with --{flag} DIRECTORY")
        return path


def _titles(sources: Sources) -> list[str]:
    directory = sources.require("data", "titles")
    titles = artifacts.read_items(directory)["title"].to_pylist()
    _same_items(len(titles), sources, directory)
    return titles


def _popularity(sources: Sources) -> np.ndarray:
    directory = sources.require("data", "popularity")
    _same_items(artifacts.read_items(directory).num_rows, sources, directory)
    return read_train_log(directory, num_items=sources.sids.num_items).popularity_N


def _embeddings(sources: Sources) -> np.ndarray:
    directory = sources.require("embeddings", "embeddings")
    vectors_ND = read_embeddings(directory)
    _same_items(len(vectors_ND), sources, directory)
    return vectors_ND


def _teacher(sources: Sources) -> ItemModel:
    directory = sources.require("teacher", "a teacher")
    if sources.made_from is not None:
        require_common_data(sources.made_from, directory, again="the stage that fits the teacher")
    teacher = load(directory)
    _same_items(teacher.num_items, sources, directory)
    if not sources.teacher_folds or not isinstance(teacher, Recountable):
        return teacher
    log = read_train_log(data_of(sources.data, sources.made_from), num_items=teacher.num_items)
    return FoldedModel(teacher, Folds(log, sources.teacher_folds))


def _same_items(count: int, sources: Sources, directory: str) -> None:
    if count != sources.sids.num_items:
        raise InputError(
            f"{directory} has {count} items, the semantic IDs {sources.sids.num_items} -> give those of the same data set"
        )


def _judge(sources: Sources) -> RewardJudge:
    if sources.judge is None:
        raise InputError("a reward needs a judge -> say which with --judge.client.backend")
    return sources.judge


RESOLVERS: dict[str, Callable[[Sources], Any]] = {
    "sids": lambda sources: sources.sids,
    "embeddings": _embeddings,
    "titles": _titles,
    "popularity": _popularity,
    "teacher": _teacher,
    "sid_format": lambda sources: sources.sid_format,
    "judge": _judge,
}


def resolve(needs: Iterable[str], sources: Sources) -> dict[str, Any]:
    """{need: value}, each read once; InputError for an unknown need or a missing path."""
    wanted = sorted(set(needs))
    unknown = [need for need in wanted if need not in RESOLVERS]
    if unknown:
        raise InputError(f"a reward needs {', '.join(unknown)} -> one of {', '.join(RESOLVERS)}")
    return {need: RESOLVERS[need](sources) for need in wanted}
