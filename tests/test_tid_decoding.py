"""TIDs under a trie: every answer is one of the catalogue, with its exact score and all its items, whatever the model is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError, NumericError
from data.answers import BETWEEN, END, HEAD, TEXT_END, pieces
from data.renderer import Renderer
from data.sid import SidVocab, sid_format
from data.tasks import Answer, Example
from data.tids import Tids
from infer.search.token_tree import draw_tokens
from infer.search.token_trie import TokenTrie
from infer.text.tids import TidTrie, decode_tids, prefix_free
from tests import families, handmade, tiny
from tests.oracle import score

WORDS = ["steel", "steel bolt", "bolt", "écrou", "m10", "10 mm", 'a "b"', "wood"]


def catalogue(rng: np.random.Generator, items: int) -> Tids:
    """Random TIDs of few terms, so that some begin others and some items share theirs; every eleventh item has none."""
    rows = [
        () if item % 11 == 10 else tuple(rng.choice(WORDS, rng.integers(1, 5), replace=False).tolist())
        for item in range(items)
    ]
    return Tids(rows, ["chat" if row else "unusable" for row in rows])


@pytest.fixture(scope="module", params=["ours", "gpt2", "llama"])
def tokenizer(request):
    return handmade.tokenizer(request.param)


@pytest.mark.parametrize("ending", [END, BETWEEN])
def test_every_way_of_decoding_gives_tids_of_the_catalogue(tokenizer, ending):
    """2 x 3 tokenizers x 16 prompts x (1 + 7 + 3 + 5) answers, from a random model."""
    rng = np.random.default_rng(0)
    tids = catalogue(rng, 60)
    trie, model = TidTrie(tids, tokenizer, ending=ending), tiny.model(vocab_size=len(tokenizer))
    prompts = [rng.integers(5, len(tokenizer), rng.integers(1, 9)).tolist() for _ in range(16)]
    groups = tids.groups
    for options in (
        {},
        {"beams": 7},
        {"beams": 3, "score_space": "full"},
        {"samples": 5, "temperature": 1.5},
    ):
        found = decode_tids(model, prompts, trie, batch_size=16, **options)
        assert {len(row) for row in found} == {options.get("beams", options.get("samples", 1))}
        for one in (one for row in found for one in row):
            assert list(one.item_ids) == groups[one.terms] and np.isfinite(one.score)
            text = HEAD + tokenizer.decode(list(one.ids), clean_up_tokenization_spaces=False)
            whole = json.loads(text if ending == END else text + TEXT_END)
            assert whole["target_tid"] == list(one.terms)
    assert trie.shared_items == sum(len(items) for items in groups.values() if len(items) > 1) > 0
    assert str(trie) == f"{len(groups)} TIDs of {sum(map(len, groups.values()))} items, {trie.shared_items} of which share theirs"  # fmt: skip


def test_the_tokens_are_those_that_training_writes(tokenizer):
    tids = catalogue(np.random.default_rng(1), 50)
    trie, model = TidTrie(tids, tokenizer), tiny.model(vocab_size=len(tokenizer))
    renderer = Renderer(tokenizer, SidVocab(sid_format("letters"), ()))
    for one in decode_tids(model, [[5, 6]], trie, beams=len(trie))[0]:
        example = Example(0, "sid_to_tid", (), Answer(terms=one.terms))
        assert list(one.ids) == renderer.answer_ids(example)
        text = tokenizer.decode(list(one.ids), clean_up_tokenization_spaces=False)
        assert HEAD + text == "".join(pieces("sid_to_tid", one.terms, None))


def test_enough_beams_give_every_tid_its_exact_score():
    rng = np.random.default_rng(2)
    tokenizer, tids = handmade.tokenizer("ours"), catalogue(rng, 40)
    trie, model = TidTrie(tids, tokenizer), families.model("llama", vocab_size=len(tokenizer))
    prompts = [rng.integers(5, 40, length).tolist() for length in (3, 7)]
    given_front, given_back = list(trie.prefix_ids), len(trie.suffix_ids)
    for prompt, row in zip(
        prompts, decode_tids(model, prompts, trie, beams=500, score_space="full"), strict=True
    ):
        assert {one.terms for one in row} == set(tids.groups) and len(row) == len(trie)
        assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)
        for one in row:
            decided = list(one.ids[len(given_front) : len(one.ids) - given_back])
            assert one.score == pytest.approx(float(score(model, prompt + given_front, decided)), abs=1e-3)


def test_scores_of_the_trie_sum_to_one_and_count_forced_tokens_as_certain():
    rng = np.random.default_rng(4)
    tokenizer, tids = handmade.tokenizer("ours"), catalogue(rng, 40)
    trie, model = TidTrie(tids, tokenizer), tiny.model(vocab_size=len(tokenizer))
    (row,) = decode_tids(model, [[5, 9, 6]], trie, beams=500)
    assert {one.terms for one in row} == set(tids.groups)
    assert sum(np.exp(one.score) for one in row) == pytest.approx(1, abs=1e-4)
    rows = [one.ids for one in row]
    for one in row[:5]:
        expected = 0.0
        for place, token in enumerate(one.ids):
            legal = sorted({ids[place] for ids in rows if ids[:place] == one.ids[:place]})
            with torch.no_grad():
                logits_V = model(torch.tensor([[5, 9, 6, *one.ids[:place]]])).logits[0, -1]
            expected += float(logits_V[legal].log_softmax(0)[legal.index(token)])
        assert one.score == pytest.approx(expected, abs=1e-3)


def test_greedy_is_the_walk_along_the_best_legal_token():
    rng = np.random.default_rng(3)
    tokenizer, tids = handmade.tokenizer("gpt2"), catalogue(rng, 50)
    trie, model = TidTrie(tids, tokenizer), tiny.model(vocab_size=len(tokenizer))
    rows = {one.ids for one in decode_tids(model, [[5]], trie, beams=len(trie))[0]}
    prompts = [rng.integers(5, 60, length).tolist() for length in (2, 5, 9)]
    best = decode_tids(model, prompts, trie)
    assert best == [
        [replace(one, score=best[row][0].score)]
        for row, (one,) in enumerate(decode_tids(model, prompts, trie, score_space="full"))
    ]
    for prompt, (found,) in zip(prompts, best, strict=True):
        walked: tuple[int, ...] = trie.prefix_ids
        while walked not in rows:
            legal = sorted({ids[len(walked)] for ids in rows if ids[: len(walked)] == walked})
            with torch.no_grad():
                logits_V = model(torch.tensor([[*prompt, *walked]])).logits[0, -1]
            walked = (*walked, legal[int(logits_V[legal].argmax())])
        assert found.ids == walked


def test_draws_follow_the_distribution_over_legal_tokens_and_their_own_key():
    tokenizer = handmade.tokenizer("ours")
    terms = [("a",), ("b",), ("b", "a"), ("c",)]
    trie, model = TidTrie(Tids(terms, ["chat"] * 4), tokenizer), tiny.model(vocab_size=len(tokenizer))
    draws = [one for row in decode_tids(model, [[5, 6]] * 400, trie, samples=5, seed=1) for one in row]
    shares = {one.terms: np.exp(one.score) for one in draws}
    assert len(shares) > 1 and sum(shares.values()) < 1.001
    for made, share in shares.items():
        assert sum(one.terms == made for one in draws) / 2000 == pytest.approx(share, abs=0.05)
    alone = decode_tids(model, [[5, 6]], trie, samples=6, seed=3, keys=[70])
    beside = decode_tids(model, [[9, 8, 7], [5, 6], [4]], trie, samples=6, seed=3, keys=[1, 70, 2])
    assert [one.terms for one in alone[0]] == [one.terms for one in beside[1]]
    assert [one.terms for one in alone[0]] != [
        one.terms for one in decode_tids(model, [[5, 6]], trie, samples=6)[0]
    ]


@given(st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12))
@settings(max_examples=50)
def test_prefix_free_is_what_it_says(rows):
    rows = sorted(rows, key=hash)
    expected = not any(a != b and b[: len(a)] == a for a in rows for b in rows)
    assert prefix_free(rows) == expected == TokenTrie(rows).prefix_free


def test_one_item_equal_texts_and_bad_requests():
    tokenizer = handmade.tokenizer("ours")
    model = tiny.model(vocab_size=len(tokenizer))
    alone = TidTrie(Tids([(), ("bolt",), ("bolt",)], ["unusable", "chat", "chat"]), tokenizer)
    ((found,),) = decode_tids(model, [[5]], alone, beams=5)
    assert (found.terms, found.item_ids, alone.shared_items) == (("bolt",), (1, 2), 2)
    with pytest.raises(InputError, match="no item has a textual identifier"):
        TidTrie(Tids([()], ["unusable"]), tokenizer)
    with pytest.raises(InputError, match="empty prompt"):
        decode_tids(model, [[5], []], alone)
    with pytest.raises(InputError, match="begins another"):
        draw_tokens(model, [[5]], TokenTrie([[2], [2, 3]]), 2)
    torch.nn.init.constant_(model.base_model.norm.weight, float("nan"))
    with pytest.raises(NumericError):
        decode_tids(model, [[5]], TidTrie(catalogue(np.random.default_rng(0), 20), tokenizer), beams=2)
