"""Rollouts over several tasks in one pass: thoughts of all prompts together, then the answers of each kind of task.

A prompt's task is the `task` of its row, never guessed from its text. Semantic IDs come from the search (thoughts.py), terms and
instructions from the decoder of stage 12 (instructions.py), all on token ids behind the same thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.answers import INSTRUCTION_TASK
from train.policy.text.instructions import InstructionPolicy
from train.policy.text.thoughts import ThoughtPolicy, ThoughtRollouts


@dataclass(frozen=True)
class RoutedRollouts:
    """P * G completions in the order of the prompts, and what rewards see of them, one part per kind of task: (the positions of its
    prompts, its rollouts)."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    counted: list[list[int]]
    parts: list[tuple[list[int], ThoughtRollouts]]


class Router:
    """items: for rows whose answer is a semantic ID; texts: for rows of history_to_instruction, where there are any."""

    def __init__(self, items: ThoughtPolicy, texts: InstructionPolicy | None = None) -> None:
        self.items, self.texts = items, texts
        self.engine, self.settings, self.group = items.engine, items.settings, items.group

    def roll_out(
        self, rows: Sequence[dict[str, Any]], prompts: Sequence[Sequence[int]], *, step: int
    ) -> RoutedRollouts:
        """G thoughts behind each of P prompts and an answer of its task behind each of them."""
        keys = self.items.keys(rows, step)
        thoughts = self.items.writer.write(prompts, keys)
        told = [at for at, row in enumerate(rows) if row.get("task") == INSTRUCTION_TASK]
        named = [at for at in range(len(rows)) if at not in set(told)]
        parts = []
        for positions in filter(None, (named, told)):
            own = [[part[at] for at in positions] for part in (rows, prompts, thoughts)]
            if positions is named:
                made = self.items.roll_out(own[0], own[1], step=step, thoughts=own[2])
            else:
                made = self.texts.roll_out(*own[:2], keys=[keys[at] for at in positions], thoughts=own[2])
            parts.append((positions, made))
        return RoutedRollouts(*(self._in_order(name, parts, len(rows)) for name in NAMES), parts)

    def _in_order(self, name: str, parts: Sequence[tuple[list[int], ThoughtRollouts]], count: int) -> list:
        """The lists of all parts as one, prompt by prompt."""
        groups: list[list] = [[] for _ in range(count)]
        for positions, made in parts:
            flat = getattr(made, name)
            for place, at in enumerate(positions):
                groups[at] = flat[place * self.group : (place + 1) * self.group]
        return [entry for group in groups for entry in group]


NAMES = ("prompt_ids", "completion_ids", "counted")
