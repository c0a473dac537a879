"""HTTP of the chat client: one connection for many calls, a closed one noticed, proxies, an address that has moved, an end for all."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from http.client import HTTPException

import pytest

from configs.program import InputError, ServiceError
from infer.chat.client import ChatRequest, ChatSettings, chat_client
from infer.chat.connections import Connections, _readable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok"


@contextmanager
def scripted(*connections):
    """(address, requests): a server that answers the calls of its first connection with the texts of the first tuple, and so on.

    "close" ends a connection; after its last answer one stays open and silent.
    """
    seen, held = [], []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for answers in connections:
            one, _ = listener.accept()
            held.append(one)
            for answer in answers:
                if answer == "close":
                    one.close()
                    break
                request = b""
                while b"\r\n\r\n" not in request or not request.endswith(b"}"):
                    request += one.recv(1 << 16)
                seen.append(request.decode())
                one.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions", seen
    finally:
        for one in (listener, *held):
            one.close()


def test_one_connection_serves_many_calls_and_a_closed_one_is_replaced():
    with scripted((OK, CHUNKED, OK, "close"), (UNTIL_CLOSED, "close"), (OK,)) as (url, seen):
        connections = Connections(url, headers={"Authorization": "Bearer k"}, timeout=60)
        for _ in range(3):
            assert connections.post(b"{}")[::2] == (200, b"ok")
        end = time.monotonic() + 20
        while (
            not _readable(connections._free[0]) and time.monotonic() < end
        ):  # until the server's close has arrived
            time.sleep(0.01)
        for _ in range(2):
            assert connections.post(b"{}")[::2] == (200, b"ok")
        connections.cut()
    assert len(seen) == 5
    head, body = seen[0].split("\r\n\r\n")
    assert body == "{}" and head.startswith("POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "\r\nAuthorization: Bearer k\r\n" in head and head.endswith("\r\nContent-Length: 2")


def test_half_an_answer_silence_and_the_end_of_a_run():
    with scripted((OK[:-1], "close"), ()) as (url, _):
        with pytest.raises(HTTPException, match="1 bytes before its end"):
            Connections(url, headers={}, timeout=60).post(b"{}")
        with pytest.raises(TimeoutError):
            Connections(url, headers={}, timeout=0.3).post(b"{}")
    with scripted(()) as (url, _):
        connections = Connections(url, headers={}, timeout=60)
        threading.Timer(0.2, connections.cut).start()
        clock = time.monotonic()
        with pytest.raises((OSError, HTTPException)):
            connections.post(b"{}")
        assert time.monotonic() - clock < 20


def test_a_proxy_of_the_environment(monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "ALL_PROXY",
        "NO_PROXY",
        "HTTPS_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    with scripted((OK,)) as (url, seen):
        monkeypatch.setenv("HTTP_PROXY", url.replace("http://", "http://me:pass%20word@"))
        connections = Connections("http://models.example/v1/chat/completions", headers={}, timeout=60)
        assert connections.post(b"{}")[0] == 200
    assert seen[0].startswith(
        "POST http://models.example/v1/chat/completions HTTP/1.1\r\nHost: models.example\r\n"
    )
    assert "\r\nProxy-Authorization: Basic bWU6cGFzcyB3b3Jk\r\n" in seen[0]
    with scripted((OK,)) as (url, seen):
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert Connections(url, headers={}, timeout=60).post(b"{}")[0] == 200
    assert seen[0].startswith("POST /v1/")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(InputError, match="reached by socks5 -> set HTTPS_PROXY"):
        Connections("https://models.example/v1/chat/completions", headers={}, timeout=60)


def test_an_address_that_has_moved_is_named_and_the_key_goes_nowhere_else(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    moved = b"HTTP/1.1 308 Permanent Redirect\r\nLocation: https://new.example/v1?key=1\r\nContent-Length: 0\r\n\r\n"
    with scripted((moved,)) as (url, seen):
        settings = ChatSettings(
            backend="openai", model="m", base_url=url.removesuffix("/chat/completions"), api_key_env=""
        )
        request = ChatRequest(key="a", messages=[{"role": "user", "content": "?"}])
        with pytest.raises(ServiceError, match=r"on to new.example \(308\) -> set base_url"):
            chat_client(settings).complete([request])
    assert len(seen) == 1
