"""infer.serve under a thousand hostile requests, with three hundred connections that say nothing: it answers, and says no more than it must."""

from __future__ import annotations

import json
import random
import select
import signal
import socket
import time

import pytest

from infer.server.connections import MAX_OF_A_CLIENT
from tests.damage import NASTY
from tests.test_serve import BAD, start, stop

pytestmark = pytest.mark.long
GOOD = {"history": [3, 4], "k": 5, "allowed": {"category": "Tools"}, "exclude_history": True}
PATHS = (
    "/api/recommend",
    "/api/items?q=%00%ff",
    "/../../etc/passwd",
    "/api/items?q=" + "%3Cscript%3E" * 20,
    "/api/user?",
    "//",
    "/%2e%2e/",
)
IDLE, REQUESTS = 300, 1000


def bodies(rng: random.Random) -> bytes:
    """A good body that was changed, one of those that no request may be, or bytes that are nothing."""
    kind = rng.randrange(4)
    if kind == 0:
        body = rng.choice(BAD)[0]
        return body if isinstance(body, bytes) else json.dumps(body).encode()
    if kind == 1:
        return rng.choice(NASTY)[:200_000]
    if kind == 2:
        return rng.randbytes(rng.randrange(400))
    whole = bytearray(json.dumps(GOOD).encode())
    for _ in range(rng.randrange(1, 4)):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return bytes(whole)


def gone(clients: list[socket.socket], count: int) -> None:
    """Wait until the server has closed `count` connections: those that made room for others are told, and linger a moment."""
    end = time.monotonic() + 60
    closed: set[int] = set()
    while len(closed) < count and time.monotonic() < end:
        ready, _, _ = select.select([one for one in clients if one.fileno() not in closed], [], [], 1.0)
        closed |= {one.fileno() for one in ready if not one.recv(1 << 16)}
    assert len(closed) >= count


def test_it_stands_and_answers(chain):
    running, rng = start(chain, "--seed", "1"), random.Random(0)
    wanted = running.recommend(**GOOD)["recommendations"]
    held, seen = [], set()
    for _ in range(IDLE):
        held.append(socket.create_connection(("127.0.0.1", running.port), timeout=120))
    gone(held, IDLE - MAX_OF_A_CLIENT)
    for number in range(REQUESTS):
        path = rng.choice(PATHS) if rng.random() < 0.3 else PATHS[0]
        status, headers, text = running.ask(
            path, bodies(rng), method=rng.choice(("POST", "POST", "POST", "GET", "PUT"))
        )
        seen.add(status)
        assert status in (200, 400, 404, 405, 408, 413, 415, 429), (status, text)
        assert b"Traceback" not in text and b"<" not in text.replace(b"<!DOCTYPE", b"") or path == "//", text[
            :200
        ]
        if status != 200:
            assert (
                list(json.loads(text)) == ["error"]
                and len(text) < 400
                and headers["content-type"] == "application/json"
            )
        if number % 100 == 0:
            assert running.recommend(**GOOD)["recommendations"] == wanted
    assert {200, 400, 404, 405} <= seen
    for client in held:
        client.close()
    assert running.recommend(**GOOD)["recommendations"] == wanted
    errors = stop(running, signal.SIGTERM)
    assert (
        errors.splitlines()[-1].startswith("INTERRUPTED 143")
        and "Traceback" not in errors
        and "500" not in errors
    )
