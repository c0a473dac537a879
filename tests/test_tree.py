"""The tree decoder equals transformers' beam search and brute force, and is never illegal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError, NumericError
from data.sid import FORMATS, SidTable, SidVocab
from infer.search import trie as trie_module
from infer.search.scoring import LevelScorer, Parity
from infer.search.tree import search
from infer.search.trie import Trie
from tests import tiny
from tests.agreement import disagreement, ranking
from tests.oracle import brute_force, generate, generate_beams

SIZES = st.lists(st.integers(2, 6), min_size=1, max_size=4).map(tuple)


GENERATED = {
    "seed": st.integers(0, 10**6),
    "sizes": SIZES,
    "items": st.integers(1, 40),
    "beams": st.integers(2, 12),
    "kind": st.sampled_from(["qwen3", "llama", "gpt2"]),
    "tied": st.booleans(),
}


def assert_equals_generate(seed, sizes, items, beams, kind, tied):
    rng = np.random.default_rng(seed)
    sids, vocab = (
        tiny.catalogue(rng, items=items, sizes=sizes),
        tiny.vocabulary(sizes, scattered=rng if seed % 2 else None),
    )
    model = tiny.model(kind, vocab_size=tiny.TEXT_TOKENS + sum(sizes), seed=seed, tied=tied)
    prompts = tiny.prompts(rng, rows=2)
    found = search(model, prompts, Trie(sids, vocab), beams)
    for row, prompt in enumerate(prompts):
        count = int(found.counts_B[row])
        theirs, scores = generate_beams(model, prompt, sids, vocab, beams)
        tokens = vocab.token_ids(found.codes_BKL[row, :count].numpy())
        assert not disagreement(ranking(tokens, found.scores_BK[row, :count]), ranking(theirs, scores))
        nodes = found.nodes_BK[row].tolist()
        assert np.array_equal(sids.sids_SL[nodes[:count]], found.codes_BKL[row, :count].numpy())
        assert nodes[count:] == [-1] * (len(nodes) - count)


@given(**GENERATED)
@settings(max_examples=12)
def test_full_scores_equal_beam_search_of_transformers(**drawn):
    assert_equals_generate(**drawn)


@pytest.mark.long
@given(**GENERATED)
@settings(max_examples=400)
def test_full_scores_equal_beam_search_of_transformers_hundreds_of_times(**drawn):
    assert_equals_generate(**drawn)


@given(
    seed=st.integers(0, 10**6),
    sizes=SIZES,
    items=st.integers(1, 60),
    space=st.sampled_from(["full", "level", "trie"]),
)
@settings(max_examples=12)
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


@given(
    seed=st.integers(0, 10**6),
    sizes=SIZES,
    items=st.integers(1, 60),
    beams=st.integers(1, 12),
    space=st.sampled_from(["full", "level", "trie"]),
    roots=st.integers(1, 3),
)
@settings(max_examples=15)
def test_catalogues_batches_and_sparse_levels_equal_one_search_in_a_filtered_trie(
    seed, sizes, items, beams, space, roots
):
    rng = np.random.default_rng(seed)
    sids, vocab = tiny.catalogue(rng, items=items, sizes=sizes, distinct=False), tiny.vocabulary(sizes)
    model = tiny.model(vocab_size=tiny.TEXT_TOKENS + sum(sizes), seed=seed)
    prompts, everything = tiny.prompts(rng, rows=4, longest=12), np.arange(len(sids.sids_SL))
    catalogues = [rng.permutation(everything)[: rng.integers(1, len(everything) + 1)] for _ in range(roots)]
    roots_B = rng.integers(0, roots, len(prompts)).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_module, "DENSE_BYTES", int(rng.choice([0, 120, 2**28])))
        stacked = Trie(sids, vocab, catalogues=catalogues)
    together = search(model, prompts, stacked, beams, space, roots_B=roots_B)
    for row, prompt in enumerate(prompts):
        kept = np.sort(catalogues[roots_B[row]])
        filtered = SidTable(sids.sids_SL[kept], sizes)
        alone = search(model, [prompt], Trie(filtered, vocab), beams, space)
        count = int(alone.counts_B[0])
        assert int(together.counts_B[row]) == count == min(beams, len(kept))
        nodes = together.nodes_BK[row, :count]
        assert set(nodes.tolist()) <= set(kept.tolist())
        expected = ranking(kept[alone.nodes_BK[0, :count].numpy()], alone.scores_BK[0, :count])
        assert not disagreement(ranking(nodes, together.scores_BK[row, :count]), expected)


@given(seed=st.integers(0, 10**6), sizes=SIZES, items=st.integers(2, 40), roots=st.booleans())
@settings(max_examples=15)
def test_excluded_rows_never_come_and_the_others_stay_in_order(seed, sizes, items, roots):
    rng = np.random.default_rng(seed)
    sids, vocab = tiny.catalogue(rng, items=items, sizes=sizes), tiny.vocabulary(sizes)
    model = tiny.model(vocab_size=tiny.TEXT_TOKENS + sum(sizes), seed=seed)
    prompts, everything = tiny.prompts(rng, rows=3), np.arange(len(sids.sids_SL))
    exclude = np.where(rng.random((3, 5)) < 0.3, -1, rng.choice(everything, (3, 5)))
    trie = Trie(sids, vocab, catalogues=[everything[::2], everything] if roots else None)
    roots_B = [1, 0, 1] if roots else None
    beams = search(model, prompts, trie, 1000, roots_B=roots_B)
    found = search(model, prompts, trie, 1000, exclude=exclude, roots_B=roots_B)
    for row in range(3):
        whole = ranking(beams.nodes_BK[row], beams.scores_BK[row])
        expected = [(node, score) for node, score in whole if node >= 0 and node not in exclude[row]]
        count = int(found.counts_B[row])
        assert not disagreement(ranking(found.nodes_BK[row, :count], found.scores_BK[row, :count]), expected)


def test_a_batch_gives_what_each_prompt_gives_alone():
    rng = np.random.default_rng(0)
    sizes = (8, 8, 8)
    sids, vocab = tiny.catalogue(rng, items=200, sizes=sizes), tiny.vocabulary(sizes)
    model = tiny.model(vocab_size=tiny.TEXT_TOKENS + sum(sizes))
    prompts, trie = tiny.prompts(rng, rows=6, longest=20), Trie(sids, vocab)
    together = search(model, prompts, trie, 10)
    for row, prompt in enumerate(prompts):
        alone = search(model, [prompt], trie, 10)
        expected = ranking(alone.nodes_BK[0], alone.scores_BK[0])
        assert not disagreement(ranking(together.nodes_BK[row], together.scores_BK[row]), expected)


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


def parity_case(seed: int, *, scattered: bool = True):
    rng = np.random.default_rng(seed)
    sizes = (6, 5, 4)
    sids, vocab = (
        tiny.catalogue(rng, items=60, sizes=sizes),
        tiny.vocabulary(sizes, scattered=rng if scattered else None),
    )
    model = tiny.model(["qwen3", "gpt2"][seed % 2], vocab_size=tiny.TEXT_TOKENS + sum(sizes), seed=seed)
    answers = vocab.token_ids(sids.sids_SL)
    # a history of semantic IDs, as real prompts have: these tokens are the ones that a penalty changes
    prompt = [5, *answers[rng.integers(0, len(answers), 3)].reshape(-1).tolist(), 1, 7]
    return sids, vocab, model, answers, prompt


@pytest.mark.parametrize("seed", range(4))
def test_repetition_penalty_equals_beam_search_of_transformers(seed):
    sids, vocab, model, _, prompt = parity_case(seed)
    parity = Parity(repetition_penalty=1.3)
    found = search(model, [[3, 2], prompt], Trie(sids, vocab), 8, parity=parity)
    tokens, scores = generate_beams(model, prompt, sids, vocab, 8, repetition_penalty=1.3)
    ours = ranking(vocab.token_ids(found.codes_BKL[1].numpy()), found.scores_BK[1])
    assert not disagreement(ours, ranking(tokens, scores))
    plain = search(model, [prompt], Trie(sids, vocab), 8)
    assert not torch.allclose(plain.scores_BK[0], scores, atol=1e-2)


@pytest.mark.parametrize("seed", range(4))
def test_penalised_logits_equal_greedy_search_of_transformers(seed):
    sids, vocab, model, answers, prompt = parity_case(seed)
    parity = Parity(repetition_penalty=1.7, penalise="logits")
    found = search(model, [[3, 2], prompt], Trie(sids, vocab), 1, parity=parity)
    tokens, _ = generate(model, torch.tensor([prompt]), answers.tolist(), 1, repetition_penalty=1.7)
    assert np.array_equal(vocab.token_ids(found.codes_BKL[1].numpy()), tokens.numpy())
    expected, fed = 0.0, list(prompt)
    for token in tokens[0].tolist():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([fed])).logits[0, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[fed] = True
        changed = torch.where(logits < 0, logits * 1.7, logits / 1.7)
        expected += float(torch.where(seen, changed, logits).log_softmax(-1)[token])
        fed.append(token)
    assert float(found.scores_BK[1, 0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("wrapped", [False, True])
def test_scored_terminators_equal_beam_search_of_transformers(seed, wrapped):
    """With NaviGen's suffix token, then the end of the turn, which is in the prompt too and so penalised."""
    sids, vocab, model, answers, prompt = parity_case(seed)
    if wrapped:
        vocab = SidVocab(FORMATS["navigen"], vocab.levels, prefix_ids=(8,), suffix_ids=(9,))
        prompt = [*prompt, *vocab.prefix_ids]
    endings = [9, 1] if wrapped else [1]
    whole = [[*ids, *endings] for ids in answers.tolist()]
    parity = Parity(terminator=True, repetition_penalty=1.2, length_penalty=0.5)
    found = search(model, [prompt], Trie(sids, vocab), 8, parity=parity, terminator_ids=[1])
    theirs, scores = generate(
        model, torch.tensor([prompt]), whole, 8, eos_token_id=1, repetition_penalty=1.2, length_penalty=0.5
    )
    ours = ranking(vocab.token_ids(found.codes_BKL[0].numpy()), found.scores_BK[0])
    assert not disagreement(ours, ranking(theirs[:, : sids.num_levels], scores))
    plain = search(model, [prompt], Trie(sids, vocab), 8)
    assert sorted(plain.nodes_BK[0].tolist()) != found.nodes_BK[0].tolist()


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_codes_given_are_scored_as_codes_found_on_dense_and_sparse_levels(space, monkeypatch):
    sids, vocab, model, _, prompt = parity_case(0)
    dense = Trie(sids, vocab)
    monkeypatch.setattr(trie_module, "DENSE_BYTES", 0)
    hidden = torch.randn(2, 6, 32)
    nodes = torch.randint(dense.num_nodes[2], (2, 6))
    for codes in torch.arange(4)[:, None, None].expand(-1, 2, 6):
        scores, _ = LevelScorer(model, dense, space)(hidden, 2, nodes)
        expected = scores.gather(-1, codes[..., None]).squeeze(-1)
        for trie in (dense, Trie(sids, vocab)):
            found = LevelScorer(model, trie, space).of_codes(hidden, 2, nodes, codes)
            assert torch.allclose(found, expected, atol=1e-5)
            assert torch.equal(found.isfinite(), trie.child(2, nodes, codes) >= 0)


