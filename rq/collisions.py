"""Collisions: items that share a semantic ID, and what to do about them.

  reassign         every item gets an ID of its own by moving as little as possible: within a prefix the last codes are
                   given out at the least total squared distance (an assignment problem, solved exactly). A prefix with
                   more items than it has room for first gives up the items that lose least by another code there.
  collision_level  all items get one more level, a digit that counts the items with the same codes
  none             leave them

Legend: N items, L levels, K codes of a level, D dimensions, M items of one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

import numpy as np

from configs import program
from configs.program import InputError
from rq.residual import ResidualQuantizer
from rq.vq import squared_distances

Repair = Literal["reassign", "collision_level", "none"]


def repair_collisions(
    x_ND: np.ndarray, codes_NL: np.ndarray, quantizer: ResidualQuantizer, *, repair: Repair
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(codes int32 [N, L or L + 1], codes per level) after `repair`."""
    if repair == "reassign":
        return reassign(x_ND, codes_NL, quantizer), quantizer.sizes
    if repair == "collision_level":
        digits_N = collision_digits(codes_NL)
        size = int(digits_N.max()) + 1
        return np.concatenate([codes_NL, digits_N[:, None]], axis=1), (*quantizer.sizes, size)
    return codes_NL, quantizer.sizes


def collision_digits(codes_NL: np.ndarray) -> np.ndarray:
    """int32 [N]: 0 for the first item (by id) with its codes, 1 for the second, ..."""
    digits_N = np.zeros(len(codes_NL), np.int32)
    for members in groups(codes_NL):
        digits_N[members] = np.arange(len(members))
    return digits_N


def groups(codes_NL: np.ndarray) -> Iterator[np.ndarray]:
    """Items (ascending int64) of every group of more than one item with equal codes; all items for zero columns."""
    if codes_NL.shape[1] == 0:
        key_N = np.zeros(len(codes_NL), np.int64)
    else:
        _, key_N = np.unique(codes_NL, axis=0, return_inverse=True)
    order = np.argsort(key_N.reshape(-1), kind="stable")
    starts = np.flatnonzero(np.diff(key_N.reshape(-1)[order])) + 1
    yield from (members for members in np.split(order, starts) if len(members) > 1)


def reassign(x_ND: np.ndarray, codes_NL: np.ndarray, quantizer: ResidualQuantizer) -> np.ndarray:
    """Codes int32 [N, L], all rows different; InputError when the levels have fewer codes than there are items."""
    sizes = quantizer.sizes
    if prod(sizes) < len(codes_NL):
        raise InputError(
            f"{len(codes_NL)} items do not fit into {prod(sizes)} semantic IDs ({' x '.join(map(str, sizes))}) "
            "-> more codes or levels"
        )
    codes_NL, residual_ND = codes_NL.astype(np.int32), np.array(x_ND, np.float32)
    for level, codebook in enumerate(quantizer.codebooks[:-1]):
        room = prod(sizes[level + 1 :])
        for members in _overfull(codes_NL, level=level, room=room):
            cost_MK = squared_distances(residual_ND[members], codebook)
            new_M = spill(cost_MK, codes_NL[members, level], room=room)
            moved = new_M != codes_NL[members, level]
            codes_NL[members, level] = new_M
            rest_MD = residual_ND[members[moved]] - codebook[new_M[moved]]
            codes_NL[members[moved], level + 1 :] = quantizer.encode_from(rest_MD, level=level + 1)
        residual_ND -= codebook[codes_NL[:, level]]
    _assign_last(residual_ND, codes_NL, quantizer.codebooks[-1])
    return codes_NL


def _overfull(codes_NL: np.ndarray, *, level: int, room: int) -> list[np.ndarray]:
    """Groups by the codes before `level` in which some code at `level` has more than `room` items."""
    crowded = [members[0] for members in groups(codes_NL[:, : level + 1]) if len(members) > room]
    if not crowded:
        return []
    wanted = {tuple(codes_NL[item, :level]) for item in crowded}
    return [
        members for members in groups(codes_NL[:, :level]) if tuple(codes_NL[members[0], :level]) in wanted
    ]


def spill(cost_MK: np.ndarray, codes_M: np.ndarray, *, room: int) -> np.ndarray:
    """Codes int32 [M] with at most `room` items each: items of overfull codes leave, those that lose least first.

    cost_MK: cost of every code for every item. Greedy: an item's loss is against the codes that had room at the start;
    when its turn comes it takes the cheapest code that still has room. Needs M <= K * room.
    """
    codes_M = codes_M.astype(np.int32)
    free_K = room - np.bincount(codes_M, minlength=cost_MK.shape[1])
    candidates = np.flatnonzero(free_K[codes_M] < 0)
    elsewhere = np.where(free_K > 0, cost_MK[candidates], np.inf).min(1)
    loss = elsewhere - cost_MK[candidates, codes_M[candidates]]
    for item in candidates[np.argsort(loss, kind="stable")]:
        if free_K[codes_M[item]] >= 0:
            continue
        target = np.where(free_K > 0, cost_MK[item], np.inf).argmin()
        free_K[codes_M[item]] += 1
        free_K[target] -= 1
        codes_M[item] = target
    return codes_M


def _assign_last(residual_ND: np.ndarray, codes_NL: np.ndarray, codebook_KD: np.ndarray) -> None:
    """Give the items of every prefix with a collision different last codes, in place.

    Exact by the Hungarian method (scipy's linear_sum_assignment) on squared distances, one problem per prefix.
    """
    from scipy.optimize import linear_sum_assignment

    prefixes = list(groups(codes_NL[:, :-1]))
    for members in program.progress(prefixes, label="collision repair", unit="prefix"):
        if len(np.unique(codes_NL[members, -1])) == len(members):
            continue
        cost_MK = squared_distances(residual_ND[members], codebook_KD)
        _, codes_NL[members, -1] = linear_sum_assignment(cost_MK)
