"""Collisions: items that share a semantic ID, and what to do about them.

  reassign         every item gets an ID of its own. Of the items that share one, one keeps it; the others get free last codes
                   of their prefix at the least total cost (an assignment problem, solved exactly), so that no more items
                   leave their code than must. A prefix with more items than it has room for first gives up the items that
                   lose least by another code of the level before.
  sinkhorn         as MiniOneRec and MIMIGenRec publish it: up to 20 rounds in which every colliding group is coded again, on
                   its own, with Sinkhorn-balanced last codes. Leftovers stay collided; the best round is kept, so that
                   collisions never rise.
  collision_level  all items get one more level, a digit that counts the items with the same codes from 0
  collision_rank   the same with the digit of the published constrained and plus builders: 0 for an item that shares its
                   codes with none, otherwise its rank 1, 2, ... in its group
  popularity       reassign, then the last codes of a prefix are given out anew: 0 to its item with most train rows, 1 to the next, ...
                   What a last code says is how popular an item is among its like (reported by a user of MiniOneRec as its best IDs)
  shuffled         reassign, then dealt out to the items at random: a control, the same IDs without their meaning
  none             leave them

What a cost is says the quantizer (`distances`: of latent vectors, with prices where it has some).

Legend: N items, L levels, K codes of a level, D dimensions, E dimensions of a latent vector, M items of one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

import numpy as np

from configs import program
from configs.program import InputError
from rq.stack.residual import ResidualQuantizer

Repair = Literal[
    "reassign", "sinkhorn", "collision_level", "collision_rank", "popularity", "shuffled", "none"
]
ROUNDS, EPSILON, ITERATIONS = 20, 0.003, 50


def repair_collisions(
    x_ND: np.ndarray,
    codes_NL: np.ndarray,
    quantizer: ResidualQuantizer,
    *,
    repair: Repair,
    popularity_N: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(codes int32 [N, L or L + 1], codes per level) after `repair`. popularity_N: train rows of every item, for `popularity`;
    seed: of `shuffled`."""
    if repair in ("reassign", "popularity", "shuffled"):
        codes_NL = reassign(x_ND, codes_NL, quantizer)
        if repair == "popularity":
            codes_NL[:, -1] = popularity_ranks(codes_NL[:, :-1], popularity_N)
        if repair == "shuffled":
            codes_NL = codes_NL[np.random.default_rng(seed).permutation(len(codes_NL))]
        return codes_NL, quantizer.sizes
    if repair == "sinkhorn":
        return sinkhorn_rounds(x_ND, codes_NL, quantizer), quantizer.sizes
    if repair in ("collision_level", "collision_rank"):
        digits_N = collision_digits(codes_NL, ranks=repair == "collision_rank")
        size = int(digits_N.max()) + 1
        return np.concatenate([codes_NL, digits_N[:, None]], axis=1), (*quantizer.sizes, size)
    return codes_NL, quantizer.sizes


def collision_digits(codes_NL: np.ndarray, *, ranks: bool = False) -> np.ndarray:
    """int32 [N]: 0 for the first item (by id) with its codes, 1 for the second, ...

    With `ranks` 1, 2, ... in every group of more than one item, 0 elsewhere.
    """
    digits_N = np.zeros(len(codes_NL), np.int32)
    for members in groups(codes_NL):
        digits_N[members] = np.arange(len(members)) + ranks
    return digits_N


