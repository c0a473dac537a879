"""The end of a chat run: no call of it outlives it, and none reaches a server that it was not meant for."""

from __future__ import annotations

import threading

import pytest

from configs import program
from configs.program import ServiceError
from infer.chat.client import ChatRequest, ChatSettings, chat_client
from tests.fake_openai_server import serving


def client(url: str, **settings):
    common = {"model": "fake", "api_key_env": "", "retries": 0, "useless_retries": 0, "stop_after": 0}
    return chat_client(ChatSettings(backend="openai", base_url=url, **common | settings))


def question(words: str, place: int = 0) -> ChatRequest:
    turn = {"role": "user", "content": f"{words}\n{place}"}
    return ChatRequest(key=f"{words} {place}", messages=[turn])


@pytest.mark.parametrize(("words", "stop_after"), [("401", 0), ("500", 1)])
def test_a_run_that_ends_early_cuts_off_its_calls(words, stop_after):
    """Three calls wait half a minute for their answers: the run does not, and none of its threads lives on."""
    asked = [question("slow:30", place) for place in range(3)] + [
        question(words, place) for place in range(9)
    ]
    with serving() as (url, log):
        clock = program.Clock()
        one = client(url, concurrency=5, stop_after=stop_after)
        with pytest.raises(ServiceError):
            one.complete(asked)
        assert not [thread for thread in threading.enumerate() if "(_work)" in thread.name]
        assert clock.seconds < 15
        calls = sum(log.calls.values())
        assert one.complete([question("ok")])[0].status == "ok", "the client is of use for another run"
        late = sum(log.calls.values()) - calls - 1
        assert log.calls["ok\n0"] == 1
        assert 0 <= late <= 2, (
            "what two workers had sent before the end, the server may count after it; no more"
        )


def test_a_call_meant_for_another_server_is_neither_answered_nor_seen():
    with serving() as (url, log):
        elsewhere = url.replace(url.split("/")[3], "another")
        (result,) = client(elsewhere).complete([question("ok")])
        assert (result.status, log.bodies) == ("failed", []) and result.error.startswith("410")
