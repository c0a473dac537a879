"""A file of results that survives anything: JSON lines, one per finished sample, only ever appended to.

A line is written with one call as soon as its sample is finished. After a kill at any moment the file holds every finished
sample, and at most its last line is torn; opening it for more cuts that line off. Of several lines with one key the last
counts: an earlier one failed, or its prompt has changed since.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from configs.program import InputError
from data.store.json_text import parse_json
from infer.chat.messages import STATUSES, ChatRequest, ChatResult

FIELDS = {field.name for field in fields(ChatResult)}
# A model that has refused refuses again; what failed or was broken may come out well in the next run.
SETTLED = ("ok", "refused")


class Journal:
    """Appends results to `path`, one process at a time. `done` maps the key of each settled sample to
    (prompt hash, teacher); failed and invalid samples are absent, so a resumed run asks them again. `spent` counts the
    calls and tokens of all lines; answers from a cache cost nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._claim()
            _mend(self._file)
            self.done: dict[str, tuple[str, str]] = {}
            self.spent: Counter[str] = Counter()
            for row in _rows(self.path):
                self._count(row)
                self.done.pop(row["key"], None)
                if row["status"] in SETTLED:
                    self.done[row["key"]] = (row.get("prompt_sha256", ""), row.get("teacher", ""))
        except BaseException:
            os.close(self._file)
            raise

    def _count(self, row: dict[str, Any]) -> None:
        if not row.get("cached"):
            usage = row.get("usage", {})
            self.spent["calls"] += row.get("attempts", 0)
            self.spent["tokens"] += usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path} is being written by another process -> wait for it or choose another file"
            ) from None

    def append(self, result: ChatResult) -> None:
        """Write a finished sample; safe from several threads. A full disk leaves no part of a line."""
        line = memoryview((json.dumps(result.row(), ensure_ascii=False) + "\n").encode())
        with self._lock:
            size = os.fstat(self._file).st_size
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except BaseException:
                os.ftruncate(self._file, size)
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            os.fsync(self._file)
            os.close(self._file)


class Unanswered:
    """An iterator over the requests that a journal has no answer to; the others are counted as kept.

    With `follow`, an answer, kept or new (`answered`), may lead to further requests, which come before the rest: the
    iterator can then go on after it has ended. A kept sample whose prompt or teacher is another now is changed: asked again,
    or with `refuse` an InputError, as is a key that comes twice.
    """

    def __init__(
        self,
        requests: Iterable[ChatRequest],
        journal: Journal,
        counts: Counter[str],
        *,
        teacher: str,
        refuse: bool,
        follow: Callable[[ChatResult], Iterable[ChatRequest]] | None,
    ) -> None:
        self._requests, self._further = distinct(requests), deque[ChatRequest]()
        self._journal, self._counts, self._teacher, self._refuse = journal, counts, teacher, refuse
        self._follow = follow
        self._kept = read_results(journal.path) if follow else {}

    def answered(self, result: ChatResult) -> None:
        """Take note of a new answer."""
        if self._follow:
            self._further.extend(self._follow(result))

    def __iter__(self) -> Unanswered:
        return self

    def __next__(self) -> ChatRequest:
        while True:
            request = self._further.popleft() if self._further else next(self._requests)
            known = self._journal.done.get(request.key)
            if known == (request.prompt_sha256, self._teacher):
                self._counts["kept"] += 1
                if self._follow:
                    self.answered(self._kept.pop(request.key))
                continue
            if known is not None and self._refuse:
                what = (
                    "prompt"
                    if known[0] != request.prompt_sha256
                    else f"teacher ({known[1]}, not {self._teacher})"
                )
                raise InputError(
                    f"{self._journal.path}: {request.key!r} was answered for another {what} -> choose another file"
                )
            self._counts["changed"] += known is not None
            return request


def distinct(requests: Iterable[ChatRequest]) -> Iterator[ChatRequest]:
    """`requests`; InputError for a key that comes twice."""
    seen: set[str] = set()
    for request in requests:
        if request.key in seen:
            raise InputError(
                f"two requests have the key {request.key!r} -> keys name samples, make them unique"
            )
        seen.add(request.key)
        yield request


def read_results(path: str | Path) -> dict[str, ChatResult]:
    """{key: result} of a file of answers, in the order in which keys first appeared; InputError for a damaged line.

    A line written by hand needs no more than key and text: without a status it is ok. A torn last line is left out: the
    run that writes it has not finished, or was killed.
    """
    return {row["key"]: ChatResult(**row) for row in _rows(Path(path))}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            row = _row(line)
            if row is None and line.endswith(b"\n"):
                raise InputError(
                    f"{path}:{number}: not an answer (JSON with key, status, text) -> delete the line, or choose another file"
                )
            if row is not None:
                yield row


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line, where="a line")
    except InputError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str) or row.keys() - FIELDS:
        return None
    row.setdefault("status", "ok")
    return row if row["status"] in STATUSES and isinstance(row.get("text", ""), str) else None


def _mend(file: int) -> None:
    """Cut off what stands behind the last newline, in blocks from the end."""
    end = os.fstat(file).st_size
    while end:
        start = max(end - (1 << 16), 0)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(file, start + newline + 1)
            return
        end = start
    os.ftruncate(file, 0)
