"""Fetch a file over HTTP: in pieces that go on where they stopped, checked against the publisher's digest.

While it comes in it is called NAME.part, with NAME.part.version beside it (the server's ETag or date): a server that has another
version by now sends the whole file again. Nothing is called NAME before its digest is right.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from configs.program import EnvironmentFault, progress

BLOCK = 1 << 20
AGENT = "Mozilla/5.0 (data.download)"  # some publishers refuse Python's own name
HEX = {"md5": 32, "sha1": 40, "sha256": 64}


class HostDown(EnvironmentFault):
    """The host cannot be reached, or has no such file."""


@dataclass(frozen=True)
class Persistence:
    """timeout: seconds without a byte; attempts: how often a broken connection is taken up again; pause: seconds before."""

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0


def fetch(url: str, target: Path, *, digest: str, patience: Persistence) -> bool:
    """Fetch `url` to `target`; returns whether an earlier half was continued.

    digest: `md5:...` or the like, "" where the publisher has none. HostDown when the host cannot be reached; EnvironmentFault
    when the digest differs, also after the file was fetched whole once more.
    """
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    for whole in (False, True):
        _complete(url, part, patience)
        found = digest_of(part, digest.split(":")[0]) if digest else ""
        if found == digest:
            _version_file(part).unlink(missing_ok=True)
            part.replace(target)
            return resumed
        part.unlink()
        _version_file(part).unlink(missing_ok=True)
        if whole or not resumed:
            break
    raise EnvironmentFault(
        f"{url}: {found}, but the publisher says {digest} -> removed; fetch it again, or look whether the publisher changed it"
    )


def digest_of(path: Path, kind: str) -> str:
    """`kind:hex` of a file."""
    with open(path, "rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def published_digest(url: str, patience: Persistence) -> str:
    """`md5:...` or `sha256:...` that a small file beside the data names; HostDown when there is none."""
    text = _read(url, patience)
    for kind, length in HEX.items():
        if match := re.search(rf"(?<![0-9a-f])[0-9a-f]{{{length}}}(?![0-9a-f])", text.lower()):
            return f"{kind}:{match[0]}"
    raise EnvironmentFault(f"{url} names no checksum ({text[:60]!r}) -> look at it in a browser")


def _read(url: str, patience: Persistence) -> str:
    with _open(url, {}, patience) as answer:
        return answer.read(1 << 16).decode("utf-8", "replace")


def _open(url: str, headers: dict[str, str], patience: Persistence) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": AGENT} | headers)
    try:
        return urllib.request.urlopen(request, timeout=patience.timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            raise
        raise HostDown(
            f"{url}: the server answers {error.code} {error.reason} -> look whether it moved"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise HostDown(
            f"{url} cannot be reached ({reason}) -> check the network, or place the file by hand"
        ) from None


def _complete(url: str, part: Path, patience: Persistence) -> None:
    """Fetch what `part` lacks; a connection that breaks is taken up again as long as bytes come."""
    for attempt in range(patience.attempts):
        before = part.stat().st_size if part.exists() else 0
        try:
            if _take(url, part, patience):
                return
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
                raise
            if attempt + 1 == patience.attempts:
                raise HostDown(
                    f"{url}: the connection broke {patience.attempts} times ({error}) -> run it again: it goes on"
                ) from None
        if not part.exists() or part.stat().st_size <= before:
            time.sleep(patience.pause)
    raise HostDown(f"{url}: the connection ended early {patience.attempts} times -> run it again: it goes on")


def _take(url: str, part: Path, patience: Persistence) -> bool:
    """One connection; True when the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _version_file(part).exists():
            headers["If-Range"] = _version_file(part).read_text()
    try:
        answer = _open(url, headers, patience)
    except urllib.error.HTTPError as error:
        # Nothing after what we have: complete, or longer than the server's.
        size = re.search(r"/(\d+)$", error.headers.get("Content-Range", ""))
        if size and int(size[1]) == have:
            return True
        part.unlink()
        return False
    with answer:
        continues = answer.status == 206
        if continues and _start_of(answer.headers.get("Content-Range", "")) != have:
            part.unlink()  # a piece from elsewhere: nothing says that it fits, so the whole file is asked for
            return False
        have = have if continues else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        tag = answer.headers.get("ETag", "W/")
        version = (
            answer.headers.get("Last-Modified") if tag.startswith("W/") else tag
        )  # weak ones do not count
        if version:
            _version_file(part).write_text(version)
        with open(part, "ab" if continues else "wb") as out:
            blocks = iter(lambda: answer.read(BLOCK), b"")
            expected = None if total is None else -(-(total - have) // BLOCK)
            for block in progress(blocks, label=url.rsplit("/", 1)[1], total=expected, unit="MiB"):
                out.write(block)
    return total is None or part.stat().st_size == total


def _start_of(content_range: str) -> int | None:
    """Where a piece begins.

    >>> _start_of("bytes 70000-1279999/1280000")
    70000
    """
    found = re.match(r"bytes (\d+)-\d+/", content_range)
    return int(found[1]) if found else None


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")
