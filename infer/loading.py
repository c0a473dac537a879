"""A model directory in memory, and what it was made from: models, tokenizers, the facts of examples, context windows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from configs.program import EnvironmentFault, InputError
from data import artifacts
from data.sid import SidTable
from data.store.models import load_config, load_tokenizer, load_weights
from data.store.output import require_manifest
from infer.search.scoring import logits_transform


def examples_facts(examples_dir: str | Path, sids: SidTable, sids_dir: str | Path) -> dict[str, Any]:
    """Facts of an examples directory; InputError when it was built from other semantic IDs."""
    facts = require_manifest(examples_dir, written_by=artifacts.EXAMPLES.written_by)["facts"]
    if facts["sids_sha256"] != sids.sha256:
        raise InputError(
            f"examples {examples_dir} were built from other semantic IDs than {sids_dir} "
            f"({facts['sids_sha256'][:12]} against {sids.sha256[:12]}) -> run scripts/07_build_examples.sh with these SIDs"
        )
    return facts


def default_device() -> str:
    """The GPU of this process where there is one (LOCAL_RANK of a launcher), else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> str:
    """`name`, if tensors can be made there; InputError for no device at all, EnvironmentFault where this machine has none."""
    import torch

    try:
        torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r} -> cpu, cuda, cuda:1, ...") from None
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise EnvironmentFault(
            f"device {name} cannot be used here ({str(error).splitlines()[0][:100]}) -> cpu, or look at scripts/doctor.sh"
        ) from None
    return name


def load_model(directory: Path, *, device: str | None = None, trainable: bool = False) -> tuple[Any, Any]:
    """(causal LM or encoder-decoder in eval mode, tokenizer) of a local directory.

    bfloat16 on CUDA for inference, else float32. InputError for a model that cannot be loaded, whose logits are scaled in a
    way the decoder does not know, or to train an encoder-decoder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    device = usable_device(device or default_device())
    dtype = torch.bfloat16 if device.startswith("cuda") and not trainable else torch.float32
    encodes = load_config(directory).is_encoder_decoder
    if encodes and trainable:
        raise InputError(
            f"model {directory} is an encoder-decoder, which train.sft and train.grpo do not train -> a causal LM (Qwen, "
            "Llama, GPT-2, ...)"
        )
    kind = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
    model = load_weights(kind, directory, dtype=dtype)
    tokenizer = load_tokenizer(directory)
    logits_transform(model.config)
    return model.to(device).eval(), tokenizer


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens that a model's positions cover; None where it sets no limit (relative positions)."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) else None
