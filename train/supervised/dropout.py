"""Dropout for models whose class has none: on token embeddings and on every block's attention and feed-forward output.

Qwen3, Llama and their kin are built to be pretrained on more text than they can memorise. A small one trained from
scratch on a shop's sequences memorises them within a few epochs; dropout is what sequential recommenders use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from configs.program import InputError

BLOCK_PARTS = ("self_attn", "attn", "attention", "mlp", "feed_forward")


def add_dropout(model: nn.Module, p: float) -> int:
    """Attach dropout with probability `p` to `model`, active in training mode only; the number of places.

    Hooks, not modules: names, parameters and the saved checkpoint stay what they are. InputError where no block is found.
    """
    if not 0 <= p < 1:
        raise InputError(f"dropout {p} must lie in [0, 1)")
    if p == 0:
        return 0
    parts = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in BLOCK_PARTS]
    if not parts:
        raise InputError(
            f"dropout: no attention or feed-forward module found in {type(model).__name__} -> set dropout to 0"
        )

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (torch.nn.functional.dropout(output[0], p), *output[1:])
        return torch.nn.functional.dropout(output, p)

    for module in (model.get_input_embeddings(), *parts):
        module.register_forward_hook(hook)
    return len(parts) + 1
