"""Think, then recommend: token ids only, honest about cut-off thoughts, mixtures of thoughts as hand arithmetic has them."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.program import EnvironmentFault, InputError, NumericError
from data.renderer import Renderer
from data.sid import SidTable, sid_format
from data.tasks import Answer
from infer.engine import DecodeSettings, Engine
from infer.text import thinking
from infer.text.generate import TextSettings, generate_ids
from infer.text.thinking import (
    ThinkSettings,
    Thought,
    TransformersWriter,
    VllmWriter,
    aggregate,
    answer_prompts,
    read_thoughts,
    thoughts_table,
)
from preprocess.model.vocabulary import add_sid_tokens
from tests import handmade, tiny
from tests.agreement import disagreement, ranking

TABLE = SidTable(handmade.CODES, handmade.SIZES)
S = len(TABLE.sids_SL)
LEAN = 2.0  # on the end marker: most thoughts of a random model then end in time, some do not
SAMPLED = ThinkSettings(thoughts=3, temperature=1.0, max_tokens=12, batch_size=2)


def renderer(fmt: str = "letters", kind: str = "ours") -> Renderer:
    tokenizer = handmade.tokenizer(kind)
    return Renderer(
        tokenizer, add_sid_tokens(tokenizer, sid_format(fmt), handmade.SIZES, sids_sha256="").vocab
    )


@pytest.fixture(scope="module")
def thinker():
    """An engine with a random model that thinks first."""
    words = renderer()
    model = tiny.model(vocab_size=len(words.tokenizer), tied=False)
    return Engine(model, words, TABLE, DecodeSettings(beams=S), mode="think", think=SAMPLED)


def lean_towards(model, token: int, by: float):
    """A hook that adds `by` to one token's logit."""

    def add(module, inputs, output):
        output.logits[..., token] += by
        return output

    return model.register_forward_hook(add)


@pytest.mark.parametrize("fmt", ["letters", "navigen"])
def test_training_and_inference_see_the_same_ids(fmt):
    """prompt + generated thought + what closes it is, id for id, what a training row holds before its semantic ID."""
    words = renderer(fmt)
    history = Engine(tiny.model(vocab_size=2000), words, TABLE, DecodeSettings()).histories.example([0, 5])
    row = replace(history, answer=Answer(sid=(2, 1, 3), reasoning="Bolts before, so nuts next.\n"))
    prompt, target = words.supervised(row, "think")
    text = words.tokenizer.decode(prompt + target)
    sid = words.vocab.format.text((2, 1, 3))
    end = words.tokenizer.eos_token
    assert text.endswith(f"<|assistant|><think>\nBolts before, so nuts next.\n</think>\n\n{sid}{end}")
    assert prompt == words.prompt_ids(row, "think")
    written = tuple(words.thought_ids("Bolts before, so nuts next."))
    built, rows = answer_prompts([prompt], [[Thought(written, True)]], words, task="history_to_sid")
    assert rows.tolist() == [0]
    assert built[0] + words.answer_ids(row) + words.terminator_ids("think") == prompt + target
    # Direct answers and an empty think block: the evaluation prompt is the training prefix as well.
    row = replace(history, answer=Answer(sid=(2, 1, 3)))
    for mode, block in (("direct", ""), ("empty_think", "<think>\n\n</think>\n\n")):
        prompt, target = words.supervised(row, mode)
        assert words.tokenizer.decode(prompt + target).endswith(f"<|assistant|>{block}{sid}{end}")
        assert prompt == words.prompt_ids(row, mode)
    with pytest.raises(InputError, match="has no reasoning"):
        words.supervised(replace(row, answer=Answer(sid=(2, 1, 3), reasoning=" ")), "think")


def test_a_forced_close_differs_from_a_written_one_by_its_newline(thinker):
    words = thinker.renderer
    written, forced = (words.close_thought("history_to_sid", finished=done) for done in (True, False))
    assert written[0] == words.think_end_id() and forced[1:] == written
    assert words.tokenizer.decode(forced) == "\n</think>\n\n"


def test_a_tokenizer_without_the_marker_is_refused():
    words = renderer(kind="gpt2")
    with pytest.raises(InputError, match="no token of its own for </think>"):
        TransformersWriter(tiny.model(vocab_size=len(words.tokenizer)), words, SAMPLED)


