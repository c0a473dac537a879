"""Several servers and keys as one backend: each key under its own rate limit, each server behind a circuit breaker.

A call goes to the key that may be used soonest, of those to the one with the fewest calls under way. A server that faults
`break_after` times in a row gets a rest; after it one call tries whether it is well again, and each rest is twice as long as
the one before. A key that is rejected, has no credit left or whose server does not recover within RESTS rests is left out
of the run; without any left the run ends with exit code 5.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from configs.program import InputError, ServiceError, warn
from infer.chat.backends import OpenAIServer
from infer.chat.limits import RateLimit
from infer.chat.messages import ChatRequest, Reply, TransientFault

RESTS, LONGEST_REST = 5, 60.0
LONGEST_SLEEP = 0.5  # a waiting call looks again: another key may have become free


@dataclass
class Lane:
    """One key of one server in one run."""

    server: OpenAIServer
    limit: RateLimit
    under_way: int = 0
    faults: int = 0
    """in a row"""
    rests: int = 0
    """in a row"""
    broke_at: float = 0.0
    """a fault of a call that began before the last rest says nothing new"""
    closed_until: float = 0.0
    lost: ServiceError | None = None

    def ready(self) -> float:
        return max(self.closed_until, self.limit.ready())


class ServerPool:
    """`servers` of one model, each with its key and rate limit; the breaker rests for `rest` seconds at first, 0 faults
    never break it."""

    batch = 1
    parallel = True

    def __init__(
        self, servers: Sequence[OpenAIServer], *, limits: Sequence[RateLimit], break_after: int, rest: float
    ) -> None:
        self.servers, self.limits = list(servers), list(limits)
        self.break_after, self.rest = break_after, rest
        self.teacher, self.identity = servers[0].teacher, servers[0].identity

    def session(self) -> ServerPool:
        """This pool with connections of its own, every server presumed well; rate limits go on."""
        made = copy.copy(self)
        made._lanes = [
            Lane(server.session(), limit) for server, limit in zip(self.servers, self.limits, strict=True)
        ]
        made._lock, made._closed = threading.Lock(), threading.Event()
        return made

    def close(self) -> None:
        """Cut off the calls of this session, waiting ones too."""
        self._closed.set()
        for lane in self._lanes:
            lane.server.close()

    def varies(self, request: ChatRequest) -> bool:
        return True

    def reply(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """The answers, of whichever server; ServiceError when there is none left to ask."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: ChatRequest) -> Reply:
        while True:
            lane, taken = self._enter(request)
            began = time.monotonic()
            reply: Reply | None = None
            try:
                (reply,) = lane.server.reply([request])
                return reply
            except ServiceError as error:
                self._lose(lane, error)
            except TransientFault as fault:
                raise self._note(lane, fault, began) from None
            finally:
                self._leave(lane, taken, reply)

    def _enter(self, request: ChatRequest) -> tuple[Lane, float]:
        """Wait for a key that may be used, and start a call with it: (lane, tokens it is taken for)."""
        while True:
            with self._lock:
                lanes = [lane for lane in self._lanes if lane.lost is None]
                if not lanes:
                    raise self._lanes[-1].lost
                now = time.monotonic()
                lane = min(lanes, key=lambda lane: (max(lane.ready(), now), lane.under_way))
                if (ready := lane.ready()) <= now:
                    lane.under_way += 1
                    if lane.rests:  # the one call that tries whether the server is well again
                        lane.closed_until = now + lane.server.timeout
                    return lane, lane.limit.take(now, request)
            if self._closed.wait(min(ready - now, LONGEST_SLEEP)):
                raise TransientFault("the run has ended")

    def _leave(self, lane: Lane, taken: float, reply: Reply | None) -> None:
        with self._lock:
            lane.under_way -= 1
            lane.limit.settle(taken, sum((reply.usage if reply else {}).values()))
            if reply is not None:
                if lane.rests:
                    lane.closed_until = 0.0
                lane.faults = lane.rests = 0

    def _lose(self, lane: Lane, error: ServiceError) -> None:
        """Leave a key out of the rest of the run."""
        with self._lock:
            if lane.lost is None:
                lane.lost = error
                if left := sum(one.lost is None for one in self._lanes):
                    warn(f"{error}; the run goes on with {left} other key(s)")

    def _note(self, lane: Lane, fault: TransientFault, began: float) -> TransientFault:
        """What a fault of a call that began then means for its server, and what the caller shall raise."""
        with self._lock:
            now = time.monotonic()
            if fault.busy:
                lane.closed_until = max(lane.closed_until, now + fault.wait)
                others = any(one.lost is None and one.ready() <= now for one in self._lanes)
                return TransientFault(str(fault)) if others else fault
            if began < lane.broke_at or self._closed.is_set():
                return fault
            lane.faults += 1
            if not 0 < self.break_after <= lane.faults:
                return fault
            if lane.rests < RESTS:
                rest = min(self.rest * 2**lane.rests, LONGEST_REST)
                lane.rests, lane.broke_at, lane.closed_until = lane.rests + 1, now, now + rest
                return fault
        host = urlsplit(lane.server.identity["base_url"]).netloc
        self._lose(
            lane,
            ServiceError(
                f"{host} failed {lane.faults} times in a row, {RESTS} of them after a rest; the last: {fault} -> see to "
                "it, then run again to resume"
            ),
        )
        return fault


def keys_of(variable: str, base_url: str) -> list[str]:
    """The keys that an environment variable holds, separated by commas; one empty key for an empty name.

    Raises InputError for a variable that is not set, naming it.
    """
    if not variable:
        return [""]
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not keys:
        raise InputError(
            f"environment variable {variable} is not set, and {urlsplit(base_url).hostname} may want a key -> "
            "set it in .env, or give an empty api_key_env"
        )
    return list(dict.fromkeys(keys))


def server_pool(
    places: Sequence[tuple[str, str]],
    *,
    requests_per_minute: float,
    tokens_per_minute: float,
    break_after: int,
    rest: float,
    **options: Any,
) -> ServerPool:
    """The pool of every key of every (base_url, name of the variable with its keys); `options` are those of OpenAIServer."""
    servers = [
        OpenAIServer(base_url=base_url, key=key, **options)
        for base_url, variable in places
        for key in keys_of(variable, base_url)
    ]
    limits = [RateLimit(requests=requests_per_minute, tokens=tokens_per_minute) for _ in servers]
    return ServerPool(servers, limits=limits, break_after=break_after, rest=rest)
