"""The tree decoder on a CUDA device: equal to the CPU, in one CUDA graph, and its users per second.

python -m pytest tests/gpu/test_decode.py -s     # the measurement prints one JSON line; $DECODE_LAYERS, default 28

The measured model is random, of Qwen3-0.6B's shape; vLLM's beam search joins where vLLM is installed. It has no trie: the
comparison is of speed alone.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from infer.search.prompts import left_pad, right_pad
from infer.search.sampling import Best
from infer.search.scoring import PLAIN
from infer.search.tree import decode, search
from infer.search.trie import Trie
from tests import families, tiny
from tests.agreement import disagreement, ranking
from tests.bench.decode import SIZES, TEXT_ROWS, catalogue, vocabulary
from tests.oracle import generate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
BATCH, BEAMS, LENGTH, REPEATS = 16, 50, 128, 5


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "gpt2", "t5"])
@pytest.mark.parametrize("space", ["full", "level"])
def test_equals_the_cpu(kind, space):
    rng = np.random.default_rng(0)
    sizes = (6, 5, 4)
    sids, vocab = tiny.catalogue(rng, items=50, sizes=sizes), tiny.vocabulary(sizes)
    model, prompts = families.model(kind, vocab_size=tiny.TEXT_TOKENS + 15), tiny.prompts(rng, rows=4)
    expected = search(model, prompts, Trie(sids, vocab), 7, space)
    found = search(model.cuda(), prompts, Trie(sids, vocab, device="cuda"), 7, space)
    for row in range(4):
        here = ranking(expected.nodes_BK[row], expected.scores_BK[row])
        assert not disagreement(ranking(found.nodes_BK[row], found.scores_BK[row]), here, atol=1e-3)


class Graphed:
    """`decode` of one batch shape, captured once; a call copies the prompts in and replays."""

    def __init__(self, model, trie: Trie, batch: int, length: int, beams: int, space: str) -> None:
        self.ids = torch.ones((batch, length), dtype=torch.long, device="cuda")
        self.lengths = torch.full((batch,), length, device="cuda")
        roots = torch.zeros((batch, 1), dtype=torch.long, device="cuda")

        def run():
            return decode(
                model, self.ids, self.lengths, trie, Best(beams), space, parity=PLAIN, roots_B1=roots
            )

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.found = run()

    def __call__(self, prompts):
        ids, lengths = right_pad(prompts, device="cpu")
        self.ids.fill_(0)
        self.ids[:, : ids.shape[1]] = ids.cuda()
        self.lengths.copy_(lengths)
        self.graph.replay()
        return self.found


@pytest.mark.parametrize("space", ["full", "level"])
def test_a_cuda_graph_equals_the_eager_search(space):
    rng = np.random.default_rng(0)
    sizes = (6, 5, 4)
    sids, vocab = tiny.catalogue(rng, items=50, sizes=sizes), tiny.vocabulary(sizes)
    model = families.model("qwen3", vocab_size=tiny.TEXT_TOKENS + 15).cuda()
    trie = Trie(sids, vocab, device="cuda")
    graphed = Graphed(model, trie, 4, 16, 7, space)
    for _ in range(3):
        prompts = tiny.prompts(rng, rows=4, longest=16)
        expected, found = search(model, prompts, trie, 7, space), graphed(prompts)
        for row in range(4):
            eager = ranking(expected.nodes_BK[row], expected.scores_BK[row])
            assert not disagreement(ranking(found.nodes_BK[row], found.scores_BK[row]), eager)


def random_model(layers: int):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=TEXT_ROWS + sum(SIZES), hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).to("cuda", torch.bfloat16).eval()


def best_seconds(call) -> float:
    """Best of a few runs after one to warm up."""
    seconds = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


@pytest.mark.long
def test_users_per_second(tmp_path: Path):
    """Eager and graphed beside transformers and, where installed, vLLM; asserts the order of magnitude only."""
    rng = np.random.default_rng(0)
    model, vocab, sids = (
        random_model(int(os.environ.get("DECODE_LAYERS", "28"))),
        vocabulary(),
        catalogue(3686, rng),
    )
    trie = Trie(sids, vocab, device="cuda")
    prompts = rng.integers(1, 150_000, (BATCH, LENGTH)).tolist()
    ids, mask = left_pad(prompts, device="cuda")
    answers = vocab.token_ids(sids.sids_SL).tolist()
    seconds = {"transformers": best_seconds(lambda: generate(model, ids, answers, BEAMS, mask=mask))}
    for space in ("full", "level"):
        graphed = Graphed(model, trie, BATCH, LENGTH, BEAMS, space)
        seconds[f"eager {space}"] = best_seconds(
            lambda space=space: search(model, prompts, trie, BEAMS, space)
        )
        seconds[f"graphed {space}"] = best_seconds(lambda graphed=graphed: graphed(prompts))
        del graphed
    versions = {"torch": torch.__version__}
    try:
        import vllm
    except ImportError:
        pass
    else:
        versions["vllm"] = vllm.__version__
        seconds["vllm"] = vllm_seconds(model, prompts, tmp_path)
    users = {name: round(BATCH / value, 2) for name, value in seconds.items()}
    ratios = {name: round(seconds["transformers"] / value, 1) for name, value in seconds.items()}
    print(json.dumps({"bench": "decode", "device": torch.cuda.get_device_name(), "versions": versions,
                      "batch": BATCH, "beams": BEAMS, "users_per_s": users, "over_transformers": ratios}))  # fmt: skip
    assert ratios["eager full"] > 2


def vllm_seconds(model, prompts, home: Path) -> float:
    from vllm import LLM
    from vllm.sampling_params import BeamSearchParams

    model.save_pretrained(home)
    llm = LLM(
        str(home),
        skip_tokenizer_init=True,
        gpu_memory_utilization=0.3,
        max_model_len=512,
        max_logprobs=2 * BEAMS,
    )
    params = BeamSearchParams(beam_width=BEAMS, max_tokens=len(SIZES), ignore_eos=True)
    return best_seconds(lambda: llm.beam_search([{"prompt_token_ids": ids} for ids in prompts], params))
