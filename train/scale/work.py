"""How much arithmetic a training does, and what share of a device's peak that is (MFU).

Counted are the multiplications and additions that a model needs for real tokens: 2 per weight and token forward, 2 for the
gradient of the input, 2 for that of the weight where it trains. The output layer counts at label positions, where it is
computed. Attention between tokens, padding, the optimizer and what gradient checkpointing computes again do not count.

PEAKS are dense bfloat16 with float32 sums, from the vendors' data sheets, by a part of the device's name; the first match
counts, so longer names stand first. A device that is not listed has no MFU, nor has training in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PEAKS = {
    "GB200": 2500e12, "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100 PCIE": 756e12, "H100 NVL": 835e12,
    "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12,
    "A40": 150e12, "RTX A6000": 155e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "MI300X": 1307e12,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a step: per token of the trunk, per label of the output layer."""

    per_token: float
    per_label: float

    def __call__(self, *, tokens: int, labels: int) -> float:
        """Operations, forward and backward.

        >>> Work(per_token=6.0, per_label=60.0)(tokens=10, labels=2)
        180.0
        """
        return tokens * self.per_token + labels * self.per_label


def work_of(model: Any) -> Work:
    """Counted before the model is sharded: later its parameters are parts."""
    head = model.get_output_embeddings().weight
    tables = {id(head), id(model.get_input_embeddings().weight)}  # looking up a row multiplies nothing
    per_token = sum(
        (6 if parameter.requires_grad else 4) * parameter.numel()
        for parameter in model.parameters()
        if id(parameter) not in tables
    )
    return Work(float(per_token), float((6 if head.requires_grad else 4) * head.numel()))


def peak_of(name: str) -> float | None:
    """Operations per second of a device by its name; None for one that is not listed.

    >>> peak_of("NVIDIA H100 PCIe"), peak_of("NVIDIA H100 80GB HBM3"), peak_of("Radeon VII")
    (756000000000000.0, 989000000000000.0, None)
    """
    upper = name.upper()
    words = upper.replace("-", " ").split()
    for part, peak in PEAKS.items():
        if part in upper if " " in part else part in words:
            return peak
    return None


def peak_here(*, bf16: bool) -> float | None:
    """The peak of this process's device; None on a CPU, in float32 and for unknown devices."""
    import torch

    if not bf16 or not torch.cuda.is_available():
        return None
    return peak_of(torch.cuda.get_device_name())
