"""Requests to a recommender without a process: an engine that does what a test wants."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from configs.program import InputError, NumericError
from data.artifacts import TEXT_LIST
from data.sid import FORMATS, SidTable
from infer.engine import DecodeSettings, Recommendation
from infer.server.catalogue import ServedCatalogue
from infer.server.service import RecommendRequest, RequestError, Service
from infer.server.web import make_app


def items_table(titles: list[str], categories: list[list[str]]) -> pa.Table:
    ids = [f"R{n}" for n in range(len(titles))]
    return pa.table({"title": titles, "raw_id": ids, "categories": pa.array(categories, TEXT_LIST)})


def small_service(recommend: Any, **options: Any) -> Service:
    sids = SidTable(np.array([[0, 1], [1, 0], [1, 1]], np.int32), (2, 2))
    rows = pa.table(
        {
            "example_id": [0],
            "split": ["train"],
            "history": pa.array([[1]], pa.list_(pa.int32())),
            "target": [2],
            "user_id": [4],
        }
    )
    catalogue = ServedCatalogue(
        items_table(["Ax", "A.x", ""], [["T"], ["T", "U"], []]), rows, sids, FORMATS["letters"]
    )
    engine = SimpleNamespace(sids=sids, settings=DecodeSettings(beams=9), recommend=recommend)
    return Service(engine, catalogue, name="small", **options)


def test_search_takes_words_literally():
    catalogue = small_service(None).catalogue
    assert [card["item_id"] for card in catalogue.search("a.", 5)] == [1]
    assert [card["item_id"] for card in catalogue.search("A x", 5)] == [0, 1]
    assert [card["item_id"] for card in catalogue.search("x", 1)] == [0]
    assert catalogue.search("R2", 5)[0]["title"] == "(no title, item R2)"
    assert catalogue.of_category("U").tolist() == catalogue.of_category(["T", "U"]).tolist() == [1]
    assert catalogue.of_category(["U"]).tolist() == catalogue.of_category(["T", "U", "V"]).tolist() == []
    assert catalogue.random_user(np.random.default_rng(0))["next"]["item_id"] == 2


def test_busy_service_refuses_instead_of_queueing_for_ever():
    inside, go = threading.Event(), threading.Event()

    def slow(histories: Any, k: int, **options: Any) -> list[list[Recommendation]]:
        inside.set()
        assert go.wait(20)
        return [[Recommendation((0,), (0, 1), -1.0)]]

    service = small_service(slow, max_waiting=1)
    request = RecommendRequest((1,), 1, None, False)
    answers: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: answers.append(service.recommend(request)))
    first.start()
    assert inside.wait(20)
    with pytest.raises(RequestError) as refused:
        service.recommend(request)
    go.set()
    first.join()
    assert refused.value.status == 503 and answers[0]["recommendations"][0]["items"][0]["title"] == "Ax"
    assert len(service.recommend(request)["recommendations"]) == 1


def test_requests_that_wait_share_a_search_and_no_fault():
    """The first goes alone; of those that wait, the ones of one kind go together, cut to their own k; a bad one fails alone."""
    calls: list[list[Any]] = []
    inside, go = threading.Event(), threading.Event()

    def engine(histories: Any, k: int, *, exclude_history: bool) -> list[list[Recommendation]]:
        calls.append([tuple(history) for history in histories])
        inside.set()
        assert go.wait(20)
        if (2, 2) in calls[-1]:
            raise InputError("nothing is left -> ask for something else")
        return [
            [Recommendation((item,), (0, 1), -1.0) for item in (*history, 0)][:k] for history in histories
        ]

    service = small_service(engine, max_batch=3)
    answers: dict[int, Any] = {}

    def ask(place: int, history: tuple[int, ...], k: int, exclude: bool = False) -> threading.Thread:
        def work() -> None:
            try:
                answers[place] = service.recommend(RecommendRequest(history, k, None, exclude))
            except RequestError as error:
                answers[place] = error.status

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    waiting = [ask(0, (0,), 1)]
    assert inside.wait(20)
    questions = [((1,), 2), ((2, 2), 1), ((2,), 1), ((1, 1), 1), ((2,), 2, True)]
    for place, question in enumerate(questions, start=1):
        waiting.append(ask(place, *question))
        while len(service._turns._line) < place and waiting[-1].is_alive():
            time.sleep(0.001)
    go.set()
    for thread in waiting:
        thread.join(20)
    assert calls[:2] == [[(0,)], [(1,), (2, 2), (2,)]]
    assert sorted(calls[2:5]) == [[(1,)], [(2,)], [(2, 2)]], "each of a search that failed, alone"
    assert sorted(calls[5:]) == [[(1, 1)], [(2,)]], "one more of its kind than fit, and one of another kind"
    found = {
        place: answer
        if isinstance(answer, int)
        else [best["items"][0]["item_id"] for best in answer["recommendations"]]
        for place, answer in answers.items()
    }
    assert found == {0: [0], 1: [1, 0], 2: 400, 3: [2], 4: [1], 5: [2, 0]}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("nothing is left\nto recommend -> run /secret/stage"), 400),
        (NumericError("layer 3 is NaN in /secret/model"), 500),
        (RuntimeError("a bug at /secret/code"), 500),
    ],
)
def test_errors_of_the_engine_do_not_leak(error, status, capsys):
    def failing(histories: Any, k: int, **options: Any) -> None:
        raise error

    app = make_app(small_service(failing), hosts=None)
    answer, text = asyncio.run(post(app, b'{"history": [1]}'))
    assert answer == status and "secret" not in text and "\n" not in text
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [InputError("a thought is too long -> shorten it"), NumericError("NaN -> train again")]
)
def test_a_server_that_cannot_answer_says_so_as_it_starts(error):
    """Nobody has asked yet: the error is that of the model and its options, with its exit code and its remedy."""

    def failing(histories: Any, k: int, **options: Any) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        small_service(failing).warm_up()


async def post(app: Any, body: bytes) -> tuple[int, str]:
    """One ASGI request to /api/recommend."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/recommend",
    }
    headers = [(b"content-type", b"application/json"), (b"host", b"any")]
    await app(scope | {"query_string": b"", "root_path": "", "headers": headers}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


def test_slow_bodies_time_out(monkeypatch):
    monkeypatch.setattr("infer.server.web.BODY_SECONDS", 0.05)
    app = make_app(small_service(None), hosts=None)

    async def stall() -> int:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.03)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/api/recommend", "query_string": b""}
        await app(scope | {"headers": [(b"content-type", b"application/json")]}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(stall()) == 408