def test_every_row_stops_at_its_own_marker_and_the_rest_is_marked_unfinished(thinker):
    words = thinker.renderer
    prompts = [thinker.histories.prompt_ids(history) for history in ([0], [1, 2, 3], [4, 5], [6], [7, 8])]
    hook = lean_towards(thinker.model, words.think_end_id(), LEAN)
    try:
        thoughts = thinker.writer.write(prompts, [20, 21, 22, 23, 24])
        again = thinker.writer.write(prompts, [20, 21, 22, 23, 24])
    finally:
        hook.remove()
    flat = [one for row in thoughts for one in row]
    assert [len(row) for row in thoughts] == [3] * 5 and thoughts == again
    assert {one.finished for one in flat} == {True, False}
    lengths = {len(one.ids) for one in flat if one.finished}
    assert len(lengths) > 1  # rows of one batch ended at different steps
    for one in flat:
        assert words.think_end_id() not in one.ids and words.tokenizer.eos_token_id not in one.ids
        assert one.finished or len(one.ids) <= SAMPLED.max_tokens
    assert len({one.ids for one in thoughts[0]}) > 1  # several paths, not one path several times


def test_greedy_thoughts_do_not_depend_on_the_batch(thinker):
    settings = ThinkSettings(max_tokens=10, batch_size=4)
    prompts = [thinker.histories.prompt_ids(history) for history in ([0], [1, 2, 3, 4, 5, 6], [4, 5])]
    writer = TransformersWriter(thinker.model, thinker.renderer, settings)
    assert writer.write(prompts, [0, 1, 2]) == [writer.write([prompt], [9])[0] for prompt in prompts]


def test_thoughts_survive_the_disk_as_ids_even_where_text_would_not(thinker):
    words = thinker.renderer
    halves = words.tokenizer("bolt", add_special_tokens=False)["input_ids"]
    apart = [words.tokenizer.convert_tokens_to_ids(letter) for letter in "bolt"]
    assert apart != halves  # the same text in other tokens: encoding the text again would change the ids
    thoughts = [[Thought(tuple(apart), True), Thought((), False)], [Thought((3, 300), False)]]
    table = thoughts_table([7, 9], thoughts, words)
    assert table["text"].to_pylist()[0] == "bolt"
    shuffled = table.take([2, 1, 0])
    assert read_thoughts(shuffled, [7, 9], where="x") == thoughts
    assert read_thoughts(table, [9], where="x") == thoughts[1:]
    with pytest.raises(InputError, match="no thought for example 8"):
        read_thoughts(table, [7, 8], where="x")


def test_mixtures_of_thoughts_by_hand():
    nodes = np.array([[4, 2, -1], [2, 7, 1], [5, 3, -1]])
    scores = np.log(np.array([[0.5, 0.2, 1.0], [0.4, 0.3, 0.2], [0.9, 0.1, 1.0]]))
    row = np.array([0, 0, 1])
    # row 0: node 2 has (0.2 + 0.4) / 2 = 0.3, node 4 0.25, node 7 0.15, node 1 0.1
    found, mixed = aggregate(nodes, scores, row, how="logsumexp", beams=3)
    assert found.tolist() == [[2, 4, 7], [5, 3, -1]]
    assert np.exp(mixed[0]).tolist() == pytest.approx([0.3, 0.25, 0.15])
    assert np.exp(mixed[1]).tolist() == pytest.approx([0.9, 0.1, 0.0])
    found, best = aggregate(nodes, scores, row, how="max", beams=4)
    assert found.tolist() == [[4, 2, 7, 1], [5, 3, -1, -1]]
    assert np.exp(best[0]).tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_recommendations_behind_thoughts_are_the_mixture_that_exhaustive_scoring_gives(thinker):
    """Three thoughts, every semantic ID scored behind each by one plain forward per pair."""
    words, model = thinker.renderer, thinker.model
    history = [0, 3]
    found = thinker.recommend([history], S, keys=[0])[0]
    prompt = thinker.histories.prompt_ids(history)
    thoughts = thinker.writer.write([prompt], [0])
    extended, _ = answer_prompts([prompt], thoughts, words, task="history_to_sid")
    answers = words.vocab.token_ids(TABLE.sids_SL)
    probability = np.zeros(S)
    for ids in extended:
        for sid, answer in enumerate(answers.tolist()):
            with torch.no_grad():
                logps = model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
            places = range(len(ids) - 1, len(ids) - 1 + len(answer))
            score = sum(float(logps[place, token]) for place, token in zip(places, answer, strict=True))
            probability[sid] += np.exp(score) / 3
    order = np.argsort(-probability, kind="stable")
    expected = ranking(TABLE.sids_SL[order], np.log(probability[order]))
    assert not disagreement([(one.codes, one.score) for one in found], expected, atol=1e-3)
    # restricted requests go the same way
    only = thinker.recommend([history, history], S, allowed_items=[[1, 2], None], exclude_history=True)
    assert sorted(item for one in only[0] for item in one.item_ids) == [1, 2]
    assert not {0, 3} & {item for one in only[1] for item in one.item_ids}


