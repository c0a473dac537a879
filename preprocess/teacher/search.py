"""The questions of an evolutionary prompt search and the talk that asks them: 2 + 2 x rounds calls a sample.

founders (three drafts) -> per round: judge all three, the best two lead to two children, the best goes on with them -> judge
the last three -> the best is the prompt. One teacher writes and judges; it judges greedily.
"""

from __future__ import annotations

from typing import Any

from configs.program import InputError
from infer.chat.client import ChatRequest, ChatResult
from infer.chat.quoting import DATA_RULE
from preprocess.teacher.evolution import CHILDREN, FOUNDERS, WEIGHTS, Draft, draft, ranked, summary, verdict
from preprocess.teacher.samples import TermSample
from preprocess.teacher.talks import Talk, TeacherChat, shown_history, shown_terms, shown_text

CANDIDATES = ("candidate_1", "candidate_2", "candidate_3")
PRINCIPLE = (
    "The target says what the {medium} shows, and it leads; the shopper's earlier items only lend it taste. A good prompt lets "
    "a viewer recognise the target and never says one of its terms. It tells subject, scene, style, camera, atmosphere and "
    "details in 30 to 90 words that {a_medium} generator can carry out. "
)
JSON_ONLY = "Give with each prompt your reason, at most 200 characters. Answer with JSON of the asked form and nothing else. "
WRITER = "You write prompts for {a_medium} generator, made for one shopper. " + PRINCIPLE
STRATEGIES = " ".join(f"{mode}: {intent}." for mode, intent in FOUNDERS.items())
CHILD_RULES = (
    "crossover: one new prompt that joins what is strong in both. mutation: the better prompt with one deliberate change, of "
    "scene, camera, light or mood, and nothing else changed. "
)
JUDGE = (
    "You judge prompts for {a_medium} generator, made for one shopper. "
    + PRINCIPLE
    + "Score each candidate from 0 to 10. "
    "consistency: it leads to the target. novelty: more than the obvious. aesthetic: it will look good. executability: a "
    "generator can carry it out. Use the whole range, and say in a sentence what decides. Answer with JSON of the asked form "
    "and nothing else. "
)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT = {"type": "string", "minLength": 1, "maxLength": 2000}
_DRAFT = _object({"prompt": _TEXT | {"minLength": 20}, "reasoning": _TEXT})
_VERDICT = _object({name: {"type": "number"} for name in WEIGHTS} | {"reasoning": _TEXT})
FOUNDERS_SCHEMA = _object(dict.fromkeys(FOUNDERS, _DRAFT))
CHILDREN_SCHEMA = _object(dict.fromkeys(CHILDREN, _DRAFT))
JUDGE_SCHEMA = _object(
    dict.fromkeys(CANDIDATES, _VERDICT)
)  # scores out of range are clamped, so it does not bound them


def calls(rounds: int) -> int:
    """Questions of one sample."""
    return 2 + 2 * rounds


