"""The end of a chat run: no call of it outlives it, and none reaches a server that it was not meant for."""

from __future__ import annotations

import threading

import pytest

from configs import program
from configs.program import ServiceError
from infer.chat.backends import Heuristic
from infer.chat.client import ChatClient, ChatRequest, ChatSettings, chat_client, read_results
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
        assert clock.seconds < 28
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


def led(result) -> list[ChatRequest]:
    """Question n of a talk leads to question n + 1, of four; what was said last is part of the next."""
    talk, number = result.key.split()
    if result.status != "ok" or number == "3":
        return []
    turn = {"role": "user", "content": f"ok\n{talk} {int(number) + 1} {len(result.text)}"}
    return [ChatRequest(key=f"{talk} {int(number) + 1}", messages=[turn])]


def first(talk: int, words: str = "ok") -> ChatRequest:
    return ChatRequest(key=f"{talk} 0", messages=[{"role": "user", "content": f"{words}\n{talk}"}])


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_lead_to_further_questions_also_in_batches(tmp_path, batch):
    backend = Heuristic(lambda request: "fine")
    backend.batch = batch
    one = ChatClient(backend, ChatSettings(backend="heuristic"))
    one.run_to_file([first(talk) for talk in range(5)], tmp_path / "a.jsonl", follow=led)
    keys = list(read_results(tmp_path / "a.jsonl"))
    assert sorted(keys) == [f"{talk} {number}" for talk in range(5) for number in range(4)]
    assert keys.index("0 3") < keys.index("4 0"), "a talk ends before the last begins"


def test_idle_threads_wait_for_what_a_slow_answer_leads_to(tmp_path):
    """One talk is slow; the other seven threads have nothing to do until it leads to eight more."""

    def many(result):
        return [first(talk, "slow:0.4") for talk in range(1, 9)] if result.key == "0 0" else []

    with serving() as (url, log):
        client(url, concurrency=8).run_to_file([first(0, "slow:0.5")], tmp_path / "a.jsonl", follow=many)
        assert len(log.bodies) == 9 and log.most_at_once >= 4


def test_a_resumed_talk_asks_nothing_that_was_answered(tmp_path):
    path, firsts = tmp_path / "a.jsonl", [first(talk) for talk in range(6)]
    with serving() as (url, log):
        client(url, concurrency=2).run_to_file(firsts, path, follow=led)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:11]) + lines[11][:20])
        counts = client(url, concurrency=2).run_to_file(firsts, path, follow=led)
        assert len(log.bodies) == 24 + 13 and (counts["kept"], counts["ok"]) == (11, 13)
        assert max(log.calls.values()) == 2 and len(read_results(path)) == 24
