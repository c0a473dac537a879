"""Files of answers: resume after any kill, torn lines, changed prompts, one writer."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from configs.program import ROOT, InputError
from infer.chat.client import ChatRequest, ChatSettings, chat_client, read_results
from infer.chat.journal import Journal
from tests.fake_openai_server import serving


def requests(words: list[str], *, text: str = "?") -> list[ChatRequest]:
    """One request per word, named by its place."""
    turns = [[{"role": "user", "content": f"{word}\n{place} {text}"}] for place, word in enumerate(words)]
    return [ChatRequest(key=str(place), messages=turn) for place, turn in enumerate(turns)]


def client(url: str, **settings):
    common = {
        "model": "fake",
        "api_key_env": "",
        "backoff": 0.01,
        "retries": 0,
        "useless_retries": 0,
        "stop_after": 0,
    }
    return chat_client(ChatSettings(backend="openai", base_url=url, **common | settings))


@pytest.fixture
def server():
    with serving() as made:
        yield made


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_second_run_asks_only_what_is_open(server, tmp_path):
    url, log = server
    path = tmp_path / "new/answers.jsonl"
    asked = requests(["ok", "500 ok", "sorry", "cut ok", "ok"])
    first = client(url).run_to_file(asked, path)
    assert {k: first[k] for k in ("ok", "failed", "refused", "invalid", "kept", "calls")} == {
        "ok": 2, "failed": 1, "refused": 1, "invalid": 1, "kept": 0, "calls": 5,
    }  # fmt: skip
    assert first["prompt_tokens"] == 4 * 7 and first["completion_tokens"] == 4 * 3
    second = client(url).run_to_file((request for request in asked), path)
    assert (second["ok"], second["kept"], second["calls"]) == (2, 3, 2)
    assert sum(log.calls.values()) == 7
    results = read_results(path)
    assert sorted(results) == list("01234")
    assert Counter(r.status for r in results.values()) == {"ok": 4, "refused": 1}
    assert len(lines(path)) == 7
    assert client(url).run_to_file(asked, path)["kept"] == 5


def test_what_is_written_is_what_complete_returns(server, tmp_path):
    asked = requests(["same", "sorry", "400", "prose"])
    client(server[0]).run_to_file(asked, tmp_path / "a.jsonl")
    rows = read_results(tmp_path / "a.jsonl")
    server[1].calls.clear()
    assert [rows[str(place)] for place in range(4)] == client(server[0]).complete(asked)


def test_every_torn_last_line_is_dropped_and_its_sample_asked_again(server, tmp_path):
    url, log = server
    path = tmp_path / "a.jsonl"
    asked = requests(["ok"] * 3)
    client(url, concurrency=1).run_to_file(asked, path)
    whole = path.read_bytes()
    starts = [0, *[place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]]
    for cut in [starts[2], starts[2] + 1, starts[2] + 40, len(whole) - 1, starts[1] + 5, 3]:
        path.write_bytes(whole[:cut])
        finished = max(place for place, start in enumerate(starts) if start <= cut)
        log.calls.clear()
        counts = client(url).run_to_file(asked, path)
        assert (counts["kept"], sum(log.calls.values())) == (finished, 3 - finished)
        assert sorted(row["key"] for row in lines(path)) == ["0", "1", "2"]


def test_a_damaged_line_in_the_middle_is_named(server, tmp_path):
    path = tmp_path / "a.jsonl"
    client(server[0]).run_to_file(requests(["ok"] * 3), path)
    rows = path.read_text().splitlines(keepends=True)
    for damage in (
        "{\n",
        "[1]\n",
        '{"key": 1}\n',
        '{"key": "0", "status": "fine"}\n',
        '{"key": "0", "txt": ""}\n',
    ):
        path.write_text(rows[0] + damage + rows[2])
        with pytest.raises(InputError, match=r"a\.jsonl:2"):
            client(server[0]).run_to_file(requests(["ok"]), path)
        with pytest.raises(InputError, match=r"a\.jsonl:2"):
            read_results(path)


def test_a_changed_prompt_or_teacher_is_noticed(server, tmp_path):
    url, log = server
    path = tmp_path / "a.jsonl"
    client(url).run_to_file(requests(["ok"] * 3), path)
    changed = requests(["ok"] * 2) + requests(["ok"] * 3, text="!")[2:]
    log.calls.clear()
    with pytest.raises(InputError, match="'2' was answered for another prompt"):
        client(url).run_to_file(changed, path, changed="refuse")
    assert sum(log.calls.values()) == 0
    counts = client(url).run_to_file(changed, path)
    assert (counts["kept"], counts["changed"], counts["ok"]) == (2, 1, 1)
    assert read_results(path)["2"].prompt_sha256 == changed[2].prompt_sha256
    assert client(url).run_to_file(changed, path, changed="refuse")["kept"] == 3
    with pytest.raises(InputError, match="another teacher"):
        client(url, model="larger").run_to_file(changed, path, changed="refuse")
    assert client(url, model="larger").run_to_file(changed, path)["changed"] == 3


def test_two_samples_of_one_key_are_refused(server, tmp_path):
    twice = requests(["ok"] * 2) + requests(["ok"])
    with pytest.raises(InputError, match="key '0'"):
        client(server[0]).run_to_file(twice, tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="key '0'"):
        client(server[0]).complete(twice)


def test_one_writer_at_a_time(server, tmp_path):
    with Journal(tmp_path / "a.jsonl"), pytest.raises(InputError, match="another process"):
        client(server[0]).run_to_file(requests(["ok"]), tmp_path / "a.jsonl")
    assert client(server[0]).run_to_file(requests(["ok"]), tmp_path / "a.jsonl")["ok"] == 1


def test_a_full_disk_leaves_no_part_of_a_line(server, tmp_path, monkeypatch):
    path, write = tmp_path / "a.jsonl", os.write
    asked = requests(["ok"] * 4)

    def full(file: int, line: memoryview) -> int:
        if os.fstat(file).st_size > 700:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, line[:100])

    with monkeypatch.context() as patch:
        patch.setattr("infer.chat.journal.os.write", full)
        with pytest.raises(OSError, match="No space"):
            client(server[0], concurrency=1).run_to_file(asked, path)
    assert path.read_bytes().endswith(b"}\n") and 0 < len(lines(path)) < 4
    assert client(server[0]).run_to_file(asked, path)["kept"] > 0 and len(lines(path)) == 4


def test_requests_are_drawn_only_as_they_are_asked(server, tmp_path):
    drawn = []

    def endless():
        for request in requests(["ok"] * 40 + ["401"] * 1000):
            drawn.append(request.key)
            yield request

    with pytest.raises(Exception, match="API key"):
        client(server[0], concurrency=4).run_to_file(endless(), tmp_path / "a.jsonl")
    assert len(drawn) < 60
    assert sum(r.status == "ok" for r in read_results(tmp_path / "a.jsonl").values()) >= 20


WORKER = """
from dataclasses import dataclass
from configs import program
from tests.test_chat_journal import client, requests

