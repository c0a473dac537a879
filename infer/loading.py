"""A model directory in memory, and what it was made from: models, tokenizers, the facts of examples, context windows."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from configs.program import EnvironmentFault, InputError
from data import artifacts
from data.sid import SidTable
from data.store.adapters import is_adapter
from data.store.models import load_config, load_tokenizer, load_weights, load_with_unsloth
from data.store.output import require_manifest
from infer.search.scoring import logits_transform

PROMPTS = "prompts.json"  # in a model directory: how long its prompts were in training
ATTENTIONS = ("sdpa", "eager")  # those of infer.search.causal, which imports torch
NEEDS_MASKS = (
    "reads no mask of its own for every pair of tokens, which rows that share a prefix and constrained beams need; "
    "sdpa computes with one in its memory-efficient kernel"
)


@dataclass(frozen=True)
class LoadSettings:
    """How a model that is to be trained is loaded. The defaults are float32 weights and the model's own attention."""

    attention: str | None = None
    """sdpa or eager; null = the model's own, eager where it caps its attention logits (Gemma 2). flash_attention_2 and flex_attention cannot be used"""
    quantize: Literal["none", "4bit"] = "none"
    """4bit: frozen weights in NF4 (QLoRA), which needs bitsandbytes and a CUDA device"""
    loader: Literal["transformers", "unsloth"] = "transformers"
    """unsloth: load through Unsloth where it is installed; refused where its attention leaves our masks out"""
    liger: bool = False
    """Liger's kernels for norms, rotary positions and feed-forwards where it is installed; the loss stays ours"""

    def __post_init__(self) -> None:
        if self.attention is not None and self.attention not in ATTENTIONS:
            raise InputError(
                f"loading.attention {self.attention} {NEEDS_MASKS} -> {' or '.join(ATTENTIONS)}, or null"
            )

    def require(self) -> None:
        """EnvironmentFault where this machine lacks what the settings ask for."""
        import torch

        wanted = {
            "bitsandbytes": self.quantize == "4bit",
            "unsloth": self.loader == "unsloth",
            "liger_kernel": self.liger,
        }
        for package, needed in wanted.items():
            if needed and find_spec(package) is None:
                raise EnvironmentFault(
                    f"loading asks for {package}, which is not installed -> see requirements-gpu.txt, or leave it out"
                )
            if needed and not torch.cuda.is_available():
                raise EnvironmentFault(
                    f"loading asks for {package}, which needs a CUDA device -> leave it out"
                )


USUAL = LoadSettings()


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


def load_model(
    directory: Path, *, device: str | None = None, trainable: bool = False, loading: LoadSettings = USUAL
) -> tuple[Any, Any]:
    """(causal LM or encoder-decoder in eval mode, tokenizer) of a local directory.

    bfloat16 on CUDA for inference, else float32. InputError for a model that cannot be loaded, whose logits are scaled in a
    way the decoder does not know, or to train an encoder-decoder; EnvironmentFault for what `loading` asks in vain.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    loading.require()
    device = usable_device(device or default_device())
    dtype = torch.bfloat16 if device.startswith("cuda") and not trainable else torch.float32
    encodes = load_config(directory).is_encoder_decoder
    if encodes and trainable:
        raise InputError(
            f"model {directory} is an encoder-decoder, which train.sft and train.grpo do not train -> a causal LM (Qwen, "
            "Llama, GPT-2, ...)"
        )
    kind = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
    if loading == USUAL:
        model = load_weights(kind, directory, dtype=dtype).to(device)
    else:
        model = _load_as(loading, kind, directory, dtype=dtype)
    tokenizer = load_tokenizer(directory)
    logits_transform(model.config)
    return model.eval(), tokenizer


def _load_as(loading: LoadSettings, kind: Any, directory: Path, *, dtype: Any) -> Any:
    """The model as `loading` says, on the CPU, or on the GPU of this process where its kernels live there."""
    if is_adapter(directory) and (loading.quantize != "none" or loading.loader != "transformers"):
        raise InputError(
            f"{directory} is an adapter, and {loading} reads whole models -> merge it: scripts/merge.sh"
        )
    from infer.search.causal import require_masks

    options: dict[str, Any] = {"attn_implementation": loading.attention} if loading.attention else {}
    if loading.quantize == "4bit":
        import torch
        from transformers import BitsAndBytesConfig

        dtype = torch.bfloat16
        options |= {
            "device_map": {"": default_device()},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
        }
    if loading.loader == "unsloth":
        model = load_with_unsloth(directory, dtype=dtype, quantize=loading.quantize == "4bit")
    else:
        model = load_weights(kind, directory, dtype=dtype, options=options)
    if loading.liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        if next(model.parameters()).device.type == "cpu":
            model.to(default_device())  # its kernels compute on a GPU alone, `require_masks` below too
        # not its losses: they would replace the forward that gives hidden states
        _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    require_masks(model)
    return model


def prompt_bound(directory: str | Path, chosen: int | None) -> int | None:
    """The longest prompt in tokens: as chosen, else as the model was trained (PROMPTS beside its weights); None = no bound."""
    path = Path(directory) / PROMPTS
    if chosen is not None or not path.is_file():
        return chosen
    return json.loads(path.read_text())["max_prompt"]


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens that a model's positions cover; None where it sets no limit (relative positions)."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) else None
