"""Frames, think blocks of a model's own template, and histories that are cut: what a prompt looks like as text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.program import InputError
from data.prompts import ALPACA, wording
from data.renderer import MODES, HistoryRenderer, Renderer
from data.sid import SidTable, sid_format
from data.signals import Signals
from data.tasks import WINDOW_TASKS, Example, TaskContext, TaskWindow
from data.wordings import STEPS_INSTRUCTIONS
from preprocess.model.vocabulary import add_sid_tokens
from tests.handmade import CODES, SIZES, tokenizer

TABLE = SidTable(CODES, SIZES)


def test_the_frames_by_hand() -> None:
    (message,) = wording("alpaca:minionerec").messages("title_to_sid", key=3, title="Nut")
    assert message["content"] == ALPACA.format(
        instruction="Answer a question about which item is meant.", content="Title: Nut\nWhich item is it?"
    )
    assert message["content"].endswith("### User Input:\nTitle: Nut\nWhich item is it?\n\n### Response:\n")
    (message,) = wording("plain:sentence").messages("title_to_sid", key=3, title="Nut")
    assert message["content"].endswith('what is asked for.\nWhich item is called "Nut"?\n')
    drawn = {
        wording("minionerec").instruction("titles_to_title", key, category="items") for key in range(200)
    }
    assert len(drawn) == len(STEPS_INSTRUCTIONS["titles_to_title"]) == 11
    with pytest.raises(InputError, match="unknown frame 'loud' of wording 'loud:short'"):
        wording("loud:short")


def test_a_model_s_own_template_writes_its_think_blocks() -> None:
    words = tokenizer("ours")
    vocab = add_sid_tokens(words, sid_format("letters"), SIZES, sids_sha256="").vocab
    switch = "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n' -}}{%- endif -%}"
    texts = {}
    for kind, tail in {"plain": "", "switch": switch, "always": "{{- '<think>' -}}"}.items():
        words.chat_template = words.chat_template.split("{#tail#}")[0] + "{#tail#}" + tail
        histories = [
            HistoryRenderer(Renderer(words, vocab), TABLE, wording("short"), mode=mode) for mode in MODES
        ]
        texts[kind] = [words.decode(made.prompt_ids([0])).split("<|assistant|>")[1] for made in histories]
    assert texts["plain"] == ["", "<think>\n\n</think>\n\n", "<think>\n"]
    assert texts["switch"] == [
        "",
        "<think>\n\n</think>\n",
        "<think>\n",
    ]  # one line end less, as that template has it
    assert texts["always"][2] == "<think>"


@pytest.mark.parametrize("name", ["chat:short", "chat:sentence", "alpaca:minionerec"])
def test_long_histories_lose_their_oldest_items_in_every_task(name: str) -> None:
    words = tokenizer("ours")
    vocab = add_sid_tokens(words, sid_format("letters"), SIZES, sids_sha256="").vocab
    uncut = Renderer(words, vocab)
    titles = [f"Thing number {item} " + "of a long name " * (item % 3) for item in range(12)]
    titles = [" ".join(title.split()) for title in titles]
    signals = Signals(users={1: "high"}, items=tuple("oi"[item % 2] for item in range(12)))
    context = TaskContext(TABLE, vocab.format, wording(name), titles, titles, signals=signals)
    for task in (
        "history_to_sid",
        "history_to_title",
        "history_to_description",
        "titles_to_sid",
        "titles_to_title",
    ):

        def of(history: list[int], task: str = task) -> Example:
            made = WINDOW_TASKS[task](context, TaskWindow(5, history, 11, 1))
            return replace(made, history=tuple(range(8)))

        whole = of(list(range(8)))
        prompts = [uncut.prompt_ids(of(list(range(start, 8)))) for start in range(8)]
        lengths = [len(prompt) for prompt in prompts]
        for limit in {*lengths, lengths[0] - 1, lengths[-1] + 1, lengths[3] - 1}:
            renderer = Renderer(words, vocab, max_prompt=limit)
            kept = (
                next(at for at, length in enumerate(lengths) if length <= limit)
                if limit >= lengths[-1]
                else None
            )
            assert renderer.prompt_ids(whole) == prompts[kept], (task, limit)
            assert renderer.shortened == ({task: 1} if kept else {})
        with pytest.raises(InputError, match="a history of one item needs"):
            Renderer(words, vocab, max_prompt=lengths[-1] - 1).prompt_ids(whole)


@pytest.mark.parametrize("name", ["chat:short", "chat:bare", "alpaca:minionerec"])
@pytest.mark.parametrize("fmt", ["letters", "navigen"])
def test_how_many_items_fit_is_known_before_any_prompt_is_cut(name: str, fmt: str) -> None:
    words = tokenizer("ours")
    vocab = add_sid_tokens(words, sid_format(fmt), SIZES, sids_sha256="").vocab
    whole = HistoryRenderer(Renderer(words, vocab), TABLE, wording(name))
    assert whole.most_items() is None
    lengths = [len(whole.prompt_ids([0] * count)) for count in range(1, 9)]
    for limit in range(lengths[0], lengths[-1] + 1):
        renderer = Renderer(words, vocab, max_prompt=limit)
        histories = HistoryRenderer(renderer, TABLE, wording(name))
        assert min(histories.most_items(), 8) == sum(length <= limit for length in lengths)
    with pytest.raises(InputError, match="a history of one item needs"):
        HistoryRenderer(Renderer(words, vocab, max_prompt=lengths[0] - 1), TABLE, wording(name)).most_items()
