"""What goes to a chat model and what comes back: a request, a reply as a backend gives it, a result that is judged.

A result is `ok` only when its text is a whole answer: not cut off, not a refusal, and JSON of the request's schema where it
has one. Everything else keeps its text for people to read and has no `parsed`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from configs.program import InputError
from data.store.fingerprints import sha256_json
from infer.chat.refusals import is_refusal
from infer.chat.schema import check_schema, read_answer

Status = Literal["ok", "failed", "refused", "invalid"]
STATUSES = ("ok", "failed", "refused", "invalid")
ROLES = {"system", "user", "assistant"}
# Far from the seeds that callers count up, so that a second try never repeats another sample.
SEED_STRIDE = 1_000_003
COMPLAINT = "\n\nYour last answer could not be used. Answer again, in the form that was asked for. What was wrong with it: "
THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One question. Equal messages, schema and sampling are the same question: a cache gives the same answer to both,
    so several samples of one question need several seeds."""

    key: str
    """names the sample in a file of answers; unique in a run"""
    messages: list[dict[str, str]]
    """turns of {role: system | user | assistant, content}; the last is not the assistant's"""
    schema: dict[str, Any] | None = None
    """JSON schema of the answer; None for free text"""
    max_tokens: int = 1024
    """longest answer; one that is cut off there is invalid"""
    temperature: float = 0.0
    """0 is greedy"""
    seed: int | None = None
    """of sampling; servers may ignore it"""

    def __post_init__(self) -> None:
        faulty = [
            turn for turn in self.messages if set(turn) != {"role", "content"} or turn["role"] not in ROLES
        ]
        if not self.messages or faulty or self.messages[-1]["role"] == "assistant":
            raise InputError(
                f"request {self.key!r}: messages are turns of role (system, user, assistant) and content, and do not "
                "end with the assistant's"
            )
        if self.max_tokens < 1 or self.temperature < 0:
            raise InputError(
                f"request {self.key!r}: max_tokens {self.max_tokens} must be >= 1, temperature {self.temperature} >= 0"
            )
        if self.schema is not None:
            check_schema(self.schema)

    @cached_property
    def prompt_sha256(self) -> str:
        """Hash of all that decides the answer apart from who is asked."""
        return sha256_json(
            [self.messages, self.schema, self.max_tokens, self.temperature, self.seed],
        )

    def again(self, tries: int, error: str = "") -> ChatRequest:
        """The same question for a try after `tries` useless answers: with another seed, and told what was wrong."""
        if not tries:
            return self
        *before, last = self.messages
        seed = None if self.seed is None else self.seed + tries * SEED_STRIDE
        told = last | {"content": last["content"] + (COMPLAINT + error if error else "")}
        return replace(self, seed=seed, messages=[*before, told])


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a backend got for one request."""

    text: str
    finish: Literal["stop", "length"] = "stop"
    """length: cut off at max_tokens"""
    refusal: str = ""
    """the model's or the server's reason not to answer"""
    rejected: str = ""
    """why the service will never answer this request, though it may others"""
    usage: dict[str, int] = field(default_factory=dict)
    """prompt_tokens, completion_tokens"""


@dataclass(frozen=True, kw_only=True)
class ChatResult:
    """What became of one request."""

    key: str
    status: Status
    text: str = ""
    """the answer without a leading thought; of an answer that is not ok, what there was"""
    parsed: Any = None
    """the JSON value of an ok answer to a request with a schema"""
    error: str = ""
    """why it is not ok, in one line"""
    attempts: int = 0
    """calls made in this run, or in the run that filled the cache"""
    usage: dict[str, int] = field(default_factory=dict)
    """prompt_tokens and completion_tokens, summed over attempts"""
    teacher: str = ""
    """backend and model"""
    prompt_sha256: str = ""
    cached: bool = False
    """taken from the disk cache: nothing was paid in this run"""

    def row(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


class TransientFault(Exception):
    """The service may answer the same request later: timeout, connection, 408, 409, 429, 5xx, half a response.

    `wait` is the number of seconds that the service asked for, or 0; `busy` says that it is well and wants fewer calls.
    """

    def __init__(self, message: str, *, wait: float = 0.0, busy: bool = False) -> None:
        super().__init__(message)
        self.wait, self.busy = wait, busy


def judge(request: ChatRequest, reply: Reply) -> tuple[Status, str, Any, str]:
    """(status, text, parsed, error) of a reply."""
    if reply.rejected:
        return "failed", "", None, " ".join(reply.rejected.split())[:300]
    text = reply.text[thought.end() :] if (thought := THOUGHT.match(reply.text)) else reply.text
    text = text.strip()
    if reply.refusal:
        return "refused", text, None, " ".join(reply.refusal.split())[:300]
    if reply.finish == "length":
        return "invalid", text, None, f"cut off at {request.max_tokens} tokens"
    if text.startswith("<think>"):
        return "invalid", text, None, "the thought has no end"
    if not text:
        return "invalid", text, None, "empty answer"
    if request.schema is not None:
        value, problem = read_answer(text, request.schema)
        if not problem:
            return "ok", text, value, ""
        if not problem.startswith("not JSON") or not is_refusal(text):
            return "invalid", text, None, problem
    if is_refusal(text):
        return "refused", text, None, "the answer is a refusal"
    return "ok", text, None, ""
