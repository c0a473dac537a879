"""Rewards that look at the semantic ID alone.

Legend: P prompts, G rollouts, L levels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.sid import SidTable
from train.rewards import LevelRewards, Rewards, RolloutBatch
from train.rewards.agreement import matches, per_level, prefix_matches, spoken


def exact_match(batch: RolloutBatch) -> Rewards:
    """1 where the rollout is the target item, else 0 (MiniOneRec and MIMIGenRec call it the rule reward).

    A target of 7 and a group of beams for the items (3), (7), (9) gives [0.0, 1.0, 0.0].
    """
    return [[None if hit is None else float(hit) for hit in group] for group in batch.hits]


def partial_hit(batch: RolloutBatch, *, sids: SidTable, values: list[float] | None = None) -> Rewards:
    """`values`[common prefix length]: 0, 1, 10, 100 for three levels (MIMIGenRec, unused there), in general 10^(n - 1).

    The target (1, 2, 3) and rollouts (1, 2, 3), (1, 2, 4), (1, 5, 3), (6, 2, 3) give [100, 10, 1, 0].
    """
    return _by_depth("partial_hit", batch, sids, values, lambda level: 10.0**level)


def prefix_match(
    batch: RolloutBatch, *, sids: SidTable, values: list[float] | None = None, valid: float = 0.1
) -> Rewards:
    """SIDReasoner's step-wise reward m + 0.1 v: m = 0, .25, .5, 1 for 0 to 3 leading codes, v = 1 for an ID of the catalogue.

    In general m = 2^(n - L). Rollouts of a trie are always in the catalogue, so v adds a constant, which a baseline removes.
    The target (1, 2, 3) and rollouts (1, 2, 3), (1, 2, 4), (1, 5, 3), (6, 2, 3) give [1.1, .6, .35, .1];
    `values: [.2, .5, 1], valid: 0` is MiniOneRec's (GPR) [1, .5, .2, 0].
    """
    levels = sids.num_levels
    given = _by_depth("prefix_match", batch, sids, values, lambda level: 2.0 ** (level + 1 - levels))
    return [[None if reward is None else reward + valid for reward in group] for group in given]


def hepo(batch: RolloutBatch, *, sids: SidTable, values: list[float] | None = None) -> LevelRewards:
    """HEPO: each level's own token is rewarded for the prefix that it completes; .2, .5, 1 for three levels.

    The target (1, 2, 3) and rollouts (1, 2, 4), (1, 5, 3) give [[.2, .5, 0], [.2, 0, 0]]: with rewards per level the
    advantages are per level too (GPR, arXiv 2511.10138). The open code of MiniOneRec gives one value to all tokens of a
    rollout instead: `prefix_match` with these values. Other numbers of levels need `values`.
    """
    chosen_L = per_level("hepo", values, sids.num_levels, [0.2, 0.5, 1.0])
    return spoken(prefix_matches(batch, sids) * chosen_L, batch)


def first_diff(batch: RolloutBatch, *, sids: SidTable) -> LevelRewards:
    """+1 for the levels before the first one that is wrong, -1 for that one, no say on what comes behind it.

    The target (1, 2, 3) and rollouts (1, 2, 3), (1, 5, 3), (6, 2, 3) give [[1, 1, 1], [1, -1, None], [-1, None, None]];
    every level is normalised over the rollouts that have come so far.
    """
    right_PGL = prefix_matches(batch, sids)
    reached_PGL = np.concatenate([np.ones_like(right_PGL[..., :1]), right_PGL[..., :-1]], axis=2)
    return spoken(np.where(reached_PGL, np.where(right_PGL, 1.0, -1.0), np.nan), batch)


def cid_match(
    batch: RolloutBatch, *, sids: SidTable, values: list[float] | None = None, legal: float = 0.3
) -> Rewards:
    """NaviGen's item reward: .5, .3, .2 for the first, second, third code, each level by itself; legal * .5 where none is right.

    The target (1, 2, 3) and rollouts (1, 2, 3), (6, 2, 3), (1, 5, 4), (6, 5, 4) give [1, .5, .5, .15]: it is not
    hierarchical, two right codes behind a wrong one count as much as the right first one. Rollouts of a trie are always in
    the catalogue. Its gate for thoughts, format reward and structure penalty concern text, which these rollouts do not have.
    """
    chosen_L = per_level("cid_match", values, sids.num_levels, [0.5, 0.3, 0.2])
    found_PG = matches(batch, sids) @ chosen_L
    return spoken(np.where(found_PG == 0, legal * chosen_L[0], found_PG), batch)


def cid_prefix(batch: RolloutBatch, *, sids: SidTable, values: list[float] | None = None) -> Rewards:
    """The same weights, hierarchical: a code counts where all codes before it are right.

    The target (1, 2, 3) and rollouts (1, 2, 3), (6, 2, 3), (1, 5, 3), (1, 2, 4) give [1, 0, .5, .8].
    """
    chosen_L = per_level("cid_prefix", values, sids.num_levels, [0.5, 0.3, 0.2])
    return spoken(prefix_matches(batch, sids) @ chosen_L, batch)


def _by_depth(
    name: str,
    batch: RolloutBatch,
    sids: SidTable,
    values: list[float] | None,
    default: Callable[[int], float],
) -> Rewards:
    """`values`[n - 1], default(n - 1) where they are not given, for n leading codes that are the target's; 0 for none."""
    steps = range(sids.num_levels)
    chosen_L = per_level(name, values, sids.num_levels, [default(level) for level in steps])
    depth_PG = prefix_matches(batch, sids).sum(2)
    return spoken(np.concatenate([[0.0], chosen_L])[depth_PG], batch)
