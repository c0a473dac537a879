"""The connections of one run to one server: kept open between calls, and cut off when the run ends.

HTTP/1.1 of the standard library: a call takes 0.2 to 0.3 ms of CPU where httpx takes 0.7 to 1.0, and for as long as a call is prepared
or read its place at the server is empty. Closing a client does not wake a thread that waits
for its answer; shutting the socket down does. A proxy is used as the environment says (HTTPS_PROXY, HTTP_PROXY, NO_PROXY),
certificates are those of SSL_CERT_FILE or SSL_CERT_DIR, else certifi's.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from configs.program import InputError

PIECE = 1 << 16


class Connections:
    """Posts JSON to `url` from any number of threads, a connection each; the last one that came free is used first."""

    def __init__(self, url: str, *, headers: Mapping[str, str], timeout: float) -> None:
        """timeout: seconds. Raises InputError for a proxy of the environment that is not reached by http."""
        self._to, self._timeout = urlsplit(url), timeout
        self._proxy = _proxy_for(self._to)
        self._context = _context() if self._to.scheme == "https" else None
        self._lock, self._cut = threading.Lock(), False
        self._free: list[socket.socket] = []
        self._open: set[socket.socket] = set()
        self._head = self._request_head(headers)

    def post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body of the answer).

        Raises TimeoutError where it is not whole after `timeout` seconds, be it that the server only sends blanks; OSError or
        HTTPException where the connection is lost.
        """
        end = time.monotonic() + self._timeout
        sock, kept = self._take(), False
        try:
            sock.sendall(self._head + b"%d\r\n\r\n%b" % (len(body), body))
            response = HTTPResponse(sock, method="POST")
            try:
                response.begin()
                pieces = []
                while piece := response.read1(PIECE):
                    pieces.append(piece)
                    if time.monotonic() > end:
                        raise TimeoutError
                if response.length:
                    raise HTTPException(f"the answer breaks off {response.length} bytes before its end")
                kept = not response.will_close
                return response.status, response.headers, b"".join(pieces)
            finally:
                response.close()
        finally:
            self._leave(sock, kept=kept)

    def cut(self) -> None:
        """Shut down every connection, those that come later as well."""
        with self._lock:
            self._cut = True
            for sock in self._open:
                with suppress(OSError):  # closed already
                    sock.shutdown(socket.SHUT_RDWR)
            for sock in self._free:
                self._open.discard(sock)
                sock.close()
            self._free.clear()

    def _take(self) -> socket.socket:
        while True:
            with self._lock:
                if not self._free:
                    break
                sock = self._free.pop()
            if not _readable(sock):
                return sock
            self._leave(sock, kept=False)  # the server has closed it meanwhile
        sock = self._connect()
        with self._lock:
            self._open.add(sock)
            if self._cut:
                sock.shutdown(socket.SHUT_RDWR)
        return sock

    def _leave(self, sock: socket.socket, *, kept: bool) -> None:
        with self._lock:
            if kept and not self._cut:
                self._free.append(sock)
                return
            self._open.discard(sock)
        sock.close()

    def _connect(self) -> socket.socket:
        first = self._proxy or self._to
        options: dict[str, Any] = {"timeout": self._timeout}
        if self._context is None:
            connection = HTTPConnection(first.hostname, _port(first), **options)
        else:
            connection = HTTPSConnection(first.hostname, _port(first), context=self._context, **options)
            if self._proxy:
                connection.set_tunnel(self._to.hostname, _port(self._to), _credentials(self._proxy))
        connection.connect()
        return connection.sock

    def _request_head(self, headers: Mapping[str, str]) -> bytes:
        """The request up to the value of Content-Length, its last header."""
        target = self._to.path or "/"
        if self._proxy and self._context is None:
            target, headers = self._to.geturl(), {**headers, **_credentials(self._proxy)}
        told = {
            "Host": self._to.netloc,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **headers,
        }
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
        return ("\r\n".join(lines) + "\r\nContent-Length: ").encode("latin-1")


def _proxy_for(to: SplitResult) -> SplitResult | None:
    named = getproxies()
    address = named.get(to.scheme) or named.get("all")
    if not address or proxy_bypass(to.hostname):
        return None
    proxy = urlsplit(address if "://" in address else f"http://{address}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise InputError(
            f"the proxy for {to.hostname} is reached by {proxy.scheme} -> set {to.scheme.upper()}_PROXY to an http:// address, "
            "or name the host in NO_PROXY"
        )
    return proxy


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {b64encode(secret).decode()}"}


def _context() -> ssl.SSLContext:
    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _port(address: SplitResult) -> int:
    return address.port or (443 if address.scheme == "https" else 80)


def _readable(sock: socket.socket) -> bool:
    """Whether something has come without a question: the end of the connection."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
