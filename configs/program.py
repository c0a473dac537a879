"""The frame around every program: arguments, `.env`, signals, exit codes, one-line errors.

A stage module ends in

    if __name__ == "__main__":
        program.run(PrepareArgs, main)

Arguments are one dataclass; a value comes from its default, then from each `--config file.yaml` in turn (nested dataclasses
and free mappings merge key by key, see configs/overlays.py), then from dotted flags. Unknown keys and wrong types are errors.

Exit codes: 0 outputs complete and valid, 2 bad input or configuration (nothing written), 3 environment (disk, memory,
GPU, network), 4 numeric (non-finite loss, illegal decoding), 5 external service, 130/143 interrupted and resumable.
The last line of a failure is `ERROR <code>: <what> <where> -> <what to do>`, for code 5 after the command that goes on;
`--debug` adds the traceback.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from configs.spared import spare_transformers

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


class ProgramError(Exception):
    """An error whose message is the whole story: what, where, what to do. `code` is the exit code."""

    code = 1


class InputError(ProgramError):
    """Bad input or configuration; nothing was written."""

    code = 2


class EnvironmentFault(ProgramError):
    """Disk, memory, GPU or network."""

    code = 3


class NumericError(ProgramError):
    """Non-finite numbers or an illegal decoding."""

    code = 4


class ServiceError(ProgramError):
    """A teacher, judge or other external service."""

    code = 5


class AlreadyComplete(Exception):
    """The requested output exists with the same configuration, inputs and stage version: nothing to do."""


# SIGUSR1 is how a scheduler gives notice before it stops a job (scripts/slurm).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
DEFERRED: list[StopFlag] = []


class Interrupted(BaseException):
    """One of STOP_SIGNALS; the exit code is 130 for SIGINT, else 143. `remedy`: what to do, where the next run does not resume."""

    remedy = "run the same command again to resume"

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.code = 130 if signum == signal.SIGINT else 143


class StopFlag:
    """Set by a signal inside `deferred_signals`; a training loop polls it at each step boundary, and where `polled` inside a step
    too: `poll` raises then."""

    signum: int | None = None
    polled: bool = False

    def raise_if_set(self) -> None:
        if self.signum is not None:
            raise Interrupted(self.signum)


def _raise_interrupted(signum: int, frame: object) -> NoReturn:
    raise Interrupted(signum)


@contextmanager
def deferred_signals() -> Iterator[StopFlag]:
    """Inside, STOP_SIGNALS only set a flag, so that a step ends and a checkpoint is written before the exit."""
    flag = StopFlag()
    DEFERRED.append(flag)
    previous = {s: signal.getsignal(s) for s in STOP_SIGNALS}

    def remember(signum: int, frame: object) -> None:
        flag.signum = signum

    for s in previous:
        signal.signal(s, remember)
    try:
        yield flag
    finally:
        DEFERRED.pop()
        for s, handler in previous.items():
            signal.signal(s, handler)


def poll() -> None:
    """Interrupted where a signal was remembered and its loop can be left anywhere; long searches call this as they begin."""
    for flag in DEFERRED:
        if flag.polled:
            flag.raise_if_set()


@lru_cache(maxsize=32)
def make_parser(
    args_class: type, prog: str | None = None, description: str | None = None, *, explained: bool = True
) -> Any:
    """The jsonargparse parser of a dataclass: `--config`, `--debug`, and one flag per field.

    explained: with the fields' docstrings, which take as long to find in the source as all else.
    """
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Keeps the lines of module docstrings."""

    set_parsing_settings(docstring_parse_attribute_docstrings=explained)
    parser = ArgumentParser(
        prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False, exit_on_error=False
    )  # fmt: skip
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of these arguments; may be repeated, later wins")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="print a traceback on errors")
    parser.add_class_arguments(args_class, None, as_group=False)
    return parser


