"""What a training will take of a GPU's memory, said before it starts."""

from __future__ import annotations

import os
from typing import Any

from configs.memory import GIB, MemoryPlan, Shape, estimate
from configs.sharded import asked_of


def foretold(
    model_config: Any, settings: Any, *, train_what: str, tokens: int, memory: int
) -> tuple[str, bool]:
    """(one line, whether it fits `memory` bytes). settings: TrainingArguments; tokens: of a batch, on average.

    A model that is no decoder of a known form gets a line that says so.
    """
    try:
        shape = Shape.of(model_config.get_text_config().to_dict())
    except (KeyError, TypeError):
        return f"memory: no estimate for a {model_config.model_type} model", True
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    asked = asked_of(os.environ)
    plan = MemoryPlan(
        train_what="lora" if train_what in ("lora", "new_rows") else "all",
        sharding="ddp" if asked is None else "zero2" if asked == "DEEPSPEED" and stage != "3" else "fsdp2",
        processes=settings.world_size,
        tokens=tokens,
        checkpointing=settings.gradient_checkpointing,
        eight_bit="8bit" in str(getattr(settings.optim, "value", settings.optim)),
    )
    found = estimate(shape, plan)
    enough = found.total <= memory
    verdict = (
        "" if enough else f" -> more than the {memory / GIB:.0f} GiB of this one: see python -m configs.sizes"
    )
    return f"memory: {found}{verdict}", enough
