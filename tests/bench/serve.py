"""infer.serve under load: how long its clients wait, and what answering waiting requests together is worth.

python -m tests.bench.serve            # 64 clients, 20 requests a second for 30 s; then all of them at once
python -m tests.bench.serve --quick    # 5 s, smaller rounds

A server process with a random model of two layers (hidden size 64, 1,000 items, 8 x 8 x 32 codes, 20 beams, its own
tokenizer of 400 entries), one thread, and 64 clients with a connection each in this process. First requests come at a fixed
rate, evenly, whatever the answers do, each on the connection that has been idle longest: the wait is from the moment a request was due to
the last byte of its answer. Then every client asks again as soon as it is answered: once of a server that takes one request
at a time (`--max_batch 1`), once of the usual one, interleaved, best of --repeats. `same` says that every answer had status
200 and was the list of the engine in this process, ties within rounding. The last line is one JSON object:

ratios  batching           requests a second of the usual server / of one request at a time, all clients asking
values  p50, p99           seconds of a request at the fixed rate
        together, alone    requests a second behind the ratio
        wrong              answers with another status or list
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import ROOT
from infer.engine import DecodeSettings, Recommendation, load_engine
from tests import handmade, store
from tests.agreement import disagreement, recommended
from tests.bench import frame
from tests.chain import Chain

BEAMS, K = 20, 10
ITEMS, SIZES = 1000, (8, 8, 32)
HISTORIES = 64
SHAPE = {"hidden_size": 64, "num_layers": 2, "head_dim": 16, "intermediate_size": 256}


def build(root: Path) -> Chain:
    """A store of ITEMS items, its semantic IDs and examples, and a random model that speaks them."""
    rng = np.random.default_rng(0)
    made = Chain(root / "data", root / "data/sids/x", root / "data/examples/x", root / "vocab")
    walks = [rng.integers(0, ITEMS, 8).tolist() for _ in range(100)]
    store.write_store(made.data, walks, ITEMS)
    numbers = rng.choice(int(np.prod(SIZES)), ITEMS, replace=False)
    codes = np.stack(np.unravel_index(numbers, SIZES), axis=1).astype(np.int32)
    handmade.write_sids(made.sids, data=made.data, codes=codes, sizes=SIZES)
    data = ["--data", made.data]
    handmade.call("preprocess.build_examples", *data, "--sids", made.sids, "--output_dir", made.examples)
    shape = [part for name, value in SHAPE.items() for part in (f"--shape.{name}", value)]
    base = root / "base"
    handmade.call("preprocess.init_base_model", *data, "--output_dir", base, "--vocab_size", 400, *shape)
    handmade.call("preprocess.expand_vocab", "--model", base, "--sids", made.sids, "--output_dir", made.model)
    return made


@contextmanager
def server(made: Chain, *flags: str) -> Iterator[int]:
    """The port of a server in a process of its own."""
    command = [sys.executable, "-m", "infer.serve", *made.flags(), "--data", str(made.data), "--port", "0"]
    command += ["--decode.beams", str(BEAMS), "--device", "cpu", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, env=handmade.environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        yield int(line.split("http://127.0.0.1:")[1].split()[0])
    finally:
        process.terminate()
        process.wait()


@dataclass
class Client:
    """A connection that is kept."""

    port: int
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def ask(self, history: list[int]) -> tuple[int, bytes]:
        """(status, body); a connection that the server closed while it was idle is opened again."""
        body = json.dumps({"history": history, "k": K}).encode()
        head = f"POST /api/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        if self.writer is None or self.reader.at_eof() or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), await self.reader.readexactly(int(fields["content-length"]))


class Load:
    """Clients of one server and the lists that they must get."""

    def __init__(self, port: int, clients: int, expected: list[tuple[list[int], list[Recommendation]]]):
        self.clients, self.expected, self.wrong = [Client(port) for _ in range(clients)], expected, 0

    async def ask(self, client: Client, number: int) -> None:
        history, wanted = self.expected[number % len(self.expected)]
        status, body = await client.ask(history)
        if status != 200:
            self.wrong += 1
            return
        places = json.loads(body)["recommendations"]
        shown = [
            ((tuple(place["codes"]), tuple(card["item_id"] for card in place["items"])), place["score"])
            for place in places
        ]
        self.wrong += bool(disagreement(shown, recommended(wanted), atol=2e-4, gap=2e-4))

    async def at_a_rate(self, rate: float, seconds: float) -> list[float]:
        """Seconds from when each request was due to its answer."""
        idle, waits, under_way = asyncio.Queue(), [], []
        for client in self.clients:
            idle.put_nowait(client)

        async def one(number: int, due: float) -> None:
            client = await idle.get()
            await self.ask(client, number)
            waits.append(time.perf_counter() - due)
            idle.put_nowait(client)

        start = time.perf_counter()
        for number in range(round(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            under_way.append(asyncio.create_task(one(number, due)))
        await asyncio.gather(*under_way)
        return waits

    async def all_at_once(self, requests: int) -> float:
        """Requests a second where every client asks again once it is answered."""
        numbers = iter(range(requests))

        async def one(client: Client) -> None:
            for number in numbers:
                await self.ask(client, number)

        start = time.perf_counter()
        await asyncio.gather(*(one(client) for client in self.clients))
        return requests / (time.perf_counter() - start)


def measure(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The bench's JSON object."""
    made = build(home)
    engine = load_engine(made.model, made.sids, made.examples, DecodeSettings(beams=BEAMS), device="cpu")
    rng = np.random.default_rng(1)
    histories = [rng.integers(0, ITEMS, 6).tolist() for _ in range(HISTORIES)]
    lists = engine.recommend(histories, K)
    expected = list(zip(histories, lists, strict=True))
    seconds, requests = (5, 128) if args.quick else (30, 640)
    together, alone, wrong = [], [], 0
    with server(made) as usual, server(made, "--max_batch", "1") as single:
        load = Load(usual, args.clients, expected)
        waits = asyncio.run(load.at_a_rate(args.rate, seconds))
        wrong += load.wrong
        for _ in range(args.repeats):
            for port, rates in ((usual, together), (single, alone)):
                load = Load(port, args.clients, expected)
                rates.append(asyncio.run(load.all_at_once(requests)))
                wrong += load.wrong
            print(f"{requests} requests: {together[-1]:.1f} a second together, {alone[-1]:.1f} alone")
    p50, p99 = np.quantile(waits, (0.5, 0.99))
    return {
        "bench": "serve",
        "same": not wrong,
        "ratios": {"batching": round(max(together) / max(alone), 2)},
        "values": {
            "p50": round(p50, 4), "p99": round(p99, 4), "requests": len(waits), "wrong": wrong, "clients": args.clients,
            "together": round(max(together), 1), "alone": round(max(alone), 1), "load": round(os.getloadavg()[0], 1),
        },
        "threads": 1,
        "device": "cpu",
    }  # fmt: skip


def main() -> None:
    parser = frame.flags(__doc__, quick="5 s at the fixed rate, 128 requests a round", repeats=2)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second of the first part")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        result = measure(Path(home), args)
    frame.finish(result)


if __name__ == "__main__":
    main()
