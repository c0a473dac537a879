"""How a configuration names a reward: plain data, checked at construction and free of heavy imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from configs.program import InputError
from data.tasks import TASKS


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a mixture; a plain string in a configuration is a spec of that name alone."""

    name: str
    """a reward of train/rewards, or `file.py:function`"""
    weight: float = 1.0
    """factor in the sum"""
    params: dict[str, Any] = field(default_factory=dict)
    """keyword arguments of the function"""
    needs: list[str] = field(default_factory=list)
    """what the function takes besides, resolved before training starts: teacher, embeddings, sids, sid_format, titles, popularity,
    judge"""
    tasks: list[str] = field(default_factory=list)
    """speaks for rows of these tasks only; empty = those of the reward's own kind, of a file's function all"""

    def __post_init__(self) -> None:
        if not isfinite(self.weight):
            raise InputError(f"reward {self.name}: weight {self.weight} must be finite")
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise InputError(
                f"reward {self.name}: unknown tasks {', '.join(unknown)} -> of {', '.join(TASKS)}"
            )
        both = sorted(set(self.params) & set(self.needs))
        if both:
            raise InputError(
                f"reward {self.name}: {', '.join(both)} is named in params and in needs -> keep one"
            )

    @property
    def file(self) -> str | None:
        """The file that holds the function; None for a reward of ours."""
        path, colon, _ = self.name.rpartition(":")
        return path if colon else None


def wanted(specs: Sequence[RewardSpec]) -> set[str]:
    """What the rewards need (train/rewards/needs.py), as far as their names are known."""
    from train.rewards import registry

    known = registry()
    return {need for spec in specs for need in spec.needs}.union(
        *(known[spec.name].needs for spec in specs if spec.name in known)
    )


def read_specs(rewards: list[str | RewardSpec]) -> list[RewardSpec]:
    """Every entry as a spec; InputError where there is none."""
    if not rewards:
        raise InputError("rewards: none given -> name at least one")
    return [_read(reward) for reward in rewards]


def _read(reward: str | RewardSpec) -> RewardSpec:
    if not isinstance(reward, str):
        return reward
    if "{" in reward:  # what the parser could not read as a spec arrives as text
        raise InputError(
            f"rewards: {reward} is no reward -> a name, file.py:function, or a mapping with the keys name (text), weight "
            "(number), params (mapping), needs (list), tasks (list)"
        )
    return RewardSpec(reward)
