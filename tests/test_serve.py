"""infer.serve as a user runs it: a process that answers, refuses hostile requests and ends on signals."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from configs import program
from configs.program import ROOT, InputError
from data.sid import read_sids
from infer import serve
from infer.engine import DecodeSettings, load_engine
from infer.serve import ServeArgs, is_local
from infer.server.connections import MAX_OF_A_CLIENT
from infer.server.web import host_name
from tests.agreement import disagreement, recommended
from tests.handmade import environment, refuse
from tests.store import HOSTILE, ITEMS

BEAMS = 12
JSON = {"Content-Type": "application/json"}


@dataclass
class Server:
    """A running infer.serve on a port of its own."""

    process: subprocess.Popen[str]
    port: int

    def ask(
        self, path: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body) of one request; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(
            method or ("GET" if body is None else "POST"), path, sent, JSON if headers is None else headers
        )
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text

    def recommend(self, **request: Any) -> dict[str, Any]:
        status, _, text = self.ask("/api/recommend", request)
        assert status == 200, text
        return json.loads(text)


def start(chain: Any, *flags: str) -> Server:
    """Start on a free port; the first line of stdout names it."""
    command = [sys.executable, "-m", "infer.serve", *chain.flags(), "--data", str(chain.data), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--decode.beams", str(BEAMS), "--device", "cpu", *flags],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    port = re.search(r"http://127\.0\.0\.1:(\d+)", line)
    if port is None:
        process.kill()
        pytest.fail(f"no address in {line!r}: {process.communicate()[1]}")
    return Server(process, int(port[1]))


def stop(server: Server, signum: int) -> str:
    """Stderr of a server that a signal ended; its exit code must be 128 + the signal."""
    server.process.send_signal(signum)
    _, errors = server.process.communicate(timeout=120)
    assert server.process.returncode == 128 + signum, errors
    return errors


@pytest.fixture(scope="module")
def server(chain) -> Iterator[Server]:
    running = start(chain, "--max_body", "4000", "--seed", "1")
    yield running
    assert stop(running, signal.SIGTERM).splitlines() == [
        "INTERRUPTED 143: interrupted by SIGTERM -> run the same command again to serve again"
    ]


def test_recommendations_are_the_engines(server, chain):
    engine = load_engine(chain.model, chain.sids, chain.examples, DecodeSettings(beams=BEAMS), device="cpu")
    wanted = engine.recommend([[3, 4, 5]], 7)[0]
    answer = server.recommend(history=[3, 4, 5], k=7)
    places = answer["recommendations"]
    shown = [
        ((tuple(place["codes"]), tuple(card["item_id"] for card in place["items"])), place["score"])
        for place in places
    ]
    assert not disagreement(shown, recommended(wanted), atol=2e-4)
    assert (answer["asked"], answer["candidates"]) == (7, ITEMS)
    codes = read_sids(chain.sids).codes_NL
    for place in places:
        for depth, step in enumerate(place["path"], start=1):
            below = (codes[:, :depth] == place["codes"][:depth]).all(1)
            legal = codes[(codes[:, : depth - 1] == place["codes"][: depth - 1]).all(1), depth - 1]
            assert (step["items"], step["choices"]) == (below.sum(), len(set(legal.tolist())))


def test_restrictions(server):
    shelf = server.recommend(history=[3, 4], k=BEAMS, allowed={"category": ["Tools", "Shelf 2"]})
    found = {card["item_id"] for place in shelf["recommendations"] for card in place["items"]}
    assert found == set(range(16, 24)) and shelf["candidates"] == 8
    assert server.recommend(history=[3], k=2, allowed={"category": "Shelf 1"})["candidates"] == 8
    some = server.recommend(history=[3], k=9, allowed=[7, 5, 5, 3], exclude_history=True)
    assert {card["item_id"] for place in some["recommendations"] for card in place["items"]} == {5, 7}
    seen = server.recommend(history=[3], k=9, allowed=[3, 5])["recommendations"]
    assert {card["item_id"]: card["seen"] for place in seen for card in place["items"]} == {3: True, 5: False}


def test_items_and_users(server):
    _, _, body = server.ask("/api/items?q=LONG%20%20item%2017")
    assert [card["item_id"] for card in json.loads(body)] == [17]
    assert json.loads(server.ask("/api/items?q=B0031")[2])[0]["item_id"] == 31
    assert json.loads(server.ask("/api/items?q=31")[2])[0]["item_id"] == 31
    assert json.loads(server.ask("/api/items?q=")[2]) == json.loads(server.ask("/api/items?q=zzz")[2]) == []
    categories = {tuple(line["path"]): line["items"] for line in json.loads(server.ask("/api/categories")[2])}
    assert categories[("Tools",)] == ITEMS and categories[("Tools", "Shelf 3")] == 8
    user = json.loads(server.ask("/api/user")[2])
    assert user["split"] == "test" and user["history"] and user["next"]["title"]


def test_titles_are_not_markup(server):
    _, headers, body = server.ask("/api/items?q=script")
    assert headers["content-type"] == "application/json" and headers["x-content-type-options"] == "nosniff"
    assert json.loads(body)[0]["title"] == HOSTILE
    assert b"<" not in body and b"&" not in body


def test_page_needs_no_network_and_runs_no_foreign_script(server):
    status, headers, body = server.ask("/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    page, policy = body.decode(), headers["content-security-policy"]
    assert (
        re.findall(r"(?:src|href)=\"(?!data:)[^\"]*\"|https?:|@import|innerHTML|insertAdjacent", page) == []
    )
    for tag in ("script", "style"):
        own = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        assert (
            f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'" in policy
        )
    assert "default-src 'none'" in policy and "unsafe" not in policy


HUGE = "9" * 3000
BAD = [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"\xff\xfe", 400, "JSON"),
    (b"[" * 3900, 400, "JSON"),
    (b'{"history": [NaN]}', 400, "JSON"),
    (b"[3]", 400, "object"),
    ({}, 400, "history"),
    ({"history": []}, 400, "history"),
    ({"history": "3"}, 400, "history"),
    ({"history": [-1]}, 400, "0..39"),
    ({"history": [ITEMS]}, 400, "0..39"),
    ({"history": [True]}, 400, "0..39"),
    ({"history": [3.0]}, 400, "0..39"),
    ({"history": ["../../etc/passwd"]}, 400, "0..39"),
    (f'{{"history": [{HUGE}]}}'.encode(), 400, "0..39"),
    ({"history": [3] * 1001}, 400, "1000"),
    ({"history": [3], "k": 0}, 400, "1..12"),
    ({"history": [3], "k": BEAMS + 1}, 400, "1..12"),
    ({"history": [3], "k": "5"}, 400, "1..12"),
    ({"history": [3], "k": 1e300}, 400, "1..12"),
    ({"history": [3], "exclude_history": 1}, 400, "exclude_history"),
    ({"history": [3], "allowed": []}, 400, "allowed"),
    ({"history": [3], "allowed": [99]}, 400, "allowed"),
    ({"history": [3], "allowed": "Tools"}, 400, "allowed"),
    ({"history": [3], "allowed": {"category": []}}, 400, "allowed"),
    ({"history": [3], "allowed": {"category": ["Tools", 3]}}, 400, "allowed"),
    ({"history": [3], "allowed": {"category": "Nothing"}}, 400, "Nothing"),
    ({"history": [3], "allowed": {"category": ["Shelf 1"]}}, 400, "Shelf 1"),
    (b'{"history": [3], "allowed": {"category": "\\ud800"}}', 400, "allowed"),
    ({"history": [3], "beams": 9}, 400, "beams"),
    ({"history": [3], "<script>": 9}, 400, "unknown key"),
    ({"history": [3], "pad": "x" * 4000}, 413, "4000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "says"), BAD, ids=range(len(BAD)))
def test_bad_requests_get_one_line(server, body, status, says):
    if body == {"history": [3] * 1001}:
        body = json.dumps(body, separators=(",", ":")).encode()
    answer, _, text = server.ask("/api/recommend", body)
    assert answer == status
    error = json.loads(text)
    assert list(error) == ["error"] and says in error["error"]
    assert "\n" not in error["error"] and str(ROOT) not in error["error"] and len(text) < 300
    assert b"Traceback" not in text and b"<" not in text


def test_requests_that_a_browser_must_not_make(server):
    request = {"history": [3]}
    assert server.ask("/api/recommend", request, headers={"Content-Type": "text/plain"})[0] == 415
    for path in ("/", "/api/user"):
        assert server.ask(path, headers={"Host": "evil.example"})[0] == 403
    status, _, text = server.ask(
        "/api/recommend", request, headers=JSON | {"Host": f"evil.example:{server.port}"}
    )
    assert status == 403 and "local" in json.loads(text)["error"]
    assert server.ask("/healthz", headers={"Host": f"localhost:{server.port}"})[0] == 200
    assert "access-control-allow-origin" not in server.ask("/healthz")[1]


def test_other_addresses_and_methods(server):
    for path, method, status in (
        ("/etc/passwd", "GET", 404),
        ("/api/recommend", "GET", 405),
        ("/", "POST", 405),
    ):
        answer, _, text = server.ask(path, method=method)
        assert answer == status and list(json.loads(text)) == ["error"]
    assert server.ask("/api/items?q=" + "x" * 201)[0] == 400


def test_undeclared_length_is_bounded_too(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as client:
        head = (
            "POST /api/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        client.sendall(head.encode())
        for _ in range(5):
            client.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert b" 413 " in client.recv(1000)


def test_garbage_on_the_wire_and_still_alive(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as client:
        client.sendall(b"\x16\x03\x01\x02\x00 not http\r\n\r\n")
        told = client.recv(1000)
        assert b" 400 " in told and json.loads(told.split(b"\r\n\r\n")[1])["error"]
    many = [
        threading.Thread(target=lambda n=n: answers.append(server.recommend(history=[n], k=1)))
        for n in range(8)
    ]
    answers: list[dict[str, Any]] = []
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    assert len(answers) == 8
    facts = json.loads(server.ask("/healthz")[2])
    assert facts["status"] == "ok" and facts["items"] == ITEMS and facts["levels"] == [8, 8, 4]
    assert facts["model"] == "run/vocab" and str(ROOT) not in json.dumps(facts)
    assert server.process.poll() is None


def test_half_open_connections_block_nobody(server):
    """200 clients that say nothing or half a request; an answer, and a bound that names itself in JSON."""
    held = []
    for number in range(200):
        held.append(socket.create_connection(("127.0.0.1", server.port), timeout=120))
        if number % 2:
            held[-1].sendall(b"POST /api/recommend HTTP/1.1\r\nHost: local")
    assert server.recommend(history=[3], k=1)["asked"] == 1
    told = held[0].recv(1000)  # the oldest made room
    assert told.startswith(b"HTTP/1.1 408 ") and json.loads(told.split(b"\r\n\r\n")[1])["error"]
    for client in held:
        client.close()
    # Where every connection has a request of its own, none makes room.
    busy = b"POST /api/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    held = []
    for number in range(MAX_OF_A_CLIENT + 1):
        if number == MAX_OF_A_CLIENT:
            time.sleep(3)  # until all heads are read
        held.append(socket.create_connection(("127.0.0.1", server.port), timeout=120))
        held[-1].sendall(busy)
    told = held[-1].recv(1000)
    assert told.startswith(b"HTTP/1.1 429 ") and b"Retry-After: 2" in told and b"application/json" in told
    for client in held:
        client.close()
    assert server.recommend(history=[3], k=1)["asked"] == 1


def test_a_request_head_that_does_not_come_is_not_awaited(monkeypatch):
    import asyncio

    from infer.server import connections

    class Transport:
        sent, aborted = b"", False

        def get_extra_info(self, name):
            return ("10.0.0.9", 5) if name == "peername" else None

        def write(self, data):
            self.sent += data

        def abort(self):
            self.aborted = True

        def can_write_eof(self):
            return False

        def is_closing(self):
            return False

    async def talk() -> Transport:
        import uvicorn
        from uvicorn.server import ServerState

        config, transport = uvicorn.Config(lambda: None, log_config=None), Transport()
        protocol = connections.BoundedProtocol(config, ServerState(), {})
        protocol.connection_made(transport)
        protocol.data_received(b"GET / HTTP/1.1\r\nHo")
        await asyncio.sleep(0.3)
        assert protocol not in protocol.waiting
        return transport

    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    transport = asyncio.run(talk())
    assert transport.sent.startswith(b"HTTP/1.1 408 Request Timeout") and transport.aborted


def test_interrupt_and_taken_port(chain):
    running = start(chain)
    taken = refuse("infer.serve", *chain.flags(), "--data", chain.data, "--port", running.port)
    assert f"port {running.port} of 127.0.0.1 is taken" in taken
    assert stop(running, signal.SIGINT).startswith("INTERRUPTED 130: ")
    with pytest.raises(ConnectionRefusedError):
        running.ask("/healthz")


FLAGS = ["--model", "m", "--data", "d", "--sids", "s", "--examples", "e"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.com"])
def test_other_machines_only_by_flag(host):
    with pytest.raises(InputError, match="allow_remote"):
        program.parse(ServeArgs, [*FLAGS, "--host", host])
    assert program.parse(ServeArgs, [*FLAGS, "--host", host, "--allow_remote"])[0].allow_remote


def test_what_is_local():
    assert all(map(is_local, ("127.0.0.1", "127.3.4.5", "localhost", "::1", "[::1]")))
    assert not any(map(is_local, ("0.0.0.0", "", "localhost.evil.example", "10.0.0.1", "::ffff:10.0.0.1")))
    assert [host_name(header) for header in ("LocalHost:80", "127.0.0.1", "[::1]:80", "[::1]", "")] == [
        "localhost",
        "127.0.0.1",
        "::1",
        "::1",
        "",
    ]


def test_without_the_web_framework(monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as left:
        program.run(ServeArgs, serve.main, FLAGS)
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 3 and len(lines) == 1
    assert "pip install -r requirements-serve.txt" in lines[0]
    assert {line.split("==")[0] for line in pins()} == {"starlette", "uvicorn"}


def pins() -> list[str]:
    lines = (ROOT / "requirements-serve.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_script_starts_the_program():
    command = ["bash", str(ROOT / "scripts" / "serve.sh"), "--help"]
    env = environment(PYTHON=sys.executable, DATASET="none", OUTPUT_ROOT="nowhere")
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "usage: python -m infer.serve" in result.stdout and "--allow_remote" in result.stdout
