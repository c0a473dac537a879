"""A small HTTP endpoint and one page: pick a history, see what the model recommends and the way to each semantic ID.

reads   a model directory with SID tokens or a compact generator, data/<D>, its sids/<name> and examples/<name>
writes  nothing; answers on http://127.0.0.1:8000 until SIGINT (exit code 130) or SIGTERM (143)

Needs requirements-serve.txt. Only this machine can ask, unless --allow_remote; there are no accounts and no encryption, so
behind that flag belongs a proxy that has them. What may be asked: infer/server/web.py.

python -m infer.serve --model outputs/quickstart/grpo/final --data data/toystore \
    --sids data/toystore/sids/rqkmeans --examples data/toystore/examples/rqkmeans
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from configs import program
from configs.needs import Need, require_needs
from configs.program import EnvironmentFault, InputError, Interrupted, say
from data.store.checkpoints import found_model
from infer.engine import DecodeSettings
from infer.models.retrievers.engines import open_engine
from infer.server.catalogue import read_catalogue
from infer.server.service import Service
from infer.server.web import make_app
from infer.text.thinking import ThinkSettings, needs_of_mode

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
BACKLOG = 256


@dataclass
class ServeArgs:
    """Recommendations over HTTP."""

    model: str
    """model directory with SID tokens, e.g. outputs/<run>/grpo/final, or a compact generator (decode.score_space trie)"""
    data: str
    """prepared data set: titles, categories, users"""
    sids: str
    """SID directory that the model was expanded with"""
    examples: str
    """examples directory of these SIDs: its wording is the one of the prompts"""
    host: str = "127.0.0.1"
    """address to listen on; another machine's needs allow_remote"""
    port: int = 8000
    """port to listen on; 0 = a free one, which the first line names"""
    allow_remote: bool = False
    """listen on an address that other machines reach, and answer to any host name"""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """beams (the longest list that can be asked for), score space, longest prompt"""
    mode: str = "direct"
    """where the answer starts: direct, empty_think, think (a thought is written first, which takes its time), or race (both, merged)"""
    think: ThinkSettings = field(default_factory=ThinkSettings)
    """how thoughts are written and merged"""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; null = a GPU when there is one"""
    max_body: int = 262144
    """bytes of a request, above which it is refused"""
    max_waiting: int = 64
    """requests that may wait for the model, above which new ones are refused"""
    max_batch: int = 32
    """most waiting requests that the model answers together; 1 = one at a time"""
    seed: int | None = None
    """of the random users; null = another one with every start"""

    def __post_init__(self) -> None:
        self.model = found_model(self.model)
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port} is none -> 0..65535")
        if min(self.max_body, self.max_batch) < 1 or not 1 <= self.max_waiting <= BACKLOG // 2:
            raise InputError(
                f"max_body {self.max_body} and max_batch {self.max_batch} must be positive, max_waiting {self.max_waiting} "
                f"in 1..{BACKLOG // 2}"
            )
        if not self.allow_remote and not is_local(self.host):
            raise InputError(
                f"host {self.host} can be reached from other machines, and this server knows no accounts"
                " -> 127.0.0.1, or --allow_remote"
            )
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return needs_of_mode(self.mode, self.think)


def is_local(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def shown_name(model: str) -> str:
    """`quickstart/grpo` of outputs/quickstart/grpo/final: visitors need not see the paths of this machine."""
    parts = [part for part in Path(model).resolve().parts if part != "final"]
    return "/".join(parts[-2:])


def require_packages() -> None:
    """EnvironmentFault naming the file to install when the web framework is missing."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise EnvironmentFault(
            f"{' and '.join(missing)} not installed in this Python -> python -m pip install -r requirements-serve.txt"
        )


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; InputError when the address is taken or not this machine's."""
    host = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"host {host} is no address of this machine ({error.strerror}) -> --host") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise InputError(f"port {port} of {host} {why} -> another --port, or 0 for a free one") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """http://127.0.0.1:8000"""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, bound: socket.socket) -> None:
    """Answer until a signal comes: requests that were begun are finished, then the signal takes its course."""
    import uvicorn

    from infer.server.connections import MAX_CONNECTIONS, BoundedProtocol

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        loop="asyncio",
        http=BoundedProtocol,
        ws="none",
        backlog=2 * MAX_CONNECTIONS,
        h11_max_incomplete_event_size=1 << 15,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[bound])


def main(args: ServeArgs) -> None:
    try:
        answer_requests(args)
    except Interrupted as ended:
        ended.remedy = "run the same command again to serve again"
        raise


def answer_requests(args: ServeArgs) -> None:
    """Load, warm up, listen; ends by a signal."""
    require_packages()
    with bind(args.host, args.port) as bound:
        engine = open_engine(
            args.model,
            args.sids,
            args.examples,
            args.decode,
            device=args.device,
            mode=args.mode,
            think=args.think,
        )
        catalogue = read_catalogue(args.data, engine.sids, engine.renderer.vocab.format)
        service = Service(
            engine,
            catalogue,
            name=shown_name(args.model),
            max_waiting=args.max_waiting,
            max_batch=args.max_batch,
        )
        service.warm_up()
        hosts = None if args.allow_remote else LOCAL_NAMES | {args.host.strip("[]").lower()}
        app = make_app(service, hosts=hosts, max_body=args.max_body, seed=args.seed)
        bound.listen(BACKLOG)
        say(f"serving {args.model} ({len(catalogue):,} items) on {address_of(bound)} - Ctrl-C ends it")
        serve(app, bound)


if __name__ == "__main__":
    program.run(ServeArgs, main)
