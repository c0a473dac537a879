"""Semantic IDs for new items: frozen codebooks, only free IDs, no existing ID ever changed.

A new item takes its cheapest codes. Where these are taken, it and the other new items of its prefix get free last codes at the
least total cost. Where a prefix has no free last code left, the item falls back to the next cheapest code of the level before
(and, where nothing below that is free, of the level before that), then to the cheapest free code there. Sizes never grow: a model
knows all codes of all levels, so a new item needs no new token. Last codes that are ranks (`popularity`) stay ranks: new items come
after the old ones of their prefix, most train rows first. An item that leaves the catalogue keeps its ID in
retired.parquet: nobody else gets it, and the item has it again when it comes back.

Legend: N items, O old items, W new items, L levels, D dimensions, E dimensions of a latent vector, K codes of a level.
"""

from __future__ import annotations

from collections import defaultdict
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts
from data.sid import SidTable
from data.store.manifest import read_manifest
from rq.ids.collisions import fewest_moves, groups
from rq.stack.residual import ResidualQuantizer

# Of known items that are encoded again at least this share must get the first code that they have: less means that their
# vectors are not those of the existing IDs. Only a repair that filled all that lies below a first code moves an item off it.
AGREEMENT = 0.9
APPENDABLE = "`reassign`, `sinkhorn`, `popularity` or `none`"
RETIRED = "retired.parquet"


def with_retired(sids: str | Path, table: SidTable, raw_ids: list[str]) -> tuple[SidTable, list[str]]:
    """The items of a sids directory, then those that left it in earlier appends: their IDs and raw ids."""
    path = Path(sids) / RETIRED
    if not path.exists():
        return table, raw_ids
    gone = artifacts.read_file(path, columns=["raw_id", "codes"])
    codes_WL = np.array(gone["codes"].to_pylist(), np.int32).reshape(-1, table.num_levels)
    return SidTable(np.concatenate([table.codes_NL, codes_WL]), table.sizes), raw_ids + gone[
        "raw_id"
    ].to_pylist()


def retired_table(known: SidTable, raw_ids: list[str], row_N: np.ndarray) -> pa.Table:
    """raw_id and codes of the known items that the new data set (`row_N`, of matched_rows) lacks."""
    gone = np.setdiff1d(np.arange(known.num_items), row_N)
    return pa.table(
        {"raw_id": [raw_ids[row] for row in gone], "codes": artifacts.int_rows(known.codes_NL[gone])}
    )


def matched_rows(old_raw: list[str], new_raw: list[str]) -> np.ndarray:
    """Old row int64 [N] of every item of the new data set, -1 for a new item; InputError for a repeated raw id."""
    place = {raw: row for row, raw in enumerate(old_raw)}
    for what, raws in (("existing", old_raw), ("new", new_raw)):
        if len(set(raws)) != len(raws):
            raise InputError(f"the {what} data set has a raw_id twice -> items cannot be matched by it")
    return np.array([place.get(raw, -1) for raw in new_raw], np.int64)


def require_same_space(
    x_ND: np.ndarray, old: SidTable, old_row_N: np.ndarray, quantizer: ResidualQuantizer
) -> float:
    """Share of known items whose first code comes out as it is; InputError when too few do."""
    known = np.flatnonzero(old_row_N >= 0)
    if not len(known):
        return 1.0
    again_NL = quantizer.encode(np.asarray(x_ND)[known])
    agreement = float((again_NL[:, 0] == old.codes_NL[old_row_N[known], 0]).mean())
    if agreement < AGREEMENT:
        raise InputError(
            f"only {agreement:.0%} of {len(known)} known items get the first code again that they have -> embed the new items in the "
            "space of the existing IDs (same encoder, or rq.embed_items --like)"
        )
    return agreement


def repair_of(sids: str | Path) -> str | None:
    """How the IDs of a sids directory were repaired, and the IDs that it was appended to; InputError where nothing can be appended."""
    manifest = read_manifest(sids) or {}
    # What was appended to IDs says so itself: the option that it ran with was not read.
    repair = manifest.get("facts", {}).get("repair", manifest.get("config", {}).get("repair"))
    if repair == "shuffled":
        raise InputError(
            f"{sids} was repaired by `shuffled`: no ID of it says anything about its item -> only IDs repaired by {APPENDABLE} can be "
            "appended to"
        )
    return repair


