"""Recommenders that count: popularity, transitions between items, item-kNN, the history itself. Train rows only.

All of them are one model: the weights of a history (`history_weights`) times a matrix [N, N] between items gives positive
scores; items without a score come after the others, most popular first, and equal items stand in random order. Items of the history itself
can have a score of their own (`own`), or come last of all.

  pop      no matrix: popularity alone          last     how often an item came next after the newest one
  repeat   the history itself, newest first     recent   the same within three places, 1, 1/2, 1/3
  itemknn  cosine of the users of two items, over the last ten items of the history

Legend: T train rows, N items, R rows to recommend for, H history items of all rows, C candidates of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from configs.program import InputError
from data.rows import Rows, TrainLog
from data.store.output import Output
from infer.metrics.placement import Placement
from infer.models.contract import block_rows, read_settings, save_settings

HISTORY = 10
BACKOFF = 0.01
DIGITS = 9
LEFT_OUT = -1.0  # the score of an item that comes last of all
FAR = 30.0  # nats by which it is less likely than items without a score
FILE = "counts.safetensors"


def transition_matrix(train: TrainLog, *, reach: int = 1, decay: float | None = None) -> sparse.csr_matrix:
    """How often one item came soon after another in a train sequence, float64 [N, N] (from, to).

    Distances 1, 2, ... up to `reach` count 1, 1/2, ..., or with `decay` 1, decay, decay^2, ...; an item can follow itself.
    """
    users, items = train.users_T, train.items_T
    sources, targets, weights = [], [], []
    for distance in range(1, reach + 1):
        same = users[distance:] == users[:-distance]
        sources.append(items[:-distance][same])
        targets.append(items[distance:][same])
        weight = 1 / distance if decay is None else decay ** (distance - 1)
        weights.append(np.full(int(same.sum()), weight))
    positions = (np.concatenate(sources), np.concatenate(targets))
    return sparse.csr_matrix((np.concatenate(weights), positions), shape=(train.num_items, train.num_items))


def without_self(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    """The matrix with a zero diagonal."""
    entries = matrix.tocoo()
    off = entries.row != entries.col
    return sparse.csr_matrix((entries.data[off], (entries.row[off], entries.col[off])), shape=matrix.shape)


def item_similarity(train: TrainLog, *, shrink: float = 0.0) -> sparse.csr_matrix:
    """Cosine of the binary user columns of two items, float64 [N, N]; an item is not its own neighbour.

    c_ij / (sqrt(c_ii c_jj) + shrink), c_ij being the users who have both.

    shrink: in users; lowers the similarity of pairs with little support (Bell and Koren 2007).
    """
    users = np.unique(train.users_T, return_inverse=True)[1]
    ones = np.ones(len(users))
    bought = sparse.csr_matrix((ones, (users, train.items_T)), shape=(users.max() + 1, train.num_items))
    bought.data[:] = 1.0
    together = (bought.T @ bought).tocoo()
    count = bought.sum(axis=0).A1
    off = together.row != together.col
    row, col, shared = together.row[off], together.col[off], together.data[off]
    cosine = shared / (np.sqrt(count[row] * count[col]) + shrink)
    return sparse.csr_matrix((cosine, (row, col)), shape=(train.num_items, train.num_items))


def history_weights(
    rows: Rows, num_items: int, *, last: int = HISTORY, decay: float = 1.0, half_life: float | None = None
) -> sparse.csr_matrix:
    """Weight of every distinct item among the `last` of a history, float64 [R, N].

    decay ** position, position 0 being the newest item; with `half_life` (days) 0.5 ** (age / half_life) where the age
    is known. An item that occurs twice counts once, at its newest position.
    """
    position_H = np.repeat(rows.offsets[1:], np.diff(rows.offsets)) - 1 - np.arange(len(rows.history_H))
    recent = np.flatnonzero(position_H < last)
    row, item, position = rows.history_row_H[recent], rows.history_H[recent], position_H[recent]
    newest_first = np.lexsort((position, item, row))
    row, item, position = row[newest_first], item[newest_first], position[newest_first]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
    values = np.power(float(decay), position[first])
    if half_life is not None and rows.age_H is not None:
        age = rows.age_H[recent][newest_first][first]
        values = np.where(np.isnan(age), values, np.exp2(-np.nan_to_num(age) / half_life))
    return sparse.csr_matrix((values, (row[first], item[first])), shape=(len(rows), num_items))


def with_own(
    scores: sparse.csr_matrix, weights: sparse.csr_matrix, rows: Rows, own: float | None
) -> sparse.csr_matrix:
    """Scores [R, N] of a history's neighbours plus `own` times the weights of its items themselves; None: `LEFT_OUT` for the whole history.

    Those that differ by rounding are equal.
    """
    if own:
        scores = scores + own * weights
    scores = sparse.csr_matrix(scores, copy=True)
    scores.sum_duplicates()
    scores.data = np.round(scores.data, DIGITS)
    scores.eliminate_zeros()
    if own is not None:
        return scores
    seen = sparse.csr_matrix(
        (np.ones(len(rows.history_H)), (rows.history_row_H, rows.history_H)), scores.shape
    )
    seen.data[:] = 1.0
    others = scores - scores.multiply(seen)
    others.eliminate_zeros()
    return sparse.csr_matrix(others + LEFT_OUT * seen)


def matrix_of(train: TrainLog, counted: dict[str, float]) -> sparse.csr_matrix:
    """`transition_matrix` of {"reach": ...}, `item_similarity` of {"shrink": ...}."""
    if "reach" in counted:
        return transition_matrix(train, reach=int(counted["reach"]))
    return item_similarity(train, shrink=counted["shrink"])


@dataclass(frozen=True)
class CountingModel:
    """A matrix between items and how the history is weighed; saved by infer.run_baselines.

    popularity_N int64: train rows of every item; matrix_NN: positive float64. last, decay, half_life: `history_weights`.
    own: `with_own`. counted: what the matrix is of train rows, {"reach": of transitions} or {"shrink": of a similarity}, {} where it is no count of them;
    None where more than that went into it.
    """

    popularity_N: np.ndarray
    matrix_NN: sparse.csr_matrix
    last: int = HISTORY
    decay: float = 1.0
    half_life: float | None = None
    counted: dict[str, float] | None = None
    own: float | None = 0.0

    @property
    def num_items(self) -> int:
        return len(self.popularity_N)

    @property
    def entries(self) -> int:
        """Pairs of items that it counted."""
        return self.matrix_NN.nnz

    def recounted(self, train: TrainLog) -> CountingModel:
        """The same counts of other train rows; InputError where its matrix is more than a count."""
        if self.counted is None:
            raise InputError(
                "a matrix of counts and texts (itemknn_text), or one that was saved without what it counts, cannot be counted again -> "
                "a mixture as teacher, fit it again (infer.run_baselines --overwrite), or 0 folds"
            )
        matrix = matrix_of(train, self.counted) if self.counted else self.matrix_NN
        return replace(self, popularity_N=train.popularity_N, matrix_NN=matrix)

    def counts(self, rows: Rows) -> sparse.csr_matrix:
        """The scores before they are probabilities, float64 [R, N]; 0: no score, below 0: left out.

        InputError where the model weighs by age and the rows have none (infer.models.recency.with_ages adds them).
        """
        if self.half_life is not None and rows.age_H is None:
            raise InputError("this model weighs history items by age -> give it rows with ages (with_ages)")
        weights = history_weights(
            rows, self.num_items, last=self.last, decay=self.decay, half_life=self.half_life
        )
        return with_own(weights @ self.matrix_NN, weights, rows, self.own)

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities as infer.models.contract.ItemModel says."""
        width = self.num_items if items_RC is None else items_RC.shape[1]
        result, step = np.empty((len(rows), width), np.float32), block_rows(self.num_items)
        for start in range(0, len(rows), step):
            block = np.arange(start, min(start + step, len(rows)))
            score_RN = log_probabilities(self.counts(rows.take(block)), self.popularity_N)
            result[block] = (
                score_RN if items_RC is None else np.take_along_axis(score_RN, items_RC[block], axis=1)
            )
        return result

    def save(self, out: Output) -> None:
        """Into an output directory, for `load`."""
        from safetensors.numpy import save_file

        matrix = self.matrix_NN
        arrays = {"popularity": self.popularity_N, "values": matrix.data.astype(np.float64)}
        arrays |= {"columns": matrix.indices.astype(np.int64), "offsets": matrix.indptr.astype(np.int64)}
        with out.replacing(FILE) as temporary:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
        save_settings(
            out,
            "counting",
            last=self.last,
            decay=self.decay,
            half_life=self.half_life,
            counted=self.counted,
            own=self.own,
        )


