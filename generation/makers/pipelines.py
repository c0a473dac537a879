"""Diffusers pipelines from local directories: the right class, safetensors only, an adapter merged in, on one device.

An adapter is merged into the transformer when the pipeline is loaded: a directory of PEFT or of diffusers, or its safetensors
file. The base that it names in its adapter_config.json is somebody else's path more often than not: the pipeline that you give
is what it is merged into, said so, and refused where a tensor of it has no place there.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from configs.program import EnvironmentFault, InputError, raise_environment_fault, say
from data.store.fingerprints import read_record
from data.store.inputs import PIPELINE
from data.store.models import quiet_transformers

ADAPTER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PREFIX = re.compile(r"^(?:base_model\.model\.|transformer\.|diffusion_model\.)+")
PART = re.compile(r"\.(lora_A|lora_down|lora_B|lora_up|alpha)(?:\.default)?(?:\.weight)?$")
UP, DOWN = ("lora_B", "lora_up"), ("lora_A", "lora_down")
FP8_CAPABILITY = (8, 9)


def require_pipeline(directory: str, classes: tuple[str, ...]) -> str:
    """The class of a local pipeline directory; InputError where there is none, or one of another kind."""
    path = Path(directory)
    if not path.is_dir():
        raise InputError(
            f"model {directory} does not exist -> pass a local diffusers directory ({' or '.join(classes)})"
        )
    if not (path / PIPELINE).is_file():
        raise InputError(
            f"model {directory} has no {PIPELINE} -> pass a diffusers pipeline, not a single model"
        )
    found = (read_record(path / PIPELINE) or {}).get("_class_name")
    if found not in classes:
        raise InputError(f"model {directory} is a {found} -> pass a {' or '.join(classes)}")
    return found


def chosen_device(device: str | None) -> str:
    """The device of this process; EnvironmentFault where a GPU is asked for and none is there."""
    import torch

    if device is None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentFault(f"device {device}: this machine has no GPU that torch can use -> --device cpu")
    return device


def load_pipeline(directory: str, kind: Any, *, dtype: str, device: str) -> Any:
    """The pipeline on its device, quietly. dtype auto is bfloat16 on a GPU, float32 on a CPU."""
    import torch
    from diffusers.utils import logging

    name = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    quiet_transformers()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = kind.from_pretrained(
                directory, torch_dtype=getattr(torch, name), local_files_only=True, use_safetensors=True
            )
    except Exception as error:  # as in data/store/models.py: files of others
        raise_environment_fault(error, where=f"while loading {directory}")
        text = " ".join(str(error).split())[:200]
        raise InputError(f"model {directory} cannot be loaded: {text} -> check the directory") from error
    finally:
        logging.set_verbosity(verbosity)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def place(pipeline: Any, *, device: str, offload: bool) -> Any:
    """Whole on the device, or component by component when each is used."""
    if offload:
        if not device.startswith("cuda"):
            raise EnvironmentFault(
                "offload moves components to a GPU when they are used, and there is none -> --offload false"
            )
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def quantize_fp8(transformer: Any, *, device: str) -> None:
    """Weights and activations of the linear layers in 8-bit floats, by torchao. Not run: it takes an Ada or Hopper GPU."""
    import torch

    if not device.startswith("cuda"):
        raise EnvironmentFault("dtype fp8 needs a GPU of compute capability 8.9 (Ada, Hopper), and there is none -> --dtype bfloat16")  # fmt: skip
    found = torch.cuda.get_device_capability(torch.device(device))
    if found < FP8_CAPABILITY:
        raise EnvironmentFault(
            f"dtype fp8 needs compute capability 8.9, {device} has {found[0]}.{found[1]} -> --dtype bfloat16"
        )
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_
    except ImportError:
        raise EnvironmentFault("dtype fp8 needs torchao -> python -m pip install torchao") from None
    quantize_(transformer.to(device), Float8DynamicActivationFloat8WeightConfig())


def merge_adapter_into(transformer: Any, adapter: str, *, scale: float) -> None:
    """W += scale x alpha / r x B A for every linear layer that the adapter has tensors of; InputError where one has no place."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, config = adapter_file(adapter)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"adapter {file} cannot be read: {str(error)[:100]} -> copy it again") from None
    layers: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        match = PART.search(name)
        if match is None:
            raise InputError(
                f"adapter {file} has tensor {name}, which is none of LoRA -> an adapter with lora_A and lora_B"
            )
        layers.setdefault(PREFIX.sub("", name[: match.start()]), {})[match[1]] = tensor
    modules = dict(transformer.named_modules())
    for name, parts in layers.items():
        up, down = (next((parts[key] for key in keys if key in parts), None) for keys in (UP, DOWN))
        weight = getattr(modules.get(name), "weight", None)
        fits = (
            up is not None
            and down is not None
            and weight is not None
            and tuple(weight.shape) == (up.shape[0], down.shape[1])
        )
        if not fits or up.shape[1] != down.shape[0]:
            raise InputError(
                f"adapter {adapter} has no place in this model (first: layer {name})"
                f"{_of_base(config)} -> the pipeline that it was trained on"
            )
    if base := config.get("base_model_name_or_path"):
        say(f"adapter {adapter}: trained on {base} by its own word, merged into the model that was given")
    with torch.no_grad():
        for name, parts in layers.items():
            up, down = (next(parts[key] for key in keys if key in parts) for keys in (UP, DOWN))
            rank = down.shape[0]
            alpha = float(parts["alpha"]) if "alpha" in parts else float(config.get("lora_alpha", rank))
            factor = scale * alpha / (rank**0.5 if config.get("use_rslora") else rank)
            weight = modules[name].weight
            weight += (factor * up.float() @ down.float()).to(weight)


def _of_base(config: dict[str, Any]) -> str:
    base = config.get("base_model_name_or_path")
    return f", it names {base} as its base" if base else ""


def adapter_file(adapter: str) -> tuple[Path, dict[str, Any]]:
    """(its safetensors file, its adapter_config.json or {}); InputError where there is none."""
    path = Path(adapter)
    candidates = [path] if path.suffix == ".safetensors" else [path / name for name in ADAPTER_FILES]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise InputError(f"adapter {adapter} has none of {', '.join(ADAPTER_FILES)} -> a LoRA as safetensors")
    config = file.parent / "adapter_config.json"
    try:
        return file, json.loads(config.read_text()) if config.is_file() else {}
    except (OSError, ValueError):
        raise InputError(f"{config} cannot be read -> copy the adapter again") from None
