"""One run over many requests: who asks when, what is asked again, when to give up.

Service faults wait with exponential backoff and jitter (tenacity), or as long as the service says; useless answers are
asked again at once, with another seed and the reason. There are more threads than calls under way: one that waits for a
fault to pass, reads a prompt or judges an answer holds up no call; it hands each call to one of as many callers as there may
be calls, which does nothing else and goes on with the next at once. A row of requests without any answer ends the run, and so
does a spent budget: then the calls under way still finish. Requests may lead to further ones: where the iterator of requests
has none while calls are under way, it is asked again after each of them.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from configs.program import InputError, ServiceError
from infer.chat.backends import Backend
from infer.chat.cache import ReplyCache
from infer.chat.limits import Account, BudgetSpent
from infer.chat.messages import ChatRequest, ChatResult, Reply, TransientFault, judge

LONGEST_WAIT = 60.0
LONGEST_SLEEP = 0.2  # of a thread without a request: the run may have ended
THREADS_PER_CALL = 4  # with more a server that is down would get more calls before the run gives up
LAST_SECONDS = (
    5.0  # for threads to end once their calls are cut off: one may still be looking up the server's name
)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When to ask again and when to give up."""

    retries: int
    """further calls after a fault of the service"""
    backoff: float
    """seconds before the first of them"""
    useless_retries: int
    """further calls after a useless answer"""
    stop_after: int
    """requests in a row without an answer that end the run; 0 never"""


class UselessAnswer(Exception):
    """At least one request of a batch has an invalid answer, and asking again may help."""


@dataclass
class Sample:
    """A request on its way to a result."""

    place: int
    request: ChatRequest
    result: ChatResult | None = None
    attempts: int = 0
    useless: int = 0
    usage: Counter[str] = field(default_factory=Counter)

    def finish(self, reply: Reply, *, teacher: str, cached: bool = False) -> None:
        """Take a reply for what it is worth."""
        status, text, parsed, error = judge(self.request, reply)
        self.usage.update(reply.usage)
        self.result = ChatResult(
            key=self.request.key,
            status=status,
            text=text,
            parsed=parsed,
            error=error,
            attempts=self.attempts,
            usage=dict(self.usage),
            teacher=teacher,
            prompt_sha256=self.request.prompt_sha256,
            cached=cached,
        )

    @property
    def complaint(self) -> str:
        """What was wrong with the last answer."""
        return self.result.error if self.result else ""

    def open(self) -> bool:
        """True while another call is of use."""
        return self.result is None or self.result.status == "invalid"