def test_nothing_is_read_from_the_device_before_the_result():
    """One read at the very end: whether the scores are finite."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero"):
                seen.append(name)
            return func(*args, **(kwargs or {}))

    rng = np.random.default_rng(0)
    sids, vocab = tiny.catalogue(rng, items=60, sizes=(6, 5, 4)), tiny.vocabulary((6, 5, 4))
    model, trie = tiny.model(vocab_size=tiny.TEXT_TOKENS + 15), Trie(sids, vocab)
    parity = Parity(terminator=True, repetition_penalty=1.2)
    seen: list[str] = []
    with Reads():
        search(
            model, [[3, 4], [5]], trie, 4, parity=parity, terminator_ids=[1], exclude=np.array([[0], [-1]])
        )
    assert seen == ["_local_scalar_dense"]


def test_the_streamed_normaliser_equals_logsumexp(monkeypatch):
    """Blocks that do not divide the vocabulary, a bias, and rows whose maximum comes late."""
    monkeypatch.setattr("infer.search.scoring.BLOCK_BYTES", {"cpu": 1, "cuda": 1})
    torch.manual_seed(0)
    sids, vocab = tiny.catalogue(np.random.default_rng(0), items=4, sizes=(4,)), tiny.vocabulary((4,))
    model = tiny.model(vocab_size=1500, tied=False)
    hidden = torch.randn(2, 3, 32)
    with torch.no_grad():
        model.lm_head.weight[1400:] *= 50
        expected = model.lm_head(hidden).logsumexp(-1)
        assert torch.allclose(
            LevelScorer(model, Trie(sids, vocab)).full_normaliser(hidden), expected, rtol=1e-5
        )
        model.lm_head.bias = torch.nn.Parameter(torch.randn(1500) * 9)
        expected = model.lm_head(hidden).logsumexp(-1)
        assert torch.allclose(
            LevelScorer(model, Trie(sids, vocab)).full_normaliser(hidden), expected, rtol=1e-5
        )
    hidden.requires_grad_()
    theirs = torch.autograd.grad(model.lm_head(hidden).logsumexp(-1).sum(), hidden)[0]
    ours = LevelScorer(model, Trie(sids, vocab)).full_normaliser(hidden).sum()
    assert torch.allclose(torch.autograd.grad(ours, hidden)[0], theirs, rtol=1e-4, atol=1e-4)


def test_bad_requests_are_refused():
    sids, vocab = tiny.catalogue(np.random.default_rng(0), items=4, sizes=(4, 4)), tiny.vocabulary((4, 4))
    model, trie = tiny.model(vocab_size=tiny.TEXT_TOKENS + 8), Trie(sids, vocab)
    ended = Parity(terminator=True)
    for prompts, arguments in (
        ([[]], {}),
        ([], {}),
        ([[1]], {"score_space": "logits"}),
        ([[1]], {"roots_B": [1]}),
        ([[1]], {"roots_B": [0, 0]}),
        ([[1]], {"exclude": np.array([[0], [1]])}),
        ([[1]], {"parity": ended}),
        ([[1]], {"parity": ended, "terminator_ids": [1], "score_space": "level"}),
    ):
        with pytest.raises(InputError):
            search(model, prompts, trie, 4, **arguments)
    for beams in (0, -1):
        with pytest.raises(InputError):
            search(model, [[1]], trie, beams)
    for options in (
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"repetition_penalty": 0.0},
        {"length_penalty": float("inf")},
        {"penalise": "tokens"},
    ):
        with pytest.raises(InputError):
            Parity(**options)
    with pytest.raises(InputError):
        Trie(sids, tiny.vocabulary((4, 5)))
    torch.nn.init.constant_(model.base_model.norm.weight, float("nan"))
    with pytest.raises(NumericError):
        search(model, [[1, 2]], trie, 4)
