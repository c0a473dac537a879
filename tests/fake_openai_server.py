"""An OpenAI-compatible server for tests: a local HTTP server whose faults are spelled in the prompt.

The first line of the last user turn is a list of words, one per call for that turn; the last word goes on. `429`, `500`,
`401`, ... an HTTP error (402: no credit left), `busy:0.5` 429 with Retry-After, `slow:0.5` an answer after so many seconds,
`drip` blanks and never an answer, `hang-up`, `half` (a body that breaks off), `garbage` (no JSON body), and with status
200 `broken` (JSON that breaks off), `wrong` (JSON of another schema), `prose` (JSON within free text), `fenced`,
`thought`, `endless` (a thought without end), `cut` (at max_tokens), `empty`, `refusal`, `sorry` (a refusal in words),
`filter`, `key:x` (401 for keys that end in x), `broke:x` (402 for those), `echo` (repeats the Authorization header). Any other word is answered well: {"terms": [...], "call": n}, the
terms being the first two words of the second line, or bolt and steel. What the client says about its last answer is no
part of a turn.

A server answers below an address of its own: a call that was meant for another one, whose port this one got, is not seen.

python -m tests.fake_openai_server --latency 0.1    prints its base URL and serves until it is killed.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from infer.chat.messages import COMPLAINT

SCHEMA = {
    "type": "object",
    "properties": {"terms": {"type": "array", "items": {"type": "string"}, "minItems": 1}, "call": {"type": "integer"}},
    "required": ["terms", "call"],
    "additionalProperties": False,
}  # fmt: skip


@dataclass
class Log:
    """What the server has seen."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    """calls per last user turn"""
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes: the second would wait 40 ms for an ACK
    log: Log
    root: str
    latency = 0.0
    write: Callable[[str, int], tuple[str, str]] | None = None
    """(last user turn, number of the call for it) -> (fault word, answer without a fault), where a test has its own"""

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def parse_request(self) -> bool:
        """Note when a request came: its latency begins there."""
        self.came = time.monotonic()
        return super().parse_request()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.startswith(self.root):
            return self.send({"error": {"message": "this server is another one"}}, status=410)
        turn = body["messages"][-1]["content"].split(COMPLAINT)[0]
        with self.log.lock:
            self.log.bodies.append(body)
            self.log.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.log.calls[turn] += 1
            call = self.log.calls[turn]
            self.log.at_once += 1
            self.log.most_at_once = max(self.log.most_at_once, self.log.at_once)
        words = turn.split("\n")[0].split() or ["ok"]
        try:
            time.sleep(max(self.came + self.latency - time.monotonic(), 0))
            second = turn.split("\n")[1:2]
            terms = (second and second[0].split()[:2]) or ["bolt", "steel"]
            word, good = words[min(call, len(words)) - 1], json.dumps({"terms": terms, "call": call})
            self.act(*(self.write(turn, call) if self.write else (word, good)))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.log.lock:
                self.log.at_once -= 1

    def act(self, word: str, good: str) -> None:
        """What `word` says; `good` is the answer without a fault."""
        if word.startswith(("key:", "broke:")):
            fault, key = word.split(":")
            self.act(
                {"key": "401", "broke": "402"}[fault]
                if self.headers["Authorization"].endswith(key)
                else "ok",
                good,
            )
        elif word.isdigit():
            code = "insufficient_quota" if word == "402" else None
            error = {
                "error": {"message": f"injected {word} for {self.headers['Authorization']}", "code": code}
            }
            self.send(
                error, status=429 if word == "402" else int(word), retry_after="0" if word == "429" else None
            )
        elif word.startswith("busy:"):
            self.send({"error": {"message": "busy"}}, status=429, retry_after=word.removeprefix("busy:"))
        elif word.startswith("slow:"):
            time.sleep(float(word.removeprefix("slow:")))
            self.answer(good)
        elif word == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "10000")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
            self.close_connection = True
        elif word in ("hang-up", "half"):
            if word == "half":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.wfile.flush()
            self.close_connection = True
        elif word == "garbage":
            self.send("this is no JSON")
        else:
            self.say(word, good)

    def say(self, word: str, good: str) -> None:
        """Answers with status 200."""
        sorry = "I'm sorry, but I can't help with that."
        texts = {
            "broken": good[:-3],
            "wrong": '{"terms": "bolt"}',
            "prose": f"Here you are: {good}",
            "fenced": f"```json\n{good}\n```",
            "thought": f"<think>\na bolt\n</think>\n\n{good}",
            "endless": "<think>\na bolt, or",
            "sorry": sorry,
            "empty": "",
            "echo": json.dumps({"terms": [self.headers["Authorization"]], "call": 1}),
        }
        if word == "refusal":
            self.answer(None, refusal=sorry)
        elif word in ("cut", "filter"):
            self.answer(good, finish={"cut": "length", "filter": "content_filter"}[word])
        else:
            self.answer(texts.get(word, good))

    def answer(self, text: str | None, *, finish: str = "stop", refusal: str | None = None) -> None:
        message = {"role": "assistant", "content": text, "refusal": refusal}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        choice = {"index": 0, "finish_reason": finish, "message": message}
        self.send({"id": "x", "object": "chat.completion", "created": 1, "model": "fake", "choices": [choice], "usage": usage})  # fmt: skip

    def send(self, made: Any, *, status: int = 200, retry_after: str | None = None) -> None:
        data = (made if isinstance(made, str) else json.dumps(made)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def make_server(*, latency: float = 0.0, write: Any = None) -> tuple[Server, str, Log]:
    """A bound server, its base URL and its log; `serve_forever` starts it."""
    log, root = Log(), f"/{uuid.uuid4().hex}/v1"
    handler = type(
        "LoggingHandler",
        (Handler,),
        {"log": log, "root": root, "latency": latency, "write": write and staticmethod(write)},
    )
    server = Server(("127.0.0.1", 0), handler)
    return server, f"http://127.0.0.1:{server.server_address[1]}{root}", log


@contextmanager
def serving(*, latency: float = 0.0, write: Any = None) -> Iterator[tuple[str, Log]]:
    """(base URL, log) of a server in a thread."""
    server, url, log = make_server(latency=latency, write=write)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield url, log
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    made, url, _ = make_server(latency=parser.parse_args().latency)
    print(url, flush=True)
    made.serve_forever()
