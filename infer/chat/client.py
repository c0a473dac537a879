"""The one way to ask a chat model: requests in, judged results out, in order or into a file that survives anything.

    client = chat_client(ChatSettings(backend="openai", model="qwen3.5-flash", base_url="http://localhost:8000/v1"))
    results = client.complete([ChatRequest(key="item 7", messages=[{"role": "user", "content": "..."}], schema=SCHEMA)])
    counts = client.run_to_file(requests, "answers.jsonl", label="tags")      # killed? call it again: it goes on
    answers = read_results("answers.jsonl")                                   # {key: ChatResult}

A program nests `ChatSettings` in its arguments. Keys come from the environment only, and reach no file or message.
Faults of the service are waited out with exponential backoff and jitter; useless answers (cut off, broken, not of the
schema) are asked again with another seed; what still fails is a result with status failed, refused or invalid, never an
answer. A service that is down or rejects the key ends the run with exit code 5, and the next run goes on from there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.program import InputError, progress
from infer.chat.backends import Backend, Heuristic, OpenAIServer, Recorded, check_base_url
from infer.chat.cache import ReplyCache
from infer.chat.journal import Journal, read_results
from infer.chat.messages import STATUSES, ChatRequest, ChatResult
from infer.chat.run import ChatRun, Policy

__all__ = ["ChatClient", "ChatRequest", "ChatResult", "ChatSettings", "chat_client", "read_results"]

COUNTS = ("kept", "changed", "cached", "calls", "prompt_tokens", "completion_tokens")
SECRET_NAME = re.compile(r"api[_-]?key|secret|authorization|password", re.IGNORECASE)


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
    api_key_env: str = "OPENAI_API_KEY"
    """openai: the environment variable that holds the key (never the key itself); empty for a server without keys"""
    structured: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    """openai: how the server learns of a JSON schema; it enforces it, or enforces JSON, or is told in words"""
    extra: dict[str, Any] = field(default_factory=dict)
    """openai: more fields of the request body, null removes one; transformers: arguments of the chat template"""
    recording: str = ""
    """recorded: a file of answers of an earlier run, or JSON lines of key and text"""
    concurrency: int = 16
    """openai: calls under way at the same time"""
    batch_size: int = 8
    """transformers: requests per generation"""
    timeout: float = 120.0
    """openai: seconds until a call without a whole answer counts as failed"""
    retries: int = 5
    """further calls after a timeout, a lost connection, 429 or 5xx"""
    backoff: float = 1.0
    """seconds before the first of them; doubles each time up to a minute, plus as much jitter; Retry-After wins"""
    useless_retries: int = 2
    """further calls after an answer that is cut off, broken or not of the schema"""
    stop_after: int = 20
    """end the run after so many requests in a row without an answer (failed or invalid); 0 never"""
    cache_dir: str = ""
    """openai, transformers: folder of answers that are never asked for twice; empty for none"""

    def __post_init__(self) -> None:
        self._check_names()
        counts = {"concurrency": self.concurrency, "batch_size": self.batch_size}
        if low := [name for name, value in counts.items() if value < 1]:
            raise InputError(f"{low[0]} is {counts[low[0]]} -> 1 or more")
        negative = min(self.retries, self.useless_retries, self.stop_after, self.backoff)
        if negative < 0 or self.timeout <= 0:
            raise InputError("retries, useless_retries, stop_after and backoff must be >= 0 and timeout > 0")

    def _check_names(self) -> None:
        """InputError for what a backend lacks, and for what only another backend reads."""
        needs = {"openai": ("model", "base_url"), "transformers": ("model",), "recorded": ("recording",)}
        reads = {"openai": ("extra", "cache_dir"), "transformers": ("extra", "cache_dir")}
        needed = needs.get(self.backend, ())
        for name in needed:
            if not getattr(self, name):
                raise InputError(f"chat backend {self.backend} needs {name} -> set it")
        for name in ("model", "base_url", "recording", "extra", "cache_dir"):
            if getattr(self, name) and name not in (*needed, *reads.get(self.backend, ())):
                raise InputError(
                    f"chat backend {self.backend} does not read {name} -> leave it out, or set backend"
                )
        if self.base_url:
            check_base_url(self.base_url)
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*|", self.api_key_env):
            raise InputError(
                "api_key_env is not the name of an environment variable (A-Z, 0-9, _) -> e.g. MY_API_KEY"
            )
        if hidden := [name for name in self.extra if SECRET_NAME.search(name)]:
            raise InputError(f"extra.{hidden[0]} looks like a secret -> put keys into the environment")


def chat_client(
    settings: ChatSettings, *, heuristic: Callable[[ChatRequest], Any] | None = None
) -> ChatClient:
    """The client that `settings` describe; `heuristic` is the program's own rule, used for backend `heuristic` only.

    Raises InputError where no backend is chosen, the key is not in the environment or the model is not there.
    """
    backend: Backend
    if settings.backend == "openai":
        backend = OpenAIServer(
            model=settings.model,
            base_url=settings.base_url,
            api_key_env=settings.api_key_env,
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
        self, requests: Iterable[ChatRequest], *, concurrency: int | None = None, label: str = "chat"
    ) -> list[ChatResult]:
        """One result per request, in order; at most `concurrency` calls at a time where the backend is a server.

        Raises ServiceError where the service is down or rejects the key.
        """
        requests = list(_distinct(requests))
        made = self._results(iter(requests), concurrency, sink=lambda result: None)
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
    ) -> dict[str, int]:
        """Append a result for every request that `path` does not hold yet; returns what is to be known of this run.

        Samples that the file holds as ok or refused are kept; failed and invalid ones are asked again. A kept sample
        whose prompt or teacher is another now is asked again (`changed="ask"`) or an InputError (`"refuse"`).
        `requests` may be a generator: only those under way are in memory. Counts: one per status, kept, changed,
        cached, calls, and prompt_tokens, completion_tokens of the calls. Read the file with `read_results`.
        """
        counts = Counter(dict.fromkeys((*STATUSES, *COUNTS), 0))
        total = len(requests) if hasattr(requests, "__len__") else None
        with Journal(path) as journal:
            new = self._unanswered(requests, journal, counts, refuse=changed == "refuse")
            made = self._results(new, concurrency, sink=journal.append)
            for _, result in progress(made, label=label, total=total, unit="answer"):
                counts[result.status] += 1
                counts["cached"] += result.cached
                if not result.cached:
                    counts.update(result.usage)
                    counts["calls"] += result.attempts
        return dict(counts)

    def _results(
        self,
        requests: Iterator[ChatRequest],
        concurrency: int | None,
        *,
        sink: Callable[[ChatResult], None],
    ) -> Iterator[tuple[int, ChatResult]]:
        """(place, result) as they finish; `sink` gets each one first."""
        run = ChatRun(self.backend, requests, policy=self.policy, cache=self.cache, sink=sink)
        if self.backend.parallel:
            return run.in_threads(self.settings.concurrency if concurrency is None else concurrency)
        return run.serially()

    def _unanswered(
        self, requests: Iterable[ChatRequest], journal: Journal, counts: Counter[str], *, refuse: bool
    ) -> Iterator[ChatRequest]:
        """The requests that the file has no answer to; the others are counted."""
        for request in _distinct(requests):
            known = journal.done.get(request.key)
            if known == (request.prompt_sha256, self.teacher):
                counts["kept"] += 1
                continue
            if known is not None and refuse:
                what = (
                    "prompt"
                    if known[0] != request.prompt_sha256
                    else f"teacher ({known[1]}, not {self.teacher})"
                )
                raise InputError(
                    f"{journal.path}: {request.key!r} was answered for another {what} -> choose another file"
                )
            counts["changed"] += known is not None
            yield request


def _distinct(requests: Iterable[ChatRequest]) -> Iterator[ChatRequest]:
    """`requests`; InputError for a key that comes twice."""
    seen: set[str] = set()
    for request in requests:
        if request.key in seen:
            raise InputError(
                f"two requests have the key {request.key!r} -> keys name samples, make them unique"
            )
        seen.add(request.key)
        yield request
