"""The arithmetic of an evolutionary prompt search: drafts, their scores, who goes on, and the story of it in plain words.

    overall = .35 consistency + .20 novelty + .25 aesthetic + .20 executability, each 0 to 10,
              less 1 where consistency or executability is below 5
    concealment: a prompt that quotes a term of the target (whole words) loses 2.5 of consistency and 2 of executability,
              and another .5 of the overall score that follows from them

Source: NaviGen (arXiv 2606.24196) and its released teacher scripts, which take substrings for quotes (`art` in "party") and
scores as they come (95 of 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infer.metrics.instructions import quoted_terms
from preprocess.teacher.paragraphs import one_line

FOUNDERS = {
    "conservative": "close to what the target means",
    "balanced": "between the target and something of one's own",
    "exploratory": "bold in scene, camera, light and emotion",
}
CHILDREN = {
    "crossover": "the best of the two best drafts in one",
    "mutation": "the best draft with one thing changed",
}
PLAIN = {
    "conservative": "cautious draft", "balanced": "balanced draft", "exploratory": "bold draft",
    "crossover": "blended draft", "mutation": "refined draft",
}  # fmt: skip
WEIGHTS = {"consistency": 0.35, "novelty": 0.20, "aesthetic": 0.25, "executability": 0.20}
SHORTFALL, ENOUGH, OPEN_LOSS = 1.0, 5.0, 0.5
QUOTING_LOSS = {"consistency": 2.5, "executability": 2.0}
REASON_CHARS = 200


@dataclass(frozen=True)
class Draft:
    """A prompt on its way."""

    mode: str
    prompt: str
    reasoning: str

    @property
    def intent(self) -> str:
        return (FOUNDERS | CHILDREN)[self.mode]


@dataclass(frozen=True)
class Verdict:
    """What a judge gave a draft, clamped, with the losses for quoting taken off."""

    scores: dict[str, float]
    overall: float
    quoted_terms: list[str]
    reasoning: str

    def row(self) -> dict[str, Any]:
        """For the trace."""
        rounded = {name: round(value, 4) for name, value in (self.scores | {"overall": self.overall}).items()}
        return rounded | {"quoted_terms": self.quoted_terms, "reasoning": self.reasoning}


def draft(mode: str, said: Mapping[str, str]) -> Draft:
    """A draft of a teacher's answer; its reason is cut to 200 characters."""
    return Draft(mode, one_line(said["prompt"]), one_line(said["reasoning"])[:REASON_CHARS])


def overall(scores: Mapping[str, float]) -> float:
    """The weighted score: C 9, N 8, A 9, E 9 are 8.8; C 4 and the rest 8 are 5.6, 1 of 6.6 being lost for C < 5."""
    low = min(scores["consistency"], scores["executability"]) < ENOUGH
    return sum(weight * scores[name] for name, weight in WEIGHTS.items()) - (SHORTFALL if low else 0.0)


def verdict(said: Mapping[str, Any], prompt: str, target: Sequence[str]) -> Verdict:
    """A judge's scores as they count.

    9, 8, 9, 9 for a prompt that quotes the target: consistency 6.5, executability 7, overall 7.525 - .5 = 7.025 (8.8 without).
    """
    scores = {name: min(max(float(said[name]), 0.0), 10.0) for name in WEIGHTS}
    found = quoted_terms(prompt, target)
    if found:
        scores |= {name: max(scores[name] - loss, 0.0) for name, loss in QUOTING_LOSS.items()}
    total = overall(scores) - (OPEN_LOSS if found else 0.0)
    return Verdict(scores, total, found, one_line(said["reasoning"])[:REASON_CHARS])


def ranked(drafts: Sequence[Draft], verdicts: Sequence[Verdict]) -> list[tuple[Draft, Verdict]]:
    """Best first; of equals the earlier."""
    return sorted(zip(drafts, verdicts, strict=True), key=lambda pair: -pair[1].overall)


def summary(
    founders: Sequence[Draft],
    rounds: Sequence[Sequence[tuple[Draft, Verdict]]],
    children: Sequence[Sequence[Draft]],
) -> str:
    """The search in plain words: `rounds` are the ranked drafts of every judging, the last one the final; `children` of the
    others."""
    lines = ["Three drafts to begin with.", *map(_told, founders)]
    kept: Draft | None = None
    for number, (ranking, made) in enumerate(zip(rounds, [*children, ()], strict=True), start=1):
        lines.append(f"Look {number}." if made else "Last look.")
        lines += [_scored(one, given, kept) for one, given in ranking]
        (best, given), (second, _), *_ = ranking
        if made:
            lines.append(
                f"Kept: {_named(best, kept)}; what is good in it went together with {_named(second, kept)}."
            )
            lines += map(_told, made)
        else:
            lines.append(f"Chosen: {_named(best, kept)}, {given.overall:.1f} of 10: {best.prompt}")
        kept = best
    return "\n".join(lines)


def _named(one: Draft, kept: Draft | None) -> str:
    return f"the {'kept ' if one is kept else ''}{PLAIN[one.mode]}"


def _told(one: Draft) -> str:
    return f"The {PLAIN[one.mode]} ({one.intent}): {one.prompt} Why: {one.reasoning}"


def _scored(one: Draft, given: Verdict, kept: Draft | None) -> str:
    parts = ", ".join(f"{name} {value:.1f}" for name, value in given.scores.items())
    hint = " It gave the thing's name away." if given.quoted_terms else ""
    name = _named(one, kept)
    return f"T{name[1:]} got {given.overall:.1f} of 10 ({parts}).{hint} {given.reasoning}".rstrip()
