"""Answers to train rows by a teacher that has not counted their users.

A model of counts that is asked about a row it has counted answers with that row: on Amazon 2014 Beauty a mixture of counts has 72 %
of the targets of train rows among its ten best and 12 % of those of valid rows. A student that learns from such answers
learns its train rows by heart. So the users are cut into folds, and the rows of a fold are answered by the model with the
counts of all other users (`Recountable`): what was learned or chosen stays, what was counted is counted again.

    for places, one in in_blocks(model, rows, 64, Folds(train, 8), label="answers"):
        one.score(rows.take(places))

Legend: R rows, P places of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from configs import program
from configs.program import InputError
from data.rows import Rows, TrainLog
from infer.models.contract import ItemModel, Recountable

NOBODY = -1  # the user of a row that nobody had


@dataclass(frozen=True)
class Folds:
    """Users in `count` folds by their number; with fewer than 2 there are none, and a row is answered with its own counts."""

    train: TrainLog
    count: int

    def of(self, users: np.ndarray) -> np.ndarray:
        """The folds int64 of users; `NOBODY` is in none."""
        return np.where(users == NOBODY, NOBODY, users.astype(np.int64) % self.count)

    def without(self, model: ItemModel, fold: int) -> ItemModel:
        """The model that has counted all users but those of a fold; `model` itself for `NOBODY` and where it counts nothing.

        InputError where that leaves no train row.
        """
        if fold == NOBODY or not isinstance(model, Recountable):
            return model
        others = self.of(self.train.users_T) != fold
        if not others.any():
            raise InputError(
                f"all train rows are of one fold of {self.count} -> data of more users, or 0 folds"
            )
        log = TrainLog(self.train.users_T[others], self.train.items_T[others], self.train.num_items)
        return model.recounted(log)

    def answering(self, model: ItemModel, rows: Rows) -> Iterator[tuple[np.ndarray, ItemModel]]:
        """(places int64 [P], the model that answers them), fold by fold, every row once. One fold's counts are held at a time."""
        if self.count < 2 or not isinstance(model, Recountable):
            yield np.arange(len(rows)), model
            return
        fold_R = self.of(rows.users_R)
        for fold in np.unique(fold_R).tolist():
            yield np.flatnonzero(fold_R == fold), self.without(model, fold)


class FoldedModel:
    """An item model (infer/models/contract.py) that answers every row as `Folds.answering` has it; the counts of all folds are held."""

    def __init__(self, model: ItemModel, folds: Folds) -> None:
        self.num_items, self._model, self._folds = model.num_items, model, folds
        self._of_fold: dict[int, ItemModel] = {}

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities float32 [R, N] or [R, C]."""
        width = self.num_items if items_RC is None else items_RC.shape[1]
        fold_R, result = self._folds.of(rows.users_R), np.empty((len(rows), width), np.float32)
        for fold in np.unique(fold_R).tolist():
            places = np.flatnonzero(fold_R == fold)
            asked = None if items_RC is None else items_RC[places]
            result[places] = self._one(fold).score(rows.take(places), asked)
        return result

    def _one(self, fold: int) -> ItemModel:
        if fold not in self._of_fold:
            self._of_fold[fold] = self._folds.without(self._model, fold)
        return self._of_fold[fold]


def in_blocks(
    model: ItemModel, rows: Rows, step: int, folds: Folds | None, *, label: str
) -> Iterator[tuple[np.ndarray, ItemModel]]:
    """(places int64 of at most `step` rows, the model that answers them) until every row has come once, with a progress bar."""
    parts = [(np.arange(len(rows)), model)] if folds is None else folds.answering(model, rows)
    blocks = ((places[at : at + step], one) for places, one in parts for at in range(0, len(places), step))
    yield from program.progress(blocks, label=label, total=-(-len(rows) // step), unit="block")
