"""How fast and how much: the rate limit of one key, the budget of one file of answers, and what is still to be paid.

A rate limit spaces calls evenly, so that no minute holds more of them than allowed. A budget counts calls and tokens of all
runs that wrote a file; it is never exceeded by calls that were started knowingly: what the calls under way may still cost
is held back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from configs.program import InputError, ServiceError
from infer.chat.messages import ChatRequest

MINUTE = 60.0
BYTES_PER_TOKEN = 4  # of English, for estimates before anything was measured


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that one file of answers may cost, over all runs that write it; 0 is no limit."""

    calls: int = 0
    """calls, repeated ones included"""
    tokens: int = 0
    """tokens of prompts and answers, as the service counts them"""

    def __post_init__(self) -> None:
        if min(self.calls, self.tokens) < 0:
            raise InputError(f"budget: calls {self.calls} and tokens {self.tokens} must be >= 0")


class BudgetSpent(ServiceError):
    """The next call may exceed the budget. Calls under way still finish: they are paid for."""


@dataclass(frozen=True)
class Forecast:
    """What a run is going to cost before it has begun: token counts are of text length, answers at their longest."""

    requests: int
    """questions in all"""
    open: int
    """those without an answer in the file or the cache"""
    prompt_tokens: int
    """of the open ones"""
    most_completion_tokens: int
    """of the open ones, if every answer were as long as it may be"""

    def __str__(self) -> str:
        return (
            f"{self.open:,} of {self.requests:,} questions to ask: about {self.prompt_tokens:,} prompt tokens, at most "
            f"{self.most_completion_tokens:,} answer tokens, without repeated calls"
        )


def prompt_tokens(request: ChatRequest) -> int:
    """About how many tokens a prompt has."""
    return (
        sum(len(turn["content"].encode("utf-8", "replace")) for turn in request.messages) // BYTES_PER_TOKEN
        + 1
    )


class RateLimit:
    """`requests` and `tokens` per minute of one key, 0 for no limit; not safe from several threads.

    With 120 requests per minute a call may start every half second. A call of 1,000 tokens under 60,000 tokens per minute
    keeps the next one off for one second; until its true size is known it counts as much as calls did on average.
    """

    def __init__(self, *, requests: float, tokens: float) -> None:
        self.requests, self.tokens = requests, tokens
        self._request_at = self._token_at = 0.0
        self._calls, self._used = 0, 0.0

    def ready(self) -> float:
        """The moment from which the next call may start."""
        return max(self._request_at, self._token_at)

    def take(self, now: float, request: ChatRequest) -> float:
        """Start a call at `now`; returns the tokens it is taken for, which `settle` wants back."""
        if self.requests:
            self._request_at = max(self._request_at, now) + MINUTE / self.requests
        if not self.tokens:
            return 0.0
        taken = self._used / self._calls if self._calls else prompt_tokens(request) + request.max_tokens
        self._token_at = max(self._token_at, now) + taken * MINUTE / self.tokens
        return taken

    def settle(self, taken: float, used: int) -> None:
        """A call that was taken for `taken` tokens has used `used`."""
        if self.tokens:
            self._calls, self._used = self._calls + 1, self._used + used
            self._token_at += (used - taken) * MINUTE / self.tokens


class Account:
    """What was spent of a `budget`; safe from several threads. `calls` and `tokens` count from earlier runs on."""

    def __init__(self, budget: Budget, *, calls: int = 0, tokens: int = 0) -> None:
        self.budget, self.calls, self.tokens = budget, calls, tokens
        self._lock = threading.Lock()
        self._held, self._answers, self._used = 0, 0, 0

    def reserve(self, requests: Sequence[ChatRequest]) -> int:
        """Start a call for each of `requests`; returns the tokens held back for them, which `settle` wants back.

        Raises BudgetSpent before a call that may exceed the budget.
        """
        with self._lock:
            calls = self.calls + len(requests)
            held = sum(map(self._expected, requests))
            if 0 < self.budget.calls < calls:
                raise BudgetSpent(f"budget.calls {self.budget.calls:,} is spent")
            if 0 < self.budget.tokens < self.tokens + self._held + held:
                raise BudgetSpent(
                    f"budget.tokens {self.budget.tokens:,} is spent, but for what the calls under way may need"
                    if self.tokens
                    else f"budget.tokens {self.budget.tokens:,} is less than one call may need ({held:,})"
                )
            self.calls = calls
            self._held += held
            return held

    def settle(self, held: int, usage: Sequence[dict[str, int]]) -> None:
        """The calls that `held` tokens were held back for have ended with these usages; empty ones are unknown."""
        with self._lock:
            self._held -= held
            used = [sum(one.get(name, 0) for name in ("prompt_tokens", "completion_tokens")) for one in usage]
            self.tokens += sum(used)
            self._answers, self._used = self._answers + len(used), self._used + sum(used)

    def outlook(self, done: int, total: int | None) -> str:
        """What `done` of `total` answers of this run have cost, and what all may."""
        text = f"{done:,}{f' of {total:,}' if total else ''} answered, {self.calls:,} calls, {self.tokens:,} tokens so far"
        if total and done:
            text += f", about {round(self.tokens + self._used / done * (total - done)):,} tokens in all"
        return text

    def _expected(self, request: ChatRequest) -> int:
        """Tokens of a call: the mean of those that were answered, before the first one as many as there may be."""
        if self._answers:
            return round(self._used / self._answers)
        return prompt_tokens(request) + request.max_tokens
