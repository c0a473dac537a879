"""Answers to train rows by a teacher that has not counted their users.

A model of counts that is asked about a row it has counted answers with that row: on Amazon 2014 Beauty a mixture of counts has 73 %
of the targets of train rows among its ten best and 11 % of those of valid rows. What that costs a student, which is little
where it was measured, is in train/README.md. The users are cut into folds, and the rows of a fold are answered by the model with the
counts of all other users (`Recountable`): what was learned or chosen stays, what was counted is counted again.

    for places, score_BN in in_blocks(model, rows, 64, Folds(train, 8), label="answers"):
        ...

Legend: R rows, P places of rows, B rows of a block, N items.
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
        """The folds int64 of users; `NOBODY` is in none. With two folds or more."""
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

    def groups(self, rows: Rows) -> list[tuple[int, np.ndarray]]:
        """(fold, places int64 [P]) of rows, every row once; `NOBODY` for all of them where there are no folds."""
        if self.count < 2:
            return [(NOBODY, np.arange(len(rows)))]
        fold_R = self.of(rows.users_R)
        return [(fold, np.flatnonzero(fold_R == fold)) for fold in np.unique(fold_R).tolist()]


def answers_as_they_are(where: str) -> InputError:
    """For a model that is its answers, as a teacher of folds or a member of one."""
    return InputError(
        f"{where} holds answers, which cannot be counted again without some users -> the model itself, or 0 folds"
    )


class FoldedModel:
    """An item model (infer/models/contract.py) that answers the rows of each fold without its counts; those of all folds are held, as soon as
    they have been asked for. InputError, at once, for a model that cannot be counted again."""

    def __init__(self, model: ItemModel, folds: Folds) -> None:
        self.num_items, self._model, self._folds = model.num_items, model, folds
        first = int(folds.of(folds.train.users_T[:1])[0])
        self._of_fold = {NOBODY: model, first: folds.without(model, first)}
        self._told = False

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities float32 [R, N] or [R, C]."""
        width = self.num_items if items_RC is None else items_RC.shape[1]
        result = np.empty((len(rows), width), np.float32)
        for fold, places in self._folds.groups(rows):
            if fold == NOBODY and not self._told:
                self._told = True
                program.warn("rows of no user are answered with all counts of the teacher")
            asked = None if items_RC is None else items_RC[places]
            result[places] = self._one(fold).score(rows.take(places), asked)
        return result

    def _one(self, fold: int) -> ItemModel:
        if fold not in self._of_fold:
            self._of_fold[fold] = self._folds.without(self._model, fold)
        return self._of_fold[fold]


def in_blocks(
    model: ItemModel, rows: Rows, step: int, folds: Folds | None, *, label: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places int64 of at most `step` rows, their scores float32 [B, N]) until every row has come once, with a progress bar.

    One fold's counts are held at a time: they are let go before the next are counted.
    """
    groups = [(NOBODY, np.arange(len(rows)))] if folds is None else folds.groups(rows)

    def answered() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for fold, places in groups:
            one = model if folds is None else folds.without(model, fold)
            for at in range(0, len(places), step):
                block = places[at : at + step]
                yield block, one.score(rows.take(block))
            del one

    total = sum(-(-len(places) // step) for _, places in groups)
    yield from program.progress(answered(), label=label, total=total, unit="block")
