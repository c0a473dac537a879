"""A mixture of what counts and texts say of the next item, its weights fitted to the likelihood of valid rows by EM.

Every component is a distribution over items given a history: the weights of the history's items (`history_weights`, divided by
their sum) times a matrix [N, N] between items whose rows sum to at most 1, or one distribution for all rows. Counts come from
train rows only; texts and repeats are no counts. The weights are never searched on a ranking metric: with so many of them
that overfits valid.

  follows_1 follows_3      what came next, or within three places, after the last item
  follows_10 beside_5      what came within ten places after, within five before or after, any history item
  users users_shrunk       cosine of the users of two items
  text text_popular ...    similar texts, also weighed by popularity and by what was popular lately
  text_follows follows_text  what followed items of similar text; texts similar to what followed
  again again_last again_item   the history itself, and how often an item is chosen twice in a row
  popular, popular_<k>, any     train counts, those of the k latest interactions, all items alike

Only then one number is added to the log-probability of every item of the history, for each time it stands there: how often something comes again is
what components say badly together, each of them giving history items a part of its mass (`shift`; infer/models/sequential/repeats.py).

Legend: R rows, N items, C components.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from configs.program import InputError
from data.rows import Rows, TrainLog
from data.store.output import Output
from infer.models.contract import block_rows, read_settings, save_settings
from infer.models.counting import (
    HISTORY,
    history_weights,
    item_similarity,
    transition_matrix,
    without_self,
)
from infer.models.sequential.repeats import in_history

FILE = "mixture.safetensors"
RECENT = [1000, 3000, 9000]
DECAY = 0.7
FLOOR = 1e-9  # probability that all items share whatever the weights
ITERATIONS = 300


class Component(NamedTuple):
    """A matrix [N, N] behind a weighing of the history, or (matrix None) a distribution base_N of its own."""

    name: str
    matrix: sparse.csr_matrix | None = None
    last: int = HISTORY
    decay: float = DECAY
    base_N: np.ndarray | None = None


def shares(matrix: sparse.spmatrix, *, add: float = 0.0) -> sparse.csr_matrix:
    """Rows divided by their sum plus `add`: with it, rows of little support keep mass for the other components."""
    total = np.asarray(matrix.sum(1)).ravel() + add
    return sparse.csr_matrix(
        sparse.diags(np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)) @ matrix
    )


def similarity_matrix(items_NK: np.ndarray, cosine_NK: np.ndarray) -> sparse.csr_matrix:
    """`similar_items` (infer/models/sequential/text.py) as a sparse [N, N]."""
    size, width = items_NK.shape
    rows = np.repeat(np.arange(size), width)
    known = cosine_NK.ravel() > 0
    return sparse.csr_matrix(
        (cosine_NK.ravel()[known].astype(np.float64), (rows[known], items_NK.ravel()[known])),
        shape=(size, size),
    )


def counted(train: TrainLog) -> Iterator[Component]:
    """Components of train sequences alone, made one by one: all of them are several times what their sum is."""
    size, popularity_N = train.num_items, train.popularity_N
    yield Component("follows_1", shares(_follows(train, 1), add=2), last=1)
    yield Component("follows_3", shares(_follows(train, 3), add=2), last=1)
    yield Component("follows_10", shares(without_self(transition_matrix(train, reach=10, decay=0.8)), add=4))
    five = _follows(train, 5)
    yield Component("beside_5", shares(five + five.T))
    del five
    yield Component("users", shares(item_similarity(train)), decay=1.0)
    yield Component("users_shrunk", shares(item_similarity(train, shrink=5.0)))
    kept, next_one = sparse.identity(size, format="csr"), transition_matrix(train)
    again_N, total_N = next_one.diagonal(), np.asarray(next_one.sum(1)).ravel()
    usual = again_N.sum() / max(total_N.sum(), 1)
    yield Component("again_last", kept, last=1)
    yield Component("again", kept)
    yield Component(
        "again_item", sparse.csr_matrix(sparse.diags((again_N + 5 * usual) / (total_N + 5))), last=1
    )
    yield Component("popular", base_N=(popularity_N + 0.1) / (popularity_N + 0.1).sum())
    yield Component("any", base_N=np.full(size, 1 / size))


def _follows(train: TrainLog, reach: int) -> sparse.csr_matrix:
    return without_self(transition_matrix(train, reach=reach))


def told_by_text(
    train: TrainLog, similar: sparse.csr_matrix, recent: dict[int, np.ndarray]
) -> Iterator[Component]:
    """Components of similar texts; high powers of the cosine leave the near ones."""
    square, fourth = similar.power(2), similar.power(4)
    popular = sparse.diags((train.popularity_N + 1.0) ** 0.5)
    yield Component("text", shares(fourth), last=1)
    yield Component("text_popular", shares(fourth @ popular))
    yield Component("text_wide_popular", shares(square @ popular))
    follows = shares(_follows(train, 3))
    yield Component("text_follows", shares(shares(fourth) @ follows))
    yield Component("follows_text", shares(follows @ shares(fourth)))
    del follows
    if recent:
        lately = sparse.diags((recent[RECENT[1]] + 0.5) ** 0.7)
        yield Component("text_wide_lately", shares(square @ lately))
        yield Component("text_lately", shares(fourth @ lately), last=1)


def components(
    train: TrainLog, similar: sparse.csr_matrix | None, recent: dict[int, np.ndarray]
) -> Iterator[Component]:
    """All of them; without texts (similar None) or times (recent {}) those that need none."""
    yield from counted(train)
    if similar is not None:
        yield from told_by_text(train, similar, recent)
    for k, count_N in recent.items():
        yield Component(f"popular_{k}", base_N=count_N / count_N.sum())


def weighed(rows: Rows, component: Component, num_items: int) -> sparse.csr_matrix:
    """Weights of a history's items, rows of sum 1 (0 without history), float64 [R, N]."""
    return shares(history_weights(rows, num_items, last=component.last, decay=component.decay))


