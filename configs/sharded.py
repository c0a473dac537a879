"""Where sharded training (FSDP, DeepSpeed) is possible, and whether it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from configs.program import EnvironmentFault, InputError

SHARDED = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}  # distributed_type of accelerate: its name


def require_possible(kind: str, *, cuda: bool, where: str, version: int | None = None) -> None:
    """InputError or EnvironmentFault where sharding of `kind` (a distributed_type) would not happen.

    version: that of FSDP where it is known.
    """
    if kind not in SHARDED:
        return
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise EnvironmentFault(
            f"{where} asks for DeepSpeed, which is not installed -> pip install -r requirements-gpu.txt, or "
            "ACCELERATE_CONFIG=configs/accelerate/fsdp2.yaml"
        )
    if kind == "FSDP" and version not in (None, 2):
        raise InputError(
            f"{where} asks for FSDP version {version} -> fsdp_version: 2, the one that is supported"
        )
    if not cuda:
        raise InputError(
            f"{where} asks for {SHARDED[kind]}, but there is no CUDA device, and on a CPU accelerate would train plain "
            "copies without a word -> ACCELERATE_CONFIG=configs/accelerate/ddp.yaml, or a machine with GPUs"
        )


def asked_of(environment: Mapping[str, str]) -> str | None:
    """The sharded distributed_type that `accelerate launch` was told, by the variables that it sets; None = none."""
    for kind, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DEEPSPEED", "ACCELERATE_USE_DEEPSPEED")):
        if environment.get(variable, "false").lower() in ("true", "1"):
            return kind
    return None
