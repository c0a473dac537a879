"""Textual identifiers of any length: equal to transformers' beam search, and to brute force with enough beams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError, NumericError
from infer.search.scoring import Parity
from infer.search.token_tree import search_tokens
from infer.search.token_trie import TokenTrie
from tests import families, tiny
from tests.agreement import disagreement
from tests.oracle import generate, score

EOS = 1


def identifiers(rng: np.random.Generator, count: int) -> list[list[int]]:
    """Distinct sequences of one to four of few tokens, so that some begin others."""
    made = {tuple(rng.integers(2, 9, rng.integers(1, 5)).tolist()) for _ in range(count)}
    return [list(ids) for ids in sorted(made, key=lambda ids: hash((ids, count)))]


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 40),
    beams=st.integers(2, 8),
    kind=st.sampled_from(["qwen3", "gpt2", "t5"]),
    length_penalty=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
)
@settings(max_examples=15)
def test_equals_beam_search_of_transformers(seed, count, beams, kind, length_penalty, repetition_penalty):
    rng = np.random.default_rng(seed)
    sequences, model = identifiers(rng, count), families.model(kind, vocab_size=tiny.TEXT_TOKENS, seed=seed)
    prompts = tiny.prompts(rng, rows=2)
    parity = Parity(terminator=True, length_penalty=length_penalty, repetition_penalty=repetition_penalty)
    found = search_tokens(model, prompts, TokenTrie(sequences), beams, parity=parity, terminator_id=EOS)
    for row, prompt in enumerate(prompts):
        theirs, scores = generate(
            model, torch.tensor([prompt]), [[*ids, EOS] for ids in sequences], beams,
            eos_token_id=EOS, length_penalty=length_penalty, repetition_penalty=repetition_penalty,
        )  # fmt: skip
        legal = scores > -1e6
        words = [tuple(token for token in ids if token not in (0, EOS)) for ids in theirs[legal].tolist()]
        kept = int(found.counts_B[row])
        ours = [tuple(sequences[number]) for number in found.rows_BK[row, :kept].tolist()]
        expected = list(zip(words, scores[legal].tolist(), strict=True))
        assert not disagreement(list(zip(ours, found.scores_BK[row, :kept].tolist(), strict=True)), expected)
        assert (found.rows_BK[row, kept:] == -1).all()


@pytest.mark.parametrize("terminator", [True, False])
def test_enough_beams_give_every_sequence_its_exact_score(terminator):
    rng = np.random.default_rng(0)
    sequences, model = identifiers(rng, 40), families.model("llama", vocab_size=tiny.TEXT_TOKENS)
    prompts = tiny.prompts(rng, rows=3)
    parity = Parity(terminator=terminator)
    found = search_tokens(model, prompts, TokenTrie(sequences), 500, parity=parity, terminator_id=EOS)
    for row, prompt in enumerate(prompts):
        rows = found.rows_BK[row, : int(found.counts_B[row])].tolist()
        assert sorted(rows) == list(range(len(sequences)))
        expected = [score(model, prompt, sequences[number] + [EOS] * terminator) for number in rows]
        assert torch.allclose(found.scores_BK[row, : len(rows)], torch.stack(expected), atol=1e-4)


def test_bad_requests_are_refused():
    trie, model = TokenTrie([[2, 3], [4]]), families.model("qwen3", vocab_size=tiny.TEXT_TOKENS)
    for prompts, beams, options in (([[]], 2, {}), ([[3]], 0, {}), ([[3]], 2, {"terminator_id": None})):
        with pytest.raises(InputError):
            search_tokens(model, prompts, trie, beams, **({"terminator_id": EOS} | options))
    torch.nn.init.constant_(model.base_model.norm.weight, float("nan"))
    with pytest.raises(NumericError):
        search_tokens(model, [[3]], trie, 2, terminator_id=EOS)
