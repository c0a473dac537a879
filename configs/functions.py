"""Functions by name: `package.module:function` of ours, or `path/to/file.py:function` of a user's own.

Registries keep names, so that nothing heavy is imported before it is used. A file is run because the user named it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.program import InputError


def file_of(name: str) -> Path | None:
    """The Python file that `name` points into; None for a name of ours."""
    path, colon, _ = name.rpartition(":")
    return Path(path) if colon and path.endswith(".py") else None


def load_function(name: str) -> Callable[..., Any]:
    """The function; InputError naming the file that is missing or fails, or the function that it lacks.

    A file is imported once per process under a name of its own, so that its classes are the same for every caller.
    """
    where, _, function = name.rpartition(":")
    path = file_of(name)
    module = importlib.import_module(where) if path is None else _module_of(path)
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{where} has no function {function!r} -> check the name after the colon")
    return found


def _module_of(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"missing file: {path} -> check the path before the colon")
    name = re.sub(r"\W", "_", f"file{path.resolve()}")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(
            f"{path} fails when it is imported ({type(error).__name__}: {' '.join(str(error).split())}) -> mend it"
        ) from error
    return module


def options_of(options_class: type, values: dict[str, Any], *, what: str) -> Any:
    """An instance of a dataclass from a free mapping (text from flags is taken as its field's type); InputError names the key."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(options_class, None, as_group=False)
    try:
        return options_class(**parser.instantiate(parser.parse_object(values)).as_dict())
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"options of {what}: {' '.join(str(error).split())} -> see its dataclass") from None
