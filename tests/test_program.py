"""The frame around every program, on a small program written for this test."""

from __future__ import annotations

import doctest
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from configs import program, refusals
from configs.program import ROOT, InputError, Interrupted, classify

DEMO = '''
"""A demo.

    python -m demo --data x
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

from configs import program


@dataclass
class Inner:
    depth: int = 1
    """how deep"""
    width: float = 0.5
    """how wide"""


@dataclass
class DemoArgs:
    data: str
    """where the data is"""
    sizes: list[int] = field(default_factory=lambda: [1, 2, 3])
    """codes per level"""
    inner: Inner = field(default_factory=Inner)
    """a nested part"""
    rate: float = 0.1
    """a rate"""
    fail: str | None = None
    """what to raise"""
    overwrite: bool = False
    """replace"""


def main(args: DemoArgs) -> None:
    if args.fail == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if args.fail == "full":
        raise OSError(28, "No space left on device")
    if args.fail == "absent":
        open("/nonexistent/file")
    if args.fail == "complete":
        raise program.AlreadyComplete("already complete: out")
    known = {"input": program.InputError, "environment": program.EnvironmentFault, "numeric": program.NumericError,
             "service": program.ServiceError, "memory": MemoryError, "bug": KeyError}
    if args.fail:
        raise known[args.fail]("three words\\nhere -> do that")
    for _ in program.progress(range(3), label="bar"):
        time.sleep(0.5)
    print(args, os.environ.get("DEMO_KEY"))


if __name__ == "__main__":
    program.run(DemoArgs, main)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo")
    (path / "demo.py").write_text(textwrap.dedent(DEMO))
    return path


def start(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    variables = {key: value for key, value in os.environ.items() if key not in {"CI", "QUIET"}}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder)])
    command = [sys.executable, "-m", "demo", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("fail", "code", "line"),
    [
        ("input", 2, "three words here -> do that"),
        ("environment", 3, "three words here -> do that"),
        ("numeric", 4, "three words here -> do that"),
        ("service", 5, "three words here -> do that"),
        ("memory", 3, "out of memory"),
        ("full", 3, "No space left on device"),
        ("absent", 2, "no such file or directory: /nonexistent/file"),
        ("bug", 1, "KeyError"),
    ],
)
def test_an_error_is_one_line_and_its_own_exit_code(folder: Path, fail: str, code: int, line: str) -> None:
    returned, out, err = run(folder, "--data", "x", "--fail", fail)
    assert (returned, out) == (code, "")
    *before, last = err.splitlines()
    assert before == ([f"to resume: python -m demo --data x --fail {fail}"] if code == 5 else [])
    assert last.startswith(f"ERROR {code}: ")
    assert line in err and "->" in err


def test_debug_adds_the_traceback_and_keeps_the_last_line(folder: Path) -> None:
    code, _, err = run(folder, "--data", "x", "--fail", "input", "--debug")
    assert code == 2 and "Traceback" in err
    assert err.strip().splitlines()[-1] == "ERROR 2: three words here -> do that"


def test_a_finished_output_is_success(folder: Path) -> None:
    code, out, err = run(folder, "--data", "x", "--fail", "complete")
    assert (code, out, err) == (0, "demo: already complete: out\n", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "data"),
        (["--data", "x", "--sizess", "[1]"], "--sizess"),
        (["--data", "x", "--size", "[1]"], "--size"),  # no abbreviations
        (["--data", "x", "--rate", "fast"], "rate"),
        (["--data", "x", "--sizes", "[1, two]"], "sizes"),
        (["--data", "x", "--inner.depth", "1.5"], "inner.depth"),
        (["--data", "x", "--inner.height", "1"], "inner.height"),
        (["--data", "x", "--config", "absent.yaml"], "absent.yaml"),
        (["--data", "x", "--config", "unknown.yaml"], "depht"),
        (["--data", "x", "--config", "type.yaml"], "rate"),
        (["--data", "x", "--config", "broken.yaml"], "broken.yaml"),
    ],
)
def test_bad_arguments_are_named(folder: Path, arguments: list[str], named: str) -> None:
    (folder / "unknown.yaml").write_text("inner:\n  depht: 3\n")
    (folder / "type.yaml").write_text("rate: fast\n")
    (folder / "broken.yaml").write_text("rate: [1,\n")
    code, out, err = run(folder, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert named in err


def test_what_an_argument_takes_is_said_in_words(folder: Path) -> None:
    (folder / "type.yaml").write_text("rate: fast\n")
    for arguments, said in (
        (["--rate", "fast"], "rate is fast -> a number"),
        (["--inner.depth", "1.5"], "inner.depth is 1.5 -> a whole number"),
        (["--sizes", "many"], "sizes is many -> a list, as in [a, b]"),
        (["--config", "type.yaml"], "rate is fast (in type.yaml) -> a number"),
    ):
        assert run(folder, "--data", "x", *arguments)[2] == f"ERROR 2: {said}\n"
    assert doctest.testmod(refusals).failed == 0 < doctest.testmod(refusals).attempted
    both = "Does not validate against any of the Union subtypes Subtypes: [<class 'int'>, <class 'NoneType'>] Errors: - Expected a <class 'int'> - Expected a <class 'NoneType'> Given value type: <class 'str'> Given value: x"
    assert refusals.in_words(f'Parser key "rows": {both}') == ("rows is x", "a whole number or null")


@pytest.mark.parametrize("program", ["infer.compare", "data.validate", "train.sft", "rq.embed_items"])
def test_a_python_without_the_packages_says_which_one_has_them(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", program, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert done.stderr.startswith("ERROR 3: ") and "source .venv/bin/activate" in done.stderr


def test_later_files_and_flags_win_lists_are_replaced_nested_parts_merge(folder: Path) -> None:
    (folder / "one.yaml").write_text("sizes: [9, 9]\ninner: {depth: 7, width: 0.25}\nrate: 1e-3\n")
    (folder / "two.yaml").write_text("inner: {depth: 8}\n")
    code, out, err = run(
        folder, "--config", "one.yaml", "--config", "two.yaml", "--data", "x", "--rate", "2e-3"
    )
    assert (code, err) == (0, "")  # and no bar where stderr is a file
    assert out.startswith(
        "DemoArgs(data='x', sizes=[9, 9], inner=Inner(depth=8, width=0.25), rate=0.002, fail=None, overwrite=False)"
    )


def test_a_switch_needs_no_value(folder: Path) -> None:
    for arguments, expected in (
        (["--overwrite"], True),
        (["--overwrite", "true"], True),
        (["--overwrite", "false"], False),
    ):
        code, out, err = run(folder, *arguments, "--data", "x")
        assert code == 0, err
        assert f"overwrite={expected}" in out


def test_help_is_quick_and_explains_every_flag(folder: Path) -> None:
    before = os.times()
    code, out, _ = run(folder, "--help")
    after = os.times()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    assert code == 0 and seconds < 2.5, "of processor time, however busy the machine is"
    for text in ("A demo.", "python -m demo --data x", "codes per level", "how deep", "--inner.width"):
        assert text in out


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 143)])
def test_a_signal_ends_the_program_with_its_own_code(folder: Path, name: str, code: int) -> None:
    process = start(folder, "--data", "x", "--fail", "wait")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err == f"INTERRUPTED {code}: interrupted by {name} -> run the same command again to resume\n"


def test_deferred_signals_only_set_a_flag() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with program.deferred_signals() as flag:
        flag.raise_if_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.signum == signal.SIGTERM
        with pytest.raises(Interrupted) as interrupted:
            flag.raise_if_set()
    assert classify(interrupted.value)[0] == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_variables_that_are_set_win_over_the_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("DEMO_SET=file\nDEMO_NEW=file\n")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setenv("DEMO_SET", "shell")
    monkeypatch.setenv("DEMO_NEW", "to be removed when the test ends")
    monkeypatch.delenv("DEMO_NEW")
    program.load_environment()
    assert (os.environ["DEMO_SET"], os.environ["DEMO_NEW"]) == ("shell", "file")


def test_a_permission_error_names_the_path() -> None:
    assert classify(PermissionError(13, "Permission denied", "/data/x")) == (
        2,
        "no permission: /data/x -> check the path and its owner",
    )
    assert classify(InputError("a\n  b")) == (2, "a b")


def test_a_path_that_cannot_be_is_bad_input_with_its_cause(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for attempt, cause in (
        (lambda: (file / "below").read_text(), "Not a directory"),
        (lambda: (file / "below" / "out").mkdir(parents=True), "Not a directory"),
        (lambda: tmp_path.read_text(), "Is a directory"),
        (file.mkdir, "File exists"),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        code, line = classify(caught.value)
        assert code == 2 and line.startswith(f"{cause}: {tmp_path}") and "->" in line


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="getrusage is all there is")
def test_the_peak_is_the_programs_own_not_that_of_what_started_it():
    """A parent of 400 MiB starts a program that needs 30: getrusage of the child says 400."""
    child = "from configs.memory import peak_mib; print(peak_mib())"
    parent = f"import subprocess, sys; held = bytearray(400 << 20); held[::4096] = b'x' * len(held[::4096]); subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run(
        [sys.executable, "-c", parent], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 5 < int(done.stdout) < 300