def parse(
    args_class: type[T],
    argv: list[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
) -> tuple[T, bool]:
    """Parse `argv` into (an instance of `args_class`, the --debug flag). Raises InputError naming the bad flag or key."""
    from jsonargparse import ArgumentError

    from configs.overlays import merged
    from configs.refusals import in_words, named_in

    argv = sys.argv[1:] if argv is None else argv
    explained = any(part.startswith(("-h", "--help", "--print_config")) or ".help" in part for part in argv)
    parser = make_parser(args_class, prog, description, explained=explained)
    given = with_values(args_class, merged(args_class, argv))
    try:
        namespace = parser.parse_args(given)
        values = parser.instantiate(namespace).as_dict()
    except ArgumentError as error:
        wrong, mend = in_words(_one_line(error))
        raise InputError(f"{wrong}{named_in(argv, str(error))} -> {mend}") from error
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"arguments: {_one_line(error)} -> see `--help`") from error
    debug = values.pop("debug")
    values.pop("config", None)
    try:
        args = args_class(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"arguments: {_one_line(error)} -> see `--help`") from error
    _require_numbers("", args)
    return args, debug


def _require_numbers(name: str, value: Any) -> None:
    """InputError for what no argument can be: a number that is none, and a seed that no generator takes."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_numbers(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, float) and value != value:
        raise InputError(f"{name} is not a number ({value}) -> give one")
    elif isinstance(value, int) and name.split(".")[-1] == "seed" and not 0 <= value < 1 << 32:
        raise InputError(f"{name} is {value} -> 0 to {(1 << 32) - 1}")


def with_values(args_class: type, argv: list[str]) -> list[str]:
    """`argv` with `true` after every boolean flag that stands alone: `--overwrite` means `--overwrite true`."""
    switches = {f"--{field.name}" for field in dataclasses.fields(args_class) if field.type in ("bool", bool)}
    following = [*argv, "--"][1:]
    return [
        part
        for flag, after in zip(argv, following, strict=True)
        for part in ([flag, "true"] if flag in switches and after.startswith("--") else [flag])
    ]


def run(args_class: type[T], main: Callable[[T], None], argv: list[str] | None = None) -> NoReturn:
    """Parse, call `main(args)`, and leave the process with the exit code that the outcome deserves."""
    module = sys.modules[main.__module__]
    name = getattr(getattr(module, "__spec__", None), "name", None) or Path(sys.argv[0]).stem
    load_environment()
    spare_transformers()
    if quiet():
        os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    for s in STOP_SIGNALS:
        signal.signal(s, _raise_interrupted)
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        args, debug = parse(args_class, argv, prog=f"python -m {name}", description=module.__doc__)
        main(args)
        code = 0
    except AlreadyComplete as complete:
        say(f"{name}: {complete}")
        code = 0
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, ServiceError):
            command = ["python", "-m", name, *(sys.argv[1:] if argv is None else argv)]
            print(f"to resume: {shlex.join(command)}", file=sys.stderr, flush=True)
        code = _report(error, debug)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _report(error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    code, text = classify(error)
    label = "INTERRUPTED" if code in (130, 143) else "ERROR"
    print(f"{label} {code}: {text}", file=sys.stderr, flush=True)
    return code


def classify(error: BaseException) -> tuple[int, str]:
    """(exit code, one line) of any exception."""
    if isinstance(error, ProgramError):
        return error.code, _one_line(error)
    if isinstance(error, Interrupted):
        return error.code, f"{error} -> {error.remedy}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted -> {Interrupted.remedy}"
    fault = environment_fault(error)
    if fault is not None:
        return 3, fault
    if isinstance(error, PermissionError):
        return 2, f"no permission: {error.filename} -> check the path and its owner"
    if isinstance(error, FileNotFoundError):
        return 2, f"no such file or directory: {error.filename or error} -> check the path"
    if isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)):
        return 2, f"{error.strerror}: {error.filename} -> check the path"
    if isinstance(error, OSError):
        return 3, f"{_one_line(error)} -> check disk space and permissions"
    return 1, f"{type(error).__name__}: {_one_line(error)} -> a bug: run again with --debug"


# What libraries say when the machine is at its limit; each has an exception type of its own for it, or none.
DISK = re.compile(
    r"No space left|quota exceeded|File too large|\(os error (27|28|122)\)|PytorchStreamWriter failed|unexpected pos \d|"
    r"\d requested and \d+ written"
)
MEMORY = re.compile(
    r"not enough memory|can't allocate memory|Cannot allocate memory|std::bad_alloc|can't start new thread|"
    r"malloc of size|\(os error 12\)"
)
GPU = re.compile(r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|HIP out of memory")


def environment_fault(error: BaseException, *, where: str = "") -> str | None:
    """One line for an error that means a full disk, no memory or a broken device; None for any other.

    `where` says what was being done, for libraries that do not name their file.
    """
    text, place = _one_line(error)[:200], f" {where}" if where else ""
    if type(error).__name__ == "OutOfMemoryError" or GPU.search(text):
        return f"GPU out of memory{place} ({text}) -> lower the per-device batch size, max_length or beams"
    if isinstance(error, MemoryError) or MEMORY.search(text) or getattr(error, "errno", None) == errno.ENOMEM:
        return f"out of memory{place} ({text or type(error).__name__}) -> use smaller batches or a larger machine"
    if DISK.search(text) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"disk full{place} ({text}) -> free space or choose another place, then run the same command again"
    if getattr(error, "errno", None) in (errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ESTALE):
        return f"{text}{place} -> check the disk, its mount and the limit of open files"
    return None


def raise_environment_fault(error: BaseException, *, where: str) -> None:
    """EnvironmentFault when `error` is the machine's; call it before blaming the input that was being read."""
    fault = None if isinstance(error, ProgramError) else environment_fault(error, where=where)
    if fault is not None:
        raise EnvironmentFault(fault) from error


