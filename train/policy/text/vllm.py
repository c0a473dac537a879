"""Thoughts of rollouts from vLLM, by TRL's own `VLLMGeneration`: a server, or a copy in the trainer's processes.

A rollout asks vLLM once: all thoughts of all prompts, each ending by itself at the end marker. The semantic ID, terms and text behind
them are decoded by the trainer's own model, whose tries vLLM does not know (the published code asks the server for every token of
an ID, once per set of legal tokens). Before the first rollout of a step the weights go over; LoRA's changes are added to the weights
that they change, tensor by tensor, so the server holds what `train.merge` would write.

What vLLM draws depends on its own seed, not on the example. Its probabilities round otherwise than the trainer's: the loss takes the
trainer's own as those of the draw, and so does not correct for it.

Not run: it needs GPUs. tests/test_vllm_rollouts.py drives it against stand-ins of vLLM's LLM and TRL's client.

    DO_NOT_TRACK=1 VLLM_SERVER_DEV_MODE=1 vllm serve outputs/qwen3/sft_dual/final --weight-transfer-config '{"backend": "nccl"}'
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trl.generation.vllm_generation import VLLMGeneration

from configs.program import EnvironmentFault
from infer.engine import Engine
from infer.text.thinking import Thought, thought_of
from train.policy.settings import ThoughtSettings, VllmSettings


class VllmThoughts(VLLMGeneration):
    """Writes G thoughts for every prompt; `refresh(step)` before the first of a step."""

    def __init__(
        self, engine: Engine, accelerator: Any, thought: ThoughtSettings, settings: VllmSettings, *, group: int, prompts: int,
        longest: int,
    ) -> None:  # fmt: skip
        """prompts: how many a process rolls out at once; longest: tokens of a prompt and its thought, at most."""
        renderer = engine.renderer
        self.group, self.step = group, -1
        self.end, self.eos = renderer.think_end_id(), renderer.terminator_ids("think")[0]
        where = {
            "server_base_url": settings.base_url,
            "server_timeout": settings.timeout,
            "group_port": settings.group_port,
        }
        if settings.mode == "colocate":
            where = {
                "tensor_parallel_size": settings.tensor_parallel, "gpu_memory_utilization": settings.gpu_memory,
                "max_model_length": longest, "max_num_seqs": prompts * group * settings.tensor_parallel,
            }  # fmt: skip
        try:
            super().__init__(
                engine.model, accelerator, renderer.tokenizer, mode=settings.mode, temperature=thought.temperature,
                top_p=thought.top_p, max_completion_length=thought.max_tokens, logprobs=None,
                generation_kwargs={"stop_token_ids": [self.end, self.eos], "skip_special_tokens": False}, **where,
            )  # fmt: skip
        except ImportError:
            raise EnvironmentFault(
                "vllm.mode needs vLLM, which is not installed -> pip install -r requirements-gpu.txt, or vllm.mode none"
            ) from None
        except ConnectionError as error:
            raise EnvironmentFault(
                f"no vLLM server at {settings.base_url}: {error} -> start it with `vllm serve MODEL --weight-transfer-config "
                '\'{"backend": "nccl"}\'`, or set vllm.base_url'
            ) from None

    def refresh(self, step: int) -> None:
        """Give vLLM the weights of the policy, once a step. All processes call it."""
        if step != self.step:
            self.sync_weights()
            self.step = step

    def write(self, prompts: Sequence[Sequence[int]], keys: Sequence[int]) -> list[list[Thought]]:
        """As infer.text.thinking.TransformersWriter.write; `keys` decide nothing here."""
        repeated = [list(prompt) for prompt in prompts for _ in range(self.group)]
        _, ids, _, _ = self.generate(repeated, None, self.group)
        made = [thought_of(list(one), end=self.end, eos=self.eos) for one in ids]
        return [made[start : start + self.group] for start in range(0, len(made), self.group)]

    def _iter_named_params(self) -> Iterator[tuple[str, Any]]:
        """Weights under the names of a model without adapters, LoRA's changes added."""
        layers = dict(self.model.named_modules())
        for name, weight in super()._iter_named_params():
            if ".lora_" in name or name.startswith("new_rows."):
                continue
            owner, is_base, _ = name.rpartition(".base_layer.weight")
            if is_base:
                name, weight = (
                    f"{owner}.weight",
                    weight + layers[owner].get_delta_weight("default").to(weight),
                )
            yield name.replace(".base_layer.", "."), weight
