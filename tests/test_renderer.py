"""One prompt for training, rollouts, evaluation and serving: equal token for token, from disk and from a history."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data import artifacts
from data.prompts import WORDINGS, wording
from data.renderer import MODES, HistoryRenderer, Renderer
from data.sid import SidTable, SidVocab, sid_format
from data.tasks import Answer, Example, TaskContext, from_row, history_to_sid
from preprocess.model.vocabulary import add_sid_tokens
from tests.handmade import CODES, SIZES, call, tokenizer, write_data, write_sids

TOKENIZERS = ("ours", "gpt2", "llama")
TABLE = SidTable(CODES, SIZES)
SEQUENCES = [
    (
        split,
        user,
        np.random.default_rng(user).integers(0, len(CODES), 1 + user % 9).tolist(),
        user % len(CODES),
    )
    for user, split in enumerate(["train"] * 14 + ["valid"] * 6 + ["test"] * 6)
]


@dataclass(frozen=True)
class Setting:
    """One tokenizer, format and wording, with every example that the program wrote for them."""

    tokenizer: Any
    vocab: SidVocab
    wording: str
    examples: list[Example]

    def renderer(self, max_prompt: int | None = None) -> Renderer:
        return Renderer(self.tokenizer, self.vocab, max_prompt=max_prompt)

    def histories(self, mode: str = "direct", max_prompt: int | None = None) -> HistoryRenderer:
        return HistoryRenderer(self.renderer(max_prompt), TABLE, wording(self.wording), mode=mode)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Example]]:
    """All rows of all splits, by (format, wording)."""
    root = tmp_path_factory.mktemp("examples")
    data = write_data(root / "data", sequences=SEQUENCES)
    sids = write_sids(root / "sids", data=data)
    made = {}
    for fmt, name in product(("letters", "navigen"), WORDINGS):
        out = root / fmt / name
        call("preprocess.build_examples", "--data", data, "--sids", sids, "--output_dir", out,
             "--format", fmt, "--wording", name)  # fmt: skip
        tables = (
            artifacts.read(out, artifacts.EXAMPLES, file=f"{split}.parquet") for split in artifacts.SPLITS
        )
        made[fmt, name] = [from_row(row) for table in tables for row in table.to_pylist()]
    return made


@pytest.fixture(
    scope="module", params=list(product(TOKENIZERS, ("letters", "navigen"), WORDINGS)), ids="-".join
)
def setting(request: pytest.FixtureRequest, examples: dict[tuple[str, str], list[Example]]) -> Setting:
    kind, fmt, name = request.param
    words = tokenizer(kind)
    addition = add_sid_tokens(words, sid_format(fmt), SIZES, sids_sha256=TABLE.sha256)
    return Setting(words, addition.vocab, name, examples[fmt, name])


def test_prompts_from_disk_equal_prompts_from_histories(setting: Setting) -> None:
    rows = [example for example in setting.examples if example.task == "history_to_sid"]
    assert len(rows) == len(SEQUENCES)
    for mode in MODES:
        room = len(setting.histories(mode).prompt_ids([0])) + 20  # one item and a few more
        for max_prompt in (None, room):
            for example in rows:
                from_disk = setting.renderer(max_prompt).prompt_ids(example, mode)
                assert from_disk == setting.histories(mode, max_prompt).prompt_ids(example.history)
                if mode != "think":  # its supervised rows need a reasoning: tests/test_thinking.py
                    assert from_disk == setting.renderer(max_prompt).supervised(example, mode)[0]
                assert max_prompt is None or len(from_disk) <= max_prompt


def test_an_over_long_history_loses_its_oldest_items_and_nothing_else(setting: Setting) -> None:
    history = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    lengths = [len(setting.histories().prompt_ids(history[-kept:])) for kept in range(1, 11)]
    assert lengths == sorted(lengths)
    for limit in range(lengths[0], lengths[-1] + 2):
        kept = sum(length <= limit for length in lengths)
        expected = setting.histories().prompt_ids(history[-kept:])
        assert setting.histories(max_prompt=limit).prompt_ids(history) == expected
    with pytest.raises(
        InputError, match=f"a history of one item needs {lengths[0]} tokens, more than max_prompt"
    ):
        setting.histories(max_prompt=lengths[0] - 1).prompt_ids(history)


def test_answers_are_parsed_back_and_never_stand_in_the_prompt(setting: Setting) -> None:
    renderer, seen = setting.renderer(), set()
    for example in setting.examples:
        prompt, target = renderer.supervised(example)
        bare = setting.wording in ("bare", "codes") and example.task == "history_to_sid"
        assert (target[-1] == setting.tokenizer.eos_token_id) != bare, "a bare history goes on"
        parsed = renderer.parse(example.task, target if bare else [*target, 5, 6])
        assert parsed == Answer(sid=example.answer.sid, text=example.answer.text)
        text = setting.tokenizer.decode(prompt)
        if example.answer.text is not None:
            assert example.answer.text not in text
        elif example.task == "title_to_sid" or not set(example.target) & set(example.history):
            same_sid = any((CODES[item] == CODES[example.target[0]]).all() for item in example.history)
            assert same_sid or setting.vocab.format.text(example.answer.sid) not in text
        seen.add(example.task)
    assert seen == {"history_to_sid", "sid_to_title", "title_to_sid"}


def test_prompt_and_answer_join_where_generation_starts(setting: Setting) -> None:
    """The prefix token belongs to the prompt, the codes and the suffix to the answer, and eos ends it."""
    example = next(e for e in setting.examples if e.task == "history_to_sid")
    prompt, target = setting.renderer().supervised(example)
    front, back = list(setting.vocab.prefix_ids), list(setting.vocab.suffix_ids)
    assert prompt[len(prompt) - len(front) :] == front
    body = setting.vocab.token_ids(np.array([example.answer.sid]))[0].tolist()
    end = [] if setting.wording in ("bare", "codes") else [setting.tokenizer.eos_token_id]
    assert target == [*body, *back, *end]
    think = setting.renderer().prompt_ids(example, "think")
    assert not front or think[-len(front) :] != front  # the thought comes first


GOLDEN = {
    ("ours", "letters", "short"): "<|user|>next:<a_0><b_0><c_0><a_2><b_2><c_2><|assistant|>",
    ("ours", "navigen", "short"): (
        "<|user|>next:<|cid_begin|><s_a_0><s_b_0><s_c_0><|cid_end|><|cid_begin|><s_a_2><s_b_2><s_c_2><|cid_end|>"
        "<|assistant|><|cid_begin|>"
    ),
    ("ours", "letters", "sentence"): (
        "<|system|>Items of a shop are written as semantic IDs. Answer with nothing but what is asked for."
        "<|user|>A customer chose these items, oldest first: <a_0><b_0><c_0>, <a_2><b_2><c_2>. "
        "Which item will they choose next?<|assistant|>"
    ),
    ("ours", "letters", "bare"): "next:<a_0><b_0><c_0><a_2><b_2><c_2>",
    ("ours", "navigen", "bare"): (
        "next:<|cid_begin|><s_a_0><s_b_0><s_c_0><|cid_end|><|cid_begin|><s_a_2><s_b_2><s_c_2><|cid_end|><|cid_begin|>"
    ),
    ("ours", "letters", "codes"): "<a_0><b_0><c_0><a_2><b_2><c_2>",
    ("ours", "letters", "turn"): "<|user|><a_0><b_0><c_0><a_2><b_2><c_2><|assistant|>",
    ("gpt2", "letters", "short"): "next:<a_0><b_0><c_0><a_2><b_2><c_2>\n",
}


@pytest.mark.parametrize(("kind", "fmt", "name"), GOLDEN)
def test_golden_bytes(kind: str, fmt: str, name: str) -> None:
    words = tokenizer(kind)
    vocab = add_sid_tokens(words, sid_format(fmt), SIZES, sids_sha256="").vocab
    renderer = Renderer(words, vocab)
    ids = HistoryRenderer(renderer, TABLE, wording(name)).prompt_ids([0, 5])
    assert words.decode(ids) == GOLDEN[kind, fmt, name]
    if kind == "ours":
        empty = HistoryRenderer(renderer, TABLE, wording(name), mode="empty_think").prompt_ids([0, 5])
        tail = "".join(vocab.format.prefix)
        assert (
            words.decode(empty)
            == GOLDEN[kind, fmt, name].removesuffix(tail) + "<think>\n\n</think>\n\n" + tail
        )


def test_a_bos_of_the_tokenizer_begins_every_prompt_once() -> None:
    words = tokenizer("llama")
    vocab = add_sid_tokens(words, sid_format("letters"), SIZES, sids_sha256="").vocab
    templated = HistoryRenderer(Renderer(words, vocab), TABLE, wording("short")).prompt_ids([0, 5])
    words.chat_template = None
    histories = HistoryRenderer(Renderer(words, vocab), TABLE, wording("short"))
    plain = histories.prompt_ids([0, 5])
    assert plain == words("next:<a_0><b_0><c_0><a_2><b_2><c_2>\n")["input_ids"]
    for ids in (templated, plain):
        assert ids.count(words.bos_token_id) == 1 and ids[0] == words.bos_token_id


@given(data=st.data())
@settings(max_examples=60)
def test_parse_takes_exactly_one_semantic_id(data: st.DataObject) -> None:
    renderer = _shared_renderer()
    ids = data.draw(st.lists(st.sampled_from(sorted(renderer.vocab._lookup) + [7, 8]), max_size=4))
    expected = renderer.vocab.parse(ids)
    for tail in ([], [renderer.tokenizer.eos_token_id], [renderer.tokenizer.eos_token_id, *ids]):
        parsed = renderer.parse("history_to_sid", [*ids, *tail])
        assert parsed == (None if expected is None else Answer(sid=expected))


def _shared_renderer(made: list[Renderer] = []) -> Renderer:  # noqa: B006 - built once for all generated cases
    if not made:
        words = tokenizer("ours")
        made.append(
            Renderer(words, add_sid_tokens(words, sid_format("letters"), SIZES, sids_sha256="").vocab)
        )
    return made[0]


def test_refusals() -> None:
    renderer = _shared_renderer()
    histories = HistoryRenderer(renderer, TABLE, wording("short"))
    with pytest.raises(InputError, match="empty history"):
        histories.prompt_ids([])
    with pytest.raises(InputError, match=r"unknown item ids in the history: \[-1, 12\]"):
        histories.prompt_ids([0, -1, 12])
    with pytest.raises(InputError, match="unknown mode 'loud'"):
        renderer.prompt_ids(histories.example([0]), "loud")
    with pytest.raises(InputError, match="has no semantic ID as its answer"):
        renderer.answer_ids(histories.example([0]))
    context = TaskContext(TABLE, sid_format("letters"), wording("short"))
    with pytest.raises(InputError, match="no template for task chat"):
        context.wording.messages("chat", key=0)
    assert history_to_sid(context, key=4, history=[0], target=1).answer.item_id == 1
    endless = tokenizer("ours")
    endless.eos_token = None
    with pytest.raises(InputError, match="no eos token"):
        Renderer(endless, renderer.vocab)
