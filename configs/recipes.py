"""Which way of training a model of a known size fits a card: chosen by the estimate of configs/memory.py.

The shapes are those of Qwen2.5 (0.5B, 1.5B, 3B) and Qwen3 (0.6B, 1.7B, 4B). Preferred, in this order: every parameter trains, on
one GPU or several with whole weights each; then with layers computed again in the backward; then in parts (several GPUs);
then with moments of a byte; then LoRA. The batch of a step is the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from configs.memory import GIB, Estimate, MemoryPlan, Shape, estimate, largest_that_fits
from configs.program import InputError

SIZES = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 64, 151936, tied=True, biases=True),
    "0.6B": Shape(1024, 3072, 28, 16, 8, 128, 151936, tied=True, head_norms=True),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 128, 151936, tied=True, biases=True),
    "1.7B": Shape(2048, 6144, 28, 16, 8, 128, 151936, tied=True, head_norms=True),
    "3B": Shape(2048, 11008, 36, 16, 2, 128, 151936, tied=True, biases=True),
    "4B": Shape(2560, 9728, 36, 32, 8, 128, 151936, tied=True, head_norms=True),
}
CARDS = (12, 24, 48, 80)  # GB on the box
USABLE = 0.97  # of them: the driver keeps some
WINDOWS = 2048  # of an optimizer step: configs/minionerec/sft_pretrained.yaml on 8 GPUs
WINDOW_TOKENS = 64  # tokens that a window adds to a batch of user trees; Industrial in whole sentences has 21
TOKENS = tuple(WINDOW_TOKENS * 2**power for power in range(5, 9))  # 2,048 to 16,384 in one forward


@dataclass(frozen=True)
class SizeRecipe:
    """One way that fits."""

    size: str
    card: int
    plan: MemoryPlan

    @property
    def windows(self) -> int:
        """trainer.per_device_train_batch_size."""
        return min(self.plan.tokens // WINDOW_TOKENS, WINDOWS // self.plan.processes)

    @property
    def accumulation(self) -> int:
        """trainer.gradient_accumulation_steps."""
        return WINDOWS // (self.windows * self.plan.processes)

    @property
    def estimate(self) -> Estimate:
        """Its memory."""
        return estimate(SIZES[self.size], self.plan)

    def flags(self) -> list[str]:
        """Of train.sft."""
        values = {
            "train_what": self.plan.train_what,
            "trainer.per_device_train_batch_size": self.windows,
            "trainer.gradient_accumulation_steps": self.accumulation,
            "trainer.gradient_checkpointing": str(self.plan.checkpointing).lower(),
        }
        if self.plan.eight_bit:
            values["trainer.optim"] = "adamw_bnb_8bit"
        return [part for name, value in values.items() for part in (f"--{name}", str(value))]

    def __str__(self) -> str:
        how = [self.plan.train_what]
        how += [self.plan.sharding] if self.plan.processes > 1 else []
        how += ["checkpointing"] if self.plan.checkpointing else []
        how += ["8-bit Adam"] if self.plan.eight_bit else []
        return f"{' + '.join(how)}, {self.windows} windows x {self.accumulation}, {self.estimate.total / GIB:.1f} GiB"


def plans(processes: int) -> list[MemoryPlan]:
    """From the preferred one on."""
    plain = MemoryPlan(processes=processes)
    again = replace(plain, checkpointing=True)
    parts = [replace(again, sharding="zero2"), replace(again, sharding="fsdp2")] if processes > 1 else []
    adapters = [replace(plain, train_what="lora"), replace(again, train_what="lora")]
    return [plain, again, *parts, replace(again, eight_bit=True), *adapters]


def recipe(size: str, card: float, *, processes: int = 1) -> SizeRecipe | None:
    """The first of `plans` that fits `processes` cards of `card` GB each; None where none does."""
    if size not in SIZES:
        raise InputError(f"unknown size {size!r} -> one of {', '.join(SIZES)}")
    if processes < 1 or WINDOWS % processes:
        raise InputError(f"{processes} processes do not divide a step of {WINDOWS} windows -> a power of two")
    for plan in plans(processes):
        found = largest_that_fits(SIZES[size], plan, card=card * USABLE * GIB, choices=TOKENS)
        if found is not None:
            return SizeRecipe(size, int(card), found)
    return None
