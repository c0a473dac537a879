"""The web app around a `Service`: five addresses, one page, every error a status and one line of JSON.

    GET  /                 the page
    GET  /healthz          {"status": "ok", ...}
    GET  /api/items?q=     items by words of the title
    GET  /api/categories   category paths and how many items they have
    GET  /api/user         a random row of the data set: its history and what came next
    POST /api/recommend    `infer.server.service.parse_request` says what it takes

No page of another site can talk to a local server: it answers to local names only (a foreign name may point to
127.0.0.1), takes nothing but application/json, and allows no origin but its own. Titles are data: JSON leaves here with
every `<` escaped, the page sets them as text, and its policy runs no script but its own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import sys
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from infer.server.service import RequestError, Service, parse_request

PAGE = Path(__file__).parent / "serve.html"
MAX_QUERY = 200
MAX_FOUND = 50
BODY_SECONDS = 10.0
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def as_json(value: Any) -> bytes:
    """JSON in which no text can be taken for markup, whoever embeds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace")


def read_page() -> tuple[bytes, str]:
    """(the page, the content security policy that lets its own style and script run and nothing else)."""
    page = PAGE.read_text(encoding="utf-8")
    allowed = {}
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        allowed[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    rules = [f"{tag}-src 'sha256-{digest}'" for tag, digest in allowed.items()]
    fixed = (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), "; ".join([fixed, *rules])


def host_name(header: str) -> str:
    """The host of a Host header without its port: `[::1]:80` is ::1."""
    header = header.strip().lower()
    return header[1:].split("]")[0] if header.startswith("[") else header.rsplit(":", 1)[0]


class Handlers:
    """One coroutine per address: Starlette request -> a value for JSON. Raises RequestError."""

    def __init__(self, service: Service, *, max_body: int, seed: int | None) -> None:
        self.service, self.max_body = service, max_body
        self._rng = np.random.default_rng(seed)
        # Apart from the threads of the other addresses, which never wait; one more than may wait tells the others so.
        self._asking = ThreadPoolExecutor(service.max_waiting + 1, thread_name_prefix="ask")

    async def health(self, request: Any) -> dict[str, Any]:
        return self.service.facts()

    async def categories(self, request: Any) -> list[dict[str, Any]]:
        return self.service.catalogue.categories

    async def items(self, request: Any) -> list[dict[str, Any]]:
        from starlette.concurrency import run_in_threadpool

        query = request.query_params.get("q", "")
        if len(query) > MAX_QUERY:
            raise RequestError(400, f"q is longer than {MAX_QUERY} characters")
        return await run_in_threadpool(self.service.catalogue.search, query, MAX_FOUND)

    async def user(self, request: Any) -> dict[str, Any]:
        return self.service.catalogue.random_user(self._rng)

    async def recommend(self, request: Any) -> dict[str, Any]:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "the content type must be application/json")
        body = await read_body(request, self.max_body)
        parsed = parse_request(body, self.service.catalogue, max_k=self.service.max_k)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._asking, self.service.recommend, parsed)


def make_app(
    service: Service, *, hosts: Collection[str] | None, max_body: int = 1 << 18, seed: int | None = None
) -> Any:
    """The Starlette application.

    hosts: names under which it may be asked, None for any; max_body: bytes of a request; seed: of the random users.
    """
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    from infer.server.connections import RETRY_SECONDS

    page, policy = read_page()
    headers = HEADERS | {"Content-Security-Policy": policy}

    def answer(value: Any, status: int = 200) -> Response:
        again = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}
        return Response(as_json(value), status, headers | again, "application/json")

    def guarded(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Response]]:
        """`handler` behind the check of the host, with every error turned into a status and one line."""

        async def endpoint(request: Any) -> Response:
            try:
                if hosts is not None and host_name(request.headers.get("host", "")) not in hosts:
                    raise RequestError(403, "this server answers to local names only")
                value = await handler(request)
                return value if isinstance(value, Response) else answer(value)
            except RequestError as error:
                return answer({"error": str(error)}, error.status)
            except Exception as error:
                print(f"serve: {request.url.path}: {type(error).__name__}", file=sys.stderr, flush=True)
                return answer({"error": "internal error: the server's log names it"}, 500)

        return endpoint

    async def refused(request: Any, error: Any) -> Response:
        return answer({"error": str(error.detail).lower()}, error.status_code)

    async def show_page(request: Any) -> Response:
        return Response(page, 200, headers, "text/html")

    handlers = Handlers(service, max_body=max_body, seed=seed)
    gets = {"/": show_page, "/healthz": handlers.health, "/api/user": handlers.user}
    gets |= {"/api/items": handlers.items, "/api/categories": handlers.categories}
    routes = [Route(path, guarded(handler)) for path, handler in gets.items()]
    routes.append(Route("/api/recommend", guarded(handlers.recommend), methods=["POST"]))
    return Starlette(routes=routes, exception_handlers=dict.fromkeys((404, 405), refused))


async def read_body(request: Any, max_body: int) -> bytes:
    """The body of a request; RequestError when it is too large (413) or too slow (408)."""
    from starlette.requests import ClientDisconnect

    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared[:20]) > max_body:
        raise RequestError(413, f"the body is larger than {max_body} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_body:
                    raise RequestError(413, f"the body is larger than {max_body} bytes")
    except TimeoutError:
        raise RequestError(408, f"the body took longer than {BODY_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise RequestError(400, "the body broke off") from None
    return bytes(body)
