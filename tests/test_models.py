"""The decoder equals transformers on every family of models, in batches of mixed lengths, behind sliding windows too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.program import InputError
from infer.search.prompts import left_pad, right_pad
from infer.search.scoring import Parity, logits_transform
from infer.search.tree import search
from infer.search.trie import Trie
from tests import families, tiny
from tests.agreement import disagreement, ranking
from tests.oracle import generate_beams, score

SIZES = (6, 5, 4)
VOCAB_SIZE = tiny.TEXT_TOKENS + sum(SIZES)
EVERY = [*families.CAUSAL, *families.ENCODER_DECODERS]
# Soft-capped attention exists in the eager kernel only.
EAGER = {"gemma2"}


def made(kind: str, **options):
    return families.model(
        kind, vocab_size=VOCAB_SIZE, attention="eager" if kind in EAGER else "sdpa", **options
    )


@pytest.mark.parametrize("kind", EVERY)
def test_a_mixed_batch_equals_generate_prompt_by_prompt(kind):
    rng = np.random.default_rng(1)
    sids, vocab = tiny.catalogue(rng, items=50, sizes=SIZES), tiny.vocabulary(SIZES, scattered=rng)
    model, trie = made(kind), Trie(sids, vocab)
    prompts = [
        rng.integers(2, tiny.TEXT_TOKENS, length).tolist() for length in (1, 14, 6, 3 * families.WINDOW)
    ]
    found = search(model, prompts, trie, 7)
    for row, prompt in enumerate(prompts):
        tokens, scores = generate_beams(model, prompt, sids, vocab, 7)
        ours = ranking(vocab.token_ids(found.codes_BKL[row].numpy()), found.scores_BK[row])
        assert not disagreement(ours, ranking(tokens, scores))
        best = vocab.token_ids(found.codes_BKL[row, :1].numpy())[0].tolist()
        assert torch.allclose(found.scores_BK[row, 0], score(model, prompt, best), atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2 sliding", "mistral sliding", "gemma2", "gemma3"])
def test_the_window_matters(kind):
    """The test above would pass with the wrong masks if windows changed nothing."""
    rng = np.random.default_rng(1)
    prompt = rng.integers(2, tiny.TEXT_TOKENS, 3 * families.WINDOW).tolist()
    model = made(kind)
    narrow = score(model, prompt, [3, 4])
    model.config.sliding_window = 100
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 100
    assert abs(float(score(model, prompt, [3, 4]) - narrow)) > 1e-3


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "gpt2", "t5", "bart"])
def test_bfloat16_gives_legal_distinct_items_close_to_float32(kind):
    rng = np.random.default_rng(2)
    sids, vocab = tiny.catalogue(rng, items=50, sizes=SIZES), tiny.vocabulary(SIZES)
    model, trie, prompts = made(kind), Trie(sids, vocab), tiny.prompts(rng, rows=3, longest=12)
    distinct = len(sids.sids_SL)
    exact = search(model, prompts, trie, 1000)
    found = search(model.to(torch.bfloat16), prompts, trie, 1000)
    for row in range(3):
        assert sorted(found.nodes_BK[row, :distinct].tolist()) == list(range(distinct))
        by_node, exact_by_node = (
            beams.scores_BK[row, :distinct][beams.nodes_BK[row, :distinct].argsort()]
            for beams in (found, exact)
        )
        assert torch.corrcoef(torch.stack([by_node, exact_by_node]))[0, 1] > 0.98
    assert found.scores_BK.dtype == torch.float32


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize("space", ["full", "level"])
def test_mixed_precision_gives_legal_distinct_items_close_to_float32(kind, space):
    rng = np.random.default_rng(2)
    sids, vocab = tiny.catalogue(rng, items=50, sizes=SIZES), tiny.vocabulary(SIZES)
    model, trie, prompts = made(kind), Trie(sids, vocab), tiny.prompts(rng, rows=3, longest=12)
    exact = search(model, prompts, trie, 8, space)
    with torch.autocast("cpu", torch.bfloat16):
        found = search(model, prompts, trie, 8, space)
    assert all(len(set(nodes)) == 8 and min(nodes) >= 0 for nodes in found.nodes_BK.tolist())
    assert (found.scores_BK - exact.scores_BK).abs().max() < 1


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "t5"])
@pytest.mark.parametrize("tied", [True, False])
def test_temperature_equals_scaled_logits(kind, tied):
    """Against log-softmax(logits / temperature) of one plain forward; the soft cap comes before the temperature."""
    rng = np.random.default_rng(3)
    sids, vocab = tiny.catalogue(rng, items=5, sizes=(6,)), tiny.vocabulary((6,))
    model, prompt = made(kind, tied=tied), [3, 4, 5]
    found = search(model, [prompt], Trie(sids, vocab), 5, parity=Parity(temperature=2.5))
    fed = {"decoder_input_ids": torch.zeros((1, 1), dtype=torch.long)} if kind == "t5" else {}
    with torch.no_grad():
        logps = (model(input_ids=torch.tensor([prompt]), **fed).logits[0, -1] / 2.5).log_softmax(-1)
    count = int(found.counts_B[0])
    expected = logps[found.codes_BKL[0, :count, 0] + tiny.TEXT_TOKENS]
    assert count == len(sids.sids_SL) and torch.allclose(found.scores_BK[0, :count], expected, atol=1e-5)


def test_what_cannot_be_decoded_exactly_is_refused():
    sids, vocab = tiny.catalogue(np.random.default_rng(0), items=9, sizes=SIZES), tiny.vocabulary(SIZES)
    trie = Trie(sids, vocab)
    flash = made("qwen3")
    flash.config._attn_implementation = "flash_attention_2"
    mixed = made("qwen3")
    mixed.config.layer_types = ["linear_attention", "full_attention"]
    biased = made("qwen3")
    biased.config.alibi = True
    for model in (flash, mixed, biased):
        with pytest.raises(InputError):
            search(model, [[2, 3]], trie, 3)
    scaled = made("llama")
    scaled.config.logits_scaling = 3.0
    with pytest.raises(InputError):
        logits_transform(scaled.config)


def test_prompts_are_padded_on_either_side():
    ids, lengths = right_pad([[5], [6, 7, 8]], device="cpu", pad_id=9)
    assert (ids.tolist(), lengths.tolist()) == ([[5, 9, 9], [6, 7, 8]], [1, 3])
    ids, mask = left_pad([[5], [6, 7, 8], [1, 2]], device="cpu", pad_id=9)
    assert ids.tolist() == [[9, 9, 5], [6, 7, 8], [9, 1, 2]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    with pytest.raises(InputError, match="empty prompt"):
        left_pad([[1], []], device="cpu")
