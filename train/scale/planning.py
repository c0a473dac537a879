"""What a training would take, said before anything is loaded: memory of a GPU, steps, time. `--plan 8xH100`, `--plan cpu`.

Memory is counted by configs/memory.py, for batches that are really laid out from a sample of the rows. Time is the arithmetic of
train/scale/work.py over a share of the device's peak that trainings are known to reach, RATES; with it comes what validation
may take. Both are estimates, marked as such: on a CPU memory was compared with measurement (tests/test_planning.py), on a GPU
neither was.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.memory import MemoryPlan, Shape, estimate
from configs.program import InputError
from data.store.fingerprints import read_record
from train.scale.work import Work, peak_of

RATES = (0.5, 0.2)  # of the peak: a large model in long rows, a small one in short rows
MEMORY = {
    "GB200": 186, "B200": 180, "GH200": 96, "H200": 141, "H100 NVL": 94, "H100": 80, "A100": 80, "L40S": 48, "L40": 48, "L4": 24,
    "A10G": 24, "A10": 24, "A40": 48, "RTX A6000": 48, "RTX 4090": 24, "RTX 3090": 24, "MI300X": 192,
}  # fmt: skip  # GB on the box, by the names of PEAKS


@dataclass(frozen=True)
class Machine:
    """Processes, each on a card of a known name, or on a CPU (None), and how their state is shared out."""

    processes: int
    card: str | None
    sharding: str = "ddp"

    @classmethod
    def of(cls, text: str) -> Machine:
        """`8xH100`, `8xH100 zero2`, `1xRTX 4090`, `cpu`; InputError for a card whose memory is not listed.

        >>> Machine.of("8xA100 fsdp2").sharding, Machine.of("cpu")
        ('fsdp2', Machine(processes=1, card=None, sharding='ddp'))
        """
        count, card, sharding = re.fullmatch(
            r"(?:([1-9]\d*)\s*x\s*)?(.*?)(?:\s+(ddp|zero2|fsdp2))?", text.strip()
        ).groups()
        if card.lower() == "cpu":
            return cls(int(count or 1), None, sharding or "ddp")
        if card.upper() not in MEMORY:
            raise InputError(
                f"plan {text!r} -> COUNTxCARD [ddp | zero2 | fsdp2], where CARD is cpu or one of {', '.join(MEMORY)}"
            )
        return cls(int(count or 1), card.upper(), sharding or "ddp")

    @property
    def memory(self) -> float | None:
        """Bytes of a card."""
        return None if self.card is None else MEMORY[self.card] * 1e9

    @property
    def peak(self) -> float:
        """Operations per second of one process: bfloat16 of a card; of this CPU by a product of matrices, in float32."""
        return cpu_rate() if self.card is None else peak_of(self.card)


@dataclass(frozen=True)
class Load:
    """What a run computes. tokens, labels: of a step over all processes; slots: of one forward, padding included, the largest."""

    steps: int
    tokens: float
    labels: float
    slots: int
    validation_tokens: int
    """in the cache of a validation's largest batch"""
    passes: float = 1.0
    """of a forward and backward, where more is computed for every token"""


def shape_of(model: str | Path) -> Shape:
    """The shape in a model directory's config.json; InputError for a model of another kind."""
    try:
        return Shape.of(read_record(Path(model, "config.json")) or {})
    except KeyError as error:
        raise InputError(
            f"{model} has no {error} in its config.json -> plans are made for decoders like Qwen3"
        ) from None


def work_of_shape(shape: Shape, *, train_what: str) -> Work:
    """As train.scale.work.work_of counts it on a model in memory."""
    per_weight = 6.0 if train_what == "all" else 4.0
    return Work(per_weight * shape.layers * shape.layer, per_weight * shape.table)


def cpu_rate() -> float:
    """Multiplications and additions per second of this process, float32, by one product of matrices."""
    import torch

    left, right = torch.ones(512, 512), torch.ones(512, 512)
    left @ right
    started = time.perf_counter()
    for _ in range(4):
        left @ right
    return 4 * 2 * 512**3 / (time.perf_counter() - started)


def told(
    machine: Machine, shape: Shape, load: Load, plan: MemoryPlan, *, train_what: str, eval_share: float
) -> list[str]:
    """The lines of a plan."""
    plan = replace(
        plan, processes=machine.processes, tokens=load.slots, cached=load.validation_tokens, sharding=machine.sharding,
        device="cuda" if machine.card else "cpu",
    )  # fmt: skip
    found = estimate(shape, plan)
    name, room = machine.card or "CPU", machine.memory
    verdict = ""
    if room is not None:
        verdict = f" of {room / 1e9:.0f} GB" + (
            "" if found.total <= room else ": DOES NOT FIT -> python -m configs.sizes"
        )
    work = load.passes * work_of_shape(shape, train_what=train_what)(
        tokens=int(load.tokens), labels=int(load.labels)
    )
    seconds = [load.steps * work / (rate * machine.peak * machine.processes) for rate in RATES]
    low, high = (spell(one) for one in seconds)
    return [
        f"plan: {machine.processes} x {name}, {shape.parameters / 1e6:,.1f}M parameters, {load.steps:,} steps of {load.tokens:,.0f} tokens, "
        f"{load.labels:,.0f} of them scored; the largest forward has {load.slots:,}",
        f"memory: {found}{verdict}",
        f"time: {low} to {high}, at {RATES[0]:.0%} to {RATES[1]:.0%} of the peak, and validations of at most {eval_share:.0%} of all; an "
        "estimate, not measured",
    ]  # fmt: skip


def spell(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> spell(90), spell(7200)
    ('1.5 min', '2.0 h')
    """
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def memory_plan(settings: Any, *, train_what: str, reference: bool = False) -> MemoryPlan:
    """What TrainingArguments decide about memory; processes, sharding and tokens are the caller's."""
    return MemoryPlan(
        train_what="lora" if train_what in ("lora", "new_rows") else "all",
        checkpointing=settings.gradient_checkpointing,
        eight_bit="8bit" in str(getattr(settings.optim, "value", settings.optim)),
        reference=reference,
    )
