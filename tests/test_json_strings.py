"""JSON strings by table: whatever a random model wants to say, what comes out is JSON, cut off or not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.answers import BETWEEN, HEAD
from infer.text.generate import TextSettings
from infer.text.json_strings import DEAD, FRESH, PLAIN, string_table, write_strings
from infer.text.tids import TidTrie, decode_tids
from tests import handmade, tiny
from tests.test_tid_decoding import catalogue

SAMPLED = TextSettings(max_new_tokens=24, temperature=1.5, samples=6)


@pytest.fixture(scope="module", params=["ours", "gpt2", "llama"])
def tokenizer(request):
    return handmade.tokenizer(request.param)


@pytest.mark.parametrize(
    "how",
    [SAMPLED, TextSettings(max_new_tokens=3, temperature=2.0, samples=20), TextSettings(max_new_tokens=9)],
)
def test_tid_and_instruction_together_are_json_whatever_the_model_is(tokenizer, how):
    rng = np.random.default_rng(0)
    trie = TidTrie(catalogue(rng, 30), tokenizer, ending=BETWEEN)
    model = tiny.model(vocab_size=len(tokenizer) + 3, seed=1)  # padded rows of the head are no tokens
    prompts = [rng.integers(5, len(tokenizer), rng.integers(1, 9)).tolist() for _ in range(12)]
    tids = [row[0] for row in decode_tids(model, prompts, trie)]
    behind = [[*prompt, *tid.ids] for prompt, tid in zip(prompts, tids, strict=True)]
    cut = 0
    for tid, texts in zip(tids, write_strings(model, tokenizer, behind, how), strict=True):
        opened = HEAD + tokenizer.decode(list(tid.ids), clean_up_tokenization_spaces=False)
        for one in texts:
            assert json.loads(opened + one.raw + '"}') == {
                "target_tid": list(tid.terms),
                "target_ins": one.text,
            }
            assert one.text.strip() and not one.text[0].isspace()
            assert one.finished == (
                "".join(string_table(tokenizer).texts[i] for i in one.ids) == one.raw + '"}'
            )
            cut += not one.finished
        assert len(texts) == how.samples
    assert cut


def test_every_token_is_what_json_makes_of_it(tokenizer):
    """Control: a token keeps the string open exactly where json.loads reads it so, apart from the escapes left out."""
    table = string_table(tokenizer)
    for token, text in table.texts.items():
        state = table.next_SV[PLAIN, token]
        if state == PLAIN:
            assert isinstance(json.loads(f'"{text}"'), str)
        elif state == DEAD:
            with pytest.raises(json.JSONDecodeError):
                json.loads(f'{{"k":"{text}"}}' if '"' not in text else f'{{"k":"{text}')
    assert (table.next_SV[:, tokenizer.all_special_ids][: table.done] == DEAD).all()
    assert (table.next_SV[table.done] != DEAD).nonzero()[0].tolist() == [tokenizer.eos_token_id]


@given(st.text(st.sampled_from('ab "\\/nu}\n\té黄'), max_size=12))
@settings(max_examples=100)
def test_states_agree_with_json(text):
    table = string_table(handmade.tokenizer("ours"))
    state = table._walk(FRESH, text)
    try:
        value = json.loads('{"k":"' + text)
    except json.JSONDecodeError:
        value = None
    whole = (
        value is not None and value["k"] and not text[0].isspace() and text[0] != "\\" and text.endswith('"}')
    )
    assert (state == table.done) == bool(whole)


def test_a_cut_escape_is_left_out_and_banned_tokens_never_come():
    tokenizer = handmade.tokenizer("gpt2")
    table, ids = (
        string_table(tokenizer),
        {text: token for token, text in string_table(tokenizer).texts.items()},
    )
    assert table.read([ids["a"], ids["\\"]]).raw == "a"
    assert table.read([ids["a"], ids["\\"], ids["n"], ids['"']]) == table.read(
        [ids["a"], ids["\\"], ids["n"], ids['"']]
    )
    made = table.read([ids["a"], ids["\\"], ids["n"], ids['"']])
    assert (made.text, made.finished) == ("a\n", False)
    model = tiny.model(vocab_size=len(tokenizer))
    banned = frozenset(range(5, len(tokenizer), 2))
    for row in write_strings(model, tokenizer, [[7], [9, 8]], SAMPLED, banned_ids=banned):
        assert all(not banned & set(one.ids) for one in row)


def test_a_row_does_not_depend_on_the_others():
    tokenizer = handmade.tokenizer("gpt2")
    model, prompts = tiny.model(vocab_size=len(tokenizer)), [[7], [9, 8, 30], [40, 41]]
    together = write_strings(model, tokenizer, prompts, SAMPLED, keys=[3, 4, 5])
    alone = write_strings(model, tokenizer, prompts[1:2], SAMPLED, keys=[4])
    assert [one.text for one in together[1]] == [one.text for one in alone[0]]


def test_bad_requests_are_refused():
    tokenizer = handmade.tokenizer("ours")
    model = tiny.model(vocab_size=len(tokenizer))
    with pytest.raises(InputError, match="beams 1"):
        write_strings(model, tokenizer, [[5]], TextSettings(beams=2))
    with pytest.raises(InputError, match="does not close"):
        string_table(tokenizer, ending="}")
    with pytest.raises(InputError, match="no token that may begin"):
        string_table(tokenizer, banned_ids=frozenset(range(len(tokenizer))))
