"""What a training will take of a GPU's memory, said before it starts."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from configs.memory import GIB, Shape, estimate
from configs.sharded import asked_of
from train.scale.planning import memory_plan


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
    plan = replace(
        memory_plan(settings, train_what=train_what),
        sharding="ddp" if asked is None else "zero2" if asked == "DEEPSPEED" and stage != "3" else "fsdp2",
        processes=settings.world_size,
        tokens=tokens,
    )
    found = estimate(shape, plan)
    enough = found.total <= memory
    verdict = (
        "" if enough else f" -> more than the {memory / GIB:.0f} GiB of this one: see python -m configs.sizes"
    )
    return f"memory: {found}{verdict}", enough
