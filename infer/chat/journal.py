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
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from configs.program import InputError
from infer.chat.messages import STATUSES, ChatResult

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
        row = json.loads(line)
    except ValueError:
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
