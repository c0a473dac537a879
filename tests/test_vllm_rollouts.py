"""Thoughts of rollouts from vLLM through TRL's VLLMGeneration, against stand-ins of vLLM's LLM and of TRL's client: nothing here
ran on vLLM itself."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trl.generation.vllm_generation as trl_vllm
from accelerate import Accelerator

from configs.program import EnvironmentFault
from infer.engine import Engine
from tests import handmade
from tests.test_text_trainer import engine_of, examples
from train.policy.settings import ThoughtSettings, VllmSettings
from train.policy.text.routing import Router
from train.policy.text.thoughts import ThoughtPolicy
from train.policy.text.vllm import VllmThoughts
from train.trainable import LoraSettings, make_trainable

GROUP = 8
THOUGHT = ThoughtSettings(max_tokens=6, tail="sample")


class Served:
    """What stands for vLLM: counts its calls, remembers weights, writes thoughts that end in turn with the marker, a cut and the eos."""

    def __init__(self) -> None:
        self.calls, self.params, self.resets, self.made = [], {}, 0, 0
        self.stop: list[int] = []

    def complete(self, count: int, params: dict) -> list[list[int]]:
        self.calls.append((count, params))
        end, eos = params["stop_token_ids"]
        made = [([20, 21, end], [20, 22, 23, 24, 25, 26], [21, eos])[self.made_next()] for _ in range(count)]
        return made

    def made_next(self) -> int:
        self.made += 1
        return self.made % 3


def client_of(served: Served):
    """TRL's VLLMClient, as far as VLLMGeneration calls it."""

    class Client:
        def __init__(self, base_url, group_port, connection_timeout):
            if "nobody" in base_url:
                raise ConnectionError("nobody there")

        def init_communicator(self, device):
            """No weights go over a network here."""

        def generate(self, prompts, features, n, generation_kwargs, **params):
            assert all(isinstance(token, int) for prompt in prompts for token in prompt), "token ids, no text"
            return {
                "prompt_ids": prompts, "completion_ids": served.complete(len(prompts) * n, params | generation_kwargs),
                "logprobs": None,
            }  # fmt: skip

        def update_named_params(self, metadata, named):
            served.params = {name: tensor.detach().clone() for name, tensor in named}
            assert [(name, list(value.shape)) for name, value in served.params.items()] == [
                (name, shape) for name, _, shape in metadata
            ]

        def reset_prefix_cache(self):
            served.resets += 1

    return Client


def llm_of(served: Served):
    """vLLM's LLM, as far as VLLMGeneration calls it."""

    class Llm:
        def __init__(self, model, **options):
            self.options = options
            holder = SimpleNamespace(
                load_weights=lambda pairs: served.params.update({n: p.detach().clone() for n, p in pairs})
            )
            worker = SimpleNamespace(model_runner=SimpleNamespace(model=holder))
            self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

        def generate(self, prompts, sampling_params, use_tqdm):
            assert sampling_params["n"] == 1
            ids = served.complete(len(prompts), sampling_params)
            return [
                SimpleNamespace(
                    prompt_token_ids=prompt["prompt_token_ids"], outputs=[SimpleNamespace(token_ids=one, logprobs=None)]
                )
                for prompt, one in zip(prompts, ids, strict=True)
            ]  # fmt: skip

        def reset_prefix_cache(self):
            served.resets += 1

    return Llm


