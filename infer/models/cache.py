"""Scores of a model on disk: for every row the k best items, and what is left for all the others; or those of all items.

    scores = cached("outputs/run/scores/itemknn.train", model="outputs/run/baselines/itemknn", rows=rows, k=200)
    scores.score(rows, items_RC)               # as the model's, without the model

With k = None, or no less than the catalogue, every item is kept, in order. An item among a row's k best has the model's own log-probability; the others share the remaining mass evenly. A cache answers
for the model and the rows that it was made of and refuses all others. It is an item model itself, so whatever takes one
takes the other.

Legend: R rows, B rows of a block, K items kept per row, N items, C candidates of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.program import AlreadyComplete, InputError
from data.rows import Rows, TrainLog
from data.store.claim import rank_and_world
from data.store.fingerprints import sha256_bytes
from data.store.inputs import fingerprint
from data.store.output import open_output, read_manifest
from infer.models.contract import ItemModel, KnownRows, block_rows, read_settings, save_settings
from infer.models.contract import load as load_model
from infer.models.folds import Folds, answers_as_they_are, in_blocks

VERSION = 1
ARRAYS = {"example_ids": np.int64, "items": np.int32, "scores": np.float32, "rest": np.float32}


@dataclass(frozen=True)
class CacheArgs:
    """What decides the content of a cache, beside the model: the manifest's configuration."""

    k: int | None
    rows_sha256: str
    folds: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise InputError(f"k {self.k} must be at least 1")


