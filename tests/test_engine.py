"""One engine for evaluation, rollouts and serving: restricted catalogues, exclusions, bounds, settings, clear refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import EnvironmentFault, InputError, NumericError
from data.renderer import Renderer
from data.sid import SidTable, sid_format
from infer.engine import DecodeSettings, Engine
from infer.loading import context_length, load_model, usable_device
from infer.search import allowed as restriction
from infer.search.allowed import Catalogues, exhausted, read_allowed
from infer.search.tree import search
from infer.text.thinking import ThinkSettings
from preprocess.model.vocabulary import add_sid_tokens
from tests import families, handmade, tiny
from tests.agreement import disagreement, ranking, recommended, requests_disagree

ITEMS = len(handmade.CODES)
TABLE = SidTable(handmade.CODES, handmade.SIZES)  # items 5, 6 and items 10, 11 share a semantic ID
S = len(TABLE.sids_SL)


@pytest.fixture(scope="module")
def parts():
    """(random model, renderer) over the hand-made catalogue."""
    tokenizer = handmade.tokenizer("ours")
    addition = add_sid_tokens(tokenizer, sid_format("letters"), handmade.SIZES, sids_sha256="")
    return tiny.model(vocab_size=len(tokenizer)), Renderer(tokenizer, addition.vocab)


def engine(parts, **changes) -> Engine:
    model, renderer = parts
    return Engine(model, renderer, TABLE, DecodeSettings(**{"beams": S, "batch_size": 3} | changes))


def codes(found) -> list[tuple]:
    """The semantic IDs of every request, in order."""
    return [tuple(one.codes for one in row) for row in found]


def flat(found) -> list[int]:
    return [item for one in found for item in one.item_ids]


def test_all_items_once_in_the_order_of_their_scores(parts):
    histories = [[0], [3, 4, 5, 1, 2], [7, 7]]
    for found in engine(parts).recommend(histories, S):
        assert sorted(flat(found)) == list(range(ITEMS)) and len(found) == S
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)
        for one in found:
            assert TABLE.items_of(one.codes).tolist() == list(one.item_ids)


@given(data=st.data())
@settings(max_examples=25)
def test_restricted_requests_get_the_unrestricted_ranking_without_the_rest(parts_once, data):
    """Wide beams, so that a restriction is the ranking of all items with the forbidden ones struck out."""
    items = st.integers(0, ITEMS - 1)
    histories = data.draw(st.lists(st.lists(items, min_size=1, max_size=4), min_size=1, max_size=5))
    one_set = st.one_of(st.none(), st.lists(items, min_size=1, max_size=6))
    sets = data.draw(st.lists(one_set, min_size=len(histories), max_size=len(histories)))
    exclude = data.draw(st.booleans())
    found = parts_once.recommend(histories, S, allowed_items=sets, exclude_history=exclude)
    everything = parts_once.recommend(histories, S)
    for history, wanted, restricted, whole in zip(histories, sets, found, everything, strict=True):
        legal = set(range(ITEMS) if wanted is None else wanted) - set(history if exclude else ())
        expected = [
            ((one.codes, tuple(item for item in one.item_ids if item in legal)), one.score)
            for one in whole
            if set(one.item_ids) & legal
        ]
        assert not disagreement(recommended(restricted), expected)


@pytest.fixture(scope="module")
def parts_once(parts):
    return engine(parts)


def test_excluding_the_history_does_not_shorten_the_list(parts):
    """Five beams, four of the best five bought: the list is as long as without the exclusion."""
    narrow = engine(parts, beams=5)
    best = narrow.recommend([[0]], 5)[0]
    history = [*flat(best[:4]), 0]
    found = narrow.recommend([history], 5, exclude_history=True)[0]
    assert len(found) == 5 and not set(flat(found)) & set(history)


def test_one_set_for_all_as_ids_array_or_mask(parts):
    one = engine(parts)
    mask = np.zeros(ITEMS, bool)
    mask[[2, 6]] = True
    results = [
        one.recommend([[0], [1, 2]], 9, allowed_items=allowed) for allowed in ([6, 2], np.array([2, 6]), mask, {2, 6})
    ]  # fmt: skip
    assert not any(requests_disagree(result, results[0]) for result in results)
    assert [sorted(flat(found)) for found in results[0]] == [
        [2, 6]
    ] * 2  # item 5 shares the SID of 6, but is not allowed


def test_tries_of_restrictions_are_kept_and_bounded(parts, monkeypatch):
    catalogues = Catalogues(TABLE, parts[1].vocab, device="cpu")
    masks, which = read_allowed([[1], [1, 2], None, [1]], requests=4, num_items=ITEMS)
    assert len(masks) == 3 and which.tolist() == [0, 1, 2, 0]
    assert catalogues.stacked(masks) is catalogues.stacked(read_allowed([[1], [2, 1], None], requests=3, num_items=ITEMS)[0])  # fmt: skip
    for item in range(restriction.CACHED_TRIES + 3):
        catalogues.stacked(read_allowed([item], requests=1, num_items=ITEMS)[0])
    assert len(catalogues._kept) == restriction.CACHED_TRIES
    monkeypatch.setattr(restriction, "SETS_PER_TRIE", 2)
    groups = list(catalogues.groups(masks, which))
    assert [group.rows.tolist() for group in groups] == [[0, 1, 3], [2]]
    assert [group.trie.num_roots for group in groups] == [2, 1]
    one = engine(parts)
    sets = [[1], [1, 2], None, [1]]
    alone = [one.recommend([[0]], S, allowed_items=[allowed])[0] for allowed in sets]
    assert not requests_disagree(one.recommend([[0]] * 4, S, allowed_items=sets), alone)


def test_a_semantic_id_is_exhausted_when_all_its_allowed_items_were_chosen():
    shared = int(TABLE.sid_of_item_N[5])
    for history, mask, gone in (([5], None, []), ([5, 6], None, [shared]), ([5], [0, 5], [shared])):
        masks = [None if mask is None else np.isin(np.arange(ITEMS), mask)]
        rows = exhausted(TABLE, [history], masks, np.zeros(1, int))
        assert [sid for sid in rows[0].tolist() if sid >= 0] == gone


def test_bad_requests_are_refused(parts):
    one = engine(parts, beams=4)
    for arguments, words in (
        (([[0], []], 2), r"history of request 1 is \[\]"),
        (([0, 1], 2), "history of request 0 is 0 -> a list"),
        (([[0, 99]], 2), r"history of request 0: unknown item ids \[99\]"),
        (([[0], [1.5]], 2), "request 1: unknown"),
        (([[0], ["a"]], 2), "request 1: unknown"),
        (([[0]], 0), "k 0 must lie in"),
        (([[0]], 5), r"beams \(4\)"),
    ):
        with pytest.raises(InputError, match=words):
            one.recommend(*arguments)
    for allowed, words in (
        ([], "allowed_items is empty"),
        ([[1], []], "allowed_items of request 1 is empty"),
        ([[1]], "1 sets for 2 requests"),
        ([12], r"unknown item ids \[12\]"),
        (np.zeros(ITEMS, bool), "is empty"),
        (np.ones(3, bool), "a mask of shape"),
    ):
        with pytest.raises(InputError, match=words):
            one.recommend([[0], [1]], 2, allowed_items=allowed)
    assert one.recommend([], 2) == []
    with pytest.raises(InputError, match="unknown mode"):
        Engine(*parts, TABLE, DecodeSettings(), mode="aloud")


def test_a_history_beyond_the_context_is_cut_where_asked_and_else_refused(parts):
    _, renderer = parts
    short = tiny.model("gpt2", vocab_size=len(renderer.tokenizer))
    context = context_length(short.config)
    long = [item % ITEMS for item in range(context)]
    with pytest.raises(
        InputError, match=rf"the model reads {context} .* decode.max_prompt to at most {context - 2}"
    ):
        engine((short, renderer)).recommend([long], 3)
    cut = Renderer(renderer.tokenizer, renderer.vocab, max_prompt=context - 2)
    found = engine((short, cut)).recommend([long], S)[0]
    kept = engine((short, cut))
    assert len(kept.histories.prompt_ids(long)) <= context - 2 and len(found) == S
    with pytest.raises(InputError, match="a history of one item needs"):
        tight = Renderer(renderer.tokenizer, renderer.vocab, max_prompt=3)
        engine((short, tight)).recommend([[0]], 3)


def test_a_thought_longer_than_the_context_is_refused_before_the_prompt(parts):
    one = engine(parts)
    context = context_length(one.model.config)
    with pytest.raises(InputError, match="a smaller think.max_tokens"):
        one.check_context(5, before_answer=context)


def test_devices_that_are_none_or_not_here_are_refused(monkeypatch):
    assert usable_device("cpu") == "cpu"
    with pytest.raises(InputError, match="unknown device 'gpu' -> cpu"):
        usable_device("gpu")
    monkeypatch.setattr(torch, "empty", lambda *_, device: (_ for _ in ()).throw(AssertionError("no CUDA")))
    with pytest.raises(EnvironmentFault, match="device cuda cannot be used here .no CUDA. -> cpu"):
        usable_device("cuda")


def test_scores_that_are_not_finite_end_the_search(parts):
    model, renderer = parts
    broken = tiny.model(vocab_size=len(renderer.tokenizer))
    torch.nn.init.constant_(broken.base_model.norm.weight, float("nan"))
    broken.name_or_path = "outputs/run/final"
    with pytest.raises(NumericError, match="not finite .outputs/run/final. -> the checkpoint"):
        engine((broken, renderer)).recommend([[0]], 2)


def test_batches_hold_similar_lengths_within_rows_and_tokens(parts):
    rng = np.random.default_rng(0)
    prompts = [[5] * int(length) for length in rng.integers(1, 60, 40)]
    one = engine(parts, batch_size=8, batch_tokens=100)
    batches = one.batches(prompts)
    assert sorted(np.concatenate(batches).tolist()) == list(range(40))
    lengths = [[len(prompts[row]) for row in rows] for rows in batches]
    assert all(len(rows) == 1 or (len(rows) <= 8 and len(rows) * max(rows) <= 100) for rows in lengths)
    assert sum(lengths, []) == sorted(map(len, prompts), reverse=True)
    together, alone = engine(parts), engine(parts, batch_tokens=1)
    assert max(len(rows) for rows in alone.batches(prompts)) == 1
    (nodes, scores), (nodes_alone, scores_alone) = together.rank(prompts), alone.rank(prompts)
    for row in range(len(prompts)):
        expected = ranking(nodes_alone[row], scores_alone[row])
        assert not disagreement(ranking(nodes[row], scores[row]), expected)


def test_settings_reach_the_search_and_bad_ones_are_refused(parts):
    histories = [[0, 1, 2, 3], [4, 5]]
    plain = engine(parts).recommend(histories, S)
    for change in (
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 1.5, "penalise": "logits"},
        {"terminator": True},
        {"temperature": 2.0},
        {"length_penalty": 1.0},
        {"score_space": "level"},
    ):
        other = engine(parts, **change).recommend(histories, S)
        assert requests_disagree(other, plain), change
    for bad in (
        {"beams": 0}, {"batch_tokens": 0}, {"max_prompt": 0}, {"temperature": 0.0}, {"repetition_penalty": -1.0},
        {"strategy": "wild"}, {"strategy": "sample"}, {"terminator": True, "score_space": "trie"},
    ):  # fmt: skip
        with pytest.raises(InputError):
            DecodeSettings(**bad)


def test_sampling_draws_other_items_with_another_seed_and_the_same_with_the_same(parts):
    histories = [[0], [1], [2], [3]]
    draw = {"strategy": "sample", "score_space": "trie", "beams": 4}
    first, again, other = (
        engine(parts, **draw, seed=seed).recommend(histories, 4) for seed in (1, 1, 2)
    )  # fmt: skip
    assert first == again != other
    assert all(len({one.codes for one in found}) == 4 for found in first)


def test_a_checkpoint_that_would_sample_its_beams_changes_nothing(parts, tmp_path):
    """Instruct models carry do_sample and a repetition penalty in generation_config.json."""
    model, renderer = parts
    model.save_pretrained(tmp_path)
    renderer.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 5.0, "repetition_penalty": 3.0, "top_k": 2, "num_beams": 3}'
    )
    loaded, _ = load_model(tmp_path, device="cpu")
    assert loaded.generation_config.do_sample and loaded.dtype == torch.float32
    think = ThinkSettings(max_tokens=6)
    for mode in ("direct", "think"):
        ours, theirs = (
            Engine(one, renderer, TABLE, DecodeSettings(beams=5), mode=mode, think=think) for one in (model, loaded)
        )  # fmt: skip
        assert not requests_disagree(ours.recommend([[0, 1], [2]], 5), theirs.recommend([[0, 1], [2]], 5))
    assert loaded.generation_config.do_sample  # set aside for the call only


@pytest.mark.parametrize("kind", ["t5", "gemma2"])
def test_other_families_load_and_recommend(parts, tmp_path, kind):
    """An encoder-decoder, and a decoder whose logits are soft-capped."""
    words = parts[1]
    made = families.model(kind, vocab_size=len(words.tokenizer))
    made.save_pretrained(tmp_path)
    words.tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, device="cpu")
    found = engine((model, words)).recommend([[0, 1], [2]], S)
    assert not requests_disagree(found, engine((made, words)).recommend([[0, 1], [2]], S))
    assert all(sorted(flat(row)) == list(range(ITEMS)) for row in found)
    if kind == "t5":
        with pytest.raises(InputError, match="needs a causal language model"):
            Engine(model, words, TABLE, DecodeSettings(), mode="think").recommend([[0]], 2)


def test_checkpoints_that_cannot_be_loaded_safely_are_refused(parts, tmp_path):
    """Remote code, pickled weights: never run, never read."""
    model, words = parts
    words.tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path, device="cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    sentinel = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(sentinel)!r}, 'w')\nclass Config: ...\n")
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Config"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path, device="cpu")
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "options", [{}, {"score_space": "trie", "strategy": "sample"}], ids=["beam", "sample"]
)
def test_a_list_does_not_depend_on_the_other_requests(parts, options):
    """Two beams: how many more a row goes on with is its own matter, and so is what it draws."""
    rng = np.random.default_rng(4)
    histories = [rng.integers(0, ITEMS, size).tolist() for size in (1, 9, 2, 6, 1, 3)]
    one, exclude = engine(parts, beams=2, **options), not options
    together = one.recommend(histories, 2, exclude_history=exclude)
    for rows in ([0], [1, 0], [5, 2, 4], [3]):
        part = one.recommend([histories[row] for row in rows], 2, exclude_history=exclude)
        assert codes(part) == codes([together[row] for row in rows])
    keyed = [codes(one.recommend([histories[0]] * 2, 2, keys=[row, 7])) for row in range(12)]
    assert len({found[1] for found in keyed}) == 1
    assert (len({found[0] for found in keyed}) > 1) == bool(options), "a key decides a draw, nothing else"


def test_own_beams_give_the_list_of_a_search_with_as_many(parts):
    model, _ = parts
    one = engine(parts)
    prompts = [one.renderer.prompt_ids(one.histories.example([item]), one.mode) for item in (0, 3, 5)]
    wide = search(model, prompts, one.trie, 6, "full", own_beams=[2, 6, 3])
    assert wide.counts_B.tolist() == [2, 6, 3]
    for row, beams in enumerate((2, 6, 3)):
        alone = search(model, [prompts[row]], one.trie, beams, "full")
        assert torch.equal(wide.nodes_BK[row, :beams], alone.nodes_BK[0])
        assert torch.allclose(wide.scores_BK[row, :beams], alone.scores_BK[0], atol=1e-5)