def test_a_context_too_short_for_the_thought_is_refused(thinker):
    long = Engine(
        thinker.model, thinker.renderer, TABLE, DecodeSettings(beams=2), mode="think",
        think=ThinkSettings(max_tokens=thinker.model.config.max_position_embeddings),
    )  # fmt: skip
    with pytest.raises(InputError, match="a smaller think.max_tokens"):
        long.recommend([[0]], 2)


def test_bad_settings_are_refused():
    for bad in (
        {"aggregate": "mean"}, {"writer": "pen"}, {"thoughts": 4}, {"max_tokens": 0}, {"temperature": -1.0},
        {"gpu_memory": 0.0}, {"top_p": 0.0}, {"top_k": -1},
    ):  # fmt: skip
        with pytest.raises(InputError):
            ThinkSettings(**bad)
    with pytest.raises(InputError, match="would sample the beams"):
        TextSettings(beams=4, temperature=0.7)


def test_not_finite_logits_end_the_text(thinker):
    broken = tiny.model(vocab_size=len(thinker.renderer.tokenizer))
    torch.nn.init.constant_(broken.base_model.norm.weight, float("nan"))
    with pytest.raises(NumericError):
        generate_ids(broken, [[5, 6]], TextSettings(max_new_tokens=3), stop_ids=[1])


def test_vllm_is_refused_in_one_line_where_it_is_absent(thinker, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EnvironmentFault, match="not installed -> pip install -r requirements-gpu.txt"):
        VllmWriter("somewhere", thinker.renderer, SAMPLED, context=64)


def test_the_vllm_writer_speaks_ids_and_reads_the_stop(thinker, monkeypatch):
    """A stand-in with vLLM's classes: what is asked of it, and how its three kinds of ending are read."""
    end, eos = thinker.renderer.think_end_id(), thinker.renderer.tokenizer.eos_token_id
    asked = {}

    class LLM:
        def __init__(self, **options):
            asked["options"] = options
            self.llm_engine = SimpleNamespace(
                engine_core=SimpleNamespace(shutdown=lambda: asked.update(stopped=True))
            )

        def generate(self, prompts, params):
            asked["prompts"], asked["params"] = prompts, params
            endings = [([8, 9, end], end), ([8, eos], None), ([8, 9, 10], None)]
            outputs = [SimpleNamespace(token_ids=ids, stop_reason=reason) for ids, reason in endings]
            return [SimpleNamespace(outputs=outputs) for _ in prompts]

    module = SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: options)
    monkeypatch.setitem(sys.modules, "vllm", module)
    writer = VllmWriter("a/model", thinker.renderer, SAMPLED, context=64)
    thoughts = writer.write([[5, 6], [7]], [100, 101])
    writer.close()
    assert thoughts == [[Thought((8, 9), True), Thought((8,), False), Thought((8, 9, 10), False)]] * 2
    assert asked["prompts"] == [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": [7]}]
    assert (
        asked["options"]["model"] == "a/model"
        and asked["options"]["max_model_len"] == 64
        and asked["stopped"]
    )
    first, second = asked["params"]
    assert first["stop_token_ids"] == [end, eos] and first["n"] == 3 and first["top_k"] == -1
    assert first["seed"] == thinking.seed_of(0, 100) != second["seed"]


def test_what_is_drawn_belongs_to_the_row_and_the_thought(thinker):
    """Thoughts of six rows at once, two at a time, in another order and alone; and the three thoughts of a row differ."""
    writer = TransformersWriter(thinker.model, thinker.renderer, replace(SAMPLED, batch_size=6))
    prompts, keys = [[5, 6], [7], [8, 9, 10], [5, 6], [11], [6, 7]], [3, 4, 5, 6, 7, 8]
    together = writer.write(prompts, keys)
    by_two = TransformersWriter(thinker.model, thinker.renderer, replace(SAMPLED, batch_size=2))
    assert by_two.write(prompts[::-1], keys[::-1])[::-1] == together
    assert by_two.write([prompts[4]], [keys[4]]) == together[4:5]
    assert together[0] != together[3], "the same prompt in two rows"
    assert len({thought.ids for thought in together[2]}) > 1


def test_noise_behind_temperature_top_k_and_top_p_draws_from_their_law():
    from infer.text.generate import _draws

    settings = TextSettings(temperature=0.5, top_k=3, samples=2)
    scores_BV = torch.tensor([[0.0, 0.5, 1.0, 1.5]]).repeat(8000, 1)
    for processor in _draws(settings, range(4000), width=5, device="cpu"):
        scores_BV = processor(torch.zeros(8000, 9, dtype=torch.long), scores_BV)
    share = torch.bincount(scores_BV.argmax(1), minlength=4) / 8000
    expected = torch.softmax(torch.tensor([float("-inf"), 0.5, 1.0, 1.5]) / 0.5, dim=0)
    assert share[0] == 0 and (share - expected).abs().max() < 0.023  # 4 standard deviations
