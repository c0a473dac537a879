"""Every task in every wording and frame: what it asks, what it answers, and that nobody sees the answer before.

One data set, checked by hand; training, rollouts and evaluation read the same rows, so one rendering holds for all three.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.program import ROOT
from data import artifacts
from data.prompts import FRAMES, WORDINGS, wording
from data.renderer import HistoryRenderer, Renderer
from data.sid import SidTable, sid_format
from data.store.output import read_manifest
from data.tasks import (
    ITEM_TASKS,
    SID_TASKS,
    WINDOW_TASKS,
    Answer,
    Example,
    example_id,
    from_row,
)
from preprocess.model.vocabulary import add_sid_tokens
from tests.handmade import (
    CODES,
    SEQUENCES,
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

PROGRAM = "preprocess.build_examples"
TABLE = SidTable(CODES, SIZES)
ALL = [*WINDOW_TASKS, *ITEM_TASKS, "reason_then_sid", "preference_to_sid", "chat"]
SID = ["".join(f"<{letter}_{code}>" for letter, code in zip("abc", codes, strict=True)) for codes in CODES]
LIKES = "They like small things of steel."
TOLD = {100: 'A "nut" on oak.', 101: "A washer [[item:0]] would fit.", 103: "Drops of glue.\nWarm light."}
PREFERENCES = [
    {"split": "train", "user": 0, "user_preference": LIKES, "context": {"history_items": ["B0000"], "target_item": "B0001"}},
    {"split": "train", "user": 0, "user_preference": {"a": ["Nuts"], "b": "bolts"},
     "context": {"history_items": [SID[0], SID[1]], "target_item": SID[2]}},
    {"split": "valid", "user": 0, "user_preference": LIKES, "context": {"history_items": ["B0000"], "target_item": "B0001"}},
    {"split": "train", "user": 0, "user_preference": "a steel NUT", "context": {"history_items": ["B0000"], "target_item": "B0001"}},
    {"split": "train", "user": 0, "user_preference": LIKES, "context": {"history_items": ["B0000"], "target_item": "B0006"}},
    {"split": "train", "user": 1, "user_preference": "", "context": {"history_items": ["B0000"], "target_item": "B0001"}},
]  # fmt: skip
CHATS = [
    {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "<think>\neasy\n</think>\n\n4"}]},
    {"messages": [{"role": "user", "content": "x"}], "conversations": [{"role": "system", "content": "Be brief."},
     {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"},
     {"role": "assistant", "content": "See you"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<think>never closed"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b <|im_end|>"}]},
]  # fmt: skip
SHOP = [
    {"system": "S", "instruction": "I", "input": f"took {SID[0]}, {SID[1]}", "output": SID[2]},
    {"instruction": "Translate", "input": "", "output": "traduire"},
    {"instruction": "I", "input": f"took {SID[0]}", "output": "<a_3><b_2><c_4>"},
    {"instruction": "I", "input": "".join(SID[item] for item in (0, 1, 2, 2)), "output": SID[3]},  # the valid row of user 0
    {"data_source": "x", "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": 'took "Steel nut"'}],
     "ability": "seq_title2sid", "reward_model": {"style": "rule", "ground_truth": SID[5]}},
]  # fmt: skip


def write_texts(root: Path) -> list[object]:
    """Flags for the preferences and corpora above."""
    (root / "likes.json").write_text(json.dumps(PREFERENCES))
    (root / "chats.jsonl").write_text("\n".join(json.dumps(chat) for chat in CHATS))
    (root / "shop.json").write_text(json.dumps(SHOP))
    registry = {
        "talk": {"file_name": "chats.jsonl", "formatting": "sharegpt"},
        "shop": {"file_name": "shop.json"},
    }
    (root / "registry.json").write_text(json.dumps(registry))
    return [
        "--preferences",
        root / "likes.json",
        "--registry",
        root / "registry.json",
        "--corpora",
        '["talk", "shop"]',
        "--tids",
        root / "tids",
        "--reasoning",
        json.dumps([str(root / "told")]),
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    data = write_data(root / "data")
    write_sids(root / "sids", data=data)
    write_tids(root / "tids", data=data)
    write_taught(root / "told", data=data, kind="instruction", texts=TOLD)
    write_texts(root)
    return root


def build(store: Path, name: str, *options: object, tasks: object = ALL) -> dict[str, list[Example]]:
    """Train rows by task."""
    texts = write_texts(store) if tasks is ALL else []
    out = store / "examples" / name
    call(PROGRAM, "--data", store / "data", "--sids", store / "sids", "--output_dir", out, "--tasks",
         json.dumps(tasks), *texts, *options)  # fmt: skip
    found: dict[str, list[Example]] = {}
    for row in artifacts.read(out, artifacts.EXAMPLES, file="train.parquet").to_pylist():
        found.setdefault(row["task"], []).append(from_row(row))
    return found


def content(example: Example) -> str:
    return example.messages[-1]["content"]


def test_what_each_task_asks_and_answers(store: Path) -> None:
    made = build(store, "sentence", "--wording", "sentence", "--category", "fasteners")
    second = {
        task: next(e for e in made[task] if e.example_id == example_id(task, 101)) for task in WINDOW_TASKS
    }
    asked = {task: content(example) for task, example in second.items() if example.messages}
    history = f"A customer chose these items, oldest first: {SID[0]}, {SID[1]}. "
    titles = "A customer chose these fasteners, oldest first:\n- Steel bolt, 10 mm\n- Steel nut\n"
    assert asked == {
        "history_to_sid": history + "Which item will they choose next?",
        "history_to_title": history + "What is the title of the item they will choose next?",
        "history_to_description": history + "How is the item described that they will choose next?",
        "history_to_tid": history + "Which terms describe the item they will choose next? Answer in JSON.",
        "history_to_instruction": history
        + "Which terms describe the item they will choose next, and which instruction draws "
        "an image or a video of it for them? Answer in JSON.",
        "titles_to_sid": titles + "Which item will they choose next?",
        "titles_to_title": titles + "What is the title of what they will choose next?",
    }
    title = 'Brass "gold" washer {5}'
    said = {task: example.answer for task, example in second.items()}
    assert {task: answer.text or answer.sid or answer.terms for task, answer in said.items()} == {
        "history_to_tid": TERMS[2],
        "history_to_instruction": f"A washer {SID[0]} would fit.",
        "history_to_sid": (1, 2, 4),
        "titles_to_sid": (1, 2, 4),
        "history_to_title": title,
        "titles_to_title": title,
        "history_to_description": "A long description of item number 2.",
        "sequence_narrative": f'A customer first chose {SID[0]} "Steel bolt, 10 mm", then {SID[1]} "Steel nut". The next item '
        f'they chose is {SID[2]} "{title}".',
    }
    assert {e.user_id for e in second.values()} == {0} and {e.target for e in second.values()} == {(2,)}
    (described,) = [e for e in made["description_to_sid"] if e.target == (4,)]  # an item without a title
    assert content(described) == 'Which item is described as "A long description of item number 4."?'
    assert described.answer == Answer(item_id=4, sid=(1, 0, 1))
    told = next(e for e in made["item_narrative"] if e.target == (1,))
    assert told.messages == () and told.answer.text == (
        f'Item {SID[1]} is "Steel nut". It is made by Acme. It is found under Industrial, Fasteners. '
        "A long description of item number 1."
    )


def test_titles_that_may_not_be_shown_are_left_out_and_counted(store: Path) -> None:
    made = build(store, "short", "--wording", "short")
    assert [content(e) for e in made["titles_to_title"]][-1] == (
        "next title:\n- Écrou en laiton 黄铜\n- Brass nut\n- Steel nut"  # items 8 and 9 hold markers
    )
    skipped = read_manifest(store / "examples" / "short")["counts"]["skipped"]["train"]
    assert skipped["titles_to_sid"] == {"empty_history": 1}
    assert skipped["item_narrative"] == {"short_title": 2, "reserved_marker": 2}
    few = [
        ("train", 0, [3, 4], 1),
        ("train", 0, [1, 3], 8),
        ("train", 0, [1, 3], 2),
    ]  # no title to show; one of the target
    data = write_data(store / "few", sequences=few)
    call(PROGRAM, "--data", data, "--sids", write_sids(store / "few_sids", data=data), "--output_dir", store / "few_out",
         "--tasks", '["titles_to_title", "titles_to_sid"]', "--max_history", 2)  # fmt: skip
    counts = read_manifest(store / "few_out")["counts"]
    assert counts["skipped"]["train"] == {
        "titles_to_title": {"history_without_title": 1, "reserved_marker": 1},
        "titles_to_sid": {"history_without_title": 1},
    }
    line = refuse(PROGRAM, "--data", data, "--sids", store / "few_sids", "--output_dir", store / "no", "--tasks",
                  '["titles_to_sid"]', "--max_history", 1)  # fmt: skip
    assert "gives no train example of titles_to_sid (3 history_without_title)" in line


def test_preferences_belong_to_a_window_of_train_and_keep_its_answer(store: Path) -> None:
    made = build(store, "short", "--wording", "short")
    reasoned, preferred = made["reason_then_sid"], made["preference_to_sid"]
    assert [(e.history, e.target, e.answer.reasoning) for e in reasoned] == [
        ((0,), (1,), LIKES), ((0, 1), (2,), "Nuts bolts"),
    ]  # fmt: skip
    assert [content(e) for e in reasoned] == [
        f"think, then next:{SID[0]}",
        f"think, then next:{SID[0]}{SID[1]}",
    ]
    assert [content(e) for e in preferred] == [f"next for: {LIKES}", "next for: Nuts bolts"]
    assert read_manifest(store / "examples" / "short")["counts"]["skipped"]["train"]["preference_to_sid"] == {
        "not_a_train_window": 2, "answer_in_preference": 1, "empty_preference": 1,
    }  # fmt: skip
    (store / "bad.json").write_text('[{"split": "train"}]')
    line = refuse(PROGRAM, "--data", store / "data", "--sids", store / "sids", "--output_dir", store / "no",
                  "--tasks", '["preference_to_sid"]', "--preferences", store / "bad.json")  # fmt: skip
    assert "bad.json: record 0 is not split, user_preference" in line


def test_conversations_of_others_become_examples(store: Path) -> None:
    made = build(store, "short", "--wording", "short")
    chats = made["chat"]
    assert [(e.messages[-1]["content"], e.answer.text, e.answer.reasoning) for e in chats] == [
        ("2 + 2?", "4", "easy"), ("Bye", "See you", None), ("Translate", "traduire", None),
    ]  # fmt: skip
    assert [message["role"] for message in chats[1].messages] == ["system", "user", "assistant", "user"]
    (foreign,) = [e for e in made["history_to_sid"] if e.example_id >= example_id("chat", 0)]
    assert foreign.messages == (
        {"role": "system", "content": "S"},
        {"role": "user", "content": f"I\ntook {SID[0]}, {SID[1]}"},
    )
    assert (foreign.history, foreign.target, foreign.answer.sid) == ((0, 1), (2,), (1, 2, 4))
    (titled,) = [e for e in made["titles_to_sid"] if e.example_id >= example_id("chat", 0)]
    assert (titled.target, titled.answer.sid) == (
        (5,),
        (2, 2, 2),
    )  # item 5 is the first of two with this semantic ID
    assert read_manifest(store / "examples" / "short")["counts"]["skipped"]["train"]["chat"] == {
        "turns_not_alternating": 1, "unclosed_thought": 1, "reserved_marker": 1, "unknown_sid": 1,
        "held_out_row": 1,
    }  # fmt: skip
    assert len({e.example_id for rows in made.values() for e in rows}) == sum(map(len, made.values()))


@pytest.mark.parametrize(
    ("registry", "words"),
    [
        ("{}", "has no corpus 'talk'"),
        ('{"talk": {}}', "talk needs file_name"),
        ('{"talk": {"file_name": "none.json"}}', "missing file"),
        ('{"talk": {"file_name": "' + 300 * "x" + '"}}', "missing file"),
        (
            '{"talk": {"file_name": "shop.json", "formatting": "sharegpt"}}',
            "record 0 is no sharegpt record of talk",
        ),
    ],
)
def test_registries_that_do_not_fit_are_refused(store: Path, registry: str, words: str) -> None:
    write_texts(store)
    (store / "other.json").write_text(registry)
    line = refuse(PROGRAM, "--data", store / "data", "--sids", store / "sids", "--output_dir", store / "no", "--tasks",
                  '["chat"]', "--registry", store / "other.json", "--corpora", '["talk"]')  # fmt: skip
    assert words in line and not (store / "no").exists()


def test_shares_caps_and_repeats(store: Path) -> None:
    made = build(store, "mixed", tasks={"history_to_sid": 0.5, "title_to_sid": 1, "sid_to_title": 0.01})
    assert {task: len(rows) for task, rows in made.items()} == {
        "history_to_sid": 2,
        "title_to_sid": 7,
        "sid_to_title": 1,
    }
    capped = build(store, "capped", "--caps", "{title_to_sid: 3}", tasks=["title_to_sid", "history_to_sid"])
    assert len(capped["title_to_sid"]) == 3 and len(capped["history_to_sid"]) == 4
    assert (
        read_manifest(store / "examples" / "capped")["counts"]["skipped"]["train"]["title_to_sid"][
            "not_sampled"
        ]
        == 4
    )
    again = build(store, "other", "--caps", "{title_to_sid: 3}", "--seed", 1, tasks=["title_to_sid"])
    keys = [[e.example_id for e in rows["title_to_sid"]] for rows in (capped, again)]
    assert keys[0] != keys[1] and all(key == sorted(key) for key in keys)
    # items 5 and 6 share a semantic ID: the second row repeats the first, the third does not
    rows = [
        ("train", 0, [5], 0),
        ("train", 1, [6], 0),
        ("train", 2, [6], 1),
        ("valid", 0, [5], 0),
        ("valid", 1, [5], 0),
    ]
    data = write_data(store / "twice", sequences=rows)
    out = store / "twice_out"
    call(PROGRAM, "--data", data, "--sids", write_sids(store / "twice_sids", data=data), "--output_dir", out,
         "--deduplicate", "true")  # fmt: skip
    counts = read_manifest(out)["counts"]
    assert counts["tasks"]["train"]["history_to_sid"] == 2 and counts["valid"] == 2
    assert counts["skipped"]["train"]["history_to_sid"] == {"repeated": 1}
    # rows that differ only in what is not shown are one question with one answer
    longer = [("train", 0, [1, 5], 0), ("train", 1, [2, 6], 0), ("valid", 0, [5], 0)]
    data = write_data(store / "cut", sequences=longer)
    command = ["--data", data, "--sids", write_sids(store / "cut_sids", data=data), "--deduplicate", "true"]
    for most, left in ((2, 2), (1, 1)):
        out = store / f"cut_out{most}"
        call(PROGRAM, *command, "--output_dir", out, "--max_history", most)
        assert read_manifest(out)["counts"]["tasks"]["train"]["history_to_sid"] == left


def test_items_that_are_held_out_are_asked_for_elsewhere(store: Path) -> None:
    tasks = ["title_to_sid", "sid_to_title", "item_narrative", "history_to_sid"]
    whole = build(store, "taught", tasks=tasks)
    made = build(store, "held", "--held_out_items", 0.5, tasks=tasks)
    table = artifacts.read(store / "examples" / "held", artifacts.EXAMPLES, file="held_out.parquet")
    held = [from_row(row) for row in table.to_pylist()]
    assert {e.task for e in held} == set(tasks[:3]) and made["history_to_sid"] == whole["history_to_sid"]
    for task in tasks[:3]:
        apart = [e for e in held if e.task == task]
        assert sorted(made[task] + apart, key=lambda e: e.example_id) == whole[task]
    taught = {e.answer.item_id for task in tasks[:3] for e in made[task]}
    codes = {tuple(CODES[item]) for item in taught}
    assert not codes & {tuple(CODES[e.answer.item_id]) for e in held}, (
        "items of one semantic ID stay together"
    )
    counts = read_manifest(store / "examples" / "held")["counts"]
    assert (
        counts["tasks"]["held_out"]["title_to_sid"] == counts["skipped"]["train"]["title_to_sid"]["held_out"]
    )
    assert not (store / "examples/taught/held_out.parquet").exists()
    for options, words in (
        (["--held_out_items", 1], "held_out_items is 1.0"),
        (["--held_out_items", 0.1, "--tasks", '["history_to_sid"]'], "held_out_items holds back item tasks"),
    ):
        line = refuse(
            PROGRAM,
            "--data",
            store / "data",
            "--sids",
            store / "sids",
            "--output_dir",
            store / "no",
            *options,
        )
        assert words in line


NAMES = [f"{frame}:{name}" for frame in FRAMES for name in WORDINGS if frame == "chat" or (frame, name) in
         {("alpaca", "sentence"), ("alpaca", "minionerec"), ("plain", "short"), ("plain", "sentence")}]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_one_prompt_for_training_rollouts_and_evaluation(store: Path, name: str) -> None:
    """From disk as a supervised row, as a prompt and, for histories, as serving renders it; the answer is never in it."""
    frame, base = name.split(":")
    made = build(store, f"{frame}-{base}", "--wording", base, "--frame", frame)
    assert set(made) == set(ALL)
    words = tokenizer("ours")
    vocab = add_sid_tokens(words, sid_format("letters"), SIZES, sids_sha256=TABLE.sha256).vocab
    renderer = Renderer(words, vocab, json_sids=wording(base).json_sids)
    facts = read_manifest(store / "examples" / f"{frame}-{base}")["facts"]
    serving = HistoryRenderer(renderer, TABLE, wording(facts["wording"]))
    for task, rows in made.items():
        for example, prompt in zip(rows, renderer.prompts(rows), strict=True):
            assert renderer.supervised(example)[0] == prompt == renderer.prompt_ids(example)
            if task == "history_to_sid" and example.example_id < example_id("chat", 0):
                assert serving.prompt_ids(example.history) == prompt
            text, answer = words.decode(prompt), example.answer
            if task not in ("chat", "preference_to_sid") and not set(example.history) & set(example.target):
                said = [answer.text, *(answer.terms or ()), answer.sid and vocab.format.text(answer.sid)]
                assert not [one for one in said if one and one in text]
            completion = renderer.completions([example])[0]
            goes_on = not example.messages or (
                base in ("bare", "codes") and task == "history_to_sid" and example.example_id < 1000
            )
            assert (completion[-1] == words.eos_token_id) != goes_on
            if task == "reason_then_sid":
                head = '{"target_cid":"' * wording(base).json_sids
                assert text.endswith("<think>\n") and words.decode(completion).startswith(
                    answer.reasoning + f"\n</think>\n\n{head}<a_"
                )
                completion = completion[-1 - len(renderer.answer_ids(example)) :]
            if task != "chat":
                read = Answer(sid=answer.sid, text=answer.text, terms=answer.terms)
                assert renderer.parse(task, completion) == read
            if frame != "chat" and example.messages and example.example_id < example_id("chat", 0):
                assert "<|" not in text and len(example.messages) == 1


def test_there_is_a_template_of_every_task() -> None:
    asked = (set(ALL) | SID_TASKS) - {"item_narrative", "sequence_narrative", "chat"}
    assert all(set(made.templates) == asked for made in WORDINGS.values())
    assert len(SEQUENCES) == 8


def test_the_readme_lists_every_task_with_its_prompt() -> None:
    lines = (ROOT / "train" / "README.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `") and line.count("|") == 5}
    assert set(ALL) <= set(rows)
    for task, template in WORDINGS["sentence"].templates.items():
        assert template.replace("\n", "⏎") in rows[task]