class ChatRun:
    """Requests are taken in order by whoever is free; `sink` gets every result as soon as it is finished."""

    def __init__(
        self,
        backend: Backend,
        requests: Iterator[ChatRequest],
        *,
        policy: Policy,
        cache: ReplyCache | None,
        account: Account,
        sink: Callable[[ChatResult], None],
    ) -> None:
        self.backend, self.policy, self.cache, self.sink = backend, policy, cache, sink
        self.account = account
        self.spent: BudgetSpent | None = None
        self.stop = threading.Event()
        self._requests = enumerate(requests)
        self._changed, self._finishing = threading.Condition(), threading.Lock()
        self._calls: queue.SimpleQueue[Any] | None = None
        self._unanswered = self._under_way = 0
        self._closed = False

    def serially(self) -> Iterator[tuple[int, ChatResult]]:
        """(place, result) of every request, asked in this thread."""
        while batch := self._take():
            yield from self._settle(batch)
        if self.spent:
            raise self.spent

    def in_threads(self, concurrency: int) -> Iterator[tuple[int, ChatResult]]:
        """(place, result) as they finish, at most `concurrency` calls at a time.

        A run that ends early cuts off the calls under way, whose answers are lost: none reaches the server later.
        """
        if concurrency < 1:
            raise InputError(f"concurrency is {concurrency} -> 1 or more")
        outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.backend = session = self.backend.session()
        self._calls = queue.SimpleQueue()
        working = THREADS_PER_CALL * concurrency
        threads = [threading.Thread(target=self._work, args=(outcomes,), daemon=True) for _ in range(working)]
        callers = [threading.Thread(target=self._call, daemon=True) for _ in range(concurrency)]
        try:
            for thread in (*callers, *threads):
                thread.start()
            while working:
                outcome = outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is None:
                    working -= 1
                else:
                    yield outcome
            if self.spent:
                raise self.spent
        finally:
            self.stop.set()
            session.close()
            last = time.monotonic() + LAST_SECONDS
            _join(threads, last)
            with self._finishing:  # from here on no sink is called
                self._closed = True
            for _ in callers:  # not before: whoever still wants a call is told that the run has ended
                self._calls.put(None)
            _join(callers, last)

    def _work(self, outcomes: queue.SimpleQueue[Any]) -> None:
        try:
            while not self.stop.is_set() and (batch := self._take()):
                for outcome in self._settle(batch):
                    outcomes.put(outcome)
            outcomes.put(None)
        except BaseException as error:
            outcomes.put(error)

    def _call(self) -> None:
        """Make calls, one after the other, for whoever waits for their answers."""
        while call := self._calls.get():
            answer, samples, asked = call
            try:
                answer.set_result(self._replies(samples, asked))
            except BaseException as error:
                answer.set_exception(error)

    def _take(self) -> list[Sample]:
        with self._changed:
            while not (self.spent or self.stop.is_set()):
                taken = list(islice(self._requests, self.backend.batch))
                if taken or not self._under_way:
                    self._under_way += len(taken)
                    return [Sample(place, request) for place, request in taken]
                self._changed.wait(LONGEST_SLEEP)
            return []

    def _settle(self, batch: list[Sample]) -> list[tuple[int, ChatResult]]:
        """Bring every sample of `batch` to a result and hand it on; one that the budget does not reach has none."""
        for sample in batch:
            if self.cache and (known := self.cache.get(sample.request)):
                sample.finish(known, teacher=self.backend.teacher, cached=True)
                if sample.open():  # damaged, or judged by other rules then
                    sample.result, sample.usage = None, Counter()
        asked = [sample for sample in batch if sample.open()]
        if asked:
            self._ask(asked)
        made = [sample for sample in batch if sample.result is not None]
        for sample in made:
            self._hand_on(sample)
        with self._changed:
            self._under_way -= len(batch)
            self._changed.notify_all()
        return [(sample.place, sample.result) for sample in made]

    def _ask(self, samples: list[Sample]) -> None:
        from tenacity import Retrying, retry_if_exception_type, sleep_using_event, wait_exponential_jitter

        policy = self.policy
        backoff = wait_exponential_jitter(initial=policy.backoff, max=LONGEST_WAIT, jitter=policy.backoff)

        def wait(state: Any) -> float:
            fault = state.outcome.exception()
            if isinstance(fault, UselessAnswer):
                return 0.0
            # Jitter on top of what the service asks for: else all threads come back at once.
            return min(max(backoff(state), fault.wait + random.random() * policy.backoff), LONGEST_WAIT)

        def give_up(state: Any) -> bool:
            useless = max(sample.useless for sample in samples)
            faults = state.attempt_number - useless
            return self.stop.is_set() or useless > policy.useless_retries or faults > policy.retries

        retrying = Retrying(
            retry=retry_if_exception_type((TransientFault, UselessAnswer)),
            wait=wait,
            stop=give_up,
            sleep=sleep_using_event(self.stop),
            reraise=True,
        )
        try:
            retrying(self._attempt, samples)
        except UselessAnswer:
            pass  # their results say so
        except BudgetSpent as spent:
            self.spent = self.spent or spent
        except TransientFault as fault:
            for sample in samples:
                if sample.open():
                    sample.finish(Reply(text="", rejected=str(fault)), teacher=self.backend.teacher)

    def _attempt(self, samples: list[Sample]) -> None:
        """Ask for what is still open; raises where asking again may help."""
        samples = [sample for sample in samples if self._askable(sample)]
        asked = [sample.request.again(sample.useless, sample.complaint) for sample in samples]
        if self._calls is None:
            replies = self._replies(samples, asked)
        else:
            answer: Future[list[Reply]] = Future()
            self._calls.put((answer, samples, asked))
            replies = answer.result()
        for sample, reply in zip(samples, replies, strict=True):
            sample.finish(reply, teacher=self.backend.teacher)
            sample.useless += sample.open()
            if self.cache and sample.result.status == "ok":
                self.cache.put(sample.request, reply)
        if any(map(self._askable, samples)):
            raise UselessAnswer

    def _replies(self, samples: list[Sample], asked: list[ChatRequest]) -> list[Reply]:
        if self.stop.is_set():
            raise TransientFault("the run has ended")
        held = self.account.reserve(asked)
        for sample in samples:
            sample.attempts += 1
        replies: list[Reply] = []
        try:
            replies = self.backend.reply(asked)
        finally:
            self.account.settle(held, [reply.usage for reply in replies])
        return replies

    def _askable(self, sample: Sample) -> bool:
        """True where there is no answer yet, or a useless one and another may come."""
        return sample.result is None or (sample.open() and self.backend.varies(sample.request))

    def _hand_on(self, sample: Sample) -> None:
        """Give the result to the sink; ServiceError when there is no end of failures. When a run ends early, an answer that has come is
        still kept, as it is paid for; nothing else is."""
        result = sample.result
        with self._finishing:
            ending = self.stop.is_set()
            if self._closed or (ending and result.status != "ok"):
                return
            self.sink(result)
            if result.cached or ending:
                return
            self._unanswered = self._unanswered + 1 if result.status in ("failed", "invalid") else 0
            if 0 < self.policy.stop_after <= self._unanswered:
                self.stop.set()
                raise ServiceError(
                    f"{self.backend.teacher}: {self._unanswered} requests in a row without an answer, the last "
                    f"({result.key}): {result.error} -> see to it, then run again to resume"
                )


def _join(threads: list[threading.Thread], last: float) -> None:
    """Wait for the threads that were started, until the moment `last`."""
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(last - time.monotonic(), 0))
