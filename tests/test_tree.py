"""The tree decoder equals transformers' beam search and brute force, and is never illegal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError, NumericError
from infer.tree import search
from infer.trie import Trie
from tests import tiny
from tests.oracle import brute_force, generate_beams

SIZES = st.lists(st.integers(2, 6), min_size=1, max_size=4).map(tuple)


@given(
    seed=st.integers(0, 10**6),
    sizes=SIZES,
    items=st.integers(1, 40),
    beams=st.integers(2, 12),
    kind=st.sampled_from(["qwen3", "llama", "gpt2"]),
    tied=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_full_scores_equal_beam_search_of_transformers(seed, sizes, items, beams, kind, tied):
    rng = np.random.default_rng(seed)
    sids, vocab = (
        tiny.catalogue(rng, items=items, sizes=sizes),
        tiny.vocabulary(sizes, scattered=rng if seed % 2 else None),
    )
    model = tiny.model(kind, vocab_size=tiny.TEXT_TOKENS + sum(sizes), seed=seed, tied=tied)
    prompt = tiny.prompts(rng, rows=1)[0]
    found = search(model, [prompt], Trie(sids, vocab), beams)
    count = int(found.counts_B[0])
    ours = vocab.token_ids(found.codes_BKL[0, :count].numpy())
    theirs, scores = generate_beams(model, prompt, sids, vocab, beams)
    # with fewer legal items than beams transformers adds copies at its start score of -1e9: those do not count
    legal = scores > -1e6
    assert np.array_equal(ours, theirs[legal].numpy())
    assert torch.allclose(found.scores_BK[0, :count], scores[legal], atol=1e-4)


@given(
    seed=st.integers(0, 10**6),
    sizes=SIZES,
    items=st.integers(1, 60),
    space=st.sampled_from(["full", "level", "trie"]),
)
@settings(max_examples=20, deadline=None)
def test_more_beams_than_items_return_the_whole_catalogue_once(seed, sizes, items, space):
    rng = np.random.default_rng(seed)
    sids, vocab = tiny.catalogue(rng, items=items, sizes=sizes, distinct=False), tiny.vocabulary(sizes)
    model = tiny.model(vocab_size=tiny.TEXT_TOKENS + sum(sizes), seed=seed)
    prompts = tiny.prompts(rng, rows=3)
    found = search(model, prompts, Trie(sids, vocab), 1000, space)
    distinct = len(sids.sids_SL)
    for row, prompt in enumerate(prompts):
        assert int(found.counts_B[row]) == distinct
        nodes = found.nodes_BK[row, :distinct]
        assert sorted(nodes.tolist()) == list(range(distinct))
        assert np.array_equal(sids.sids_SL[nodes.numpy()], found.codes_BKL[row, :distinct].numpy())
        assert (found.scores_BK[row, 1:distinct] <= found.scores_BK[row, : distinct - 1]).all()
        if space == "full":
            assert torch.allclose(
                found.scores_BK[row, :distinct], brute_force(model, prompt, sids, vocab)[nodes], atol=1e-4
            )
        if space == "trie":
            assert float(found.scores_BK[row, :distinct].exp().sum()) == pytest.approx(1.0, abs=1e-4)


def test_a_batch_gives_what_each_prompt_gives_alone():
    rng = np.random.default_rng(0)
    sizes = (8, 8, 8)
    sids, vocab = tiny.catalogue(rng, items=200, sizes=sizes), tiny.vocabulary(sizes)
    model = tiny.model(vocab_size=tiny.TEXT_TOKENS + sum(sizes))
    prompts, trie = tiny.prompts(rng, rows=6, longest=20), Trie(sids, vocab)
    together = search(model, prompts, trie, 10)
    for row, prompt in enumerate(prompts):
        alone = search(model, [prompt], trie, 10)
        assert torch.equal(alone.nodes_BK[0], together.nodes_BK[row])
        assert torch.allclose(alone.scores_BK[0], together.scores_BK[row], atol=1e-4)


def test_level_and_full_differ_by_the_mass_outside_the_level():
    rng = np.random.default_rng(1)
    sids, vocab = tiny.catalogue(rng, items=5, sizes=(6,)), tiny.vocabulary((6,))
    model = tiny.model(vocab_size=tiny.TEXT_TOKENS + 6)
    trie, prompt = Trie(sids, vocab), [3, 4, 5]
    full, level = search(model, [prompt], trie, 5, "full"), search(model, [prompt], trie, 5, "level")
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    mass = probabilities[tiny.TEXT_TOKENS :].sum().log()
    assert torch.allclose(full.scores_BK - mass, level.scores_BK, atol=1e-5)


def test_bad_requests_are_refused():
    sids, vocab = tiny.catalogue(np.random.default_rng(0), items=4, sizes=(4, 4)), tiny.vocabulary((4, 4))
    model, trie = tiny.model(vocab_size=tiny.TEXT_TOKENS + 8), Trie(sids, vocab)
    for prompts, arguments in (
        ([[]], {}),
        ([], {}),
        ([[1]], {"score_space": "logits"}),
        ([[1]], {"temperature": 0.0}),
    ):
        with pytest.raises(InputError):
            search(model, prompts, trie, 4, **arguments)
    with pytest.raises(InputError):
        Trie(sids, tiny.vocabulary((4, 5)))
    torch.nn.init.constant_(model.base_model.norm.weight, float("nan"))
    with pytest.raises(NumericError):
        search(model, [[1, 2]], trie, 4)
