"""Rewards of instructions: a judge's opinion (infer/chat/judge.py), and how many of the target's terms were named.

A judge is asked once about equal answers, however often a run comes upon them; what it fails to grade is None, masks its cell, and is
asked about again the next time. A service that wants payment, or a budget that is spent, raises ServiceError: the trainer saves
its state and leaves with exit code 5.

Legend: P prompts, G rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence

from configs.program import InputError, ServiceError
from data.answers import INSTRUCTION_TASK, ReadAnswer, read_answer
from infer.chat.judge import Grade, GradedSample, Judge
from infer.metrics.instructions import term_scores
from train.rewards import Rewards, RolloutBatch
from train.rewards.structure import BLOCK

Asked = tuple[
    tuple[str, ...], tuple[str, ...], str
]  # the target's terms, those that were named, the instruction


class RewardJudge:
    """`judge` with a memory. `stop_after`: samples in a row without a grade that end the run (0: never)."""

    def __init__(self, judge: Judge, *, stop_after: int) -> None:
        self.judge, self.stop_after = judge, stop_after
        self.teacher = judge.client.teacher
        self.known: dict[Asked, Grade] = {}
        self.unanswered = 0

    def grade(self, asked: Sequence[Asked]) -> list[Grade | None]:
        """A grade for each, None where no call gave one. Raises ServiceError as the judge does."""
        new = [one for one in dict.fromkeys(asked) if one not in self.known]
        samples = [
            GradedSample(key=f"rollout {at}", target_terms=one[0], predicted_terms=one[1], instruction=one[2])
            for at, one in enumerate(new)
        ]
        for one, grade in zip(new, self.judge.grade(samples) if samples else [], strict=True):
            self.unanswered = 0 if grade else self.unanswered + 1
            if grade:
                self.known[one] = grade
        if 0 < self.stop_after <= self.unanswered:
            raise ServiceError(
                f"{self.teacher} gave no grade for {self.unanswered} instructions in a row -> see to it, then run again to resume"
            )
        return [self.known.get(one) for one in asked]


def target_terms(batch: RolloutBatch) -> list[tuple[str, ...]]:
    """The terms of every prompt's target, as its example has them."""
    return [tuple(row["answer"]["terms"]) for row in batch.rows]


def answers_of(batch: RolloutBatch, name: str) -> list[list[str]]:
    """The whole text of every rollout; InputError for rollouts that have none."""
    if batch.answers is None:
        raise InputError(
            f"reward {name}: these rollouts have no text -> thought.max_tokens above 0, so that answers are written behind thoughts"
        )
    return batch.answers


def said_in(text: str) -> ReadAnswer:
    """Terms and instruction of a whole answer."""
    return read_answer(INSTRUCTION_TASK, BLOCK.sub("", text).strip())


def grades(
    batch: RolloutBatch, said: Sequence[Sequence[ReadAnswer | None]], judge: RewardJudge
) -> list[list[Grade | None]]:
    """A grade per rollout [P][G]; those without an answer (None) are not asked about and have none."""
    wanted = [
        (terms, tuple(one.terms), one.text)
        for terms, group in zip(target_terms(batch), said, strict=True)
        for one in group
        if one is not None
    ]
    given = iter(judge.grade(wanted))
    return [[None if one is None else next(given) for one in group] for group in said]


def instruction_grade(batch: RolloutBatch, *, judge: RewardJudge, ungraded: float | None = None) -> Rewards:
    """The judge's semantic score in [0, 1]; 0 for an answer that cannot be read, `ungraded` where the judge fails.

    Qualities .8, .6, .4, .2 and alignments .9, .7, .5: quality .5, score (.5 + .9 + .7 + .5) / 4 = .65.
    """
    said = [
        [one if one.how != "unreadable" else None for one in map(said_in, group)]
        for group in answers_of(batch, "instruction_grade")
    ]
    return [
        [
            0.0 if one is None else ungraded if grade is None else grade.semantic
            for one, grade in zip(group, graded, strict=True)
        ]
        for group, graded in zip(said, grades(batch, said, judge), strict=True)
    ]


def terms_f1(batch: RolloutBatch) -> Rewards:
    """F1 of the terms that were named against those of the target, without regard to case; 0 where none can be read.

    Named (steel, bolt, red) of (steel, bolt): precision 2/3, recall 1, F1 .8.
    """
    return [
        [term_scores(list(said_in(text).terms), list(terms))["f1"] for text in group]
        for terms, group in zip(target_terms(batch), answers_of(batch, "terms_f1"), strict=True)
    ]
