"""Soft targets: what a teacher says of the next item of every train row, beside the item that came.

    options = SoftTargets(teacher="outputs/run/baselines/teacher", share=0.7)
    taught = TaughtRows.of(options, data="data/industrial", num_items=3686)
    items_RK, chance_RK, rest_R = taught.of_examples(example_ids_R)

The teacher is any saved item model, usually a product of several whose weights or scale were fitted to valid rows (`infer.fuse --how
product`). What it has counted of train rows is counted again without the users of the rows that it answers
(infer/models/folds.py): with its own counts a row is answered with itself. Its scores are kept on disk (infer/models/cache.py), for all items, or for large catalogues the k best of a row
and what is left for each of the others. A student minimises (1 - share) CE(item) + share CE(teacher's distribution).

Legend: R rows, K items kept per row, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.needs import Need, require_needs
from configs.program import InputError
from data.rows import Rows, read_rows, read_train_log
from data.store.configuration import added
from data.store.lineage import input_directory, require_same_data
from data.store.output import require_manifest
from infer.models import contract
from infer.models.cache import ScoreCache, cached
from infer.models.folds import Folds
from infer.models.members import RANKS_ONLY, fitted_on
from infer.models.recency import with_ages


@dataclass
class SoftTargets:
    """What is learned from a teacher. Nothing, unless `teacher` names one."""

    teacher: str | None = None
    """directory of a saved item model of the same data set, usually a product with a fitted scale"""
    share: float = 0.7
    """of the target distribution that is the teacher's; the rest is the item that came"""
    temperature: float = 1.0
    """the teacher's probabilities to the power 1 / temperature, divided by their sum"""
    k: int | None = None
    """items kept per row, the others share what is left evenly; null = the whole catalogue"""
    folds: int = added(8, before=0)
    """of users: the train rows of each are answered without the counts of its users, as valid rows are; 0: with them"""
    scores: str | None = None
    """folder of the teacher's scores; null = scores/ beside the folder of the teacher"""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"soft_targets.share {self.share} must lie in (0, 1]")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"soft_targets.temperature {self.temperature} must be positive and finite")
        if self.k is not None and self.k < 1:
            raise InputError(f"soft_targets.k {self.k} must be at least 1, or null")
        if self.folds < 0 or self.folds == 1:
            raise InputError(f"soft_targets.folds {self.folds} must be at least 2, or 0 for none")
        require_needs(self, "soft_targets.")

    def needs(self) -> list[Need]:
        """All that is said of a teacher."""
        return [
            Need(
                ("share", "temperature", "k", "folds", "scores"),
                self.teacher is not None,
                "soft_targets.teacher",
            )
        ]

    def folds_of(self, data: str | Path, *, num_items: int) -> Folds:
        """The folds of a data set's users."""
        return Folds(read_train_log(data, num_items=num_items), self.folds)

    def place(self, rows: str) -> Path:
        """Where the teacher's scores of the rows of that name are kept."""
        teacher = Path(self.teacher)
        folder = teacher.resolve().parent.parent / "scores" if self.scores is None else Path(self.scores)
        named = {f"top{self.k}": self.k is not None, f"folds{self.folds}": self.folds > 0}
        return folder / ".".join([teacher.name, rows, *(name for name, given in named.items() if given)])


