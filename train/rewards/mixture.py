"""The mixture of rewards that a configuration names: found, called, checked, and added up.

    total = sum_k weight_k * reward_k      over the members that speak for a cell

A member that gives [P][G] counts for every level; with one that gives [P][G][L] the total is per level. A cell where every
member is None is NaN. Weights 1 and .5, exact match [1, 0] and a member [None, [.2, .4]] give [[1, 1], [.1, .2]].

Legend: P prompts, G rollouts, L levels, M = L, or 1 where no member is per level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.functions import load_function
from configs.program import InputError, NumericError, ProgramError
from train.rewards import RolloutBatch, registry
from train.rewards.needs import Sources, resolve
from train.rewards.spec import RewardSpec


@dataclass(frozen=True)
class Member:
    """One reward, ready to be called."""

    label: str
    function: Callable[..., Any]
    weight: float
    arguments: dict[str, Any]
    tasks: frozenset[str] | None = None

    def __call__(self, batch: RolloutBatch) -> np.ndarray:
        """Rewards float64 [P, G, M], NaN where they are None and for rows of other tasks than its own.

        InputError for another shape or an exception of the function, NumericError for a value that is not finite; each
        names the function and the example.
        """
        mine = self._mine(batch)
        if len(mine) < len(batch.rows):
            found = self(batch.take(mine)) if mine else np.empty((0, batch.codes_PGL.shape[1], 1))
            values = np.full((len(batch.rows), *found.shape[1:]), np.nan)
            values[mine] = found
            return values
        try:
            given = self.function(batch, **self.arguments)
        except ProgramError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise InputError(
                f"reward {self.label} fails at {self._where_it_fails(batch)}: {type(error).__name__}: {error} "
                "-> correct the function"
            ) from error
        return self._checked(given, batch)

    def _mine(self, batch: RolloutBatch) -> list[int]:
        """The prompts it speaks for; rows that name no task are everybody's."""
        tasks = self.tasks
        return [p for p, row in enumerate(batch.rows) if tasks is None or row.get("task") in (None, *tasks)]

    def _where_it_fails(self, batch: RolloutBatch) -> str:
        for p in range(len(batch.rows)):
            try:
                self.function(batch.only(p), **self.arguments)
            except Exception:
                return _name(batch, p)
        return f"the prompts {_name(batch, 0)} to {_name(batch, len(batch.rows) - 1)}"

    def _checked(self, given: Any, batch: RolloutBatch) -> np.ndarray:
        prompts, group, levels = batch.codes_PGL.shape
        given = given.tolist() if hasattr(given, "tolist") else given
        if not _is_list(given) or len(given) != prompts:
            raise self._misshapen(f"{_size(given)} for {prompts} prompts, from {_name(batch, 0)} on")
        for p, cells in enumerate(given):
            if not _is_list(cells) or len(cells) != group:
                raise self._misshapen(f"{_size(cells)} for the {group} rollouts of {_name(batch, p)}")
        per_level = any(_is_list(cell) for cells in given for cell in cells)
        values = np.full((prompts, group, levels if per_level else 1), np.nan)
        for p, cells in enumerate(given):
            for g, cell in enumerate(cells):
                if per_level and _is_list(cell) and len(cell) != levels:
                    raise self._misshapen(
                        f"{len(cell)} values for the {levels} levels of {_name(batch, p, g)}"
                    )
                parts = cell if _is_list(cell) else [cell]
                values[p, g] = [self._number(part, batch, p, g) for part in parts]
        return values

    def _number(self, value: Any, batch: RolloutBatch, p: int, g: int) -> float:
        if value is None:
            return np.nan
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._misshapen(f"{value!r} for {_name(batch, p, g)}") from None
        if not np.isfinite(number):
            raise NumericError(
                f"reward {self.label} is {number} for {_name(batch, p, g)} -> None where it does not apply"
            )
        return number

    def _misshapen(self, what: str) -> InputError:
        return InputError(f"reward {self.label} gives {what} -> [P][G] or [P][G][L] of numbers or None")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _size(value: Any) -> str:
    return f"{len(value)} entries" if _is_list(value) else f"a {type(value).__name__}"


def _name(batch: RolloutBatch, p: int, g: int | None = None) -> str:
    which = f"example {batch.rows[p].get('example_id', f'in row {p} of the batch')}"
    return which if g is None else f"{which}, rollout {g}"


class Mixture:
    """The members of a mixture; calling it gives the weighted total, `means` what each member gave."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)

    def __call__(self, batch: RolloutBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(total float64 [P, G, M], NaN where no member speaks; {label: its own rewards [P, G, M]})."""
        given = {member.label: member(batch) for member in self.members}
        weighted = [m.weight * values for m, values in zip(self.members, given.values(), strict=True)]
        stacked = np.stack(np.broadcast_arrays(*weighted))
        silent = np.isnan(stacked)
        return np.where(silent.all(0), np.nan, np.where(silent, 0.0, stacked).sum(0)), given


def build_mixture(specs: Sequence[RewardSpec], sources: Sources) -> Mixture:
    """Every reward found and its needs resolved; InputError for what is unknown or missing."""
    found = [_find(spec) for spec in specs]
    wanted = [need for _, needs, _ in found for need in needs]
    values = resolve(wanted, sources)
    members: list[Member] = []
    for spec, (function, needs, own) in zip(specs, found, strict=True):
        label = spec.name.rpartition(":")[2]
        again = sum(member.label.split("#")[0] == label for member in members)
        arguments = spec.params | {need: values[need] for need in needs}
        tasks = frozenset(spec.tasks) or own
        label = f"{label}#{again + 1}" if again else label
        members.append(Member(label, function, spec.weight, arguments, tasks))
    return Mixture(members)


def _find(spec: RewardSpec) -> tuple[Callable[..., Any], list[str], frozenset[str] | None]:
    """(the function, what it needs, the tasks of its kind; None = all)."""
    if spec.file is not None:
        return load_function(spec.name), spec.needs, None
    known = registry()
    if spec.name not in known:
        raise InputError(
            f"unknown reward {spec.name!r} -> any of {', '.join(known)}, or your own as path/to/file.py:function"
        )
    reward = known[spec.name]
    return reward.function, sorted({*reward.needs, *spec.needs}), reward.tasks
