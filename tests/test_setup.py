"""Set-up and the test script in scratch repositories whose path has a space; nothing is downloaded.

The scratch repositories hold the real scripts, and requirement files with one made-up package served from a local index.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from configs.program import ROOT

BASE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
TOOLS = (
    "bash",
    "cat",
    "cp",
    "dirname",
    "env",
    "flock",
    "grep",
    "mkdir",
    "mv",
    "rm",
    "sleep",
    "uname",
)
# Stands for an interpreter: says its version, logs each call, makes environments of itself, installs nothing.
FAKE = """#!/usr/bin/env bash
echo "$*" >> "{calls}"
case "$*" in
    *os.path.realpath*) echo "{version} $0"; exit ;;
    *'-m pip'*install*) {pip} ;;
    *'-m pip'*) exit 0 ;;
    *'-m venv'*) {venv}; exit 1 ;;
    *'-m virtualenv'*) {virtualenv}; exit 1 ;;
esac
exec "{python}" "$@"
"""
MAKE = 'rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python && exit 0'


class Scratch:
    """A repository with the real scripts, `bin` as the only folder on PATH, and a log of what its Pythons were asked."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.calls = root / "a clone", root / "bin", root / "calls"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for script in ("setup.sh", "find_python.sh", "env.sh", "flags.sh", "test.sh", "doctor.sh"):
            shutil.copy(ROOT / "scripts" / script, self.root / "scripts" / script)
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        (self.root / "requirements.txt").write_text("torch==0.0.1\n")
        (self.root / "requirements-dev.txt").write_text("torch==0.0.1\n# a comment\n")
        self.stamp = self.root / ".venv" / "setup.stamp"

    def python(
        self, name="python3", *, version="3.12.1", pip="exit 0", venv=MAKE, virtualenv="exit 1"
    ) -> Path:
        """A Python on PATH; the keyword arguments are shell commands that stand for what it does."""
        does = {"pip": pip, "venv": venv, "virtualenv": virtualenv}
        return self.script(
            name, FAKE.format(calls=self.calls, version=version, python=sys.executable, **does)
        )

    def script(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        env = {
            "PATH": str(self.bin),
            "HOME": str(self.root.parent),
            "PIP_CONFIG_FILE": os.devnull,
        } | environment
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A suite started in the background of a shell has SIGINT ignored, and bash would trap it no more.
        return subprocess.Popen(
            ["bash", *command],
            env=env,
            cwd=self.root.parent,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **pipes,
        )

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, **environment)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def setup(self, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.root / "scripts" / "setup.sh"), *flags, **environment)

    def repair_pip(self) -> None:
        """From now on the environment's pip works."""
        (self.root / ".venv" / "bin" / "python").write_text(self.python().read_text())

    def installs(self) -> list[str]:
        """The pip installs so far."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if "-m pip install" in call]


@pytest.fixture
def scratch(tmp_path) -> Scratch:
    return Scratch(tmp_path)


def local_index(root: Path) -> str:
    """A package index that offers torch 0.0.1: a wheel of one module."""
    folder = root / "index" / "torch"
    folder.mkdir(parents=True)
    wheel, info = "torch-0.0.1-py3-none-any.whl", "torch-0.0.1.dist-info"
    with zipfile.ZipFile(folder / wheel, "w") as file:
        file.writestr("torch.py", "made_up = True\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    return (root / "index").as_uri()


def test_a_real_environment_with_torch_from_its_own_index(scratch, tmp_path):
    """venv, ensurepip and pip as they are; the second run has nothing to do."""
    (scratch.bin / "python3").symlink_to(BASE)
    first = scratch.setup(TORCH_INDEX_URL=local_index(tmp_path))
    assert first.returncode == 0, first.stdout + first.stderr
    python = scratch.root / ".venv" / "bin" / "python"
    code = "import torch; print(torch.made_up)"
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "True\n", result.stderr
    again = scratch.setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "setup: .venv is ready\n", "")
    assert sorted(path.name for path in scratch.root.iterdir()) == [
        ".venv",
        "requirements-dev.txt",
        "requirements.txt",
        "scripts",
    ]


def test_dead_shims_and_other_versions_are_passed_over(scratch):
    shim = scratch.script("python3", "#!/usr/bin/env bash\necho 'python3: command not found' >&2\nexit 127\n")
    scratch.python("python3.12", version="3.10.4")
    scratch.python("python3.11", version="3.11.9")
    result = scratch.setup(PYTHON=str(shim))
    assert result.returncode == 0, result.stderr
    assert f"passed over: {shim} does not run; python3 does not run; python3.12 is 3.10.4" in result.stdout
    assert "making .venv with Python 3.11.9" in result.stdout


def test_no_python_is_one_line(scratch):
    result = scratch.setup()
    assert result.returncode == 3
    assert result.stderr.startswith("ERROR 3: no Python 3.11-3.13 (python3 does not run; ")
    assert result.stderr.count("\n") == 1 and "-> install one" in result.stderr


def test_without_ensurepip_virtualenv_makes_it(scratch):
    scratch.python(venv="mkdir -p .venv/bin", virtualenv=MAKE)
    assert scratch.setup().returncode == 0
    assert len(scratch.installs()) == 1


def test_without_ensurepip_and_virtualenv_one_line_says_what_to_install(scratch):
    scratch.python(venv="mkdir -p .venv/bin", virtualenv="exit 1")
    result = scratch.setup()
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert "lacks ensurepip -> apt install python3-venv, or: " in result.stderr
    assert not (scratch.root / ".venv").exists(), "half an environment would be taken for one"


def test_interrupted_setup_is_repeated_and_finished_one_kept(scratch):
    scratch.python(pip='echo > "$0.waiting"; exec sleep 60')
    process = scratch.start(str(scratch.root / "scripts" / "setup.sh"))
    wait_for(scratch.root / ".venv" / "bin" / "python.waiting")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "run the same command again" in err
    assert not scratch.stamp.exists()
    scratch.repair_pip()
    assert scratch.setup().returncode == 0 and scratch.stamp.exists()
    done = len(scratch.installs())
    assert scratch.setup().stdout == "setup: .venv is ready\n"
    assert len(scratch.installs()) == done


def test_failed_install_leaves_no_stamp_and_pips_own_words(scratch):
    scratch.python(pip="echo 'no matching distribution' >&2; exit 1")
    result = scratch.setup()
    assert result.returncode == 3 and not scratch.stamp.exists()
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "no matching distribution",
        "ERROR 3",
    ]


def test_what_is_installed_follows_flags_and_files(scratch):
    scratch.python()
    assert scratch.setup().returncode == 0
    assert scratch.setup("--dev").returncode == 0
    names = [call.split()[-1] for call in scratch.installs()]
    assert names == ["requirements.txt", "requirements.txt", "requirements-dev.txt"]
    assert scratch.setup().returncode == 0 and scratch.setup("--dev").returncode == 0
    assert len(scratch.installs()) == 3, "a finished set-up with --dev covers one without"
    (scratch.root / "requirements.txt").write_text("torch==0.0.2\n")
    assert scratch.setup().returncode == 0
    assert len(scratch.installs()) == 4
    assert scratch.setup("--bad").returncode == 2


def test_environment_of_another_python_is_made_again(scratch):
    scratch.python()
    assert scratch.setup().returncode == 0
    broken = scratch.root / ".venv" / "bin" / "python"
    broken.unlink()
    broken.symlink_to("/nowhere/python3.12")
    result = scratch.setup()
    assert result.returncode == 0 and "made again" in result.stdout


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_two_at_once_install_once(scratch):
    scratch.python(pip="sleep 1; exit 0")
    script = str(scratch.root / "scripts" / "setup.sh")
    before = (scratch.root / "scripts" / "setup.sh").read_bytes()
    both = [scratch.start(script) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(scratch.installs()) == 1
    assert (scratch.root / "scripts" / "setup.sh").read_bytes() == before


TESTS = """import os

