"""A chat run that ends early: what has been answered by then is paid for, and kept."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from configs.program import ServiceError
from infer.chat.limits import Account, Budget
from infer.chat.messages import ChatRequest, Reply
from infer.chat.run import ChatRun, Policy


def test_an_answer_in_hand_when_another_call_ends_the_run_is_kept():
    answered, kept = threading.Event(), []

    def reply(asked):
        if asked[0].key == "good":
            answered.set()
            return [Reply(text="yes")]
        answered.wait(10)
        raise ServiceError("the service wants payment")

    backend = SimpleNamespace(
        teacher="t", batch=1, varies=lambda request: False, reply=reply, close=lambda: None
    )
    backend.session = lambda: backend
    # Between its answer and the sink the good one stands in the cache until the run has ended.
    cache = SimpleNamespace(get=lambda request: None, put=lambda request, reply: run.stop.wait(10))
    requests = [ChatRequest(key=key, messages=[{"role": "user", "content": key}]) for key in ("good", "bad")]
    run = ChatRun(
        backend,
        iter(requests),
        policy=Policy(retries=0, backoff=0.0, useless_retries=0, stop_after=0),
        cache=cache,
        account=Account(Budget()),
        sink=kept.append,
    )
    with pytest.raises(ServiceError, match="wants payment"):
        list(run.in_threads(2))
    assert [result.key for result in kept] == ["good"]
