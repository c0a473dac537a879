"""The base model made here: tokenizer, chat template, shapes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.prompts import wording
from preprocess.model.base_model import (
    LONGEST_WORD,
    MIN_VOCAB,
    ModelShape,
    instruction_texts,
    item_texts,
    random_model,
    train_tokenizer,
)
from tests import tiny
from tests.handmade import call, tokenizer, write_data

TASKS = ("history_to_sid", "title_to_sid", "sid_to_title")


def test_template_ends_an_assistant_turn_with_eos_and_masks_it() -> None:
    words = tokenizer("ours")
    turns = [
        {"role": "system", "content": " be brief\n"},
        {"role": "user", "content": "hi "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
    ]
    text = words.apply_chat_template(turns, tokenize=False)
    assert text == "<|system|> be brief\n<|user|>hi <|assistant|><think>\nhm\n</think>\n\nyes<|end|>"
    prompt = words.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt) and prompt.endswith("<|assistant|>")
    encoded = words.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    answer = [
        token for token, kept in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if kept
    ]
    assert words.decode(answer) == "<think>\nhm\n</think>\n\nyes<|end|>" and answer[-1] == words.eos_token_id
    assert words.decode(answer, skip_special_tokens=True) == "<think>\nhm\n</think>\n\nyes"
    with pytest.raises(Exception, match="unknown role tool"):
        words.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


@cache
def ours() -> Any:
    return tokenizer("ours")


@given(text=st.text(max_size=40))
@settings(max_examples=60)
def test_every_text_is_written_and_read_back(text: str) -> None:
    words = ours()
    if not any(marker in text for marker in words.get_added_vocab()):
        assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text


def test_the_words_of_the_prompts_become_tokens() -> None:
    texts = [
        ["Steel bolt, 10 mm", "Steel nut, brass washer"] * 6,
        instruction_texts(wording("short"), tasks=TASKS, times=12),
    ]
    words = train_tokenizer(iter(texts), vocab_size=400, max_positions=64)
    assert words.tokenize("next:") == ["next", ":"]
    assert instruction_texts(wording("short"), tasks=TASKS, times=1) == ["next:", "sid of: ", "title of:"]
    sentence = instruction_texts(wording("sentence"), tasks=TASKS, times=2)
    assert sentence.count(". Which item will they choose next?") == 2
    steps = instruction_texts(wording("minionerec"), tasks=["titles_to_title"], times=1)
    assert "Continue the list of " in steps and not any("semantic ID" in text for text in steps)


def test_an_architecture_is_taken_without_its_weights(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data, words = write_data(tmp_path / "data"), tokenizer("gpt2")
    published = tiny.model("gpt2", vocab_size=len(words) + 7, seed=5)
    published.save_pretrained(tmp_path / "published")
    words.save_pretrained(tmp_path / "published")
    command = ["preprocess.init_base_model", "--data", data, "--like", tmp_path / "published"]
    made = {}
    for seed in (0, 1):
        call(*command, "--seed", seed, "--output_dir", tmp_path / str(seed))
        made[seed] = AutoModelForCausalLM.from_pretrained(tmp_path / str(seed))
        assert AutoTokenizer.from_pretrained(tmp_path / str(seed)).get_vocab() == words.get_vocab()
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()}
        for model in (published, *made.values())
    ]
    assert shapes[0] == shapes[1] == shapes[2] and made[0].dtype == torch.float32
    tables = [model.get_input_embeddings().weight for model in (published, *made.values())]
    assert not torch.equal(tables[0], tables[1]) and not torch.equal(tables[1], tables[2])
    assert float(tables[1].detach().std()) == pytest.approx(published.config.initializer_range, rel=0.1)
    call(
        "preprocess.init_base_model", *command[1:], "--vocab_size", 999, "--output_dir", tmp_path / "0"
    )  # not read
    with pytest.raises(InputError, match="is not a model directory"):
        call(*command[:3], "--like", tmp_path / "none", "--output_dir", tmp_path / "x")


def test_shapes_that_make_no_model_are_refused() -> None:
    with pytest.raises(InputError, match="num_heads 3 must be a multiple of num_kv_heads 2"):
        ModelShape(num_heads=3)
    with pytest.raises(InputError, match="hidden_size is 0"):
        ModelShape(hidden_size=0)
    with pytest.raises(InputError, match=f"at least {MIN_VOCAB}"):
        train_tokenizer(iter([["x"]]), vocab_size=MIN_VOCAB - 1, max_positions=8)
    words = train_tokenizer(iter([["x y"]]), vocab_size=MIN_VOCAB, max_positions=8)
    assert len(words) == MIN_VOCAB
    assert random_model(words, ModelShape(), seed=0).get_input_embeddings().weight.shape == (MIN_VOCAB, 128)


def test_a_word_or_a_blank_of_a_megabyte_is_learnt_in_pieces() -> None:
    word = "abcdefgh" * 131_072
    titles = [word, "short words stay", "x" * LONGEST_WORD]
    items = pa.table({"title": titles, "description": [""] * 3, "brand": [""] * 3, "categories": [[]] * 3})
    items = items.set_column(3, "categories", pa.array([[]] * 3, pa.list_(pa.string())))
    (texts,) = item_texts(items)
    assert max(map(len, texts[0].split())) == LONGEST_WORD and texts[0].replace(" ", "") == word
    assert texts[1:] == titles[1:]
    blank = items.set_column(0, "title", pa.array(["a" + " \u3000\n" * 333_333 + "b", "a b", "a  b"]))
    assert next(item_texts(blank)) == ["a b", "a b", "a  b"]
