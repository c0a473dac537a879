"""The contract of every model that scores items, how one is opened, and the ranking that follows from scores.

    model = load("outputs/run/baselines/itemknn")      # any directory that an item model was saved in
    model.score(rows)                                  # float32 [R, N] log-probabilities of every item
    model.score(rows, items_RC)                        # float32 [R, C], of these items
    ranked_lists(model.score(rows), depth=50)          # the best items of every row, ties share their mean rank
    target_places(model.score(rows), rows.target_R)    # where the targets stand, with their ties

A saved model is an output directory with `item_model.json`: {"kind": a name of KINDS, ...settings}. A new model is one entry
of KINDS and a module with `load(directory)`.

Legend: R rows, N items, C candidates of a row, E entries of all lists.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from configs.program import InputError
from data.rows import Rows, TrainLog
from data.store.output import Output, require_manifest
from infer.metrics.placement import Placement
from infer.metrics.ranking import mean_ranks

FILE = "item_model.json"
# kind -> the module whose `load(directory)` opens it; imported when one is opened
KINDS = {
    "counting": "infer.models.counting",
    "cache": "infer.models.cache",
    "mixture": "infer.models.mixture",
    "fusion": "infer.models.fusion",
    "sequential": "infer.models.sequential.scoring",
    "tiger": "infer.models.retrievers.tiger",
    "compact": "infer.models.retrievers.compact",
}
BLOCK_VALUES = 1 << 24


class ItemModel(Protocol):
    """What rewards, distillation, fusion and `infer.run_baselines` ask of a model."""

    num_items: int

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities float32 [R, N] of the next item, or [R, C] of the items `items_RC` (int, within 0..N-1)."""


@runtime_checkable
class Recountable(Protocol):
    """A model part of which is counts of train rows, beside what was learned or chosen."""

    def recounted(self, train: TrainLog) -> ItemModel:
        """The same model with the counts of `train`; InputError where it was saved without what counting again needs."""


@dataclass(frozen=True)
class RankedLists:
    """Items of each row, best first: the entries of row b are `offsets[b] : offsets[b + 1]`.

    item_E int32, rank_E float64 (from 1, ties share their mean), score_E float32.
    """

    offsets: np.ndarray
    item_E: np.ndarray
    rank_E: np.ndarray
    score_E: np.ndarray


def load(directory: str | Path) -> ItemModel:
    """The model that was saved in an output directory; InputError when it holds none, or one of an unknown kind."""
    settings = read_settings(directory)
    return import_module(KINDS[settings["kind"]]).load(Path(directory))


def save_settings(out: Output, kind: str, **settings: Any) -> None:
    """Write `item_model.json`."""
    out.write_json(FILE, {"kind": kind, **settings})


def read_settings(directory: str | Path) -> dict[str, Any]:
    """`item_model.json` of a finished directory."""
    require_manifest(directory, written_by="the stage that fits it (infer.run_baselines, ...)")
    path = Path(directory) / FILE
    if not path.is_file():
        raise InputError(f"{directory} holds no item model (no {FILE}) -> infer.run_baselines writes some")
    settings = json.loads(path.read_text())
    if settings.get("kind") not in KINDS:
        raise InputError(f"{path}: unknown kind {settings.get('kind')!r} -> one of {', '.join(KINDS)}")
    return settings


class KnownRows:
    """Where the rows of given examples (int64) stand among those that a model can answer."""

    def __init__(self, example_ids_R: np.ndarray) -> None:
        self.order = np.argsort(example_ids_R, kind="stable")
        self.ids = example_ids_R[self.order]

    @property
    def repeated(self) -> int:
        """How many examples come more than once."""
        return int((self.ids[1:] == self.ids[:-1]).sum())

    def places(self, example_ids_R: np.ndarray, *, where: str, lack: str, remedy: str) -> np.ndarray:
        """Positions (int64) of examples; InputError "`where` has `lack` example 7 (3 such) -> `remedy`" for one that is not there."""
        at = np.searchsorted(self.ids, example_ids_R).clip(max=len(self.ids) - 1)
        unknown = example_ids_R[self.ids[at] != example_ids_R]
        if len(unknown):
            raise InputError(f"{where} has {lack} example {unknown[0]} ({len(unknown)} such) -> {remedy}")
        return self.order[at]


def block_rows(num_items: int) -> int:
    """Rows whose scores of all items fit into 64 MiB."""
    return max(1, BLOCK_VALUES // max(num_items, 1))


def ranked_lists(
    score_RN: np.ndarray, depth: int, *, most: int | None = None, keys_R: np.ndarray | None = None
) -> RankedLists:
    """Every item that has fewer than `depth` better ones, ties whole; items of score -inf are never listed.

    most: of a tie of more than this many items (and than `depth`) so many are listed, drawn anew for every row by its key (int64;
    its number where none are given): as they are one group there, the mean over rows of a target's metrics is what the whole tie gives.

    Scores 3, 2, 2, 1 give the ranks 1, 2.5, 2.5, 4; depth 2 keeps the first three.

    >>> lists = ranked_lists(np.array([[2, 3, 2, 1]], np.float32), 2)
    >>> lists.item_E.tolist(), lists.rank_E.tolist()
    ([1, 0, 2], [1.0, 2.5, 2.5])
    """
    rows, num_items = score_RN.shape
    at = num_items - min(depth, num_items)
    least_R1 = np.partition(score_RN, at, axis=1)[:, at : at + 1]
    listed_RN = (score_RN >= least_R1) & (score_RN > -np.inf)
    if most is not None:
        keys_R = np.arange(rows) if keys_R is None else keys_R
        _draw_from_ties(listed_RN, score_RN, max(most, depth), keys_R)
    row, item = np.nonzero(listed_RN)
    score = score_RN[row, item]
    order = np.lexsort((item, -score, row))
    row, item, score = row[order], item[order], score[order]
    new_row, new_tie = np.ones(len(row), bool), np.ones(len(row), bool)
    new_row[1:] = row[1:] != row[:-1]
    new_tie[1:] = new_row[1:] | (score[1:] != score[:-1])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
    return RankedLists(offsets, item.astype(np.int32), mean_ranks(new_row, new_tie), score)


def _draw_from_ties(listed_RN: np.ndarray, score_RN: np.ndarray, most: int, keys_R: np.ndarray) -> None:
    """Take all but `most` items of the last tie out of the lists that are longer."""
    for row in np.flatnonzero(listed_RN.sum(1) > most):
        listed = np.flatnonzero(listed_RN[row])
        tied = listed[score_RN[row, listed] == score_RN[row, listed].min()]
        if len(tied) > most:
            drawn = np.random.default_rng(int(keys_R[row])).choice(
                len(tied), most, replace=False, shuffle=False
            )
            listed_RN[row, tied] = False
            listed_RN[row, tied[drawn]] = True


def target_places(score_RN: np.ndarray, target_R: np.ndarray) -> Placement:
    """Where one item per row stands among all items, as in whole lists of `ranked_lists`.

    >>> target_places(np.array([[2, 3, 2, 1]], np.float32), np.array([2]))
    Placement(before_R=array([1.]), group_R=array([2]))
    """
    target_R1 = np.take_along_axis(score_RN, target_R[:, None].astype(np.int64), axis=1)
    return Placement((score_RN > target_R1).sum(1).astype(np.float64), (score_RN == target_R1).sum(1))
