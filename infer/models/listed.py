"""Predictions as an item model: a list of every row, and what is left for the items that are not on it.

    model = read([Path("outputs/run/eval/grpo.valid"), Path("outputs/run/eval/grpo.test")], num_items=3686)
    model.score(rows)                          # of the rows that were answered, any others are refused

A listed item has the probability exp(score); items that share a semantic ID share its probability evenly. The items that are
not listed share what is left of the mass evenly, as in infer/models/cache.py, with two limits: they share no less than 1e-6
in all, and none of them has more than the last item of the list (a model that gives much of its mass to texts that are no
item leaves more than the others can have without overtaking the list). The row is then divided by its sum.

Legend: R rows asked for, A rows answered, M listed items of all answers, N items, C candidates of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.program import InputError
from data.predictions import Predictions, read_predictions
from data.rows import Rows, TrainLog
from infer.models.contract import KnownRows
from infer.models.folds import answers_as_they_are

LEFT = 1e-6  # the least mass of all items that are not listed
ROUNDING = 1e-3  # by how much float32 scores of a whole catalogue may sum to more than 1


class ListedScores:
    """Log-probabilities of the rows that `answers` hold; `where` names them in errors.

    InputError for lists with items outside 0..num_items-1, for scores that are no log-probabilities, and for two answers to
    one example.
    """

    def __init__(self, answers: Sequence[Predictions], *, num_items: int, where: str) -> None:
        self.num_items, self._where = num_items, where
        ids_A = np.concatenate([one.example_ids_R for one in answers])
        self._known = KnownRows(ids_A)
        if twice := self._known.repeated:
            raise InputError(f"{where}: {twice} examples are answered twice -> name one directory per split")
        firsts = np.cumsum([0, *(len(one.example_ids_R) for one in answers)])
        row_M = np.concatenate([one.row_M + first for one, first in zip(answers, firsts, strict=False)])
        item_M = np.concatenate([one.items_M for one in answers]).astype(np.int64)
        if item_M.max(initial=-1) >= num_items or item_M.min(initial=0) < 0:
            raise InputError(
                f"{where} lists items outside 0..{num_items - 1} -> predictions of this catalogue"
            )
        if not len(item_M):
            raise InputError(f"{where} lists no item for any example -> leave it out")
        shared_M = np.concatenate([one.sizes_E[one.entry_M] for one in answers])
        score_M = np.concatenate([one.score_E[one.entry_M] for one in answers]) - np.log(shared_M)
        self._rest_A, score_M = _with_rest(row_M, score_M, len(ids_A), num_items, where)
        by_key = np.argsort(row_M * num_items + item_M)
        self._key_M, self._score_M = (row_M * num_items + item_M)[by_key], score_M[by_key]
        self._starts = np.searchsorted(self._key_M, np.arange(len(ids_A) + 1) * num_items)

    def recounted(self, train: TrainLog) -> ListedScores:
        """InputError: answers on disk cannot be counted again."""
        raise answers_as_they_are(self._where)

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """As infer.models.contract.ItemModel; InputError for a row that was not answered."""
        at = self._known.places(
            rows.example_ids_R, where=self._where, lack="no answer to", remedy="predictions of these rows too"
        )
        rest_R1 = self._rest_A[at][:, None].astype(np.float32)
        if items_RC is None:
            score_RN = np.repeat(rest_R1, self.num_items, axis=1)
            lengths = self._starts[at + 1] - self._starts[at]
            row = np.repeat(np.arange(len(at)), lengths)
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            listed = self._starts[at][row] + within
            score_RN[row, self._key_M[listed] % self.num_items] = self._score_M[listed]
            return score_RN
        wanted_RC = at[:, None] * self.num_items + items_RC
        place_RC = np.searchsorted(self._key_M, wanted_RC).clip(max=len(self._key_M) - 1)
        return np.where(self._key_M[place_RC] == wanted_RC, self._score_M[place_RC], rest_R1).astype(
            np.float32
        )


def _with_rest(
    row_M: np.ndarray, score_M: np.ndarray, rows: int, num_items: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability of a single item that is not listed float64 [A], those of the listed ones float64 [M])."""
    mass_A = np.bincount(row_M, np.exp(score_M.astype(np.float64)), minlength=rows)
    if mass_A.max() > 1 + ROUNDING:
        raise InputError(
            f"{where}: the probabilities of one list sum to {mass_A.max():.4g}, so its scores are no log-probabilities "
            "-> recommend without length penalty"
        )
    others_A = num_items - np.bincount(row_M, minlength=rows)
    last_A = np.full(rows, np.inf)
    np.minimum.at(last_A, row_M, score_M)
    with np.errstate(divide="ignore"):
        rest_A = np.log((1 - mass_A).clip(min=LEFT) / others_A.clip(min=1))
        rest_A = np.where(others_A > 0, np.minimum(rest_A, last_A), -np.inf)
    sum_A = np.log(mass_A + others_A * np.exp(rest_A))
    return rest_A - sum_A, score_M - sum_A[row_M]


def read(directories: Sequence[Path], *, num_items: int) -> ListedScores:
    """The predictions of one model on one or several splits."""
    answers = [read_predictions(directory)[0] for directory in directories]
    return ListedScores(answers, num_items=num_items, where=" and ".join(map(str, directories)))