class ScoreCache:
    """Scores of the rows `example_ids_R`: items_RK int32 ascending within a row, scores_RK float32, rest_R float32.

    rest_R: log-probability of every single item that is not among the K, -inf where there is none. Where K is the whole
    catalogue, items_RK is one row for all.
    """

    def __init__(
        self,
        example_ids_R: np.ndarray,
        items_RK: np.ndarray,
        scores_RK: np.ndarray,
        rest_R: np.ndarray,
        *,
        num_items: int,
        where: str,
    ) -> None:
        self.num_items, self._where = num_items, where
        self._known, self._items_RK = KnownRows(example_ids_R), items_RK
        self._scores_RK, self._rest_R = scores_RK, rest_R

    @property
    def whole(self) -> bool:
        """Whether every item is kept."""
        return self._scores_RK.shape[1] == self.num_items

    def places(self, example_ids_R: np.ndarray) -> np.ndarray:
        """Where the rows of examples stand in the cache, int64 [R]; InputError for one that is not in it."""
        return self._known.places(
            example_ids_R, where=self._where, lack="no scores of", remedy="make a cache of these rows"
        )

    def kept(self, at_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(items int64 [R, K], log-probabilities float32 [R, K], that of every other item float32 [R]) of places."""
        items_RK = self._items_RK[:1] if self.whole else self._items_RK[at_R]
        items_RK = np.broadcast_to(items_RK.astype(np.int64), (len(at_R), self._scores_RK.shape[1]))
        return items_RK, np.asarray(self._scores_RK[at_R]), np.asarray(self._rest_R[at_R])

    def recounted(self, train: TrainLog) -> ItemModel:
        """InputError: scores on disk cannot be counted again."""
        raise answers_as_they_are(self._where)

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """As infer.models.contract.ItemModel; InputError for a row that is not in the cache."""
        at = self.places(rows.example_ids_R)
        rest_R1 = self._rest_R[at][:, None]
        if self.whole:
            score_RN = np.asarray(self._scores_RK[at])
            return score_RN if items_RC is None else np.take_along_axis(score_RN, items_RC, axis=1)
        if items_RC is None:
            score_RN = np.repeat(rest_R1, self.num_items, axis=1)
            np.put_along_axis(score_RN, self._items_RK[at].astype(np.int64), self._scores_RK[at], axis=1)
            return score_RN
        # One sorted list of all rows: the items of row r lie between r * N and (r + 1) * N.
        first_R1 = (np.arange(len(at)) * self.num_items)[:, None]
        kept = (self._items_RK[at] + first_R1).ravel()
        wanted_RC = items_RC + first_R1
        place_RC = np.searchsorted(kept, wanted_RC).clip(max=len(kept) - 1)
        return np.where(kept[place_RC] == wanted_RC, self._scores_RK[at].ravel()[place_RC], rest_R1)


def cached(
    directory: str | Path,
    *,
    model: str | Path,
    rows: Rows,
    k: int | None,
    folds: Folds | None = None,
    overwrite: bool = False,
) -> ScoreCache:
    """The cache in `directory`, made now where there is none. InputError when it is of another model, other rows, k or folds, unless
    it may be replaced (`overwrite`).

    k: items kept per row, None = all. folds: of train rows, which are answered without their users' counts. model: directory of a saved item model; its content, not its path, is what a cache is of.
    Of several processes of one launch rank 0 makes it; the others ask when it has.
    """
    args = CacheArgs(k, rows_sha256(rows), 0 if folds is None else folds.count, overwrite)
    if not overwrite:
        _refuse_other(Path(directory), fingerprint(model), args)
    if rank_and_world()[0] > 0:
        return load(Path(directory))
    try:
        with open_output(
            args, "score_cache", version=VERSION, inputs={"model": model}, directory=directory
        ) as out:
            scorer = load_model(model)
            made = top_scores(scorer, rows, k, folds)
            for name, array in made.items():
                out.write_array(f"{name}.npy", array)
            save_settings(out, "cache", num_items=scorer.num_items)
            out.counts |= {"rows": len(rows), "items": scorer.num_items}
    except AlreadyComplete:
        pass
    return load(Path(directory))


def load(directory: Path) -> ScoreCache:
    """The cache of a directory, whatever it was made of."""
    settings = read_settings(directory)
    arrays = [np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS]
    return ScoreCache(*arrays, num_items=settings["num_items"], where=str(directory))


def top_scores(
    model: ItemModel, rows: Rows, k: int | None, folds: Folds | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a ScoreCache by name.

    Probabilities .5, .3, .1, .1 with k = 2 keep the first two; the others have (1 - .8) / 2 = .1 each.
    """
    num_items, step = model.num_items, block_rows(model.num_items)
    whole = k is None or k >= num_items
    k = num_items if whole else k
    scores_RK, rest_R = np.empty((len(rows), k), np.float32), np.full(len(rows), -np.inf, np.float32)
    items_RK = np.arange(num_items, dtype=np.int32)[None] if whole else np.empty((len(rows), k), np.int32)
    for block, score_BN in in_blocks(model, rows, step, folds, label="scores"):
        if whole:
            scores_RK[block] = score_BN
            continue
        items_BK = np.sort(np.argpartition(-score_BN, k - 1, axis=1)[:, :k], axis=1)
        items_RK[block], scores_RK[block] = items_BK, np.take_along_axis(score_BN, items_BK, axis=1)
        # Summed over the others themselves: one minus a sum near one has no digits left.
        np.put_along_axis(score_BN, items_BK, -np.inf, axis=1)
        with np.errstate(divide="ignore"):
            rest_R[block] = np.log(np.exp(score_BN.astype(np.float64)).sum(1) / (num_items - k))
    made = {"example_ids": rows.example_ids_R, "items": items_RK, "scores": scores_RK, "rest": rest_R}
    return {name: made[name].astype(kind, copy=False) for name, kind in ARRAYS.items()}


def rows_sha256(rows: Rows) -> str:
    """The identity of rows: their examples and histories (and ages, where known)."""
    arrays = [rows.example_ids_R, rows.offsets, rows.history_H]
    arrays += [] if rows.age_H is None else [rows.age_H]
    return sha256_bytes(*(np.ascontiguousarray(array.astype("<f8")).tobytes() for array in arrays))


def _refuse_other(directory: Path, model_sha256: str, args: CacheArgs) -> None:
    """InputError naming what differs between a finished cache and the one that is asked for."""
    manifest = read_manifest(directory)
    if manifest is None or manifest["stage"] != "score_cache":
        return
    wrong = {
        "another model": manifest["inputs"]["model"]["sha256"] != model_sha256,
        "other rows": manifest["config"]["rows_sha256"] != args.rows_sha256,
        f"the {manifest['config']['k'] or 'whole list of'} best items": manifest["config"]["k"] != args.k,
        f"{manifest['config'].get('folds', 0)} folds": manifest["config"].get("folds", 0) != args.folds,
    }
    if found := [what for what, differs in wrong.items() if differs]:
        raise InputError(
            f"{directory} holds scores of {' and '.join(found)} -> pass --overwrite, or choose another directory"
        )
