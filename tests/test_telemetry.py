"""No run is reported to anybody: a training with a network at hand asks a server that stands in for the hub for nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from configs.program import ROOT
from tests import handmade
from tests.kill_stages import STEPS

REPORT = "from huggingface_hub.utils import _telemetry as t; t.send_telemetry('trl/sft'); t._TELEMETRY_QUEUE.join()"


@contextmanager
def hub() -> Iterator[tuple[dict[str, str], list[str]]]:
    """(variables of a program that may reach it, the paths that were asked for)."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *said: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        place = f"http://127.0.0.1:{server.server_port}"
        # TRL reports nothing where CI is set; the other two say what DO_NOT_TRACK says.
        free = {"CI": "", "HF_HUB_DISABLE_TELEMETRY": "", "DISABLE_TELEMETRY": ""}
        yield {"HF_ENDPOINT": place, "HF_HUB_OFFLINE": "0"} | free, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_training_asks_the_hub_for_nothing(chain, tmp_path, monkeypatch):
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    with hub() as (variables, asked):
        done = handmade.process(
            "train.sft", *chain.flags(), *STEPS, "--output_dir", tmp_path / "run", **variables
        )
    assert done.returncode == 0, done.stderr
    assert asked == []


def test_ray_is_told_the_same(monkeypatch):
    told = "import os, configs; print(os.environ['RAY_USAGE_STATS_ENABLED'])"
    for choice, expected in ((None, "0"), ("1", "1")):
        monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
        variables = {} if choice is None else {"RAY_USAGE_STATS_ENABLED": choice}
        command = [sys.executable, "-c", told]
        done = subprocess.run(
            command, cwd=ROOT, env=handmade.environment(**variables), capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr


def test_a_report_is_sent_where_somebody_asks_for_it(monkeypatch):
    """So the server above would have seen one."""
    for choice, paths in (("0", 1), (None, 0)):
        with hub() as (variables, asked):
            variables |= {} if choice is None else {"DO_NOT_TRACK": choice}
            monkeypatch.delenv("DO_NOT_TRACK", raising=False)
            command = [sys.executable, "-c", f"import configs; {REPORT}"]
            subprocess.run(command, cwd=ROOT, env=handmade.environment(**variables), check=True, timeout=60)
        assert sum(path.startswith("/api/telemetry/") for path in asked) == paths
