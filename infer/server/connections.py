"""Connections of the web server: bounded in number and in time, so that clients that say nothing block nobody.

A connection waits until a whole request head has come, for HEAD_SECONDS at most. Beyond MAX_OF_A_CLIENT connections of one
address, or MAX_CONNECTIONS in all, the one that has waited longest makes room; where hardly any waits, the new one is refused
(429 or 503, with Retry-After). Every refusal is one line of JSON, also that of bytes that are no HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
LINGER_SECONDS = 1.0
MAX_CONNECTIONS = 256
MAX_OF_A_CLIENT = 96
CROWD = 8  # fewer that wait may be requests that have just come
RETRY_SECONDS = 2


def refusal(status: int, message: str) -> bytes:
    """A whole response that closes its connection."""
    body = json.dumps({"error": message}).encode()
    head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}", "Connection: close", "X-Content-Type-Options: nosniff"]
    head += [f"Retry-After: {RETRY_SECONDS}"] if status in (429, 503) else []
    return "\r\n".join([*head, "", ""]).encode() + body


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with the bounds of this module; one server per process."""

    waiting: dict[BoundedProtocol, str] = {}  # noqa: RUF012 - shared on purpose: the order in which they came
    open_of: Counter[str] = Counter()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.host, self.refused = self.client[0] if self.client else "", False
        self.deadline: asyncio.TimerHandle | None = None
        self.open_of[self.host] += 1
        too_many = self.open_of[self.host] > MAX_OF_A_CLIENT
        if too_many or len(self.connections) > MAX_CONNECTIONS:
            idle = [one for one, host in self.waiting.items() if host == self.host or not too_many]
            if len(idle) < CROWD:
                status, whose = (429, "your") if too_many else (503, "all")
                self.refuse(status, f"{whose} connections are in use: try again in {RETRY_SECONDS} seconds")
                return
            idle[0].refuse(408, "the request did not come, and others need the connection")
        self.watch()

    def watch(self) -> None:
        """Start the clock where a request head is awaited, stop it where one has come."""
        waits = self.conn.their_state is h11.IDLE and not self.refused
        if waits and self.deadline is None:
            self.waiting[self] = self.host
            message = f"the request head took longer than {HEAD_SECONDS:.0f} seconds"
            self.deadline = self.loop.call_later(HEAD_SECONDS, self.refuse, 408, message)
        elif not waits and self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
            self.waiting.pop(self, None)

    def data_received(self, data: bytes) -> None:
        if not self.refused:
            super().data_received(data)
            self.watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def _leave(self) -> None:
        """No longer one of its address: one that is refused must not cost the next one its place while it lingers."""
        if not self.refused:
            self.open_of[self.host] -= 1
            self.open_of += Counter()  # drops the addresses that have none
        self.refused = True
        self.watch()

    def refuse(self, status: int, message: str) -> None:
        """Answer without the app and close; what still comes is read and dropped, so that the answer arrives."""
        self._leave()
        self._unset_keepalive_if_required()
        self.transport.write(refusal(status, message))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, msg.rstrip(".").lower())