@pytest.fixture
def served(monkeypatch) -> Served:
    one = Served()
    monkeypatch.setattr(trl_vllm, "is_vllm_available", lambda: True)
    monkeypatch.setattr(trl_vllm, "VLLMClient", client_of(one))
    monkeypatch.setattr(trl_vllm, "LLM", llm_of(one), raising=False)
    monkeypatch.setattr(trl_vllm, "SamplingParams", lambda **params: params, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    return one


def thoughts_of(engine: Engine, mode: str, **settings) -> VllmThoughts:
    return VllmThoughts(
        engine,
        Accelerator(cpu=True),
        THOUGHT,
        VllmSettings(mode=mode, **settings),
        group=GROUP,
        prompts=4,
        longest=64,
    )


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_a_rollout_asks_vllm_once_and_decodes_ids_behind_its_thoughts(served, mode):
    engine = engine_of()
    writer = thoughts_of(engine, mode)
    rows, prompts = examples(engine, 4)
    made = Router(ThoughtPolicy(engine, THOUGHT, group=GROUP, seed=0, writer=writer)).roll_out(
        rows, prompts, step=0
    )
    assert len(served.calls) == 1
    _, params = served.calls[0]
    assert (params["max_tokens"], params["temperature"]) == (6, 1.0)
    words = engine.renderer
    assert params["stop_token_ids"] == [words.think_end_id(), words.terminator_ids("think")[0]]
    ((_, part),) = made.parts
    assert part.unfinished_PG.mean() == pytest.approx(2 / 3, abs=0.05), (
        "cut and ended by eos: closed by force"
    )
    flat = part.unfinished_PG.ravel()
    for ids, counted, forced in zip(made.completion_ids, made.counted, flat, strict=True):
        assert (
            ids.count(words.think_end_id()) == 1
            and sum(counted) == ids.index(words.think_end_id()) + 1 - 2 * forced
        )
    assert all(items for group in part.batch.item_ids for items in group), "every answer is an item"


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_the_weights_that_go_over_are_those_of_the_merged_model(served, mode):
    """LoRA's changes are added; once a step, again after it; the prefix cache is forgotten."""
    engine = engine_of()
    plain = {name: value.detach().clone() for name, value in engine.model.named_parameters()}
    lora = LoraSettings(rank=4, new_rows=False)
    make_trainable(engine.model, "lora", lora, new_ids=[], base="none", seed=0)
    changed = {}
    with torch.no_grad():
        for name, module in engine.model.named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                b.normal_()
                changed[f"{name}.weight"] = plain[f"{name}.weight"] + lora.alpha / lora.rank * b @ a
    writer = thoughts_of(engine, mode)
    writer.refresh(0)
    assert len(changed) == 14, "seven linear layers of two"
    assert served.params.keys() == plain.keys() and served.resets == 1
    for name, value in served.params.items():
        torch.testing.assert_close(value, changed.get(name, plain[name]), msg=name)
    writer.refresh(0)
    assert served.resets == 1
    writer.refresh(1)
    assert served.resets == 2


def test_a_whole_model_goes_over_as_it_is(served):
    engine = engine_of()
    thoughts_of(engine, "server").refresh(3)
    assert served.params.keys() == dict(engine.model.named_parameters()).keys()


def asked_token_by_token(rng: np.random.Generator, rows: int, codes_SL: np.ndarray) -> int:
    """Calls of the published rollout behind its thoughts: per position one for every set of tokens that may follow somewhere.

    Rows draw among the legal codes evenly; the catalogue's rows are `codes_SL`.
    """
    calls, prefixes = 0, [()] * rows
    for level in range(codes_SL.shape[1]):
        children = defaultdict(set)
        for codes in codes_SL.tolist():
            children[tuple(codes[:level])].add(codes[level])
        calls += len({frozenset(children[prefix]) for prefix in prefixes})
        prefixes = [(*prefix, rng.choice(sorted(children[prefix]))) for prefix in prefixes]
    return calls + 1  # what every ID ends with


def test_calls_against_one_per_set_of_legal_tokens(served):
    """256 rows: one call instead of hundreds (347 were counted of the published code over 20,000 items of 256 codes a level)."""
    rng = np.random.default_rng(0)
    codes_SL = np.unique(rng.integers(0, 256, (20_000, 3)), axis=0)
    theirs = 1 + asked_token_by_token(rng, 256, codes_SL)
    engine = engine_of()
    rows, prompts = examples(engine, 8)
    rows, prompts = rows * 4, prompts * 4
    writer = thoughts_of(engine, "server")
    Router(ThoughtPolicy(engine, THOUGHT, group=GROUP, seed=0, writer=writer)).roll_out(rows, prompts, step=0)
    (ours,) = served.calls
    assert ours[0] == 256 and 300 < theirs < 400
    assert theirs / len(served.calls) >= 20


def test_vllm_that_is_not_there_is_said(monkeypatch, served):
    engine = engine_of()
    with pytest.raises(EnvironmentFault, match="no vLLM server at http://nobody"):
        thoughts_of(engine, "server", base_url="http://nobody")
    monkeypatch.setattr(trl_vllm, "is_vllm_available", lambda: False)
    with pytest.raises(
        EnvironmentFault, match="needs vLLM, which is not installed -> pip install -r requirements-gpu.txt"
    ):
        thoughts_of(engine, "colocate")


def test_the_program_rolls_out_through_a_server(dual, tmp_path, served):
    """As a user sets it: both tasks, vllm.mode server; weights go over before the rollouts of every step."""
    from tests.test_two_tasks import RULE, flags

    handmade.call(
        "train.grpo", *flags(dual, tmp_path / "run"), *RULE, "--vllm.mode", "server", "--vllm.base_url", "http://somewhere:8000",
        "--trainer.max_steps", 2, "--trainer.eval_steps", 2,
    )  # fmt: skip
    assert served.resets == 2 and len(served.calls) == 2
