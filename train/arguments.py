"""The free `trainer:` mapping of a config -> a TrainingArguments object, checked and typed.

Keys must be fields of the class; values are coerced to the field's type, because dotted flags arrive as strings.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from configs.overlays import nearest
from configs.program import InputError, quiet
from configs.sharded import asked_of
from configs.sharded import require_possible as require_sharded

Tracker = typing.Literal["none", "tensorboard", "wandb", "swanlab"]  # see train/trackers.py

# Set by the framework: checkpoints, logging and devices must work the way resume and the reports expect.
RESERVED = {
    "output_dir", "logging_nan_inf_filter", "report_to", "use_cpu", "remove_unused_columns", "seed", "data_seed",
    "resume_from_checkpoint", "push_to_hub", "disable_tqdm", "save_total_limit", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "eval_strategy", "save_strategy", "fp16", "save_steps", "max_length",
    "eval_on_start", "label_smoothing_factor", "loss_type", "packing", "padding_free", "use_liger_kernel",
    "assistant_only_loss", "completion_only_loss", "logging_strategy", "save_only_model", "hub_always_push", "hub_model_id",
    "hub_private_repo", "hub_revision", "hub_strategy", "hub_token", "project", "trackio_bucket_id", "trackio_space_id",
    "trackio_static_space_id", "do_train", "do_eval", "do_predict", "prediction_loss_only",
}  # fmt: skip

AT_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0,
    "weight_decay": 0, "max_grad_norm": 0, "warmup_steps": 0,
    "logging_steps": 0, "dataloader_num_workers": 0, "eval_delay": 0,
}  # fmt: skip


def trainer_arguments(
    cls: type, mapping: dict[str, Any], *, output_dir: Path, seed: int, **fixed: Any
) -> Any:
    """`cls` (a TrainingArguments) from a config mapping plus what the framework fixes.

    `trainer.bf16` computes in bfloat16 on float32 weights: by default on a GPU that has it, and never on a CPU, where only
    processors with AMX gain by it. Raises InputError naming an unknown, reserved or ill-typed key.
    """
    import torch

    cuda = torch.cuda.is_available()
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields or key in RESERVED:
            why = "is set by the framework" if key in RESERVED else f"is no field of {cls.__name__}"
            meant = None if key in RESERVED else nearest(key, sorted(fields - RESERVED))
            hint = f"did you mean trainer.{meant}?" if meant else "remove it from the config or flags"
            hint = "use --tracker" if key == "report_to" else hint
            raise InputError(f"trainer.{key} {why} -> {hint}")
        values[key] = coerce(value, hints[key], where=f"trainer.{key}")
    require_possible(values)
    require_parallel(values, cuda=cuda)
    values |= {
        "output_dir": str(output_dir), "seed": seed, "data_seed": seed, "use_cpu": not cuda,
        "logging_nan_inf_filter": False, "report_to": [], "save_total_limit": None, "disable_tqdm": quiet(),
    }  # fmt: skip
    values["bf16"] = bfloat16(values.get("bf16"))
    values.setdefault("dataloader_pin_memory", cuda)
    values.setdefault("gradient_checkpointing", False)
    try:
        config = cls(**(values | fixed))
    except (TypeError, ValueError) as error:
        raise InputError(f"trainer: {' '.join(str(error).split())[:200]} -> change the config") from error
    if config.n_gpu > 1:
        config._n_gpu = (
            1  # one process drives one GPU; more of them are NUM_GPUS processes, never nn.DataParallel
        )
    return config


def bfloat16(wanted: bool | None) -> bool:
    """Whether training computes in bfloat16; InputError where that was asked of a processor without it."""
    import torch

    cuda = torch.cuda.is_available()
    has = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else cpu_has_bfloat16()
    if wanted and not has:
        raise InputError(
            f"trainer.bf16 is true, and this {'GPU' if cuda else 'CPU'} does not compute in bfloat16 -> leave it out"
        )
    return cuda and has if wanted is None else wanted


def cpu_has_bfloat16() -> bool:
    """AMX or AVX-512 BF16: without them bfloat16 is emulated, many times slower than float32."""
    import torch

    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def require_possible(values: dict[str, Any]) -> None:
    """InputError for a value with which a trainer would fail late, or do nothing and succeed."""
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"trainer.{key} is {value} -> a finite number")
        least = AT_LEAST.get(key)
        if least is not None and isinstance(value, (int, float)) and value < least:
            raise InputError(f"trainer.{key} is {value} -> {least} or more")
    if (values.get("gradient_checkpointing_kwargs") or {}).get("use_reentrant"):
        raise InputError(
            "trainer.gradient_checkpointing_kwargs: use_reentrant cuts the gradients behind frozen inputs -> remove it"
        )
    for key, unset in (("max_steps", -1), ("num_train_epochs", None)):
        value = values.get(key)
        if (
            isinstance(value, (int, float))
            and value <= 0
            and value != unset
            and values.get("max_steps", -1) <= 0
        ):
            raise InputError(f"trainer.{key} is {value}: nothing would be trained -> more than 0")


def require_parallel(values: dict[str, Any], *, cuda: bool) -> None:
    """InputError or EnvironmentFault where sharding is asked for, by the launcher or in `values`, and would not happen."""
    own = "FSDP" if values.get("fsdp") else "DEEPSPEED" if values.get("deepspeed") else None
    if own:
        raise InputError(
            f"trainer.{own.lower()} is not how weights are sharded here -> ACCELERATE_CONFIG=configs/accelerate/"
            f"{'fsdp2' if own == 'FSDP' else 'zero2'}.yaml with NUM_GPUS"
        )
    asked = asked_of(os.environ)
    if asked:
        require_sharded(
            asked, cuda=cuda, where="the launcher", version=int(os.environ.get("FSDP_VERSION", "2"))
        )


def coerce(value: Any, hint: Any, *, where: str) -> Any:
    """`value` as the type of the field; strings from flags become numbers, booleans or None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None or (value in ("null", "None") and type(None) in options):
        if type(None) in options:
            return None
        raise InputError(f"{where}: null is not a {_name(hint)} -> give a value")
    for option in options:
        try:
            return _as(value, option)
        except (TypeError, ValueError):
            continue
    raise InputError(f"{where}: {value!r} is not a {_name(hint)} -> correct the value")


def _as(value: Any, kind: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        return (
            {"true": True, "false": False}[str(value).lower()]
            if str(value).lower() in ("true", "false")
            else _fail()
        )
    if kind is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else int(str(value))
    if kind is float:
        return _fail() if isinstance(value, bool) else float(value)
    if kind is str:
        return value if isinstance(value, str) else _fail()
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    container = typing.get_origin(kind) or kind
    if container in (dict, list) and isinstance(value, container):
        return _typed(value)
    return _fail()


def _typed(value: Any) -> Any:
    """A mapping or list whose numbers and truth values are no strings: a dotted flag, and `1e-5` in YAML, are."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    for kind in (int, float, bool) if isinstance(value, str) else ():
        try:
            return _as(value, kind)
        except (TypeError, ValueError):
            continue
    return None if value in ("null", "None") else value


def _fail() -> Any:
    raise ValueError


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
