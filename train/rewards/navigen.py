"""NaviGen's reward: its two tasks, each with what its code computes and with the plain sum that its README prints.

    code    R = (.9 task gate + .1 format) structure    gate = .2 + .8 thinks, structure = .3 + .7 (1 - penalty)
    README  R = task + format + thinks                  (no weights are given there)

`task` is the semantic ID's agreement with the target (`cid_match`) or the judge's semantic score of an instruction; what `thinks`,
`penalty` and `format` are: train/rewards/structure.py. A reward speaks for rows of its own task only, so naming both routes by task.
Published values are the defaults, and each is a parameter (configs/navigen/grpo_published.yaml). Differs from the code: what the judge
fails to grade is None and leaves its group, instead of .1 (`ungraded: .1`).

Legend: P prompts, G rollouts, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from configs.program import InputError
from data.sid import SidFormat, SidTable
from train.rewards import Rewards, RolloutBatch
from train.rewards.agreement import per_level
from train.rewards.judged import RewardJudge, answers_of, grades
from train.rewards.structure import TextReading, read


@dataclass(frozen=True)
class Form:
    """The weights and floors of the code's formula; `strict_format` judges the format of the text as it came, not repaired."""

    task_weight: float = 0.9
    format_weight: float = 0.1
    think_floor: float = 0.2
    structure_floor: float = 0.3
    least_thought: int = 10
    strict_format: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.think_floor <= 1 or not 0 <= self.structure_floor <= 1:
            raise InputError(
                f"reward: think_floor {self.think_floor} and structure_floor {self.structure_floor} -> within 0 and 1"
            )

    def total(self, task: float, seen: TextReading) -> float:
        """R of a task reward. Task 1, a thought, no penalty, format 1: 1. Without the thought: (.9 * .2 + .1) = .28."""
        gate = self.think_floor + (1 - self.think_floor) * seen.thinks
        structure = self.structure_floor + (1 - self.structure_floor) * (1 - seen.penalty)
        return (self.task_weight * task * gate + self.format_weight * seen.well_formed) * structure

    def readings(self, batch: RolloutBatch, name: str, sids: SidTable, sid_format: SidFormat) -> list:
        """A TextReading per rollout [P][G]."""
        how = {
            "sids": sid_format, "num_levels": sids.num_levels, "least_thought": self.least_thought,
            "strict": self.strict_format,
        }  # fmt: skip
        return [
            [read(text, row["task"], **how) for text in group]
            for row, group in zip(batch.rows, answers_of(batch, name), strict=True)
        ]


@dataclass(frozen=True)
class Sum:
    """The README's formula."""

    form: Form
    task_weight: float = 1.0
    format_weight: float = 1.0
    think_weight: float = 1.0

    def total(self, task: float, seen: TextReading) -> float:
        """Task 1, a thought, format 1: 3; without the thought 2."""
        return (
            self.task_weight * task + self.format_weight * seen.well_formed + self.think_weight * seen.thinks
        )


def navigen_item(
    batch: RolloutBatch, *, sids: SidTable, sid_format: SidFormat, values: list[float] | None = None,
    legal: float = 0.3, **form: float
) -> Rewards:  # fmt: skip
    """A semantic ID behind a thought, by the code's formula; task: .5, .3, .2 for each right code, legal * .5 for none of an item.

    The right ID behind a thought 1.0; without a thought .28; an item with no right code .235; text behind the answer .685; JSON
    that breaks off behind the right ID .86; a thought that only ends, `</think>`, .172; nothing 0.
    """
    chosen = Form(**form)
    seen = chosen.readings(batch, "navigen_item", sids, sid_format)
    return _totals(chosen, _agreement("navigen_item", batch, seen, sids, values, legal), seen)


def navigen_sum_item(
    batch: RolloutBatch, *, sids: SidTable, sid_format: SidFormat, values: list[float] | None = None,
    legal: float = 0.3, task_weight: float = 1.0, format_weight: float = 1.0, think_weight: float = 1.0, **form: float
) -> Rewards:  # fmt: skip
    """A semantic ID behind a thought, by the README's sum.

    The right ID behind a thought 1 + 1 + 1 = 3; without a thought 2; an item with no right code .15 + 1 + 1 = 2.15; text behind the
    answer changes nothing; nothing 0.
    """
    chosen = Form(**form)
    seen = chosen.readings(batch, "navigen_sum_item", sids, sid_format)
    found = _agreement("navigen_sum_item", batch, seen, sids, values, legal)
    return _totals(Sum(chosen, task_weight, format_weight, think_weight), found, seen)


def navigen_instruction(
    batch: RolloutBatch, *, sids: SidTable, sid_format: SidFormat, judge: RewardJudge,
    ungraded: float | None = None, **form: float
) -> Rewards:  # fmt: skip
    """Terms and an instruction behind a thought, by the code's formula; task: the judge's semantic score, where the format is right.

    Qualities 1, 1, 0, 0 and alignments .5, .5, 1 are a score of .625: behind a thought .9 * .625 + .1 = .6625, without one
    .9 * .625 * .2 + .1 = .2125, and 0 for nothing. A grade that fails gives `ungraded`, whatever else was right; published .1.
    """
    chosen = Form(**form)
    seen = chosen.readings(batch, "navigen_instruction", sids, sid_format)
    return _totals(chosen, _semantics(batch, seen, judge), seen, ungraded)


def navigen_sum_instruction(
    batch: RolloutBatch, *, sids: SidTable, sid_format: SidFormat, judge: RewardJudge, ungraded: float | None = None,
    task_weight: float = 1.0, format_weight: float = 1.0, think_weight: float = 1.0, **form: float
) -> Rewards:  # fmt: skip
    """Terms and an instruction behind a thought, by the README's sum: a score of .625 behind a thought gives 2.625."""
    chosen = Form(**form)
    seen = chosen.readings(batch, "navigen_sum_instruction", sids, sid_format)
    form_of_sum = Sum(chosen, task_weight, format_weight, think_weight)
    return _totals(form_of_sum, _semantics(batch, seen, judge), seen, ungraded)


def _totals(
    form: Form | Sum, tasks: list[list[float | None]], seen: list, ungraded: float | None = None
) -> Rewards:
    return [
        [ungraded if task is None else form.total(task, one) for task, one in zip(values, group, strict=True)]
        for values, group in zip(tasks, seen, strict=True)
    ]


def _agreement(
    name: str, batch: RolloutBatch, seen: list, sids: SidTable, values: list[float] | None, legal: float
) -> list[list[float]]:
    chosen_L = per_level(name, values, sids.num_levels, [0.5, 0.3, 0.2])
    return [
        [_layer(one, sids.codes_NL[row["target"][0]], chosen_L, sids, legal) for one in group]
        for row, group in zip(batch.rows, seen, strict=True)
    ]


def _layer(
    seen: TextReading, target_L: np.ndarray, values_L: np.ndarray, sids: SidTable, legal: float
) -> float:
    if seen.codes is None:
        return 0.0
    found = float((np.array(seen.codes) == target_L) @ values_L)
    if found == 0 and sids.find(np.array([seen.codes]))[0] >= 0:
        return legal * float(values_L[0])
    return found


def _semantics(batch: RolloutBatch, seen: list, judge: RewardJudge) -> list[list[float | None]]:
    """The judge's score, 0 for what it is not asked about, None where it fails."""
    said = [[one.said if one.well_formed else None for one in group] for group in seen]
    return [
        [
            0.0 if one is None else None if grade is None else grade.semantic
            for one, grade in zip(group, graded, strict=True)
        ]
        for group, graded in zip(said, grades(batch, said, judge), strict=True)
    ]
