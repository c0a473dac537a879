"""Examples of dual identifiers: whose text becomes whose answer or thought, and the exact bytes that a model is trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import artifacts
from data.answers import BETWEEN, HEAD, pieces, read_answer
from data.prompts import wording
from data.renderer import Renderer
from data.sid import SidTable, sid_format
from data.store.output import read_manifest
from data.tasks import Answer, Example, from_row
from data.tids import read_tids
from infer.text.thinking import Thought, answer_prompts
from infer.text.tids import TidTrie
from preprocess.model.vocabulary import add_sid_tokens
from tests.handmade import (
    CODES,
    SIZES,
    TERMS,
    call,
    refuse,
    tokenizer,
    write_data,
    write_sids,
    write_taught,
    write_tids,
)  # fmt: skip

TASKS = ["history_to_sid", "sid_to_tid", "tid_to_sid", "history_to_tid", "history_to_instruction"]
TOLD = {100: "Oak, warm light.", 101: 'A "round" one [[item:2]].', 105: "Valid only.", 107: "Test only."}
WHY = {key: f"I saw hints {key}." for key in (100, 101, 105, 106)}
WRITE = {key: f"So I draw {key}." for key in (101, 107)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dual")
    data = write_data(root / "data")
    write_sids(root / "sids", data=data)
    write_tids(root / "tids", data=data)
    for kind, texts in (("instruction", TOLD), ("identifier", WHY), ("reasoning", WRITE)):
        write_taught(root / kind, data=data, kind=kind, texts=texts)
    return root


def flags(store: Path, out: str, *kinds: str) -> list[object]:
    found = [
        "--data",
        store / "data",
        "--sids",
        store / "sids",
        "--tids",
        store / "tids",
        "--output_dir",
        store / out,
    ]
    return [*found, "--tasks", json.dumps(TASKS), "--reasoning", json.dumps([str(store / k) for k in kinds])]


def build(store: Path, out: str, *kinds: str, options: tuple[object, ...] = ()) -> dict[str, list[Example]]:
    """Examples by split."""
    call("preprocess.build_examples", *flags(store, out, *kinds), *options)
    return {
        split: [from_row(row) for row in artifacts.read(store / out, artifacts.EXAMPLES, file=f"{split}.parquet").to_pylist()]
        for split in artifacts.SPLITS
    }  # fmt: skip


def test_texts_of_a_teacher_stay_in_the_split_of_their_row(store: Path) -> None:
    made = build(store, "all", "instruction", "identifier", "reasoning")
    told = {
        split: {e.example_id % 1000: (e.answer.text, e.answer.reasoning) for e in rows if e.task == TASKS[-1]}
        for split, rows in made.items()
    }
    offset = min(told["train"]) - 100
    third = "".join(f"<{level}_{code}>" for level, code in zip("abc", CODES[2], strict=True))
    assert told["train"] == {
        offset + 100: (TOLD[100], None), offset + 101: (f'A "round" one {third}.', WRITE[101]),
    }  # fmt: skip
    # the row of user 0 whose next item has no TID is left out; one without an instruction is still to be answered
    assert told["valid"] == {offset + 106: (None, None)} and told["test"] == {
        offset + 107: (TOLD[107], WRITE[107])
    }
    words = json.dumps([[e.messages, vars(e.answer)] for e in made["train"]])
    assert "Valid only" not in words and "Test only" not in words and "hints 105" not in words
    reasoned = [e.answer.reasoning for e in made["train"] if e.task == "history_to_sid"]
    assert reasoned == [WHY[100], WHY[101], None, None]
    counts = read_manifest(store / "all")["counts"]
    assert counts["taught"] == {"instruction": 4, "identifier": 4, "reasoning": 2}
    assert counts["skipped"]["train"]["history_to_instruction"] == {"empty_history": 1, "no_instruction": 2}
    assert counts["skipped"]["valid"]["history_to_tid"] == {"no_tid": 1}
    # items 1 and 7 share their TID but not their semantic ID: one answer to one question. 5 and 6 the other way round
    assert counts["skipped"]["train"]["tid_to_sid"] == {"no_tid": 1, "ambiguous_tid": 1}
    assert counts["skipped"]["train"]["sid_to_tid"] == {"no_tid": 1, "ambiguous_sid": 1}
    assert not [e for e in build(store, "plain", "instruction")["train"] if e.answer.reasoning]


def test_a_text_of_another_row_is_no_text_of_this_one(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = store / "data"
    for name, changes in (
        ("moved", {"target": 5}),
        ("leaked", {"split": "test"}),
        ("bad", {"status": "failed", "text": ""}),
    ):
        write_taught(store / name, data=data, kind="identifier", texts={100: "x", 101: "y"}, **changes)
        capsys.readouterr()
        made = build(store, f"{name}_out", "instruction", name)
        assert not [e for e in made["train"] if e.answer.reasoning]
        warning = capsys.readouterr().err
        assert (f"{name}: none of its 2 texts is of a row of this data" in warning) == (name != "bad")
        left = read_manifest(store / f"{name}_out")["counts"]["taught_left_out"]
        assert left == {"identifier": {"failed" if name == "bad" else "of_another_row": 2}}


def test_no_text_of_a_teacher_speaks_in_tokens(store: Path) -> None:
    texts = {
        100: "So <|end|><|assistant|>",
        101: "I see <a_1><b_2>.",
        102: "Done</think> now",
        103: "I see [[item:2]] < 3 mm.",
    }
    write_taught(store / "marked", data=store / "data", kind="identifier", texts=texts)
    made = build(store, "marked_out", "instruction", "marked")
    thoughts = [e.answer.reasoning for e in made["train"] if e.answer.reasoning]
    third = "".join(f"<{level}_{code}>" for level, code in zip("abc", CODES[2], strict=True))
    assert set(thoughts) == {f"I see {third} < 3 mm."}
    assert read_manifest(store / "marked_out")["counts"]["taught_left_out"] == {
        "identifier": {"reserved_marker": 3}
    }


def test_what_does_not_go_together_is_refused(store: Path) -> None:
    write_taught(store / "again", data=store / "data", kind="instruction", texts={100: "x"})
    line = refuse("preprocess.build_examples", *flags(store, "no", "instruction", "again"))
    assert "texts of kind instruction, of which there are some already" in line
    line = refuse(
        "preprocess.build_examples", *flags(store, "no", "instruction"), "--tasks", '["history_to_sid"]'
    )
    assert "tids are for none of the tasks ['history_to_sid']" in line
    without = [flag for flag in flags(store, "no", "instruction") if flag not in ("--tids", store / "tids")]
    assert "need textual identifiers" in refuse("preprocess.build_examples", *without)
    line = refuse("preprocess.build_examples", *flags(store, "no"))
    assert "gives no train example of history_to_instruction (1 empty_history, 4 no_instruction)" in line


def test_the_bytes_of_every_task_in_the_published_format(store: Path) -> None:
    """Prompt | completion; the fixed first words of an answer belong to the prompt, and no think block is there unasked."""
    kinds = ("instruction", "identifier", "reasoning")
    made = build(store, "bytes", *kinds, options=("--wording", "navigen", "--format", "navigen"))
    words = tokenizer("ours")
    vocab = add_sid_tokens(
        words, sid_format("navigen"), SIZES, sids_sha256=SidTable(CODES, SIZES).sha256
    ).vocab
    renderer = Renderer(words, vocab, json_sids=wording("navigen").json_sids)

    def sid(item: int) -> str:
        a, b, c = CODES[item]
        return f"<|cid_begin|><s_a_{a}><s_b_{b}><s_c_{c}><|cid_end|>"

    def seen(task: str, item: int) -> str:
        row = next(e for e in made["train"] if e.task == task and e.answer.item_id == item)
        prompt, completion = renderer.supervised(row)
        assert renderer.prompt_ids(row) == prompt and renderer.parse(
            task, renderer.answer_ids(row)
        ) == Answer(sid=row.answer.sid, terms=row.answer.terms, text=row.answer.text)
        return f"{words.decode(prompt)}|{words.decode(completion)}".split("<|assistant|>")[1]

    assert seen("sid_to_tid", 2) == '{"target_tid":["|washer","brass"]}<|end|>'
    assert seen("tid_to_sid", 2) == f'{{"target_cid":"<|cid_begin|>|{sid(2)[13:]}"}}<|end|>'
    think = f"<think>\n|{WHY[101]}\n</think>\n\n"
    assert seen("history_to_sid", 2) == f'{think}{{"target_cid":"{sid(2)}"}}<|end|>'
    assert seen("history_to_tid", 2) == f'{think}{{"target_tid":["washer","brass"]}}<|end|>'
    assert seen("history_to_sid", 10) == f'{{"target_cid":"<|cid_begin|>|{sid(10)[13:]}"}}<|end|>'
    told = json.dumps(f'A "round" one {sid(2)}.')
    assert seen("history_to_instruction", 2) == (
        f'<think>\n|{WRITE[101]}\n</think>\n\n{{"target_tid":["washer","brass"],"target_ins":{told}}}<|end|>'
    )
    assert seen("history_to_instruction", 1) == (
        '{"target_tid":["|' + f'{TERMS[1][0]}","steel"],"target_ins":"{TOLD[100]}"}}<|end|>'
    )


def test_inference_stands_where_training_stood(store: Path) -> None:
    """Prompt, thought and what closes it, TID and what follows it: id for id those of a training row."""
    kinds = ("instruction", "identifier", "reasoning")
    for name, fmt, kind in (
        ("navigen", "navigen", "gpt2"),
        ("short", "letters", "llama"),
        ("sentence", "letters", "ours"),
    ):
        made = build(store, f"golden_{name}", *kinds, options=("--wording", name, "--format", fmt))
        words = tokenizer(kind)
        for token in ("<think>", "</think>"):
            words.add_tokens(token)
        vocab = add_sid_tokens(words, sid_format(fmt), SIZES, sids_sha256=SidTable(CODES, SIZES).sha256).vocab
        renderer = Renderer(words, vocab, json_sids=wording(name).json_sids)
        trie = TidTrie(read_tids(store / "tids"), words, ending=BETWEEN)
        tids = {one: trie.answer(number, 0.0).ids for number, one in enumerate(trie.terms)}
        for row in made["train"]:
            prompt, completion = renderer.supervised(row)
            asked = replace(row, answer=Answer())
            if row.answer.reasoning:
                thought = Thought(tuple(renderer.thought_ids(row.answer.reasoning)), True)
                start = renderer.prompt_ids(asked, "think")
                assert start == prompt
                ((start,), _) = answer_prompts([start], [[thought]], renderer, task=row.task)
            else:
                start = renderer.prompt_ids(asked)
                assert start == prompt and "<think>" not in words.decode(prompt + completion)
            assert start + renderer.answer_ids(row) + renderer.terminator_ids() == prompt + completion
            if row.task == "history_to_instruction":
                ids = tids[row.answer.terms]
                assert renderer.answer_ids(row)[: len(ids)] == list(ids)


TEXT = st.text(min_size=1).filter(lambda text: text.strip())


@given(st.sampled_from([TASKS[1], TASKS[-1]]), st.lists(TEXT, min_size=1, max_size=10), TEXT)
def test_what_is_written_is_read_back(task: str, terms: list[str], text: str) -> None:
    told = text if task == TASKS[-1] else None
    written = "".join(pieces(task, terms, told))
    assert written.startswith(HEAD) and json.loads(written)["target_tid"] == terms
    read = read_answer(task, written)
    assert (read.how, read.terms, read.text) == ("strict", tuple(terms), told)


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ('{"target_tid":["a"],"target_ins":"b"}', "strict"),
        ('{"target_ins":"b","target_tid":["a"]}', "repaired"),
        ('{"target_tid":["a"],"target_ins":"b"} and more', "repaired"),
        ('{"target_tid":["a"],"target_ins":"b', "repaired"),
        ('{"target_tid":["a"],"target_ins":"b\n"}', "repaired"),
        ('{"target_tid":["a"],"target_ins":"b","more":1}', "repaired"),
        ('[["target_tid",["a"]],["target_ins","b"]]', "unreadable"),
        ('{"target_tid":[],"target_ins":"b"}', "unreadable"),
        ('{"target_tid":["a"],"target_ins":""}', "unreadable"),
        ("no JSON", "unreadable"),
    ],
)
def test_strict_and_repaired_answers(text: str, how: str) -> None:
    read = read_answer("history_to_instruction", text)
    assert (read.how, read.terms, read.text) == (how, *(((), None) if how == "unreadable" else (("a",), "b")))
