"""Rewards of rollouts, by name.

A reward is a plain function `fn(batch: RolloutBatch, **params, **needs)` that gives [P][G], or [P][G][L] where credit
belongs to a level: nested lists of floats, or an array. None means "not applicable": a cell for which no reward of the
mixture speaks gets advantage 0 and is left out of its group's baseline. `train.rewards.mixture` adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from data.answers import INSTRUCTION_TASK
from data.rows import Rows
from data.tasks import SID_TASKS

Rewards = list[list[float | None]]
LevelRewards = list[list[list[float | None] | None]]


@dataclass(frozen=True)
class RolloutBatch:
    """P prompts with G rollouts each, best beam first.

    rows: the example columns of each prompt (history, target, task, ...); codes_PGL int [P, G, L]; item_ids[p][g]: the
    items of that semantic ID, empty where a group has fewer than G legal beams; scores_PG float; text (of the thought),
    token_ids, thought_PG (tokens of the thought, int) and answers (the whole text of the turn, tags of the thought included) are
    filled by trainers that generate text. Rollouts of text alone have codes of -1, and the items that their terms stand for.
    target_P: the log-probability of each prompt's target, where a trainer is asked for it (thought.score_target).
    """

    rows: Sequence[dict[str, Any]]
    codes_PGL: np.ndarray
    item_ids: list[list[tuple[int, ...]]]
    scores_PG: np.ndarray
    text: list[list[str]] | None = None
    token_ids: list[list[list[int]]] | None = None
    thought_PG: np.ndarray | None = None
    answers: list[list[str]] | None = None
    target_P: np.ndarray | None = None

    @cached_property
    def hits(self) -> list[list[bool | None]]:
        """[P][G]: whether a rollout's semantic ID is the target's; None where the group has no such beam.

        A target of 8 and beams for the items (3), (7, 8) and none give [False, True, None].
        """
        return [
            [bool(set(items) & set(row["target"])) if items else None for items in group]
            for row, group in zip(self.rows, self.item_ids, strict=True)
        ]

    @cached_property
    def histories(self) -> Rows:
        """The prompts as the rows that an item model scores."""
        lengths = [len(row["history"]) for row in self.rows]
        return Rows(
            np.array([row["example_id"] for row in self.rows], np.int64),
            np.array([-1 if row.get("user_id") is None else row["user_id"] for row in self.rows], np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array([item for row in self.rows for item in row["history"]], np.int32),
            np.array([row["target"][0] for row in self.rows], np.int32),
        )

    def only(self, p: int) -> RolloutBatch:
        """The batch of prompt `p` alone."""
        return self.take([p])

    def take(self, prompts: Sequence[int]) -> RolloutBatch:
        """The batch of some of the prompts."""

        def of(part: Any) -> Any:
            if part is None or isinstance(part, np.ndarray):
                return None if part is None else part[list(prompts)]
            return [part[p] for p in prompts]

        return RolloutBatch(*(of(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class Reward:
    """A registry entry: the function, the arguments it needs besides its parameters, and the tasks whose rows it speaks for."""

    function: Callable[..., Rewards | LevelRewards | np.ndarray]
    needs: tuple[str, ...] = ()
    tasks: frozenset[str] | None = SID_TASKS


def registry() -> dict[str, Reward]:
    """All rewards by name."""
    from train.rewards import items, judged, navigen, ranking, sid, teacher, thoughts

    read = ("sids", "sid_format")
    told = frozenset({INSTRUCTION_TASK})

    return {
        "exact_match": Reward(sid.exact_match),
        "rank_aware": Reward(ranking.rank_aware),
        "rank_discount": Reward(ranking.rank_discount, ("sids",)),
        "rank_margin": Reward(ranking.rank_margin),
        "partial_hit": Reward(sid.partial_hit, ("sids",)),
        "prefix_match": Reward(sid.prefix_match, ("sids",)),
        "hepo": Reward(sid.hepo, ("sids",)),
        "first_diff": Reward(sid.first_diff, ("sids",)),
        "cid_match": Reward(sid.cid_match, ("sids",)),
        "cid_prefix": Reward(sid.cid_prefix, ("sids",)),
        "collaborative": Reward(teacher.collaborative, ("teacher",)),
        "cgrf_h": Reward(teacher.cgrf_h, ("sids", "teacher")),
        "semantic": Reward(items.semantic, ("embeddings",)),
        "novelty": Reward(items.novelty, ("popularity",)),
        "diversity": Reward(items.diversity),
        "thought_length": Reward(thoughts.thought_length, tasks=None),
        "thought_present": Reward(thoughts.thought_present, tasks=None),
        "terms_f1": Reward(judged.terms_f1, tasks=told),
        "instruction_grade": Reward(judged.instruction_grade, ("judge",), told),
        "navigen_item": Reward(navigen.navigen_item, read),
        "navigen_instruction": Reward(navigen.navigen_instruction, (*read, "judge"), told),
        "navigen_sum_item": Reward(navigen.navigen_sum_item, read),
        "navigen_sum_instruction": Reward(navigen.navigen_sum_instruction, (*read, "judge"), told),
    }