def popularity_ranks(prefix_NL: np.ndarray, popularity_N: np.ndarray) -> np.ndarray:
    """int32 [N]: the place of every item among those of its prefix, most train rows first, ties by item id.

    >>> popularity_ranks(np.array([[3], [3], [7], [3]]), np.array([1, 9, 0, 9])).tolist()
    [2, 0, 0, 1]
    """
    ranks_N = np.zeros(len(prefix_NL), np.int32)
    for members in groups(prefix_NL):
        ranks_N[members[np.argsort(-popularity_N[members], kind="stable")]] = np.arange(len(members))
    return ranks_N


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
    codes_NL, residual_NE = codes_NL.astype(np.int32), quantizer.latent(x_ND)
    for level, codebook in enumerate(quantizer.codebooks[:-1]):
        room = prod(sizes[level + 1 :])
        for members in _overfull(codes_NL, level=level, room=room):
            cost_MK = quantizer.distances(level, residual_NE[members])
            new_M = spill(cost_MK, codes_NL[members, level], room=room)
            moved = new_M != codes_NL[members, level]
            codes_NL[members, level] = new_M
            rest_ME = residual_NE[members[moved]] - codebook[new_M[moved]]
            codes_NL[members[moved], level + 1 :] = quantizer.encode_from(rest_ME, level=level + 1)
        residual_NE = residual_NE - codebook[codes_NL[:, level]]
    _assign_last(residual_NE, codes_NL, quantizer)
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


def _assign_last(residual_NE: np.ndarray, codes_NL: np.ndarray, quantizer: ResidualQuantizer) -> None:
    """Give the items of every prefix with a collision different last codes, in place."""
    level, prefixes = codes_NL.shape[1] - 1, list(groups(codes_NL[:, :-1]))
    for members in program.progress(prefixes, label="collision repair", unit="prefix"):
        if len(np.unique(codes_NL[members, -1])) == len(members):
            continue
        cost_MK = quantizer.distances(level, residual_NE[members])
        codes_NL[members, -1] = fewest_moves(cost_MK, codes_NL[members, -1])


def fewest_moves(cost_MK: np.ndarray, codes_M: np.ndarray, taken: np.ndarray | None = None) -> np.ndarray:
    """Different codes int32 [M], none of them `taken`: as many items as can keep theirs, and then the least total cost.

    One item of every code keeps it (unless it is taken), the others go to free codes; which item stays and who goes where
    is the exact optimum of the Hungarian method (scipy's linear_sum_assignment). With more items than codes to give out, the
    items that are left get -1.
    """
    from scipy.optimize import linear_sum_assignment

    allowed = np.ones(cost_MK.shape[1], bool)
    if taken is not None:
        allowed[taken] = False
    cost_MK = cost_MK - cost_MK.min(1, keepdims=True)
    # Keeping one's code saves more than all moves together can cost.
    cost_MK[np.arange(len(codes_M)), codes_M] -= (cost_MK.max() + 1) * len(codes_M)
    free = np.flatnonzero(allowed)
    items, chosen = linear_sum_assignment(cost_MK[:, free])
    out_M = np.full(len(codes_M), -1, np.int32)
    out_M[items] = free[chosen]
    return out_M


def sinkhorn_rounds(x_ND: np.ndarray, codes_NL: np.ndarray, quantizer: ResidualQuantizer) -> np.ndarray:
    """Codes int32 [N, L] of the round with the fewest collisions, the given ones included.

    Source: index generation of LC-Rec and MiniOneRec (20 rounds, last-level epsilon 0.003, 50 normalisations). A group is
    coded without regard to the other items of its prefix, so a round can also make collisions.
    """
    import torch

    from rq.stack.sinkhorn import sinkhorn_codes

    level = codes_NL.shape[1] - 1
    codes_NL = best_NL = codes_NL.astype(np.int32)
    residual_NE, fewest = None, len(codes_NL) - len(np.unique(codes_NL, axis=0))
    for _ in program.progress(range(ROUNDS), label="Sinkhorn rounds", unit="round"):
        if fewest == 0:
            break
        if residual_NE is None:
            residual_NE = quantizer.latent(x_ND) - quantizer.codewords(codes_NL[:, :-1])
        before_NL, codes_NL = codes_NL, codes_NL.copy()
        for members in list(groups(before_NL)):
            cost_MK = torch.from_numpy(quantizer.distances(level, residual_NE[members]))
            codes_NL[members, -1] = sinkhorn_codes(cost_MK, epsilon=EPSILON, iterations=ITERATIONS).numpy()
        surplus = len(codes_NL) - len(np.unique(codes_NL, axis=0))
        if surplus < fewest:
            fewest, best_NL = surplus, codes_NL
        if np.array_equal(codes_NL, before_NL):
            break
    return best_NL