def load(directory: Path) -> CountingModel:
    """The model that `CountingModel.save` wrote."""
    from safetensors.numpy import load_file

    settings = read_settings(directory)
    arrays = load_file(directory / FILE)
    size = len(arrays["popularity"])
    matrix = sparse.csr_matrix((arrays["values"], arrays["columns"], arrays["offsets"]), shape=(size, size))
    return CountingModel(
        arrays["popularity"], matrix, settings["last"], settings["decay"], settings["half_life"], settings.get("counted"),
        settings.get("own", 0.0),
    )  # fmt: skip


def log_probabilities(scores: sparse.csr_matrix, popularity_N: np.ndarray) -> np.ndarray:
    """Probabilities in the order (score, popularity), float32 [R, N] of scores [R, N]: positive ones, none, and `LEFT_OUT`.

    An item with a score has its share s / sum(s) and a floor of 2 b max(q), one without has b q, where q is its share of the
    train rows (counts plus one) and b the back-off, .01; a row is then divided by its sum, in which what is left out does not count: it has
    e^-30 of what it would have without a score. Scores that float32 cannot
    tell apart, and equal ones of different popularity, are set apart by its smallest steps, so that items are equal where
    score and popularity are and nowhere else (unscored ones with more than 300,000 train rows apart). Scores 3, 1, 0, 0 with popularity 1, 1, 3, 1 (q 1/5, 1/5, 2/5, 1/5): .758, .258, .004,
    .002 over their sum 1.022.

    >>> np.exp(log_probabilities(sparse.csr_matrix([[3.0, 1.0, 0, 0]]), np.array([1, 1, 3, 1]))).round(3)
    array([[0.742, 0.252, 0.004, 0.002]], dtype=float32)
    """
    rows, offsets = scores.shape[0], scores.indptr
    share_N = (popularity_N + 1.0) / (popularity_N + 1.0).sum()
    row, item, score = np.repeat(np.arange(rows), np.diff(offsets)), scores.indices, scores.data
    unscored_R = BACKOFF * (1 - np.bincount(row, share_N[item], minlength=rows)).clip(min=0)
    left_row, left_item, kept = row[score < 0], item[score < 0], score > 0
    unscored_R += BACKOFF * np.exp(-FAR) * np.bincount(left_row, share_N[left_item], minlength=rows)
    row, item, score = row[kept], item[kept], score[kept]
    total_R = np.bincount(row, score, minlength=rows)
    weight = score / total_R[row] + 2 * BACKOFF * share_N.max()
    log_sum_R = np.log(np.bincount(row, weight, minlength=rows) + unscored_R)
    result_RN = (np.log(BACKOFF * share_N) - log_sum_R[:, None]).astype(np.float32)
    order = np.lexsort((-popularity_N[item], -score, row))
    row, item, score = row[order], item[order], score[order]
    value = (np.log(weight[order]) - log_sum_R[row]).astype(np.float32)
    result_RN[row, item] = _set_apart(row, score, popularity_N[item], value)
    result_RN[left_row, left_item] -= FAR
    return result_RN


