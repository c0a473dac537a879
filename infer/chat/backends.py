"""Who answers: an OpenAI-compatible server, a file of recorded answers, or a function of the caller's own.

A backend has

    teacher      its name in results, e.g. `openai:qwen3.5-flash`
    identity     all that decides its answers, for the cache; None where caching makes no sense
    batch        requests that one call takes
    parallel     whether calls may overlap (a thread each)
    varies(r)    whether asking `r` again may give another answer
    reply(rs)    one Reply per request; raises TransientFault, or a ProgramError that ends the run

and where calls may overlap

    session()    this backend with connections of its own, for one run; `close()` of it cuts off the calls under way

Adding one is a class with these and a branch in `infer.chat.client.chat_client`. Local models: `infer.chat.local`; several servers and
keys: `infer.chat.servers`.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from configs.program import InputError, ServiceError
from infer.chat.connections import Connections
from infer.chat.journal import read_results
from infer.chat.messages import ChatRequest, Reply, TransientFault

HIDDEN, SECRET = "[key]", 8
LATER = {408, 409, 425, 429}
FIT = "\n\nAnswer with one JSON value that fits this JSON schema, and with nothing else:\n"


class Backend(Protocol):
    teacher: str
    identity: dict[str, Any] | None
    batch: int
    parallel: bool

    def varies(self, request: ChatRequest) -> bool: ...

    def reply(self, requests: Sequence[ChatRequest]) -> list[Reply]: ...


class OpenAIServer:
    """Any server that speaks `POST <base_url>/chat/completions`.

    The key (empty for a server without) leaves this object only in the request's header; where a server repeats it, it is
    cut out. Several servers or keys are `infer.chat.servers`. `structured` says how the server learns of a schema:
    `json_schema` (it enforces it), `json_object` (it enforces JSON, the schema is told in words), `prompt` (words only).
    `extra` fields go into the request body last; a null removes a field.
    """

    batch = 1
    parallel = True

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        key: str,
        structured: str,
        timeout: float,
        extra: dict[str, Any],
    ) -> None:
        self.teacher = f"openai:{model}"
        self.model, self.structured, self.timeout, self.extra = model, structured, timeout, extra
        self.identity = {
            "backend": "openai",
            "base_url": base_url.rstrip("/"),
            "model": model,
            "structured": structured,
            "extra": extra,
        }
        self._key = key

    def session(self) -> OpenAIServer:
        """This server with connections of its own."""
        made = copy.copy(self)
        made._connections = Connections(
            f"{self.identity['base_url']}/chat/completions",
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            timeout=self.timeout,
        )
        return made

    def close(self) -> None:
        """Cut off the calls of this session; whoever waits for an answer gets a TransientFault at once."""
        self._connections.cut()

    def varies(self, request: ChatRequest) -> bool:
        """True: servers batch requests as they come, so even greedy answers differ."""
        return True

    def reply(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """The answer to the one request. A server that is not done after `timeout` seconds counts as silent."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: ChatRequest) -> Reply:
        try:
            status, headers, body = self._connections.post(json.dumps(self._body(request)).encode())
        except TimeoutError:
            raise TransientFault(f"timeout: no whole answer within {self.timeout:g} s") from None
        except (OSError, HTTPException) as error:
            name = type(error).__name__
            raise TransientFault(self._short(f"connection: {name}: {error}")) from None
        return self._read(body) if status < 300 else self._refused(status, headers, body)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        messages = [dict(turn) for turn in request.messages]
        body: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.seed is not None:
            body["seed"] = request.seed
        if request.schema is not None:
            if self.structured == "json_schema":
                asked = {"name": "answer", "schema": request.schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": asked}
            else:
                messages[-1]["content"] += FIT + json.dumps(request.schema, ensure_ascii=False)
            if self.structured == "json_object":
                body["response_format"] = {"type": "json_object"}
        body = {"model": self.model, "messages": messages} | body | self.extra
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, body: bytes) -> Reply:
        try:
            made = json.loads(self._hide(body.decode("utf-8", "replace")))
            choice = made["choices"][0]
            message, usage = choice["message"], made.get("usage") or {}
            content = message.get("content") or ""
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content)
            finish = choice.get("finish_reason")
            refusal = message.get("refusal") or ("content filter" if finish == "content_filter" else "")
            return Reply(
                text=_encodable(content),
                finish="length" if finish == "length" else "stop",
                refusal=_encodable(str(refusal)),
                usage={name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")},
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise TransientFault(f"broken response: {type(error).__name__} in {len(body)} bytes") from None

    def _refused(self, status: int, headers: Any, body: bytes) -> Reply:
        """What an HTTP status that is no success means: for this request alone a Reply, for later or for all an exception."""
        detail = _error_of(body)
        code = detail.get("code") or detail.get("type") or ""
        said = self._short(f"{status}: {detail.get('message') or body.decode('utf-8', 'replace')}")
        if code == "content_filter":
            return Reply(text="", refusal=said)
        if status < 400:
            moved = urlsplit(headers.get("location", "")).netloc or "another address"
            raise ServiceError(
                f"{self._host()} sends its calls on to {moved} ({status}) -> set base_url to it"
            )
        if status in (401, 403):
            raise ServiceError(
                f"{self._host()} does not accept the API key ({status}) -> check the variable of `api_key_env`"
            ) from None
        if status == 402 or code == "insufficient_quota":
            raise ServiceError(
                f"{self._host()} wants payment: {said} -> top up, then run again to resume"
            ) from None
        if status == 404:
            raise ServiceError(
                f"{self._host()} has no model {self.model}: {said} -> check base_url and model"
            ) from None
        if status in LATER or status >= 500:
            raise TransientFault(said, wait=_asked_wait(headers), busy=status == 429) from None
        return Reply(text="", rejected=said)

    def _host(self) -> str:
        return urlsplit(self.identity["base_url"]).netloc

    def _hide(self, text: str) -> str:
        """`text` without the key; a placeholder of a few letters is no secret and may be a word."""
        return text.replace(self._key, HIDDEN) if len(self._key) >= SECRET else text

    def _short(self, text: str) -> str:
        return " ".join(self._hide(text).split())[:300]


class Recorded:
    """Answers from a file that `ChatClient.run_to_file` wrote, or JSON lines of {"key", "text"} written by hand."""

    identity = None
    batch = 1
    parallel = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"no recorded answers at {self.path} -> check the path")
        self.rows = read_results(self.path)
        teachers = {row.teacher for row in self.rows.values()}
        whose = teachers.pop() if len(teachers) == 1 else ""
        self.teacher = f"recorded:{whose or self.path.name}"

    def varies(self, request: ChatRequest) -> bool:
        return False

    def reply(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """The recorded answers; InputError for a key that was not recorded, or was for another prompt."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: ChatRequest) -> Reply:
        row = self.rows.get(request.key)
        if row is None:
            raise InputError(
                f"{self.path} has no answer for {request.key!r} -> record it, or ask another backend"
            )
        if row.prompt_sha256 not in ("", request.prompt_sha256):
            raise InputError(
                f"{self.path}: the answer for {request.key!r} was recorded for another prompt -> record it again"
            )
        if row.status == "failed":
            return Reply(text="", rejected=row.error)
        return Reply(
            text=row.text,
            refusal=row.error if row.status == "refused" else "",
            usage=row.usage,
        )


class Heuristic:
    """A function of the caller's own in place of a model: request -> text, or a JSON value where there is a schema.

    Only for a caller that names it; every result says `heuristic:<function>`.
    """

    identity = None
    batch = 1
    parallel = False

    def __init__(self, function: Callable[[ChatRequest], Any]) -> None:
        self.function = function
        self.teacher = f"heuristic:{function.__name__}"

    def varies(self, request: ChatRequest) -> bool:
        return False

    def reply(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        made = [self.function(request) for request in requests]
        return [Reply(text=m if isinstance(m, str) else json.dumps(m, ensure_ascii=False)) for m in made]


def check_base_url(url: str) -> None:
    """InputError for a URL that is none, or that carries a secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("base_url is no http(s) address -> e.g. http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"base_url of {parts.hostname} carries a user, password or query -> put keys into the environment"
        )


def _error_of(body: bytes) -> dict[str, Any]:
    """What a server says of an error: the object `error` of its answer, or the whole of it."""
    try:
        made = json.loads(body)
    except ValueError:
        return {}
    said = made.get("error", made) if isinstance(made, dict) else {}
    return said if isinstance(said, dict) else {"message": str(said)}


def _asked_wait(headers: Any) -> float:
    """Seconds that a server's Retry-After asks for, as a number or a date; 0 without one."""
    asked = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", asked):
        return float(asked)
    try:
        return max(parsedate_to_datetime(asked).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _encodable(text: str) -> str:
    """`text` without halves of surrogate pairs, which no file could hold."""
    return text.encode("utf-8", "replace").decode()