@dataclass
class Args:
    url: str = ""
    path: str = ""
    word: str = ""

def main(args):
    client(args.url, concurrency=4, timeout=60).run_to_file(requests([args.word] * 60), args.path)

program.run(Args, main)
"""


def start(url: str, path, word: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, "--url", url, "--path", str(path), "--word", word]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def wait_until(condition, worker: subprocess.Popen) -> bool:
    """True once the condition holds, False where the worker ended first."""
    deadline = time.monotonic() + 60
    while worker.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


def test_killed_at_any_moment_it_loses_nothing_and_repeats_nothing(server, tmp_path):
    url, log = server
    path = tmp_path / "a.jsonl"
    done: set[str] = set()
    for signum, stop_at, code in (
        (signal.SIGKILL, 1, -9),
        (signal.SIGTERM, 17, 143),
        (signal.SIGKILL, 38, -9),
        (None, 61, 0),
    ):
        asked_before = log.calls.copy()
        worker = start(url, path, "slow:0.02")
        if wait_until(lambda n=stop_at: path.exists() and path.read_bytes().count(b"\n") >= n, worker):
            worker.send_signal(signum)
        assert worker.wait(timeout=60) == code, worker.stderr.read()
        worker.stderr.close()
        repeated = {turn.split("\n")[1].split()[0] for turn in log.calls - asked_before} & done
        assert repeated == set(), "a finished sample was paid for twice"
        rows = read_results(path)
        assert len(rows) > len(done) and done <= set(rows) and {row.status for row in rows.values()} == {"ok"}
        done = set(rows)
    assert sorted(row["key"] for row in lines(path)) == sorted(str(i) for i in range(60))
    # What is under way at a kill may be asked again: a call of each caller, and an answer that is not written yet.
    assert sum(log.calls.values()) <= 60 + 2 * 4 * 3


def test_an_interrupt_does_not_wait_for_answers(server, tmp_path):
    worker = start(server[0], tmp_path / "a.jsonl", "slow:30")
    assert wait_until(lambda: server[1].at_once == 4, worker)
    clock = time.monotonic()
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=120) == 130 and time.monotonic() - clock < 28
    assert "INTERRUPTED 130" in worker.stderr.read()
    worker.stderr.close()
