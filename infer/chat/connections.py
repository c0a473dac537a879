"""The connections of one run, so that the calls under way can be cut off when it ends.

Closing an HTTP client does not wake a thread that waits for its answer; shutting the socket down does. The sockets come
from the `trace` extension of httpx, which tells of every connection as soon as it stands.
"""

from __future__ import annotations

import socket
import threading
import weakref
from contextlib import suppress
from typing import Any

OPENED = ("connection.connect_tcp.complete", "connection.start_tls.complete")


class Connections:
    """`watch` is an httpx request hook. After `cut` every connection is shut down, those that come later as well."""

    def __init__(self) -> None:
        self._lock, self._cut = threading.Lock(), False
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def watch(self, request: Any) -> None:
        """Follow the connection that `request` (httpx.Request) opens."""
        request.extensions = request.extensions | {"trace": self._note}

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            for opened in list(self._sockets):
                _shut(opened)

    def _note(self, event: str, info: dict[str, Any]) -> None:
        if event in OPENED and (opened := info["return_value"].get_extra_info("socket")) is not None:
            with self._lock:
                self._sockets.add(opened)
                if self._cut:
                    _shut(opened)


def _shut(opened: socket.socket) -> None:
    with suppress(OSError):  # closed already
        opened.shutdown(socket.SHUT_RDWR)
