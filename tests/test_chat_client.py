"""The chat client against a real local server with injected faults: statuses, retries, cache, secrets, backends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace

import pytest

from configs import program
from configs.program import ROOT, InputError, ServiceError
from infer.chat.client import ChatRequest, ChatSettings, chat_client, read_results
from tests.fake_openai_server import SCHEMA, serving

KEY_NAME, KEY = "FAKE_API_KEY", "sk-test-CANARY-0123456789"
FAST = {"backoff": 0.01, "timeout": 30, "retries": 2, "stop_after": 0}


@pytest.fixture
def server():
    with serving() as made:
        yield made


@pytest.fixture
def ask(server, monkeypatch):
    """A client of the server: ask(**settings)."""
    monkeypatch.setenv(KEY_NAME, KEY)
    url, _ = server

    def make(**settings):
        common = {"backend": "openai", "model": "fake", "base_url": url, "api_key_env": KEY_NAME}
        return chat_client(ChatSettings(**common | FAST | settings))

    return make


def question(words: str, *, key: str = "", schema: dict | None = SCHEMA, **sampling) -> ChatRequest:
    return ChatRequest(
        key=key or words, messages=[{"role": "user", "content": words}], schema=schema, **sampling
    )


@pytest.mark.parametrize(
    ("words", "status", "attempts", "error"),
    [
        ("ok", "ok", 1, ""),
        ("fenced", "ok", 1, ""),
        ("thought", "ok", 1, ""),
        ("429 ok", "ok", 2, ""),
        ("500 503 ok", "ok", 3, ""),
        ("hang-up ok", "ok", 2, ""),
        ("half ok", "ok", 2, ""),
        ("garbage ok", "ok", 2, ""),
        ("slow:3 ok", "ok", 2, ""),
        ("broken wrong ok", "ok", 3, ""),
        ("500 broken 500 broken ok", "ok", 5, ""),  # faults and useless answers have budgets of their own
        ("500", "failed", 3, "500: injected"),
        ("slow:3", "failed", 3, "timeout"),
        ("drip", "failed", 3, "timeout: no whole answer"),
        ("400", "failed", 1, "400"),
        ("broken", "invalid", 3, "not JSON"),
        ("prose", "invalid", 3, "not JSON"),
        ("wrong", "invalid", 3, "answer has no call"),
        ("cut", "invalid", 3, "cut off at 1024 tokens"),
        ("endless", "invalid", 3, "no end"),
        ("empty", "invalid", 3, "empty"),
        ("refusal", "refused", 1, "I'm sorry"),
        ("sorry", "refused", 1, "refusal"),
        ("filter", "refused", 1, "content filter"),
    ],
)
def test_status_of_every_fault(ask, words, status, attempts, error):
    silent = words.startswith(("slow", "drip"))
    (result,) = ask(timeout=1 if silent else 30).complete([question(words)])
    assert (result.status, result.attempts) == (status, attempts)
    assert result.error.startswith(error) or error in result.error
    assert (result.parsed is not None) == (status == "ok")
    assert (result.error == "") == (status == "ok")
    assert result.teacher == "openai:fake" and not result.cached


def test_free_text_is_an_answer_unless_it_refuses(ask):
    results = ask().complete([question(w, schema=None) for w in ("ok", "prose", "sorry", "cut", "thought")])
    assert [r.status for r in results] == ["ok", "ok", "refused", "invalid", "ok"]
    assert all(r.parsed is None for r in results) and results[4].text.startswith("{")


def test_order_is_that_of_requests_and_concurrency_is_bounded(ask, server):
    requests = [question(f"slow:{0.05 * (i % 3)}\n{i}", key=str(i)) for i in range(30)]
    results = ask(concurrency=5).complete(requests)
    assert [r.key for r in results] == [str(i) for i in range(30)]
    assert 3 <= server[1].most_at_once <= 5
    assert [r.prompt_sha256 for r in results] == [r.prompt_sha256 for r in requests]


def test_the_service_says_how_long_to_wait(ask):
    clock = program.Clock()
    (result,) = ask().complete([question("busy:0.6 ok")])
    assert result.status == "ok" and clock.seconds >= 0.6


@pytest.mark.parametrize("words", ["401", "403", "402", "404"])
def test_what_no_retry_can_help_ends_the_run_with_exit_code_5(ask, server, words):
    with pytest.raises(ServiceError) as caught:
        ask(concurrency=2, retries=5).complete([question(f"{words}\n{i}", key=str(i)) for i in range(50)])
    assert caught.value.code == 5 and "->" in str(caught.value) and KEY not in str(caught.value)
    assert sum(server[1].calls.values()) <= 4


def test_emergency_stop_keeps_what_is_finished(ask, server, tmp_path):
    words = ["ok"] * 5 + ["500"] * 200
    requests = [question(f"{word}\n{i}", key=str(i)) for i, word in enumerate(words)]
    client = ask(stop_after=4, retries=1, concurrency=2)
    with pytest.raises(ServiceError, match="4 requests in a row without an answer.*500: injected"):
        client.run_to_file(requests, tmp_path / "a.jsonl")
    results = read_results(tmp_path / "a.jsonl")
    assert sum(r.status == "ok" for r in results.values()) == 5
    assert 4 <= sum(r.status == "failed" for r in results.values()) <= 5
    assert sum(server[1].calls.values()) < 30


def test_useless_answers_are_asked_again_with_another_seed(ask, server):
    ask().complete([question("broken broken ok", seed=3)])
    seeds = [body["seed"] for body in server[1].bodies]
    assert seeds[0] == 3 and len(set(seeds)) == 3
    server[1].bodies.clear()
    ask().complete([question("500 500 ok", seed=3)])
    assert [body["seed"] for body in server[1].bodies] == [3, 3, 3]


def test_what_the_server_is_sent(ask, server):
    ask().complete([question("ok", temperature=0.5, max_tokens=9, seed=1)])
    ask(structured="json_object").complete([question("ok")])
    ask(structured="prompt", extra={"max_tokens": None, "top_k": 5}).complete([question("ok")])
    schema, loose, told = server[1].bodies
    assert schema["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (schema["model"], schema["temperature"], schema["max_tokens"], schema["seed"]) == (
        "fake",
        0.5,
        9,
        1,
    )
    assert (
        loose["response_format"] == {"type": "json_object"} and '"terms"' in loose["messages"][0]["content"]
    )
    assert told["top_k"] == 5 and not {"response_format", "max_tokens", "seed"} & told.keys()
    assert '"terms"' in told["messages"][0]["content"]
    assert server[1].headers[0]["authorization"] == f"Bearer {KEY}"


# The cache.


def test_cache_answers_without_a_server(ask, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)
    asked = [
        question("ok", key="a"),
        question("sorry", key="b"),
        question("broken", key="c"),
        question("500"),
    ]
    with serving() as (url, log):
        settings = ChatSettings(
            backend="openai", model="m", base_url=url, api_key_env=KEY_NAME, cache_dir=str(tmp_path), **FAST
        )
        first = chat_client(settings).complete(asked)
        calls = sum(log.calls.values())
    assert calls == 1 + 1 + 3 + 3
    later = chat_client(settings).complete([replace(request, key=f"{request.key}2") for request in asked])
    assert (later[0].text, later[0].parsed, later[0].cached) == (first[0].text, first[0].parsed, True)
    assert later[0].key == "a2" and later[0].usage == first[0].usage
    assert [r.status for r in later] == [
        "ok",
        "failed",
        "failed",
        "failed",
    ]  # the server is gone: nothing else was kept


def test_cache_is_of_one_question_to_one_model(ask, server, tmp_path):
    def calls(request, **settings) -> int:
        server[1].bodies.clear()
        ask(cache_dir=str(tmp_path), **settings).complete([request])
        return len(server[1].bodies)

    base = question("ok", seed=1)
    assert calls(base) == 1 and calls(base) == 0 and calls(replace(base, key="other")) == 0
    variants = [{"seed": 2}, {"temperature": 0.1}, {"max_tokens": 5}, {"schema": None}, {"messages": question("x").messages}]  # fmt: skip
    assert [calls(replace(base, **variant)) for variant in variants] == [1] * 5
    for settings in ({"model": "other"}, {"structured": "prompt"}, {"extra": {"top_k": 1}}):
        assert calls(base, **settings) == 1
    assert [calls(replace(base, **variant)) for variant in variants] == [0] * 5


def test_a_damaged_cache_file_counts_as_absent(ask, server, tmp_path):
    client = ask(cache_dir=str(tmp_path))
    client.complete([question("ok")])
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    for damage in (b"", b"{", b"[]", b'{"text": "free text", "usage": {}}', file.read_bytes()[:-9]):
        file.write_bytes(damage)
        (result,) = client.complete([question("ok")])
        assert result.status == "ok" and not result.cached
        assert client.complete([question("ok")])[0].cached


def test_many_threads_may_write_one_cache_entry(ask, tmp_path):
    client = ask(cache_dir=str(tmp_path), concurrency=16)
    requests = [question("ok", key=str(i)) for i in range(60)]
    threads = [threading.Thread(target=client.complete, args=(requests,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result.status == "ok" and result.cached for result in client.complete(requests))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "openai", "model": "m"}, "base_url"),
        ({"backend": "openai", "base_url": "http://x/v1"}, "needs model"),
        ({"backend": "openai", "model": "m", "base_url": "x/v1"}, "http"),
        ({"backend": "openai", "model": "m", "base_url": "http://me:hidden1@x/v1"}, "carries"),
        ({"backend": "openai", "model": "m", "base_url": "http://x/v1?key=hidden1"}, "carries"),
        ({"backend": "openai", "model": "m", "base_url": "http://x", "recording": "a"}, "recording"),
        ({"backend": "openai", "model": "m", "base_url": "http://x", "api_key_env": "sk-hidden1"}, "api_key_env"),
        ({"backend": "openai", "model": "m", "base_url": "http://x", "extra": {"api_key": "hidden1"}}, "secret"),
        ({"backend": "transformers", "model": "m", "base_url": "http://x"}, "base_url"),
        ({"backend": "recorded"}, "recording"),
        ({"backend": "recorded", "recording": "a", "cache_dir": "c"}, "cache_dir"),
        ({"model": "m"}, "backend none"),
        ({"concurrency": 0}, "concurrency"),
        ({"batch_size": 0}, "batch_size"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_without_showing_secrets(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        ChatSettings(**settings)
    assert "hidden1" not in str(caught.value)


def test_a_key_must_be_in_the_environment(monkeypatch):
    settings = ChatSettings(
        backend="openai", model="m", base_url="http://localhost:1/v1", api_key_env=KEY_NAME
    )
    monkeypatch.delenv(KEY_NAME, raising=False)
    with pytest.raises(InputError, match=KEY_NAME):
        chat_client(settings)
    assert chat_client(replace(settings, api_key_env="")).teacher == "openai:m"
    with pytest.raises(InputError, match="no chat backend"):
        chat_client(ChatSettings())
    with pytest.raises(InputError, match="no heuristic"):
        chat_client(ChatSettings(backend="heuristic"))


@dataclass
class Args:
    """Arguments of a program that asks a chat model."""

    words: list[str] = field(default_factory=list)
    """questions"""
    teacher: ChatSettings = field(default_factory=ChatSettings)
    """who answers"""
    output_dir: str = ""
    """where"""


def test_settings_nest_in_a_programs_arguments(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "teacher: {backend: openai, model: m, base_url: http://x/v1, extra: {a: 1}}\n"
    )
    flags = ["--config", str(tmp_path / "a.yaml"), "--teacher.concurrency", "64", "--teacher.api_key_env", ""]
    args, _ = program.parse(Args, flags)
    assert (args.teacher.model, args.teacher.concurrency, args.teacher.extra) == ("m", 64, {"a": 1})
    assert program.parse(Args, [])[0].teacher == ChatSettings()
    for wrong in (["--teacher.backend", "openai"], ["--teacher.api_key", "x"], ["--teacher.backend", "x"]):
        with pytest.raises(InputError):
            program.parse(Args, wrong)


PROGRAM = """
import logging
from pathlib import Path
from configs import program
from data.store.output import open_output
from infer.chat.client import ChatRequest, chat_client
from tests.test_chat_client import Args

