"""Runs the parts of tests/gpu/run.sh, each in a process of its own with its own time, and writes one JSON file.

python -m tests.gpu.parts --out gpu.json        (standard library only: it also runs where a part cannot)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# seconds that a part may take; together with the installation they stay below 8 minutes
PARTS = {
    "decode": (["-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "tests/gpu/test_decode.py"], 120),
    "sft": (["-m", "tests.gpu.sft"], 90),
    "training": (
        ["-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu/test_training.py"],
        100,
    ),
    "resume": (["-m", "tests.gpu.resume"], 60),
}
PACKAGES = (
    "transformers", "trl", "accelerate", "vllm", "deepspeed", "faiss-cpu", "faiss-gpu", "flash-attn", "bitsandbytes", "liger-kernel",
)  # fmt: skip
PROBE = f"""
import importlib.metadata, json, torch
versions = {{}}
for name in {PACKAGES}:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        continue
cuda = torch.cuda.is_available()
device = torch.cuda.get_device_properties(0) if cuda else None
print(json.dumps({{
    "torch": torch.__version__, "packages": versions, "cuda": torch.version.cuda,
    "device": device.name if cuda else None, "memory_gib": round(device.total_memory / 2**30, 1) if cuda else None,
}}))
"""


def last_json(text: str) -> Any:
    """The last line that is a JSON object; None without one."""
    for line in reversed(text.splitlines()):
        line = line.strip().lstrip(".")  # pytest's dots stand before what a test prints
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def part(command: list[str], seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """{ok, seconds, result} of one part, or {ok, seconds, error}; it never raises."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        out, failed = done.stdout, done.returncode
        why = f"exit code {failed}: {(done.stderr or done.stdout).strip()[-600:]}"
    except subprocess.TimeoutExpired as stopped:
        out, failed, why = (
            (stopped.stdout or b"").decode(errors="replace"),
            1,
            f"not done within {seconds:g} s",
        )
    told = {"ok": failed == 0, "seconds": round(time.monotonic() - start, 1), "result": last_json(out)}
    return told | ({"error": why} if failed else {})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--tiny", action="store_true", help="small sizes, to try the script itself without a GPU"
    )
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=None, help="of every part instead of its own")
    args = parser.parse_args(argv)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "QUIET": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    report: dict[str, Any] = {"bench": "gpu", "python": platform.python_version(), "tiny": args.tiny}
    report["machine"] = part(["-c", PROBE], 60, environment)
    report["parts"] = {}
    for name in args.only:
        command, seconds = PARTS[name]
        if args.tiny and name == "sft":
            command = [*command, "--tiny"]
        if args.tiny and name == "decode":
            environment = environment | {"DECODE_LAYERS": "2"}
        report["parts"][name] = part(command, args.seconds or seconds, environment)
        args.out.write_text(json.dumps(report, indent=1) + "\n")  # what is done is kept, whatever comes next
    print(json.dumps(report))
    return 0 if all(found["ok"] for found in report["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
