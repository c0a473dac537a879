"""The one way to ask a chat model: requests in, judged results out, in order or into a file that survives anything.

    client = chat_client(ChatSettings(backend="openai", model="qwen3.5-flash", base_url="http://localhost:8000/v1"))
    results = client.complete([ChatRequest(key="item 7", messages=[{"role": "user", "content": "..."}], schema=SCHEMA)])
    counts = client.run_to_file(requests, "answers.jsonl", label="tags")      # killed? call it again: it goes on
    answers = read_results("answers.jsonl")                                   # {key: ChatResult}

A program nests `ChatSettings` in its arguments. Keys come from the environment only, and reach no file or message.
Faults of the service are waited out with exponential backoff and jitter; useless answers (cut off, broken, not of the
schema) are asked again with another seed and told what was wrong; what still fails is a result with status failed, refused or invalid, never an
answer. A service that is down or rejects the key, and a spent budget, end the run with exit code 5, and the next run goes
on from there. `client.forecast(requests, path)` says what a run is going to cost without asking anybody (`asks=False`: without a key).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.program import InputError, progress, say
from data.store.configuration import pace
from infer.chat.backends import Backend, Heuristic, Recorded, check_base_url
from infer.chat.cache import ReplyCache
from infer.chat.journal import SETTLED, Journal, Unanswered, distinct, read_results
from infer.chat.limits import Account, Budget, BudgetSpent, Forecast, prompt_tokens
from infer.chat.messages import STATUSES, ChatRequest, ChatResult
from infer.chat.run import ChatRun, Policy
from infer.chat.servers import server_pool

__all__ = ["ChatClient", "ChatRequest", "ChatResult", "ChatSettings", "chat_client", "read_results"]

COUNTS = ("kept", "changed", "cached", "calls", "prompt_tokens", "completion_tokens")
SECRET_NAME = re.compile(r"api[_-]?key|secret|authorization|password", re.IGNORECASE)
OUTLOOK_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One more server of the same model, or one more key of a server."""

    base_url: str
    """where its API is"""
    api_key_env: str = ""
    """the environment variable that holds its key, or several with commas between; empty for a server without keys"""

    def __post_init__(self) -> None:
        _check_endpoint(self.base_url, self.api_key_env)


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Which chat model answers, and how it is asked."""

    backend: Literal["none", "openai", "transformers", "recorded", "heuristic"] = "none"
    """openai: any OpenAI-compatible server; transformers: a local model directory; recorded: a file of answers;
    heuristic: a rule of the program itself, marked as such in every answer; none: nobody is asked"""
    model: str = ""
    """the server's name of the model, or the local directory"""
    base_url: str = ""
    """openai: where the API is, e.g. http://localhost:8000/v1"""
    api_key_env: str = pace("OPENAI_API_KEY")
    """openai: the environment variable that holds the key (never the key itself), or several with commas between; empty for
    a server without keys"""
    more: list[Endpoint] = pace(default_factory=list)
    """openai: further servers of the same model, each with its keys; calls go to whichever is free"""
    requests_per_minute: float = pace(0.0)
    """openai: calls that one key may start in a minute; 0 is no limit"""
    tokens_per_minute: float = pace(0.0)
    """openai: tokens that one key may use in a minute; 0 is no limit"""
    structured: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    """openai: how the server learns of a JSON schema; it enforces it, or enforces JSON, or is told in words"""
    extra: dict[str, Any] = field(default_factory=dict)
    """openai: more fields of the request body, null removes one; transformers: arguments of the chat template"""
    recording: str = ""
    """recorded: a file of answers of an earlier run, or JSON lines of key and text"""
    concurrency: int = pace(16)
    """openai: calls under way at the same time"""
    batch_size: int = 8
    """transformers: requests per generation"""
    timeout: float = pace(120.0)
    """openai: seconds until a call without a whole answer counts as failed"""
    retries: int = pace(5)
    """further calls after a timeout, a lost connection, 429 or 5xx"""
    backoff: float = pace(1.0)
    """seconds before the first of them; doubles each time up to a minute, plus as much jitter; Retry-After wins"""
    useless_retries: int = 2
    """further calls after an answer that is cut off, broken or not of the schema"""
    break_after: int = pace(20)
    """openai: faults in a row that give a server a rest, after which one call tries whether it is well; 0 never"""
    rest: float = pace(10.0)
    """openai: seconds of the first rest; each is twice as long as the one before, up to a minute; the fifth is the last"""
    stop_after: int = pace(20)
    """end the run after so many requests in a row without an answer (failed or invalid); 0 never"""
    cache_dir: str = pace("")
    """openai, transformers: folder of answers that are never asked for twice; empty for none"""
    budget: Budget = pace(default_factory=Budget)
    """the most that one file of answers may cost, or the calls of one judge"""

    def __post_init__(self) -> None:
        self._check_names()
        counts = {"concurrency": self.concurrency, "batch_size": self.batch_size}
        if low := [name for name, value in counts.items() if value < 1]:
            raise InputError(f"{low[0]} is {counts[low[0]]} -> 1 or more")
        least = {
            name: getattr(self, name)
            for name in (
                "retries",
                "useless_retries",
                "stop_after",
                "backoff",
                "requests_per_minute",
                "tokens_per_minute",
            )
        } | {"break_after": self.break_after, "rest": self.rest}
        if low := [name for name, value in least.items() if value < 0]:
            raise InputError(f"{low[0]} is {least[low[0]]} -> 0 or more")
        if self.timeout <= 0:
            raise InputError(f"timeout is {self.timeout} -> more than 0")

    def _check_names(self) -> None:
        """InputError for what a backend lacks, and for what only another backend reads."""
        needs = {"openai": ("model", "base_url"), "transformers": ("model",), "recorded": ("recording",)}
        limits = ("more", "requests_per_minute", "tokens_per_minute")
        reads = {"openai": ("extra", "cache_dir", *limits), "transformers": ("extra", "cache_dir")}
        needed = needs.get(self.backend, ())
        for name in needed:
            if not getattr(self, name):
                raise InputError(f"chat backend {self.backend} needs {name} -> set it")
        for name in ("model", "base_url", "recording", "extra", "cache_dir", *limits):
            if getattr(self, name) and name not in (*needed, *reads.get(self.backend, ())):
                raise InputError(
                    f"chat backend {self.backend} does not read {name} -> leave it out, or set backend"
                )
        _check_endpoint(self.base_url, self.api_key_env)
        if hidden := [name for name in self.extra if SECRET_NAME.search(name)]:
            raise InputError(f"extra.{hidden[0]} looks like a secret -> put keys into the environment")