class SearchTalk(Talk):
    """One sample's search. `thought` is the identifier paragraph of its row."""

    def __init__(
        self, sample: TermSample, thought: str, ask: TeacherChat, *, rounds: int, medium: str
    ) -> None:
        super().__init__(sample)
        self.thought, self.ask, self.rounds = thought, ask, rounds
        self.words = {"medium": medium, "a_medium": {"image": "an image", "video": "a video"}[medium]}
        self.founders: list[Draft] = []
        self.drafts: list[Draft] = []
        self.rankings: list[list[Any]] = []
        self.children: list[list[Draft]] = []

    def question(self) -> ChatRequest:
        """Founders, then judge and children in turn."""
        if not self.founders:
            return self._ask(
                "founders",
                WRITER + f"Write three prompts. {STRATEGIES} " + JSON_ONLY,
                self._row(),
                FOUNDERS_SCHEMA,
            )
        if len(self.rankings) == len(self.children):
            shown = [
                f"{name}: {shown_text(one.prompt)}" for name, one in zip(CANDIDATES, self.drafts, strict=True)
            ]
            asked = "\n".join([f"Target: {shown_terms(self.sample.target)}", *shown])
            return self._ask(f"judge {len(self.rankings) + 1}", JUDGE, asked, JUDGE_SCHEMA)
        (best, first), (second, other), *_ = self.rankings[-1]
        parents = [
            f"{rank} prompt: {shown_text(one.prompt)}\nscores: {_scores(given)}\nwhat the judge says: {shown_text(given.reasoning)}"
            for rank, one, given in (("better", best, first), ("other", second, other))
        ]
        asked = "\n\n".join([self._row(), *parents])
        return self._ask(
            f"children {len(self.rankings)}",
            WRITER + "Write two prompts. " + CHILD_RULES + JSON_ONLY,
            asked,
            CHILDREN_SCHEMA,
        )

    def heard(self, result: ChatResult) -> None:
        said = result.parsed
        if not self.founders:
            self.founders = self.drafts = [draft(mode, said[mode]) for mode in FOUNDERS]
        elif len(self.rankings) == len(self.children):
            target = self.sample.target
            verdicts = [
                verdict(said[name], one.prompt, target)
                for name, one in zip(CANDIDATES, self.drafts, strict=True)
            ]
            self.rankings.append(ranked(self.drafts, verdicts))
            if len(self.rankings) > self.rounds:
                self.status, self.text = "ok", self.rankings[-1][0][0].prompt
        else:
            self.children.append([draft(mode, said[mode]) for mode in CHILDREN])
            self.drafts = [self.rankings[-1][0][0], *self.children[-1]]

    @property
    def summary(self) -> str:
        """The finished search in plain words."""
        return summary(self.founders, self.rankings, self.children)

    def trace(self) -> dict[str, Any]:
        """All of a finished search, in NaviGen's names."""
        best, given = self.rankings[-1][0]
        return {
            "sample_id": self.sample.sample_id or str(self.sample.key),
            "key": self.sample.key,
            "history_tids": self.sample.history,
            "target_tid": self.sample.target,
            "step1_reasoning": self.thought,
            "founder_candidates": [
                {
                    "mode": one.mode,
                    "design_intent": one.intent,
                    "prompt": one.prompt,
                    "reasoning": one.reasoning,
                }
                for one in self.founders
            ],
            "evolution_trace": [
                _round(number, ranking, children)
                for number, (ranking, children) in enumerate(
                    zip(self.rankings[:-1], self.children, strict=True), start=1
                )
            ],
            "evolution_summary": self.summary,
            "final_judge": [{"mode": one.mode} | judged.row() for one, judged in self.rankings[-1]],
            "final_mode": best.mode,
            "final_reasoning": best.reasoning,
            "final_overall": round(given.overall, 4),
            "final_prompt": best.prompt,
        }

    def _row(self) -> str:
        return (
            f"Items, oldest first:\n{shown_history(self.sample, self.ask.history)}\n\nThoughts on them: "
            f"{shown_text(self.thought)}\n\nTarget: {shown_terms(self.sample.target)}"
        )

    def _ask(self, step: str, system: str, asked: str, schema: dict[str, Any]) -> ChatRequest:
        messages = [
            {"role": "system", "content": system.format(**self.words) + DATA_RULE},
            {"role": "user", "content": asked},
        ]
        return self.ask.request(self.sample, step, messages, schema, greedy=step.startswith("judge"))


def check_rounds(rounds: int) -> None:
    """InputError for a search of no round."""
    if rounds < 1:
        raise InputError(f"rounds is {rounds} -> 1 or more")


def _round(number: int, ranking: list[Any], children: list[Draft]) -> dict[str, Any]:
    made: dict[str, Any] = {"round": number}
    for name, (one, given) in zip(("elite", "mate", "rest"), ranking, strict=True):
        made |= {f"{name}_mode": one.mode, f"{name}_prompt": one.prompt, f"{name}_judge": given.row()}
    for one in children:
        made |= {f"{one.mode}_prompt": one.prompt, f"{one.mode}_reasoning": one.reasoning}
    return made


def _scores(given: Any) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in given.scores.items())
