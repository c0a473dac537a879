"""Scores of a model on disk: for every row the k best items, and what is left for all the others.

    scores = cached("outputs/run/scores/itemknn.train", model="outputs/run/baselines/itemknn", rows=rows, k=200)
    scores.score(rows, items_RC)               # as the model's, without the model

An item among a row's k best has the model's own log-probability; the others share the remaining mass evenly. A cache answers
for the model and the rows that it was made of and refuses all others. It is an item model itself, so whatever takes one
takes the other.

Legend: R rows, K items kept per row, N items, C candidates of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import AlreadyComplete, InputError
from data.rows import Rows
from data.store.fingerprints import sha256_bytes
from data.store.inputs import fingerprint
from data.store.output import open_output, read_manifest
from infer.models.contract import KnownRows, block_rows, read_settings, save_settings
from infer.models.contract import load as load_model

VERSION = 1
ARRAYS = {"example_ids": np.int64, "items": np.int32, "scores": np.float32, "rest": np.float32}


@dataclass(frozen=True)
class CacheArgs:
    """What decides the content of a cache, beside the model: the manifest's configuration."""

    k: int
    rows_sha256: str

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k {self.k} must be at least 1")


class ScoreCache:
    """Scores of the rows `example_ids_R`: items_RK int32 ascending within a row, scores_RK float32, rest_R float32.

    rest_R: log-probability of every single item that is not among the K, -inf where there is none.
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

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """As infer.models.contract.ItemModel; InputError for a row that is not in the cache."""
        at = self._known.places(
            rows, where=self._where, lack="no scores of", remedy="make a cache of these rows"
        )
        rest_R1 = self._rest_R[at][:, None]
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


def cached(directory: str | Path, *, model: str | Path, rows: Rows, k: int) -> ScoreCache:
    """The cache in `directory`, made now where there is none. InputError when it is of another model, other rows or k.

    model: directory of a saved item model; its content, not its path, is what a cache is of.
    """
    args = CacheArgs(k, rows_sha256(rows))
    _refuse_other(Path(directory), fingerprint(model), args)
    try:
        with open_output(
            args, "score_cache", version=VERSION, inputs={"model": model}, directory=directory
        ) as out:
            scorer = load_model(model)
            made = top_scores(scorer, rows, k)
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


def top_scores(model: Any, rows: Rows, k: int) -> dict[str, np.ndarray]:
    """The arrays of a ScoreCache by name.

    Probabilities .5, .3, .1, .1 with k = 2 keep the first two; the others have (1 - .8) / 2 = .1 each.
    """
    num_items, step = model.num_items, block_rows(model.num_items)
    k, parts = min(k, num_items), []
    for start in range(0, len(rows), step):
        score_RN = model.score(rows.take(np.arange(start, min(start + step, len(rows)))))
        items_RK = np.sort(np.argpartition(-score_RN, k - 1, axis=1)[:, :k], axis=1)
        scores_RK = np.take_along_axis(score_RN, items_RK, axis=1)
        # Summed over the others themselves: one minus a sum near one has no digits left.
        np.put_along_axis(score_RN, items_RK, -np.inf, axis=1)
        with np.errstate(divide="ignore"):
            rest_R = np.log(np.exp(score_RN.astype(np.float64)).sum(1) / max(num_items - k, 1))
        parts.append((items_RK, scores_RK, rest_R))
    items_RK, scores_RK, rest_R = (np.concatenate(part) for part in zip(*parts, strict=True))
    made = {"example_ids": rows.example_ids_R, "items": items_RK, "scores": scores_RK, "rest": rest_R}
    return {name: made[name].astype(kind) for name, kind in ARRAYS.items()}


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
        f"the {manifest['config']['k']} best items": manifest["config"]["k"] != args.k,
    }
    if found := [what for what, differs in wrong.items() if differs]:
        raise InputError(
            f"{directory} holds scores of {' and '.join(found)} -> another directory, or remove it"
        )