class TaughtRows:
    """The teacher's distributions of rows that are known by their example."""

    def __init__(self, cache: ScoreCache, temperature: float = 1.0) -> None:
        self.num_items, self.temperature, self._cache = cache.num_items, temperature, cache

    @classmethod
    def of(
        cls,
        options: SoftTargets,
        *,
        data: str | Path,
        num_items: int,
        rows: Rows | None = None,
        name: str = "train",
        overwrite: bool = False,
    ) -> TaughtRows:
        """Those of the train rows, or of other `rows` of the data set, which then have a `name`; scored now where that is
        not done yet. InputError as `require_teacher`, and where `scores` are of another model or of other rows and not to be
        overwritten."""
        rows = rows_to_answer(options, data, rows, num_items=num_items)
        folds = options.folds_of(data, num_items=num_items)
        cache = cached(
            options.place(name),
            model=options.teacher,
            rows=rows,
            k=options.k,
            folds=folds,
            overwrite=overwrite,
        )
        return cls(cache, options.temperature)

    @property
    def whole(self) -> bool:
        """Whether every item is kept: K is the catalogue, items ascend and `rest` says nothing."""
        return self._cache.whole

    def of_examples(self, example_ids_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(items int64 [R, K] ascending, their probabilities float32 [R, K], that of every other item float32 [R]).

        InputError for an example that is not among the rows. Probabilities .6, .2, .1, .1 with k = 2 and temperature 2 are
        in proportion to .775, .447, .316, .316: .418, .241, and .170 for either of the others.
        """
        items_RK, score_RK, rest_R = self._cache.kept(self._cache.places(example_ids_R))
        most_R = np.maximum(score_RK.max(1), rest_R)
        chance_RK = np.exp((score_RK - most_R[:, None]) / self.temperature)
        rest_R = np.exp((rest_R - most_R) / self.temperature)
        total_R = chance_RK.sum(1) + (self.num_items - items_RK.shape[1]) * rest_R
        return items_RK, chance_RK / total_R[:, None], rest_R / total_R

    def dense(self, example_ids_R: np.ndarray) -> np.ndarray:
        """The same as probabilities of all items, float32 [R, N]."""
        items_RK, chance_RK, rest_R = self.of_examples(example_ids_R)
        if self.whole:
            return chance_RK
        chance_RN = np.repeat(rest_R[:, None], self.num_items, axis=1)
        np.put_along_axis(chance_RN, items_RK, chance_RK, axis=1)
        return chance_RN


def rows_to_answer(options: SoftTargets, data: str | Path, rows: Rows | None, *, num_items: int) -> Rows:
    """`rows`, or where None the train rows with ages; InputError as `require_teacher`."""
    require_teacher(options.teacher, data, num_items=num_items)
    if rows is not None:
        return rows
    return with_ages(read_rows(data, "train", num_items=num_items), data, num_items=num_items)


def systematic(until_BN: np.ndarray, draws: int, offset_B: np.ndarray) -> np.ndarray:
    """Places int64 [B, draws], ascending, by systematic draws from cumulated masses; offset_B in [0, 1).

    Masses .5 and .5, four draws: each place twice.

    >>> systematic(np.array([[1.0, 2.0]]), 4, np.array([0.3])).tolist()
    [[0, 0, 1, 1]]
    """
    rows_B1 = np.arange(len(until_BN))[:, None]
    # All rows in one ascending list: row b lies between 2 b and 2 b + 1.
    flat = (until_BN / until_BN[:, -1:] + 2 * rows_B1).ravel()
    points_BA = (offset_B[:, None] + np.arange(draws)) / draws + 2 * rows_B1
    place_BA = np.searchsorted(flat, points_BA.ravel(), side="right").reshape(points_BA.shape)
    size = until_BN.shape[1]
    return (place_BA - rows_B1 * size).clip(0, size - 1)


def require_teacher(teacher: str | Path, data: str | Path, *, num_items: int) -> None:
    """InputError unless a directory holds an item model of this data set that was fitted on its train rows alone.

    Refused are ranks without probabilities, another state of the data, another catalogue, and what was fitted on rows that
    choose or measure the student. A model whose manifest does not say what it was fitted on is taken.
    """
    manifest = require_manifest(
        teacher, written_by="the stage that fits it (infer.fuse, infer.run_baselines, ...)"
    )
    if manifest["stage"] == RANKS_ONLY:
        raise InputError(
            f"{teacher} has ranks, no probabilities (imported predictions) -> a saved item model as teacher"
        )
    contract.read_settings(teacher)
    require_same_data(teacher, data, again="the stage that fits the teacher")
    known = fitted_on(teacher)
    if known not in (None, "unknown", "train"):
        raise InputError(f"{teacher} was fitted on {known} -> a teacher that was fitted on train rows alone")
    scored = contract.load(teacher).num_items
    if scored != num_items:
        raise InputError(
            f"{teacher} scores {scored} items, {data} has {num_items} -> a teacher of this data set"
        )


def data_of(data: str | None, examples: str | Path) -> Path:
    """The data set behind `examples`: `data`, or the one that they were made from; InputError where it has moved, or is another."""
    found = Path(data) if data is not None else input_directory(examples, "data")
    if found is None:
        raise InputError(
            f"{examples} were made from a data set that is not where it was -> say where it is: --data DIRECTORY"
        )
    require_same_data(examples, found, again="scripts/07_build_examples.sh")
    return found