def append_codes(
    x_WD: np.ndarray,
    taken_OL: np.ndarray,
    quantizer: ResidualQuantizer,
    *,
    popularity_W: np.ndarray | None = None,
) -> np.ndarray:
    """Codes int32 [W, L] for new vectors: all different and none of `taken_OL`.

    popularity_W: train rows of the new items where last codes are ranks by them; None where they are codewords. InputError when the
    quantizer's dimension or levels differ, or when there are not enough free IDs.
    """
    quantizer.require_dim(x_WD)
    sizes = quantizer.sizes
    if taken_OL.shape[1] != len(sizes):
        raise InputError(
            f"existing IDs have {taken_OL.shape[1]} levels, the quantizer {len(sizes)} -> only IDs repaired by {APPENDABLE} can be "
            "appended to"
        )
    taken = {tuple(row) for row in taken_OL.tolist()}
    if prod(sizes) - len(taken) < len(x_WD):
        raise InputError(
            f"{len(x_WD)} new items, but {prod(sizes) - len(taken)} of {prod(sizes)} semantic IDs are free "
            "-> train a quantizer with more codes"
        )
    codes_WL, latent_WE = quantizer.encode(x_WD), quantizer.latent(x_WD)
    last_of_prefix = defaultdict(list)
    for row in taken:
        last_of_prefix[row[:-1]].append(row[-1])
    residual_WE = latent_WE - quantizer.codewords(codes_WL[:, :-1])
    homeless: list[int] = []
    for members in _by_prefix(codes_WL):
        prefix = tuple(codes_WL[members[0], :-1].tolist())
        last = np.array(last_of_prefix[prefix], int)
        if popularity_W is None:
            cost_MK = quantizer.distances(len(sizes) - 1, residual_WE[members])
            new_M = fewest_moves(cost_MK, codes_WL[members, -1], last)
        else:
            new_M = next_ranks(popularity_W[members], last, size=sizes[-1])
        codes_WL[members, -1] = new_M
        placed = new_M >= 0
        taken |= {(*prefix, int(code)) for code in new_M[placed]}
        homeless += members[~placed].tolist()
    space = _Free(quantizer, taken, ranks=popularity_W is not None)
    turn_W = np.arange(len(x_WD)) if popularity_W is None else np.argsort(-popularity_W, kind="stable")
    for item in turn_W[np.isin(turn_W, homeless)]:
        codes_WL[item] = space.take(latent_WE[item])
    return codes_WL


def next_ranks(popularity_M: np.ndarray, taken: np.ndarray, *, size: int) -> np.ndarray:
    """The lowest free ranks of a prefix int32 [M], most train rows first, ties by item id; -1 for those that find none left.

    >>> next_ranks(np.array([0, 7, 0, 2]), np.array([0, 1]), size=5).tolist()
    [4, 2, -1, 3]
    """
    free = np.setdiff1d(np.arange(size), taken)
    ranks_M = np.full(len(popularity_M), -1, np.int32)
    placed = np.argsort(-popularity_M, kind="stable")[: len(free)]
    ranks_M[placed] = free[: len(placed)]
    return ranks_M


def _by_prefix(codes_WL: np.ndarray) -> list[np.ndarray]:
    """Rows of every prefix, single ones included."""
    shared = list(groups(codes_WL[:, :-1]))
    alone = np.setdiff1d(np.arange(len(codes_WL)), np.concatenate([*shared, np.zeros(0, np.int64)]))
    return [*shared, *alone[:, None]]


class _Free:
    """The free semantic IDs, by prefix: how many IDs below each prefix are taken. `ranks`: the lowest last code is the cheapest."""

    def __init__(self, quantizer: ResidualQuantizer, taken: set[tuple[int, ...]], *, ranks: bool) -> None:
        self.quantizer, self.sizes, self.ranks = quantizer, quantizer.sizes, ranks
        self.used: dict[tuple[int, ...], int] = defaultdict(int)
        for codes in taken:
            self._count(codes)

    def _count(self, codes: tuple[int, ...]) -> None:
        for depth in range(len(codes) + 1):
            self.used[codes[:depth]] += 1

    def take(self, latent_E: np.ndarray) -> tuple[int, ...]:
        """Level by level the cheapest code below which something is free."""
        codes: tuple[int, ...] = ()
        residual_E = latent_E
        for level, codebook in enumerate(self.quantizer.codebooks):
            room = prod(self.sizes[level + 1 :])
            if self.ranks and level == len(self.sizes) - 1:
                cost_K = np.arange(self.sizes[level], dtype=np.float64)
            else:
                cost_K = self.quantizer.distances(level, residual_E[None])[0]
            full = [code for code in range(self.sizes[level]) if self.used.get((*codes, code), 0) >= room]
            cost_K[full] = np.inf
            code = int(cost_K.argmin())
            codes, residual_E = (*codes, code), residual_E - codebook[code]
        self._count(codes)
        return codes
