"""A talk with a teacher per sample, of one or more questions: who asks what next, what came of it, what is written of it.

Talks run side by side in one run of the chat client: an answer leads to the next question of its talk. All answers are in one
file; a run that was killed goes through it again and asks only what it does not hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.program import InputError, ServiceError
from data import artifacts
from data.reasoning import STATUSES, TaughtText, escaped, reasoning_table
from data.store.fingerprints import sha256_json
from data.store.output import Output
from infer.chat.client import ChatClient, ChatRequest, ChatResult, ChatSettings, chat_client
from infer.chat.quoting import quoted
from preprocess.teacher.paragraphs import one_line
from preprocess.teacher.samples import TermSample

ANSWERS = "answers/answers.jsonl"  # in a folder: paid work, which an error of the run does not take away
CALLS = "calls.parquet"
LONGEST_TERMS, LONGEST_TEXT = (
    400,
    6000,
)  # characters of a list of terms, of another text, that go into a question


@dataclass
class TeacherChat:
    """How a teacher is asked."""

    client: ChatSettings = field(default_factory=ChatSettings)
    """Which chat model; backend `heuristic` asks none and follows a rule, marked as such in every row."""
    history: int = 20
    """Latest items of a history that are shown."""
    max_tokens: int = 600
    """Longest answer."""
    temperature: float = 0.7
    """0 is greedy."""
    seed: int = 42
    """Of sampling and of repeated questions; servers may ignore it."""

    def __post_init__(self) -> None:
        if min(self.history, self.max_tokens) < 1 or self.temperature < 0:
            raise InputError("ask: history and max_tokens must be >= 1, temperature >= 0")

    def request(
        self,
        sample: TermSample,
        step: str,
        messages: list[dict[str, str]],
        schema: Any = None,
        *,
        greedy: bool = False,
    ) -> ChatRequest:
        """A question of a sample's talk; `step` is unique in it."""
        return ChatRequest(
            key=f"{sample.key} {step}", messages=messages, schema=schema, max_tokens=self.max_tokens,
            temperature=0.0 if greedy else self.temperature, seed=self.seed,
        )  # fmt: skip


@dataclass
class ParagraphChat(TeacherChat):
    """How a teacher is asked for a paragraph."""

    repairs: int = 2
    """Times that a paragraph is asked for again, with what was wrong with it, before its sample is rejected."""


@dataclass(frozen=True)
class Call:
    """One question of a talk, as it went."""

    step: str
    prompt_sha256: str
    teacher: str
    status: str
    error: str
    attempts: int
    usage: dict[str, int]


class Talk:
    """One sample's talk. A subclass gives the next `question` from what it heard, and sets `status` when it is over.

    names_items: the teacher names items by placeholders; else nothing in its text is one.
    """

    names_items = False

    def __init__(self, sample: TermSample) -> None:
        self.sample = sample
        self.calls: list[Call] = []
        self.status = self.text = self.error = ""

    def question(self) -> ChatRequest:
        """The next question; asked for only while the talk is not over."""
        raise NotImplementedError

    def heard(self, result: ChatResult) -> None:
        """Take an answer that is ok."""
        raise NotImplementedError

    def take(self, result: ChatResult) -> list[ChatRequest]:
        """Take an answer of any status; returns the next question, if there is one."""
        step = result.key.partition(" ")[2]
        self.calls.append(
            Call(
                step, result.prompt_sha256, result.teacher, result.status, result.error, result.attempts,
                result.usage,
            )
        )  # fmt: skip
        if result.status == "ok":
            self.heard(result)
        else:
            self.status = "refused" if result.status == "refused" else "failed"
            self.error = f"{step}: {result.error}"
        return [] if self.status else [self.question()]

    def row(self, kind: str) -> TaughtText:
        """What is written of it."""
        hashes = [call.prompt_sha256 for call in self.calls]
        sample = self.sample
        return TaughtText(
            key=sample.key, kind=kind, split=sample.split, text=self.text if self.names_items else escaped(self.text), teacher=self.calls[-1].teacher,
            prompt_sha256=hashes[0] if len(hashes) == 1 else sha256_json(hashes), status=self.status,
            attempts=sum(call.attempts for call in self.calls), history_terms=sample.history, target_terms=sample.target,
            sample_id=sample.sample_id, user_id=sample.user_id, target=sample.target_item,
        )  # fmt: skip


class ParagraphTalk(Talk):
    """Asks for a paragraph, and again with what `problem` finds wrong with it."""

    def __init__(
        self,
        sample: TermSample,
        messages: list[dict[str, str]],
        ask: ParagraphChat,
        problem: Callable[[str], str],
    ) -> None:
        super().__init__(sample)
        self.messages, self.ask, self.problem = messages, ask, problem
        self.written = 0

    def question(self) -> ChatRequest:
        step = f"rewrite {self.written}" if self.written else "write"
        return self.ask.request(self.sample, step, self.messages)

    def heard(self, result: ChatResult) -> None:
        self.written += 1
        if not (found := self.problem(result.text)):
            self.status, self.text = "ok" if self.written == 1 else "repaired", one_line(result.text)
        elif self.written > self.ask.repairs:
            self.status, self.error = "rejected", found
        else:
            again = (
                f"This paragraph can't be used: {found}. Write the whole paragraph again, without this fault."
            )
            said = [{"role": "assistant", "content": result.text}, {"role": "user", "content": again}]
            self.messages = [*self.messages[:2], *said]


