"""Answers drawn from a teacher once, in place of its distributions over all items: what a large catalogue has room for.

    drawn = DrawnRows.of(options, data="data/shop", num_items=12_101, order_N=order_N, draws=16, epochs=20)
    item_BM = drawn.answers(example_ids_B, epoch=3)       # int64 [B, 16]

A row has `epochs` times `draws` answers on disk, four bytes each, instead of four bytes an item. They are systematic draws along the
items in the order of their semantic IDs (one uniform number, points at equal distance), so that a prefix of probability q has q of
the answers, give or take one. Epoch e reads every epochs-th of them from the e-th on, which is a systematic draw too, and no answer
is read twice: a student that meets the same draws again learns them by heart.

Legend: R rows, B rows of a block, N items, A answers of a row on disk, M of an epoch.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.program import AlreadyComplete, InputError
from data.rows import Rows
from data.store.fingerprints import sha256_bytes, sha256_json
from data.store.inputs import fingerprint
from data.store.output import open_output
from infer.models import contract
from infer.models.cache import rows_sha256
from infer.models.folds import Folds, in_blocks
from train.soft_targets import SoftTargets, rows_to_answer, systematic

VERSION = 1
ROWS = 64  # whose probabilities are held at once


@dataclass(frozen=True)
class DrawnArgs:
    """What decides the answers, beside the teacher: the manifest's configuration."""

    draws: int
    epochs: int
    temperature: float
    rows_sha256: str
    order_sha256: str
    folds: int = 0


class DrawnRows:
    """The drawn answers of rows that are known by their example: items int32 [R, A], in the order they were drawn in."""

    def __init__(self, example_ids_R: np.ndarray, items_RA: np.ndarray, *, epochs: int, where: str) -> None:
        self._known, self._items_RA = contract.KnownRows(example_ids_R), items_RA
        self.epochs, self._where = epochs, where

    @classmethod
    def of(
        cls,
        options: SoftTargets,
        *,
        data: str | Path,
        num_items: int,
        order_N: np.ndarray,
        draws: int,
        epochs: int,
        rows: Rows | None = None,
        name: str = "train",
    ) -> DrawnRows:
        """Those of the train rows, or of other `rows` of the data set, which then have a `name`; drawn now where that is not done yet.

        order_N: all items, those of one prefix beside one another. InputError as `require_teacher`.
        """
        rows = rows_to_answer(options, data, rows, num_items=num_items)
        order_sha256 = sha256_bytes(order_N.astype("<i8").tobytes())
        args = DrawnArgs(draws, epochs, options.temperature, rows_sha256(rows), order_sha256, options.folds)
        identity = sha256_json([vars(args), fingerprint(options.teacher)])
        place = options.place(f"{name}.drawn-{identity[:8]}")
        with (
            suppress(AlreadyComplete),
            open_output(
                args, "drawn_answers", version=VERSION, inputs={"teacher": options.teacher}, directory=place
            ) as out,
        ):
            out.write_array("example_ids.npy", rows.example_ids_R)
            folds = options.folds_of(data, num_items=num_items)
            teacher = contract.load(options.teacher)
            out.write_array("items.npy", drawn_answers(teacher, rows, order_N, args, folds))
            out.counts |= {"rows": len(rows), "answers": draws * epochs}
        arrays = [
            np.load(place / f"{one}.npy", mmap_mode="r", allow_pickle=False)
            for one in ("example_ids", "items")
        ]
        return cls(*arrays, epochs=epochs, where=str(place))

    def answers(self, example_ids_B: np.ndarray, epoch: int) -> np.ndarray:
        """Items int64 [B, M] of an epoch (from 0); InputError for an example that is not among the rows."""
        return self._items_RA[self._places(example_ids_B), epoch % self.epochs :: self.epochs].astype(
            np.int64
        )

    def one(self, example_ids_B: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One of all answers of each, int64 [B]."""
        at_B = self._places(example_ids_B)
        return self._items_RA[at_B, rng.integers(0, self._items_RA.shape[1], len(at_B))].astype(np.int64)

    def _places(self, example_ids_B: np.ndarray) -> np.ndarray:
        return self._known.places(
            example_ids_B, where=self._where, lack="no answers of", remedy="draw those of these rows"
        )


def drawn_answers(
    model: contract.ItemModel, rows: Rows, order_N: np.ndarray, args: DrawnArgs, folds: Folds
) -> np.ndarray:
    """Items int32 [R, A]; they follow from the rows, whatever the seed of a training: the teacher answers once for all seeds."""
    items_RA = np.empty((len(rows), args.draws * args.epochs), np.int32)
    offset_R = np.random.default_rng(int(args.rows_sha256[:8], 16)).random(len(rows))
    for block, score_BN in in_blocks(model, rows, ROWS, folds, label="answers"):
        score_BN = score_BN[:, order_N]
        most_B1 = score_BN.max(1, keepdims=True)
        if not np.isfinite(most_B1).all():
            raise InputError("the teacher has rows without any possible item -> another teacher")
        until_BN = np.cumsum(np.exp((score_BN - most_B1) / args.temperature), axis=1, dtype=np.float64)
        items_RA[block] = order_N[systematic(until_BN, items_RA.shape[1], offset_R[block])]
    return items_RA
