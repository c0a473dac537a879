"""Validation inside a trainer chooses the checkpoint: the target's place and the averages by hand."""

from __future__ import annotations

from math import inf, log2
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from data.sid import SidTable
from infer.metrics.placement import place_nodes
from tests import handmade
from train.validation import Validator

TABLE = SidTable(handmade.CODES, handmade.SIZES)  # items 5, 6 and items 10, 11 share a semantic ID


def nodes(*items: int) -> list[int]:
    """Rows of the semantic IDs of items; -1 where a beam is empty."""
    return [int(TABLE.sid_of_item_N[item]) if item >= 0 else -1 for item in items]


# beams (by one of their items), target, items ranked ahead, items that share its place
CASES = [
    ([0, 1, 2], 0, 0, 1),
    ([0, 1, 2], 2, 2, 1),
    ([5, 10, 3], 3, 4, 1),  # two shared semantic IDs ahead
    ([0, 5, 10], 11, 3, 2),  # the other item of the shared one is found with it
    ([6, 0, 1], 5, 0, 2),
    ([0, 1, 2], 7, inf, 1),
    ([4, -1, -1], 9, inf, 1),  # fewer legal beams than places
    ([4, -1, -1], 4, 0, 1),
    ([-1, -1, -1], 8, inf, 1),
    ([-1, 3, -1], 3, 0, 1),  # an empty beam holds no items
]


def test_the_targets_place():
    beams, targets, before, group = zip(*CASES, strict=True)
    found = place_nodes(np.array([nodes(*row) for row in beams]), np.array(targets), TABLE)
    assert found.before_R.tolist() == list(before) and found.group_R.tolist() == list(group)


def test_what_the_checkpoint_is_chosen_by():
    """Targets first, third, second of two that share the second place, and not found."""
    beams = np.array([nodes(0, 1, 2), nodes(0, 1, 2), nodes(0, 5, 1), nodes(0, 1, 2)])
    model = SimpleNamespace(eval=lambda: None)
    engine = SimpleNamespace(model=model, mode="direct", sids=TABLE, rank=lambda prompts, keys: (beams, None))
    examples = pa.table({"example_id": range(4)})
    asked = SimpleNamespace(
        engine=engine, examples=examples, prompts=[[1]] * 4, targets_R=np.array([0, 2, 6, 9]), group=2
    )
    found = Validator.__call__(asked)
    shared = (1 / log2(3) + 1 / log2(4)) / 2  # second and third place, equally likely
    assert found == pytest.approx(
        {
            "hr@1": 1 / 4, "hr@3": 3 / 4, "hr@5": 3 / 4, "hr@10": 3 / 4,
            "ndcg@1": 1 / 4, "ndcg@3": (1 + 0.5 + shared) / 4, "pass@2": 2 / 4, "ndcg@5": (1 + 0.5 + shared) / 4, "ndcg@10": (1 + 0.5 + shared) / 4,
        }
    )  # fmt: skip