def shown_history(sample: TermSample, most: int) -> str:
    """The latest `most` items, one a numbered line of data, oldest first."""
    latest = sample.history[-most:]
    return "\n".join(f"{place}. {shown_terms(terms)}" for place, terms in enumerate(latest, start=1))


def shown_terms(terms: Sequence[str]) -> str:
    """A TID as data."""
    return quoted(", ".join(terms))


def shown_text(text: str) -> str:
    """A text of a teacher as data: what it read was written by strangers."""
    return quoted(text[:LONGEST_TEXT])


def forecast(
    talks: Sequence[Talk], ask: TeacherChat, answers: Path, rule: Callable[..., Any], calls: str
) -> str:
    """What a run would cost, in words; nobody is asked. `calls` says how many of them a sample may take."""
    if ask.client.backend == "heuristic":
        return f"a rule for {len(talks):,} samples, nobody is asked"
    client = chat_client(ask.client, heuristic=rule, asks=False)
    told = client.forecast([talk.question() for talk in talks], answers)
    return f"{len(talks):,} samples, {calls}; the first of each: {told}"


def hold(
    talks: Sequence[Talk], client: ChatClient, answers: Path, *, label: str, calls: int
) -> dict[str, int]:
    """Bring every talk to its end, at most `calls` questions each; returns the counts of the run."""
    by_key = {str(talk.sample.key): talk for talk in talks}

    def follow(result: ChatResult) -> list[ChatRequest]:
        return by_key[result.key.partition(" ")[0]].take(result)

    first = (talk.question() for talk in talks)
    return client.run_to_file(first, answers, label=label, follow=follow, total=calls * len(talks))


def require_answers(talks: Sequence[Talk], most_failed: float) -> None:
    """ServiceError where more than `most_failed` of the talks have no answer, as another run may get one."""
    failed = Counter(talk.error for talk in talks if talk.status == "failed")
    if failed.total() > most_failed * len(talks):
        reason, often = failed.most_common(1)[0]
        raise ServiceError(
            f"{failed.total()} of {len(talks)} samples have no answer ({often}: {reason}) -> run again to ask for them once "
            "more, or allow them with most_failed"
        )


def write_talks(
    out: Output, talks: Sequence[Talk], kind: str, *, counts: dict[str, int], left_out: dict[str, int],
    more: dict[str, pa.Array] | None = None,
) -> str:  # fmt: skip
    """Write reasoning.parquet (with `more` columns), calls.parquet and the counts; returns them as words."""
    table = reasoning_table(talk.row(kind) for talk in talks)
    for name, column in (more or {}).items():
        table = table.append_column(name, column)
    out.write_table(artifacts.REASONING.file, table)
    out.write_table(CALLS, call_table(talks))
    statuses = Counter(talk.status for talk in talks)
    out.counts |= {"samples": len(talks)} | {status: statuses[status] for status in STATUSES}
    out.facts |= {
        "left_out": left_out,
        "chat": counts,
        "rejected_because": dict(
            Counter(talk.error for talk in talks if talk.status == "rejected").most_common(20)
        ),
        "teachers": dict(Counter(talk.calls[-1].teacher for talk in talks)),
        "splits": dict(Counter(talk.sample.split for talk in talks)),
    }
    told = ", ".join(f"{statuses[status]:,} {status}" for status in STATUSES if statuses[status])
    missing = "".join(f", {count:,} left out ({name})" for name, count in left_out.items() if count)
    return f"{len(talks):,} samples ({told}){missing}; {sum(len(talk.calls) for talk in talks):,} questions"


def call_table(talks: Sequence[Talk]) -> pa.Table:
    """The audit trail: every question of every sample, in order."""
    rows = [(talk.sample.key, call) for talk in talks for call in talk.calls]
    text = {"step", "prompt_sha256", "teacher", "status", "error"}
    columns = {
        name: pa.array([getattr(call, name) for _, call in rows], pa.string()) for name in sorted(text)
    }
    tokens = {
        name: pa.array([call.usage.get(name, 0) for _, call in rows], pa.int32())
        for name in ("prompt_tokens", "completion_tokens")
    }
    numbers = {"attempts": pa.array([call.attempts for _, call in rows], pa.int32())} | tokens
    return pa.table({"key": pa.array([key for key, _ in rows], pa.int64())} | columns | numbers)


def check_arguments(ask: TeacherChat, *, most_failed: float, max_samples: int | None = None) -> None:
    """InputError for arguments of a teacher stage that are out of range, or name no teacher."""
    if ask.client.backend == "none":
        raise InputError(
            "no teacher is chosen -> set ask.client.backend, or backend heuristic for a rule in its place"
        )
    if not 0 <= most_failed <= 1:
        raise InputError(f"most_failed {most_failed} is a share of samples -> 0 to 1")
    if max_samples is not None and max_samples < 1:
        raise InputError(f"max_samples is {max_samples} -> 1 or more")
