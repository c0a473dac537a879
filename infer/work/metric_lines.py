"""metrics.jsonl: one JSON object a line, written by every training; what its fields mean and how a file is read.

A line is {"step": int, ...}: the optimizer step it belongs to, and numbers (null = not finite). No field is a clock's. Lines come in
the order of steps; a resumed run goes on line for line. FIELDS names every family of fields, by regular expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.program import InputError

FIELDS = {
    r"step": "optimizer steps taken",
    r"epoch": "passes over the rows, with fractions",
    r"loss": "training loss, mean since the last line: nats per label token (sft), policy loss (grpo)",
    r"grad_norm": "norm of the gradient of the last step, before clipping",
    r"learning_rate": "of the last step",
    r"eval_(hr|ndcg)@\d+": "item-level measures of constrained recommendation on validation rows",
    r"eval_pass@\d+": "share of validation rows whose target is among as many beams as a group has rollouts",
    r"eval_(loss|\w+_loss)(/\w+)?": "loss on validation rows, nats per label token; /TASK: of one task",
    r"(valid|train)_\w+(@\d+)?": "of trainers from scratch: the same on the split of that name",
    r"reward(_std|_none|/.+)?": "mean reward of rollouts, its deviation in a group, share of masked cells; /NAME: of a reward or a task",
    r"rewards/.+": "the same by TRL's own names",
    r"\w*(share|rate|ratio|hit|unique|entropy|kl|length|tokens|mean|std|min|max|advantage|depth|gradient|norm)\w*": "grpo: what train/policy/signal.py counts",
    r"(completions|clip_ratio|sampling|importance_sampling_ratio)/.+": "TRL's counts of completions and clipped ratios",
    r"frac_reward_zero_std|step_time|score|beta|num_input_tokens_seen": "TRL's: groups without signal and such",
}  # fmt: skip
KNOWN = re.compile("|".join(f"(?:{family})" for family in FIELDS))


def read_lines(file: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl in order, each checked; a last line that is just being written is left out.

    InputError names line and fault: no object, no step, a step that goes back, a value that is no number.
    """
    text, last = Path(file).read_text(), 0
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{file}:{number}"
        try:
            found = json.loads(line)
        except ValueError:
            if number == len(lines) and not text.endswith("\n"):
                return
            raise InputError(f"{where}: no JSON -> is it a metrics.jsonl?") from None
        if not isinstance(found, dict) or not isinstance(found.get("step"), int):
            raise InputError(f"{where}: no object with a step -> is it a metrics.jsonl?")
        wrong = next(
            (k for k, v in found.items() if isinstance(v, bool) or not isinstance(v, int | float | None)),
            None,
        )
        if wrong is not None or found["step"] < last:
            fault = f"{wrong} is {found[wrong]!r}" if wrong else f"step {found['step']} behind {last}"
            raise InputError(f"{where}: {fault} -> numbers, in the order of steps")
        last = found["step"]
        yield found


def fields_of(file: str | Path) -> set[str]:
    """The fields of a file; InputError for one that FIELDS does not describe."""
    names = {name for line in read_lines(file) for name in line}
    unknown = sorted(name for name in names if not KNOWN.fullmatch(name))
    if unknown:
        raise InputError(
            f"{file} has fields that no schema names: {', '.join(unknown)} -> describe them in FIELDS"
        )
    return names