def _set_apart(row: np.ndarray, score: np.ndarray, popularity: np.ndarray, value: np.ndarray) -> np.ndarray:
    """`value` (float32, descending within a row) made strictly so between different (score, popularity)."""
    new = np.ones(len(row), bool)
    new[1:] = (row[1:] != row[:-1]) | (score[1:] != score[:-1]) | (popularity[1:] != popularity[:-1])
    group = np.cumsum(new)
    # The bits of negative floats ascend as their values descend, one per step.
    bits = np.minimum(value, -np.finfo(np.float32).tiny).view(np.uint32).astype(np.int64)
    at_least = np.maximum.accumulate(bits - group + row * (1 << 33))
    return (at_least - row * (1 << 33) + group).astype(np.uint32).view(np.float32)


def target_places(scores: sparse.csr_matrix, target_R: np.ndarray, popularity_N: np.ndarray) -> Placement:
    """Where one item per row stands in the order (score, popularity); nothing is sorted."""
    num_rows = scores.shape[0]
    row = np.repeat(np.arange(num_rows), np.diff(scores.indptr))
    item, score = scores.indices, scores.data
    mine = item == target_R[row]
    target_score = np.bincount(row[mine], score[mine], minlength=num_rows)
    popularity = popularity_N[target_R]
    better = (score > target_score[row]) | (
        (score == target_score[row]) & (popularity_N[item] > popularity[row])
    )
    equal = (score == target_score[row]) & (popularity_N[item] == popularity[row])
    before = np.bincount(row[better], minlength=num_rows).astype(np.float64)
    ties = np.bincount(row[equal], minlength=num_rows)
    # An unscored target also has the more popular unscored items ahead and ties with the equally popular ones.
    by_count = np.sort(popularity_N)
    more = len(by_count) - np.searchsorted(by_count, popularity, side="right")
    same = np.searchsorted(by_count, popularity, side="right") - np.searchsorted(
        by_count, popularity, side="left"
    )
    more -= np.bincount(row[popularity_N[item] > popularity[row]], minlength=num_rows)
    same -= np.bincount(row[popularity_N[item] == popularity[row]], minlength=num_rows)
    unscored = target_score == 0
    # A target that is left out has all others ahead: the scored ones are counted among `before`, those without a score are not yet.
    before += np.where(target_score < 0, len(by_count) - np.diff(scores.indptr), 0)
    return Placement(before + np.where(unscored, more, 0), np.where(unscored, same, ties))