def _one_line(error: BaseException | str) -> str:
    text = " ".join(str(error).split())  # shortened where it quotes a whole file
    return text if len(text) <= 1000 else f"{text[:500]} ... {text[-490:]}"


def load_environment() -> None:
    """Read `.env` of the repository; variables that are already set win. Secrets come from here, never from flags."""
    path = ROOT / ".env"
    if path.exists():
        from dotenv import load_dotenv

        load_dotenv(path, override=False)


def as_yaml(args: Any) -> str:
    """The resolved arguments as YAML; `--config` accepts it again."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(args), sort_keys=False, allow_unicode=True)


def quiet() -> bool:
    """True where progress bars only fill a log: under CI, with QUIET=1, and where stderr is no terminal."""
    return bool(os.environ.get("CI") or os.environ.get("QUIET")) or not sys.stderr.isatty()


_log: Path | None = None


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Inside, every line of `say`, `warn` and `note`, and the error that ends the block, is appended to `path` too."""
    global _log
    before, _log = _log, path
    try:
        yield
    except (ProgramError, Interrupted, OSError, RuntimeError, MemoryError) as error:
        note(classify(error)[1])
        raise
    finally:
        _log = before


def note(text: str) -> None:
    """A line for the log alone. A log that cannot be written stops no run."""
    if _log is not None:
        with suppress(OSError), open(_log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def say(text: str) -> None:
    """Print a line for a person; a reader who has left (`| head -1`) is no error."""
    note(text)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """Print what a person should look at, on stderr."""
    note(f"WARNING: {text}")
    print(f"WARNING: {text}", file=sys.stderr, flush=True)


def progress(items: Iterable[T], *, label: str, total: int | None = None, unit: str = "row") -> Iterable[T]:
    """A tqdm bar over `items`; silent where `quiet()`, and for work that ends within a second."""
    from tqdm import tqdm

    return tqdm(
        items, desc=label, total=total, unit=unit, disable=quiet(), delay=1.0, mininterval=0.5, leave=False
    )


class Clock:
    """Wall seconds since construction."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start
