"""Which arguments decide what an output holds, and whether an older output was made with the same ones.

    differences(args, manifest["config"], apart_from={"output_dir", "overwrite", "data"})
    [Difference("trainer.learning_rate", 0.001, 0.003)]

Configurations are compared key by key, so that an option added later makes nothing foreign:
  a key that the older configuration lacks      counts as the default that it has now, or as what `added` says it meant
  an option group of what was not chosen        does not count; an arguments class names them in `not_chosen(self)`,
                                                as top-level fields
  an option that nothing reads (configs/needs.py) does not count
  a field made by `pace`                        does not count: how fast and how patiently, not what is written
  keys of free mappings (`trainer`)             have no default: one side without the key is a difference
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, Field, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from configs.needs import unread
from data.store.fingerprints import plain, sha256_json

NOT_CONFIGURATION = {"output_dir", "overwrite", "tracker", "tokens_dir", "plan", "allow_change"}
ABSENT = object()
PACE = "pace"
BEFORE = "before"  # the key of a field's metadata that says what a configuration without the field meant


def added(default: Any, *, before: Any) -> Any:
    """A dataclass field that came later with a `default` that is not what the program did `before` it."""
    return field(default=default, metadata={BEFORE: before})


def pace(default: Any = MISSING, *, default_factory: Any = MISSING) -> Any:
    """A dataclass field that decides how fast a run goes or when it gives up, not what it writes."""
    return field(default=default, default_factory=default_factory, metadata={PACE: True})


class Difference(NamedTuple):
    """One key with its older and its newer value, both as JSON types."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {_shown(self.old)} -> {_shown(self.new)}"


def configuration(args: Any, inputs: Collection[str]) -> dict[str, Any]:
    """The arguments that decide what is written: all but paths in (`inputs`, counted by content) and out."""
    return {key: value for key, value in plain(args).items() if key not in NOT_CONFIGURATION | set(inputs)}


def config_hash(args: Any, inputs: Collection[str]) -> str:
    """Hex sha256 of the configuration."""
    return sha256_json(configuration(args, inputs))


def differences(args: Any, old: dict[str, Any], *, apart_from: Collection[str] = ()) -> list[Difference]:
    """Where the dataclass `args` differs from the recorded arguments `old`; top-level keys in `apart_from` do not count."""
    uncounted = NOT_CONFIGURATION | set(apart_from)
    if hasattr(args, "not_chosen"):
        uncounted |= set(args.not_chosen())
    uncounted |= unread(args)
    return _compare_fields("", args, old, ABSENT, uncounted)


def earlier_configuration(
    path: Path, record: dict[str, Any], inputs: Collection[str]
) -> dict[str, Any] | None:
    """The arguments behind a manifest or pending record.

    Records of an unfinished output once held a hash alone: the directory's config.yaml stands in where it has that hash.
    """
    if "config" in record:
        return record["config"]
    file = path / "config.yaml"
    if not file.is_file():
        return None
    import yaml

    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return (
        config
        if isinstance(config, dict) and config_hash(config, inputs) == record.get("config_hash")
        else None
    )


def _compare_fields(
    prefix: str, new: Any, old: dict[str, Any], default: Any, uncounted: Collection[str]
) -> list[Difference]:
    found, known = [], {entry.name: entry for entry in fields(new)}
    for name, entry in known.items():
        if f"{prefix}{name}" in uncounted or PACE in entry.metadata:
            continue
        usual = _default(entry) if default is ABSENT else getattr(default, name, ABSENT)
        found += _compare(f"{prefix}{name}", getattr(new, name), old.get(name, ABSENT), usual, uncounted)
    gone = [key for key in old if key not in known and f"{prefix}{key}" not in uncounted]
    return found + [Difference(f"{prefix}{key}", plain(old[key]), ABSENT) for key in gone]


def _compare(key: str, new: Any, old: Any, default: Any, uncounted: Collection[str]) -> list[Difference]:
    if old is ABSENT:
        old = plain(default)
    if is_dataclass(new) and isinstance(old, dict):
        return _compare_fields(
            f"{key}.", new, old, default if type(default) is type(new) else ABSENT, uncounted
        )
    if isinstance(new, dict) and isinstance(old, dict):
        keys = [*old, *(name for name in new if name not in old)]
        pairs = [(name, new.get(name, ABSENT), old.get(name, ABSENT)) for name in keys]
        return [part for name, *pair in pairs for part in _compare(f"{key}.{name}", *pair, ABSENT, uncounted)]
    if isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)) and len(new) == len(old):
        parts = [
            _compare(f"{key}[{i}]", *pair, ABSENT, uncounted)
            for i, pair in enumerate(zip(new, old, strict=True))
        ]
        found = [part for one in parts for part in one]
        whole = found and not any(is_dataclass(part) for part in new)
        return [Difference(key, plain(old), plain(new))] if whole else found
    if new is ABSENT or plain(new) != old:
        return [Difference(key, old, new if new is ABSENT else plain(new))]
    return []


def _default(entry: Field[Any]) -> Any:
    """What a configuration without the field meant."""
    if BEFORE in entry.metadata:
        return entry.metadata[BEFORE]
    if entry.default is not MISSING:
        return entry.default
    return ABSENT if entry.default_factory is MISSING else entry.default_factory()


def _shown(value: Any) -> str:
    text = "(absent)" if value is ABSENT else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