def main(args):
    with open_output(args, "ask", version=1, inputs={}) as out:
        turns = [[{"role": "user", "content": word}] for word in args.words]
        requests = [ChatRequest(key=turn[0]["content"], messages=turn) for turn in turns]
        out.counts |= chat_client(args.teacher).run_to_file(requests, out.path / "answers.jsonl")

logging.basicConfig(level=logging.DEBUG)
program.run(Args, main)
"""


def test_no_secret_reaches_any_file_or_message(server, tmp_path):
    """A program as a user runs it, with the library's own debugging output on, and a server that repeats the key."""

    def run(*words: str, name: str, code: int) -> str:
        flags = ["--output_dir", str(tmp_path / name), "--words", json.dumps(words), "--debug"]
        chosen = {"backend": "openai", "model": "m", "base_url": server[0], "api_key_env": KEY_NAME, "retries": 1, "backoff": 0.01, "cache_dir": tmp_path / "cache"}  # fmt: skip
        flags += [part for key, value in chosen.items() for part in (f"--teacher.{key}", str(value))]
        env = os.environ | {KEY_NAME: KEY, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROGRAM, *flags]
        made = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert made.returncode == code, made.stderr
        (tmp_path / f"{name}.log").write_text(made.stdout + made.stderr)
        return made.stderr

    run("echo", "500", "400", "ok", "hang-up", name="done", code=0)
    refused = run("401", name="refused", code=5)
    assert "ERROR 5" in refused and "to resume: python -m " in refused and "--teacher.model m" in refused
    assert "ERROR 5" in run("402", name="broke", code=5)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8 and any("cache" in str(path) for path in files)
    assert "DEBUG:" in (tmp_path / "done.log").read_text()
    assert [path for path in files if b"CANARY" in path.read_bytes()] == []
    echoed = read_results(tmp_path / "done/answers.jsonl")["echo"]
    assert "Bearer [key]" in echoed.text  # the server did say it
    assert (
        json.loads((tmp_path / "done/manifest.json").read_text())["config"]["teacher"]["api_key_env"]
        == KEY_NAME
    )