def _check_endpoint(base_url: str, api_key_env: str) -> None:
    """InputError for an address or the name of a variable that is none."""
    if base_url:
        check_base_url(base_url)
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*|", api_key_env):
        raise InputError(
            "api_key_env is not the name of an environment variable (A-Z, 0-9, _) -> e.g. MY_API_KEY"
        )


def chat_client(
    settings: ChatSettings,
    *,
    heuristic: Callable[[ChatRequest], Any] | None = None,
    asks: bool = True,
) -> ChatClient:
    """The client that `settings` describe; `heuristic` is the program's own rule, used for backend `heuristic` only. One that asks
    nobody, for `forecast` alone, needs no key.

    Raises InputError where no backend is chosen, the key is not in the environment or the model is not there.
    """
    backend: Backend
    if settings.backend == "openai":
        places = [(place.base_url, place.api_key_env if asks else "") for place in (settings, *settings.more)]
        backend = server_pool(
            places,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            break_after=settings.break_after,
            rest=settings.rest,
            model=settings.model,
            structured=settings.structured,
            timeout=settings.timeout,
            extra=settings.extra,
        )
    elif settings.backend == "transformers":
        from infer.chat.local import LocalModel

        backend = LocalModel(settings.model, batch=settings.batch_size, template=settings.extra)
    elif settings.backend == "recorded":
        backend = Recorded(settings.recording)
    elif settings.backend == "heuristic":
        if heuristic is None:
            raise InputError(
                "this program has no heuristic for its chat model -> choose another chat backend"
            )
        backend = Heuristic(heuristic)
    else:
        raise InputError(
            "no chat backend is chosen -> set backend to openai, transformers, recorded or heuristic"
        )
    return ChatClient(backend, settings)


