"""How much of a server's parallel capacity the chat client uses, and what it costs in memory.

python -m tests.bench.chat            # 10,000 answers, 4 at a time, 20 ms each
python -m tests.bench.chat --quick    # 400

The server is the tests' fake one in a process of its own: every call takes a fixed time from its arrival, so the ideal is
calls, repeated ones included, / concurrency x latency. Of the requests 5 % meet a fault (status 500) first, 2 % a useless
answer (JSON that breaks off): each costs one
more call, and a fault a wait of a quarter to half a second. Measured is `ChatClient.run_to_file` from a generator of prompts of 2 kB: asking, judging against a
schema, caching, writing one line each. One answer before the clock starts loads the libraries. Best of --repeats; `same`
says that every repeat brought every sample exactly once, each the answer to its own prompt. The last line is one JSON
object; peak_mib is of the client's process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.memory import peak_mib
from configs.program import ROOT, Clock
from infer.chat.client import ChatClient, ChatRequest, ChatSettings, chat_client, read_results
from tests.bench import frame
from tests.fake_openai_server import SCHEMA

FILLER = "steel bolt, 10 mm, for wood and metal; " * 50


@contextmanager
def server(latency: float) -> Iterator[str]:
    """The base URL of a fake server in a process of its own."""
    command = [sys.executable, "-m", "tests.fake_openai_server", "--latency", str(latency)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def first_word(place: int) -> str:
    """What the server does first: of 100 requests 5 meet a fault, 2 a useless answer."""
    if place % 20 == 0:
        return "500 ok"
    return "broken ok" if place % 50 == 1 else "ok"


def prompts(number: int, repeat: int) -> Iterator[ChatRequest]:
    """Distinct requests of about 2 kB."""
    for place in range(number):
        turn = {"role": "user", "content": f"{first_word(place)}\n{repeat} {place} {FILLER}"}
        yield ChatRequest(key=str(place), messages=[turn], schema=SCHEMA)


def whole(path: Path, number: int, repeat: int) -> bool:
    """Every request has one line, and in it the answer to its own prompt."""
    results = read_results(path)
    expected = {
        str(place): {"terms": [str(repeat), str(place)], "call": len(first_word(place).split())}
        for place in range(number)
    }
    return {key: r.parsed for key, r in results.items()} == expected and path.read_bytes().count(
        b"\n"
    ) == number


def measure(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The bench's JSON object."""
    number = 100 * args.concurrency if args.quick else args.requests
    calls = sum(len(first_word(place).split()) for place in range(number))
    ideal = calls / args.concurrency * args.latency
    seconds, same = [], True
    with server(args.latency) as url:
        client: ChatClient = chat_client(
            ChatSettings(
                backend="openai",
                model="fake",
                base_url=url,
                api_key_env="",
                concurrency=args.concurrency,
                backoff=0.25,
                cache_dir=str(home / "cache"),
            )
        )
        client.complete(prompts(1, -1))
        for repeat in range(args.repeats):
            path = home / f"answers{repeat}.jsonl"
            clock = Clock()
            client.run_to_file(prompts(number, repeat), path)
            seconds.append(clock.seconds)
            same &= whole(path, number, repeat)
            print(
                f"repeat {repeat}: {number} answers, {calls} calls in {seconds[-1]:.2f} s, ideal {ideal:.2f} s"
            )
    return {
        "bench": "chat",
        "same": same,
        "ratios": {},
        "values": {"concurrency_efficiency": round(ideal / min(seconds), 3), "peak_mib": peak_mib()},
        "threads": args.concurrency,
        "device": "cpu",
    }


def main() -> None:
    parser = frame.flags(__doc__, quick="100 answers per call under way", repeats=2)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds per answer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        result = measure(Path(home), args)
    frame.finish(result)


if __name__ == "__main__":
    main()
