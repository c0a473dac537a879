"""Rewards against hand arithmetic and published values."""

from __future__ import annotations

import numpy as np
import pytest

from configs.program import InputError
from train.rewards import RolloutBatch, reward_functions
from train.rewards.ranking import rank_aware
from train.rewards.sid import exact_match


def batch(item_ids, targets):
    group = len(item_ids[0])
    rows = [{"target": [target], "task": "history_to_sid", "any_other_column": 1} for target in targets]
    return RolloutBatch(rows, np.zeros((len(rows), group, 1)), item_ids, np.zeros((len(rows), group)))


def test_exact_match_counts_any_item_of_the_semantic_id():
    assert exact_match(batch([[(3,), (7, 8), (9,)]], [8])) == [[0.0, 1.0, 0.0]]


def test_rank_aware_weights_of_a_group_of_sixteen():
    items = [[(i,) for i in range(16)]]
    (rewards,) = rank_aware(batch(items, [15]))
    assert rewards[15] == 0.0
    assert [round(r, 3) for r in rewards[:3]] == [-0.164, -0.103, -0.082]
    (rewards,) = rank_aware(batch(items, [0]))
    assert round(rewards[15], 3) == -0.04
    # the weights of all 16 ranks sum to 1: the hit at rank 0 saves exactly its own share
    assert sum(rewards) == pytest.approx(-1 + 0.16377, abs=1e-5)


def test_a_group_without_the_target_gets_nothing():
    assert rank_aware(batch([[(1,), (2,)], [(1,), (2,)]], [5, 2])) == [
        [0.0, 0.0],
        [pytest.approx(-0.6131, abs=1e-4), 0.0],
    ]


def test_beams_beyond_the_legal_ones_are_none_and_change_no_weight():
    short, padded = [[(1,), (2,), (4,)]], [[(1,), (2,), (4,), ()]]
    assert rank_aware(batch(padded, [2]))[0] == [*rank_aware(batch(short, [2]))[0], None]
    assert exact_match(batch(padded, [2])) == [[0.0, 1.0, 0.0, None]]


def test_unknown_rewards_are_refused():
    with pytest.raises(InputError, match="semantics"):
        reward_functions(["exact_match", "semantics"])
    with pytest.raises(InputError):
        reward_functions([])