def target_probabilities(found: list[Component], rows: Rows, num_items: int) -> np.ndarray:
    """Probability of each row's target under each component, float64 [R, C]."""
    columns = []
    for component in found:
        if component.matrix is None:
            columns.append(component.base_N[rows.target_R])
            continue
        to_target = component.matrix.T.tocsr()[rows.target_R]
        columns.append(np.asarray(weighed(rows, component, num_items).multiply(to_target).sum(1)).ravel())
    return np.stack(columns, axis=1)


def em_weights(probability_RC: np.ndarray, iterations: int = ITERATIONS, *, prior: float = 0.0) -> np.ndarray:
    """Weights float64 [C], sum 1, that raise the likelihood sum_r log sum_c w_c p_rc step by step (Dempster et al. 1977).

    Rows that no component explains do not count. prior: as if so many rows more were explained by all components alike, so that a few
    rows do not decide what they cannot know. Two components that explain two of three and one of three rows:

    >>> em_weights(np.array([[1.0, 0], [1, 0], [0, 1]])).round(3)
    array([0.667, 0.333])
    >>> em_weights(np.array([[1.0, 0], [1, 0], [0, 1]]), prior=1.0).round(3)
    array([0.625, 0.375])
    """
    explained = probability_RC[probability_RC.sum(1) > 0]
    weight_C = np.full(probability_RC.shape[1], 1 / probability_RC.shape[1])
    for _ in range(iterations if len(explained) else 0):
        part_RC = explained * weight_C
        told_C = (part_RC / part_RC.sum(1, keepdims=True)).sum(0)
        weight_C = (told_C + prior / len(told_C)) / (len(explained) + prior)
    return weight_C


@dataclass(frozen=True)
class Beside:
    """What a mixture is counted again beside: the weight of every component, text cosines [N, N] or None, counts of the latest interactions."""

    weights: dict[str, float]
    similar: sparse.csr_matrix | None
    recent: dict[int, np.ndarray]


class MixturePart(NamedTuple):
    """The weighted sum of all matrices behind one weighing of the history."""

    last: int
    decay: float
    matrix: sparse.csr_matrix


