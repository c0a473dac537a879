"""Options that are read only where another one is set: `--sync_mixup` without `--sync_reference` would change nothing, silently.

    @dataclass
    class Settings:
        sync_reference: int | None = None
        sync_mixup: float = 0.6

        def needs(self) -> list[Need]:
            return [Need(("sync_mixup",), self.sync_reference is not None, "sync_reference")]

        def __post_init__(self) -> None:
            require_needs(self, "rollout.")

One declaration says two things: a value other than the default is refused where nothing reads it, and it does not count when
an older output is compared with the present arguments (data/store/configuration.py), so that leaving it out keeps that output.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, NamedTuple

from configs.program import InputError


class Need(NamedTuple):
    """Options (field names, dotted for those of a group) that are read only where `met`; `of` names what makes it so: "beta above 0", "without captions"."""

    options: tuple[str, ...]
    met: bool
    of: str


def default_of(entry: Field[Any]) -> Any:
    """The default of a dataclass field; MISSING for a required one."""
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def require_needs(args: Any, prefix: str = "") -> None:
    """InputError for an option of a dataclass that was given where nothing reads it."""
    for option in _unmet(args):
        value, default = args, MISSING
        for name in option.name.split("."):
            entry = next(field for field in fields(value) if field.name == name)
            value, default = getattr(value, name), default_of(entry)
        if value != default:
            shown = "" if is_dataclass(value) else f" {value}"
            way = option.of if option.of.startswith("without ") else f"with {option.of}"
            raise InputError(f"{prefix}{option.name}{shown} is read only {way} -> leave it out, or run {way}")


def unread(args: Any, prefix: str = "") -> set[str]:
    """Dotted names of the options that nothing reads, those of nested groups included."""
    found = {prefix + option.name for option in _unmet(args)}
    for entry in fields(args):
        value = getattr(args, entry.name)
        if is_dataclass(value):
            found |= unread(value, f"{prefix}{entry.name}.")
    return found


class _Unread(NamedTuple):
    name: str
    of: str


def _unmet(args: Any) -> list[_Unread]:
    needs = args.needs() if hasattr(args, "needs") else []
    return [_Unread(option, need.of) for need in needs if not need.met for option in need.options]
