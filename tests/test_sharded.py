"""Weights split between two processes give the loss and the gradients of one process, and come together again.

The layout is accelerate's own, through its function; on a CPU the Trainer never reaches it (configs/sharded.py).
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.program import InputError
from tests import handmade, tiny
from tests.ranks import together
from tests.test_sft_batches import packed, windows
from train.scale.gathering import WholeCopy, is_sharded, reduce_in_float32, require_sharding
from train.supervised.trainer import answer_loss


def batches():
    sequences, groups, tasks = windows(np.random.default_rng(0), users=4, suffix=1)
    return packed("user_tree", sequences[:16], groups[:16], tasks[:16], step_windows=16, parts=2)


def shard_plainly(model) -> None:
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)


def shard_as_accelerate(model) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=True,
        torch_device_mesh=None,
    )
    fsdp2_prepare_model(accelerator, model)


LAYOUTS = {"plain": shard_plainly, "accelerate": shard_as_accelerate}


def gradients(model) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        found[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()
    return found


def sharded_steps(layout: str, tied: bool) -> dict:
    """This process's half of a step twice, as accumulation does it, then the whole weights and a loss without gradient."""
    rank = torch.distributed.get_rank()
    model, data = tiny.model(vocab_size=50, tied=tied).train(), batches()
    plain = WholeCopy(model)
    LAYOUTS[layout](model)
    assert is_sharded(model)
    with torch.no_grad():
        before = float(answer_loss(model, data[rank]))
    losses = []
    for _ in range(2):
        loss = answer_loss(model, data[rank])
        loss.backward()
        losses.append(float(loss))
    grads = gradients(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with plain.of(model, device="cpu", dtype=torch.float32) as whole:
        state = {name: value.clone() for name, value in whole.named_parameters()}
        after = float(answer_loss(whole, data[rank]))
    return {"losses": [before, *losses], "grads": grads, "state": state, "after": after,
            "sharded_after": float(answer_loss(model, data[rank]))}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_with_a_part_of_the_weights_equal_one(layout, tied):
    found = together(sharded_steps, layout, tied)
    model, data = tiny.model(vocab_size=50, tied=tied).train(), batches()
    losses = [answer_loss(model, data[part]) for part in range(2)]
    sum(losses).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for rank, result in enumerate(found):
        assert result["losses"] == pytest.approx([float(losses[rank])] * 3, rel=1e-5)
        for name, value in expected.items():  # two passes of the mean over two processes: the sum
            torch.testing.assert_close(result["grads"][name], value, atol=1e-4, rtol=1e-4, msg=name)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(result["state"][name], parameter.data, atol=1e-5, rtol=1e-4, msg=name)
        assert result["after"] == pytest.approx(float(answer_loss(model, data[rank])), rel=1e-4)
        assert result["sharded_after"] == pytest.approx(result["after"], rel=1e-5)


def test_sums_of_gradients_are_float32():
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.reduce_dtype == torch.bfloat16, "the library's choice"
    reduce_in_float32(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert policy.output_dtype == torch.float32


def test_sharding_that_would_not_happen_is_refused(monkeypatch, tmp_path):
    from accelerate.utils import DistributedType

    plain = SimpleNamespace(
        distributed_type=DistributedType.MULTI_CPU,
        num_processes=2,
        state=SimpleNamespace(deepspeed_plugin=None),
    )
    require_sharding(plain, trainable=False)
    for variable, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "true")
            with pytest.raises(InputError, match=f"{what} was asked for, but this run is MULTI_CPU"):
                require_sharding(plain, trainable=True)
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP, num_processes=2, state=plain.state)
    require_sharding(sharded, trainable=True)
    with pytest.raises(InputError, match="zero2.yaml"):
        require_sharding(sharded, trainable=False)


def test_programs_refuse_it_before_they_start(chain, tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    for name, code, words in (
        ("fsdp2", 2, "no CUDA device"),
        ("zero3", 3, "DeepSpeed, which is not installed"),
        ("nothing", 2, "there is no"),
    ):
        line = handmade.refuse(
            "configs.parallel", "--config_file", f"configs/accelerate/{name}.yaml", code=code
        )
        assert words in line
    handmade.succeed("configs.parallel", "--config_file", "configs/accelerate/ddp.yaml")
    flags = ["train.sft", *chain.flags(), "--output_dir", tmp_path / "run"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "the launcher asks for FSDP" in handmade.refuse(*flags)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert "fsdp2.yaml" in handmade.refuse(*flags, "--trainer.fsdp", "full_shard")
    assert not (tmp_path / "run").exists()