import pytest


def test_plain():
    assert "DATASET" not in os.environ


@pytest.mark.long
def test_long():
    print("long ran")


@pytest.mark.gpu
def test_gpu():
    print("gpu ran")
"""


@pytest.fixture
def tested(scratch) -> Scratch:
    """A scratch repository with the lint and pytest settings of this one, and tests of each kind."""
    scratch.python()
    shutil.copy(ROOT / "pyproject.toml", scratch.root)
    (scratch.root / "tests").mkdir()
    (scratch.root / "tests" / "test_one.py").write_text(TESTS)
    return scratch


def test_test_script_chooses_tests(tested):
    script = str(tested.root / "scripts" / "test.sh")
    plain = tested.run(script, DATASET="industrial")
    assert plain.returncode == 0, plain.stdout + plain.stderr
    last, verdict = plain.stdout.splitlines()[-2:]
    assert last.startswith("1 passed in ") and verdict.startswith("test.sh: passed (")
    here = ("-n", "0", "-s")  # workers print nothing
    assert "1 passed, 2 deselected" in tested.run(script, *here).stdout
    everything = tested.run(script, "--all", *here)
    assert "long ran" in everything.stdout and "gpu ran" not in everything.stdout
    tested.script("nvidia-smi", "#!/usr/bin/env bash\n")
    assert "gpu ran" in tested.run(script, "--all", *here).stdout


@pytest.mark.parametrize(
    ("text", "failed"),
    [("def test_bad():\n    assert 0\n", "tests"), ("import os\n", "lint"), ("x  =  1\n", "format")],
    ids=["test", "lint", "format"],
)
def test_ci_fails_for_each_kind_of_fault(tested, text, failed):
    (tested.root / "tests" / "test_two.py").write_text(text)
    (tested.root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tested.root / ".ci")
    result = tested.run(str(tested.root / ".ci" / "run"))
    assert result.returncode == 1
    assert f"test.sh: FAILED: {failed} (" in result.stdout


def test_failed_setup_fails_the_test_script(tested):
    (tested.bin / "python3").unlink()
    assert tested.run(str(tested.root / "scripts" / "test.sh")).returncode == 3


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)