@dataclass(frozen=True)
class MixtureModel:
    """An item model (infer/models/contract.py): base_N float64 plus, for each part, history weights times its matrix.

    shift: nats that are added to an item of the history for each time it stands there.
    """

    base_N: np.ndarray
    parts: list[MixturePart]
    beside: Beside | None = None
    shift: float = 0.0

    @property
    def num_items(self) -> int:
        return len(self.base_N)

    @classmethod
    def counted(cls, train: TrainLog, beside: Beside) -> MixtureModel:
        """The components of train rows, with weights that are known."""
        weighed_ones = (
            (one, beside.weights[one.name]) for one in components(train, beside.similar, beside.recent)
        )
        return cls.of(weighed_ones, train.num_items, beside)

    def recounted(self, train: TrainLog) -> MixtureModel:
        """The counts of other train rows with the same weights, texts and latest interactions; itself where it has no matrices."""
        if not self.parts:
            return self
        if self.beside is None:
            raise InputError(
                "the mixture was saved without what counting again needs -> fit it again (infer.run_baselines --models [mixture] --overwrite), or 0 folds"
            )
        return replace(self.counted(train, self.beside), shift=self.shift)

    @property
    def entries(self) -> int:
        """Pairs of items that it knows something of."""
        return sum(part.matrix.nnz for part in self.parts)

    @classmethod
    def of(
        cls, found: Iterable[tuple[Component, float]], num_items: int, beside: Beside | None = None
    ) -> MixtureModel:
        """The sum of components with their weights, each asked for when the one before has been added."""
        base_N, sums = np.full(num_items, FLOOR / num_items), {}
        for component, weight in found:
            if component.matrix is None:
                base_N = base_N + weight * component.base_N
            elif weight > 0:
                key = component.last, component.decay if component.last > 1 else 1.0
                sums[key] = sums.get(key, 0) + weight * component.matrix
        parts = [MixturePart(*key, sparse.csr_matrix(matrix)) for key, matrix in sums.items()]
        return cls(base_N, parts, beside)

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities float32 [R, N] or [R, C]; mass that a history leaves over goes to all items in proportion."""
        width = self.num_items if items_RC is None else items_RC.shape[1]
        result, step = np.empty((len(rows), width), np.float32), block_rows(self.num_items)
        for start in range(0, len(rows), step):
            block = np.arange(start, min(start + step, len(rows)))
            chosen = rows.take(block)
            share_RN = np.repeat(self.base_N[None], len(block), axis=0)
            for last, decay, matrix in self.parts:
                weights = shares(history_weights(chosen, self.num_items, last=last, decay=decay))
                share_RN += (weights @ matrix).toarray()
            if self.shift:
                row_U, item_U, times_U = in_history(chosen, self.num_items)
                share_RN[row_U, item_U] *= np.exp(self.shift * times_U)
            share_RN = np.log(share_RN / share_RN.sum(1, keepdims=True)).astype(np.float32)
            result[block] = (
                share_RN if items_RC is None else np.take_along_axis(share_RN, items_RC[block], axis=1)
            )
        return result

    def save(self, out: Output) -> None:
        """Into an output directory, for `load`."""
        from safetensors.numpy import save_file

        arrays = {"base": self.base_N}
        for number, part in enumerate(self.parts):
            arrays |= _stored(str(number), part.matrix)
        settings: dict[str, Any] = {
            "parts": [{"last": part.last, "decay": part.decay} for part in self.parts],
            "shift": self.shift,
        }
        if self.beside is not None:
            arrays |= {} if self.beside.similar is None else _stored("similar", self.beside.similar)
            arrays |= {f"recent.{latest}": count_N for latest, count_N in self.beside.recent.items()}
            settings["weights"] = self.beside.weights
        with out.replacing(FILE) as temporary:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
        save_settings(out, "mixture", **settings)


def load(directory: Path) -> MixtureModel:
    """The model that `MixtureModel.save` wrote."""
    from safetensors.numpy import load_file

    arrays, settings = load_file(directory / FILE), read_settings(directory)
    parts = [
        MixturePart(one["last"], one["decay"], _matrix(str(number), arrays))
        for number, one in enumerate(settings["parts"])
    ]
    if "weights" not in settings:
        return MixtureModel(arrays["base"], parts, shift=settings.get("shift", 0.0))
    similar = _matrix("similar", arrays) if "similar.values" in arrays else None
    recent = {int(name.partition(".")[2]): arrays[name] for name in arrays if name.startswith("recent.")}
    beside = Beside(settings["weights"], similar, recent)
    return MixtureModel(arrays["base"], parts, beside, settings.get("shift", 0.0))


def _stored(name: str, matrix: sparse.csr_matrix) -> dict[str, np.ndarray]:
    return {
        f"{name}.values": matrix.data,
        f"{name}.columns": matrix.indices.astype(np.int32),
        f"{name}.offsets": matrix.indptr.astype(np.int64),
    }


def _matrix(name: str, arrays: dict[str, np.ndarray]) -> sparse.csr_matrix:
    size = len(arrays["base"])
    stored = tuple(arrays[f"{name}.{part}"] for part in ("values", "columns", "offsets"))
    return sparse.csr_matrix(stored, shape=(size, size))
