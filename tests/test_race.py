"""Semantic IDs behind thoughts: the oracle's scores and order wherever a thought ends, and races with what is said at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from infer.engine import DecodeSettings, Engine
from infer.text.thinking import ThinkSettings, Thought, answer_prompts
from tests import tiny
from tests.agreement import disagreement, ranking
from tests.oracle import brute_force, generate_beams
from tests.test_thinking import SAMPLED, TABLE, S, renderer

K = 5


def engine(fmt: str = "letters", *, mode: str = "think", seed: int = 0, **decode) -> Engine:
    words = renderer(fmt)
    model = tiny.model(vocab_size=len(words.tokenizer), tied=False, seed=seed)
    return Engine(model, words, TABLE, DecodeSettings(**({"beams": K} | decode)), mode=mode, think=SAMPLED)


ENGINES = {fmt: engine(fmt, seed=3) for fmt in ("letters", "navigen")}


@given(
    fmt=st.sampled_from(sorted(ENGINES)),
    history=st.lists(st.integers(0, 11), min_size=1, max_size=4),
    ids=st.lists(st.integers(2, 300), max_size=6),
    finished=st.booleans(),
)
@settings(max_examples=8)
def test_the_tail_behind_a_thought_equals_beam_search_of_transformers_wherever_the_thought_is_cut(
    fmt, history, ids, finished
):
    """All cuts of one thought are rows of one batch, of different lengths; scores stop at the last code."""
    one = ENGINES[fmt]
    prompt = one.histories.prompt_ids(history)
    cuts = [[Thought(tuple(ids[:end]), finished)] for end in range(len(ids) + 1)]
    nodes, scores = one.rank_thoughts([prompt] * len(cuts), cuts, keys=range(len(cuts)))
    extended, _ = answer_prompts([prompt] * len(cuts), cuts, one.renderer, task="history_to_sid")
    assert len({len(row) for row in extended}) == len(cuts)
    for row, whole in enumerate(extended):
        tokens, theirs = generate_beams(one.model, whole, TABLE, one.renderer.vocab, K)
        mine = one.renderer.vocab.token_ids(TABLE.sids_SL[nodes[row]])
        assert not disagreement(ranking(mine, scores[row]), ranking(tokens, theirs), atol=1e-3)


def test_tokens_behind_the_semantic_id_would_reorder_and_do_not():
    """Published evaluations add the log-probabilities of what ends an answer; ours has those of the codes alone."""
    thoughts = [[Thought(tuple(range(40 + row, 44 + row)), True)] for row in range(6)]
    found = {}
    for ending in (False, True):
        one = engine("navigen", seed=5, terminator=ending, beams=S)
        prompts = [one.histories.prompt_ids([row]) for row in range(6)]
        found[ending] = one.rank_thoughts(prompts, thoughts, keys=range(6))
    extended, _ = answer_prompts(prompts, thoughts, one.renderer, task="history_to_sid")
    nodes, scores = found[False]
    for row, prompt in enumerate(extended):
        exhaustive = brute_force(one.model, prompt, TABLE, one.renderer.vocab).numpy()
        assert np.allclose(scores[row], exhaustive[nodes[row]], atol=1e-3)
        assert np.all(np.diff(exhaustive[nodes[row]]) < 1e-3)
    assert (found[True][0] != nodes).any()


@pytest.mark.parametrize(("how", "without"), [("logsumexp", "direct"), ("max", "empty_think")])
def test_a_race_is_the_lists_of_the_thoughts_and_the_one_without_a_thought_merged(how, without):
    think = replace(SAMPLED, aggregate=how, without=without)
    words = renderer()
    model = tiny.model(vocab_size=len(words.tokenizer), tied=False)
    one = Engine(model, words, TABLE, DecodeSettings(beams=S), mode="race", think=think)
    history = [0, 3]
    found = one.recommend([history, [5]], S, keys=[0, 1])[0]
    prompt = one.histories.prompt_ids(history)
    thoughts = one.writer.write([prompt], [0])
    behind, _ = answer_prompts([prompt], thoughts, words, task="history_to_sid")
    behind.append(words.prompt_ids(one.histories.example(history), without))
    assert behind[-1] != prompt and len(behind) == 1 + SAMPLED.thoughts
    scores_TS = np.stack([brute_force(model, ids, TABLE, words.vocab).numpy() for ids in behind])
    merged = (
        scores_TS.max(0) if how == "max" else np.logaddexp.reduce(scores_TS, axis=0) - np.log(len(scores_TS))
    )
    order = np.argsort(-merged, kind="stable")
    expected = ranking(TABLE.sids_SL[order], merged[order])
    assert not disagreement([(item.codes, item.score) for item in found], expected, atol=1e-3)


def test_a_race_keeps_what_every_thought_misses():
    """Lists of 1: the thought's and the direct one. By the best score both candidates stand in the race's list."""
    one = engine(mode="race", beams=2)
    one.think = ThinkSettings(max_tokens=4, aggregate="max")
    nodes, scores = one.rank_thoughts(
        [one.histories.prompt_ids([4])], [[Thought((9, 9), True)]], keys=[0],
        without=one.plain_prompts([one.histories.example([4])]),
    )  # fmt: skip
    alone = engine(mode="think", beams=2)
    apart = [
        alone.rank_thoughts([alone.histories.prompt_ids([4])], [[Thought((9, 9), True)]], keys=[0]),
        engine(mode="direct", beams=2).rank([engine(mode="direct").histories.prompt_ids([4])]),
    ]
    best: dict[int, float] = {}
    for found, given_scores in apart:
        for node, score in zip(found[0].tolist(), given_scores[0].tolist(), strict=True):
            best[node] = max(score, best.get(node, -np.inf))
    expected = sorted(best.items(), key=lambda pair: -pair[1])[:2]
    assert nodes[0].tolist() == [node for node, _ in expected]
    assert scores[0].tolist() == pytest.approx([score for _, score in expected], abs=1e-3)


def test_a_race_needs_a_way_to_go_without_a_thought():
    with pytest.raises(InputError, match="unknown think.without 'aloud'"):
        ThinkSettings(without="aloud")
    with pytest.raises(InputError, match="unknown mode 'hurry' -> one of direct, empty_think, think, race"):
        Engine(ENGINES["letters"].model, ENGINES["letters"].renderer, TABLE, DecodeSettings(), mode="hurry")