class ChatClient:
    """Asks one backend under the policy of `settings`."""

    def __init__(self, backend: Backend, settings: ChatSettings) -> None:
        self.backend = backend
        self.settings = settings
        self.teacher = backend.teacher
        self.cache = None
        if settings.cache_dir and backend.identity is not None:
            self.cache = ReplyCache(settings.cache_dir, identity=backend.identity)
        self.policy = Policy(
            retries=settings.retries,
            backoff=settings.backoff,
            useless_retries=settings.useless_retries,
            stop_after=settings.stop_after,
        )

    def complete(
        self, requests: Iterable[ChatRequest], *, concurrency: int | None = None, label: str = "chat", account: Account | None = None,
    ) -> list[ChatResult]:  # fmt: skip
        """One result per request, in order; at most `concurrency` calls at a time where the backend is a server.

        account: where the calls are counted against the budget; default: one for this call alone.

        Raises ServiceError where the service is down or rejects the key, or the budget is spent.
        """
        requests = list(distinct(requests))
        account = account or Account(self.settings.budget)
        made = self._results(iter(requests), concurrency, account, sink=lambda result: None)
        results = dict(progress(made, label=label, total=len(requests), unit="answer"))
        return [results[place] for place in range(len(requests))]

    def run_to_file(
        self,
        requests: Iterable[ChatRequest],
        path: str | Path,
        *,
        concurrency: int | None = None,
        label: str = "chat",
        changed: Literal["ask", "refuse"] = "ask",
        follow: Callable[[ChatResult], Iterable[ChatRequest]] | None = None,
        total: int | None = None,
    ) -> dict[str, int]:
        """Append a result for every request that `path` does not hold yet; returns what is to be known of this run.

        Samples that the file holds as ok or refused are kept; failed and invalid ones are asked again. A kept sample
        whose prompt or teacher is another now is asked again (`changed="ask"`) or an InputError (`"refuse"`).
        `requests` may be a generator: only those under way are in memory. `follow` names the requests, with keys of their
        own, to which a result leads, kept or new; with it `total` says how many there may be in all. Counts: one per status,
        kept, changed, cached, calls, and prompt_tokens, completion_tokens of the calls. Read the file with `read_results`.
        """
        counts = Counter(dict.fromkeys((*STATUSES, *COUNTS), 0))
        if total is None and hasattr(requests, "__len__"):
            total = len(requests)
        with Journal(path) as journal:
            account = Account(self.settings.budget, **journal.spent)
            new = Unanswered(
                requests, journal, counts, teacher=self.teacher, refuse=changed == "refuse", follow=follow
            )

            def keep(result: ChatResult) -> None:
                journal.append(result)
                new.answered(result)

            made = self._results(new, concurrency, account, sink=keep)
            done, told = 0, time.monotonic()
            try:
                for _, result in progress(made, label=label, total=total, unit="answer"):
                    done += 1
                    counts[result.status] += 1
                    counts["cached"] += result.cached
                    if not result.cached:
                        counts.update(result.usage)
                        counts["calls"] += result.attempts
                    if time.monotonic() - told >= OUTLOOK_SECONDS:
                        told = time.monotonic()
                        say(f"{label}: {account.outlook(done, total and total - counts['kept'])}")
            except BudgetSpent as spent:
                outlook = account.outlook(done, total and total - counts["kept"])
                raise BudgetSpent(
                    f"{label}: {spent} ({outlook}) -> all answers are kept; raise the budget, then run again to resume"
                ) from None
        return dict(counts)

    def forecast(self, requests: Iterable[ChatRequest], path: str | Path) -> Forecast:
        """What `run_to_file` of the same arguments is going to cost; nobody is asked and nothing is written."""
        answered = read_results(path) if Path(path).exists() else {}
        total, new = 0, []
        for request in distinct(requests):
            total += 1
            known = answered.get(request.key)
            kept = known is not None and known.status in SETTLED
            if kept and (known.prompt_sha256, known.teacher) == (request.prompt_sha256, self.teacher):
                continue
            if not (self.cache and self.cache.get(request)):
                new.append((prompt_tokens(request), request.max_tokens))
        return Forecast(total, len(new), sum(size for size, _ in new), sum(most for _, most in new))

    def _results(
        self,
        requests: Iterator[ChatRequest],
        concurrency: int | None,
        account: Account,
        *,
        sink: Callable[[ChatResult], None],
    ) -> Iterator[tuple[int, ChatResult]]:
        """(place, result) as they finish; `sink` gets each one first."""
        run = ChatRun(
            self.backend, requests, policy=self.policy, cache=self.cache, account=account, sink=sink
        )
        if self.backend.parallel:
            return run.in_threads(self.settings.concurrency if concurrency is None else concurrency)
        return run.serially()
