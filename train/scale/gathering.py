"""A model whose weights are split between processes (FSDP2, ZeRO-3): its output layer in the loss, its whole weights to decode with.

A sharded parameter is whole only while its module computes. The loss of label positions needs the output layer behind the
model's forward, so it is computed by a hook *inside* that forward, before weights are given back; DDP, FSDP2 and DeepSpeed
then see a model that returns its loss. The policy loss reads it behind the forward: under FSDP2 it is then given back later. Decoding does not go through the forward at all: it gets a copy with whole weights.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from configs.program import InputError
from configs.sharded import SHARDED, asked_of


def is_zero3(model: Any) -> bool:
    """Whether DeepSpeed has split the parameters of `model`."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def is_sharded(model: Any) -> bool:
    """Whether a process holds parts of the parameters only."""
    from torch.distributed.tensor import DTensor

    return is_zero3(model) or any(isinstance(parameter, DTensor) for parameter in model.parameters())


def shards_weights(accelerator: Any) -> bool:
    """Whether what an Accelerator prepares will be sharded."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return accelerator.distributed_type == "FSDP" or (plugin is not None and plugin.zero_stage == 3)


def require_sharding(accelerator: Any, *, trainable: bool) -> None:
    """InputError where sharding was asked for and plain copies would train, or where a trainer cannot work on parts."""
    asked, plugin = asked_of(os.environ), getattr(accelerator.state, "deepspeed_plugin", None)
    running = {"FSDP": accelerator.distributed_type == "FSDP", "DEEPSPEED": plugin is not None}
    if asked and not running[asked]:
        raise InputError(
            f"{SHARDED[asked]} was asked for, but this run is {accelerator.distributed_type.value} with "
            f"{accelerator.num_processes} process(es) -> NUM_GPUS of 2 or more, or ACCELERATE_CONFIG=configs/accelerate/ddp.yaml"
        )
    if shards_weights(accelerator) and not trainable:
        raise InputError(
            "this trainer reads the output layer behind its forward (or generates text with the weights that it trains), so they cannot "
            "be split like this -> "
            "ACCELERATE_CONFIG=configs/accelerate/zero2.yaml or ddp.yaml"
        )


def reduce_in_float32(accelerator: Any) -> None:
    """Sum gradients and return losses of FSDP2 in float32 (accelerate takes bfloat16 for both); weights compute as they do."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if isinstance(policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = dataclasses.replace(
            policy, reduce_dtype=torch.float32, output_dtype=torch.float32
        )


@contextmanager
def inside_forward(model: Any, compute: Callable[[Any], Tensor]) -> Iterator[None]:
    """Within it, a forward of `model` returns `compute(its output)`, made while its output layer is whole."""
    head = model.get_output_embeddings()
    if is_zero3(model):
        import deepspeed

        for parameter in head.parameters():
            deepspeed.zero.register_external_parameter(model, parameter)
    # before the hook with which FSDP2 gives weights back, which is registered earlier
    handle = model.register_forward_hook(lambda _module, _args, output: compute(output), prepend=True)
    try:
        yield
    finally:
        handle.remove()


class WholeCopy:
    """A second model with whole weights, on the CPU while it is not used. Made before `model` is sharded."""

    def __init__(self, model: Any) -> None:
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()

    @contextmanager
    def of(self, model: Any, *, device: Any, dtype: torch.dtype) -> Iterator[Any]:
        """The copy with the present weights of the sharded `model`, on `device`. Every process has to come here."""
        self.copy.to(device=device, dtype=dtype)
        try:
            self._fill(model)
            yield self.copy
        finally:
            self.copy.to("cpu")

    def _fill(self, model: Any) -> None:
        mine = dict(self.copy.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                with whole(parameter) as value:
                    mine[name].copy_(value)


@contextmanager
def decoding(trainer: Any, engine: Any) -> Iterator[Any]:
    """The model that a trainer decodes with: the one that is trained or, where its weights are split, its `whole` copy, which is the
    model of `engine` meanwhile. Every process has to come here."""
    if trainer.whole is None:
        yield trainer.model
        return
    trained, dtype = engine.model, torch.bfloat16 if trainer.args.bf16 else torch.float32
    with trainer.whole.of(trainer.model, device=trainer.accelerator.device, dtype=dtype) as engine.model:
        try:
            yield engine.model
        finally:
            engine.model = trained


def head_stays_whole(model: Any) -> None:
    """Behind a forward FSDP2 gives back what the root itself holds (embeddings, output layer): not before the backward, from now
    on, so that a loss may read the output layer outside. Other models stay as they are."""
    if hasattr(model, "set_reshard_after_forward"):
        model.set_reshard_after_forward(False, recurse=False)


@contextmanager
def whole(parameter: Any) -> Iterator[Tensor]:
    """The whole value of one parameter, sharded or not; collective where it is sharded."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.data
    elif hasattr(parameter, "full_tensor"):
        yield parameter.full_tensor()
    else:
        yield parameter.data