# Other backends.


def test_a_recording_answers_again_what_was_answered(ask, server, tmp_path):
    requests = [question(words) for words in ("ok", "sorry", "broken", "400")]
    ask().run_to_file(requests, tmp_path / "run.jsonl")
    calls = sum(server[1].calls.values())
    again = chat_client(ChatSettings(backend="recorded", recording=str(tmp_path / "run.jsonl")))
    results = again.complete(requests)
    assert [r.status for r in results] == ["ok", "refused", "invalid", "failed"]
    assert results[0].parsed["terms"] == ["bolt", "steel"] and results[0].teacher == "recorded:openai:fake"
    assert sum(server[1].calls.values()) == calls
    with pytest.raises(InputError, match="no answer for 'new'"):
        again.complete([question("new")])
    with pytest.raises(InputError, match="another prompt"):
        again.complete([replace(question("ok"), max_tokens=5)])


def test_a_recording_may_be_written_by_hand(tmp_path):
    file = tmp_path / "hand.jsonl"
    file.write_text('{"key": "a", "text": "yes"}\n{"key": "b", "text": "no"}')
    client = chat_client(ChatSettings(backend="recorded", recording=str(file)))
    assert [r.text for r in client.complete([question("?", key=key, schema=None) for key in "ab"])] == [
        "yes",
        "no",
    ]
    assert client.teacher == "recorded:hand.jsonl"
    file.write_text('{"key": "a", "text": "yes"}\n{"key": 3}\n')
    with pytest.raises(InputError, match=r"hand.jsonl:2"):
        chat_client(ChatSettings(backend="recorded", recording=str(file)))


def test_a_heuristic_is_marked_and_judged(tmp_path):
    def first_word(request):
        words = request.messages[-1]["content"].split()
        return {"terms": words[:1], "call": 0} if words else "nothing to say"

    client = chat_client(ChatSettings(backend="heuristic"), heuristic=first_word)
    results = client.complete([question("steel bolt"), question(" ", key="empty")])
    assert [r.status for r in results] == ["ok", "invalid"] and results[0].parsed["terms"] == ["steel"]
    assert {r.teacher for r in results} == {"heuristic:first_word"}


def test_importing_takes_no_heavy_library():
    code = "import sys, infer.chat.client as c; print([m for m in ('torch', 'openai', 'tenacity') if m in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert made.stdout.strip() == "[]", made.stderr
