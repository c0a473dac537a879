"""What stage 06 decides without a model: which rows may be asked about, what a paragraph must be, what a draft is worth."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.program import InputError
from data import artifacts
from data.tids import Tids
from preprocess.teacher import paragraphs
from preprocess.teacher.evolution import FOUNDERS, Draft, overall, quoted_terms, ranked, summary, verdict
from preprocess.teacher.foreign import foreign_samples
from preprocess.teacher.samples import TermSample, data_samples
from preprocess.teacher.thoughts import BANNED, clue_problem, distilled_problem, identifier_problem

# Rows.


def sequences(*rows) -> pa.Table:
    """(split, user, history, target, time) a row."""
    split, user, history, target, time = zip(*rows, strict=True)
    columns = {"example_id": range(len(rows)), "user_id": user, "history": history, "target": target, "split": split, "timestamp": time}  # fmt: skip
    kinds = artifacts.SEQUENCES.required | artifacts.SEQUENCES.optional
    return pa.table({name: pa.array(list(column), kinds[name]) for name, column in columns.items()})


TERMS = Tids(
    [(f"t{i}",) if i != 9 else () for i in range(12)], ["chat" if i != 9 else "refused" for i in range(12)]
)


def keys(table: pa.Table, *splits: str, **more) -> list[int]:
    samples, _ = data_samples(
        table, TERMS, splits=splits or ("train",), **{"max_samples": None, "seed": 0} | more
    )
    return [sample.key for sample in samples]


@pytest.mark.parametrize("time", [None, 5])
def test_a_row_that_holds_a_held_out_target_is_left_out(time):
    table = sequences(
        ("train", 0, [0, 1], 2, time),  # 0 kept
        ("train", 0, [0, 3], 4, time),  # 1 holds the valid target in its history
        ("train", 0, [0, 1], 5, time),  # 2 has the test target for its own
        ("train", 1, [3, 5], 6, time),  # 3 another user's
        ("train", 0, [0, 7], 8, time),  # 4 a repeat: test asks for what its own history has
        ("valid", 0, [0, 1, 2], 3, time),  # 5 does not hold the test target
        ("valid", 0, [0, 5], 6, time),  # 6 does
        ("test", 0, [0, 1, 2, 3], 5, time),
        ("test", 0, [7, 8], 7, time),
    )
    assert keys(table) == [0, 3, 4]
    assert keys(table, "valid") == [5]
    assert keys(table, "train", "test") == [0, 3, 4, 7, 8]
    _, left_out = data_samples(table, TERMS, splits=["train"], max_samples=None, seed=0)
    assert left_out == {"leaks": 2, "no_history": 0, "no_target": 0}


def test_what_was_chosen_before_is_a_repeat_though_the_held_out_window_forgot_it():
    rows = [("train", 0, [0], 3, 4), ("test", 0, [1, 2], 3, 9)]
    assert keys(sequences(*rows)) == [0]
    with pytest.raises(InputError, match="1 leaks"):
        keys(sequences(*[(*row[:4], 13 - row[4]) for row in rows]))


def test_rows_without_terms_are_counted_and_a_draw_is_seeded():
    table = sequences(
        *[("train", i, [i, 9], 1, None) for i in range(8)],
        ("train", 8, [9], 1, None),
        ("train", 9, [1], 9, None),
    )
    samples, left_out = data_samples(table, TERMS, splits=["train"], max_samples=None, seed=0)
    assert left_out == {"leaks": 0, "no_history": 1, "no_target": 1} and samples[0].history == (("t0",),)
    few = keys(table, max_samples=3, seed=1)
    assert len(few) == 3 and few == sorted(few) == keys(table, max_samples=3, seed=1) != keys(
        table, max_samples=3, seed=2
    )
    with pytest.raises(InputError, match="none of train"):
        keys(table, "dev")


# NaviGen's files.

A = {"sample_id": "s-1", "history_tids": [["nut"], []], "target_tid": ["bolt", "steel"]}
B = {"uid": "u", "hist_pid": "'ä1', '黄铜 x', 'gone'", "valid_pid": "v,1", "target_pid": 77}
C = {"uid": "u", "hist_tid": [["nut"]], "valid_tid": ["cap"], "target_tid": ["bolt"]}
ITEMS = {"ä1": ["nut"], "黄铜 x": ["brass", "rod"], "v,1": ["cap"], "77": ["bolt"]}


def foreign(tmp_path, rows, **more):
    (tmp_path / "s.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    (tmp_path / "items.json").write_text(json.dumps([{"id": key, "tid": tid} for key, tid in ITEMS.items()]))
    return foreign_samples(tmp_path / "s.json", **{"item_terms": tmp_path / "items.json", "split": "train", "append_valid": False} | more)  # fmt: skip


def test_the_three_schemas(tmp_path):
    samples, left_out = foreign(
        tmp_path,
        [A, B, C, {"history_tids": [], "target_tid": ["x"]}, {"hist_pid": "ä1", "target_pid": "gone"}],
    )
    assert [(one.sample_id, one.history, one.target) for one in samples] == [
        ("s-1", (("nut",),), ("bolt", "steel")),
        ("u", (("nut",), ("brass", "rod")), ("bolt",)),
        ("u", (("nut",),), ("bolt",)),
    ]
    assert left_out == {"no_history": 1, "no_target": 1} and [one.key for one in samples] == [0, 1, 2]


def test_the_valid_item_only_where_asked_for_and_lines_and_maps_too(tmp_path):
    lines = "\n".join(
        json.dumps(row | {"valid_pid": ["v,1"]} if "hist_pid" in row else row) for row in (B, C)
    )
    (tmp_path / "map.json").write_text(json.dumps(ITEMS))
    samples, _ = foreign(tmp_path, lines, item_terms=tmp_path / "map.json", append_valid=True, split="test")
    assert [one.history[-1] for one in samples] == [("cap",), ("cap",)] and samples[0].split == "test"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"uid": 1}], "entry 0 is no sample"),
        ([A, 7], "entry 1 is no sample"),
        ([A | {"target_tid": "bolt"}], "terms are a list"),
        ([A | {"target_tid": ["b" * 201]}], "1 to 200 characters"),
        ([A | {"history_tids": "nut"}], "its history is no list"),
        ([B | {"hist_pid": {"a": 1}}], "ids are text or a list"),
        ([B | {"target_pid": ["77", "v,1"]}], "entry 0 has 2 targets, a sample has one"),
        ([{"history_tids": [], "target_tid": ["x"]}], "none of its 1 samples"),
    ],
)
def test_entries_of_no_schema_are_named(tmp_path, rows, said):
    with pytest.raises(InputError, match=said):
        foreign(tmp_path, rows)
    with pytest.raises(InputError, match="give their terms"):
        foreign(tmp_path, [B], item_terms=None)


# Paragraphs.

TARGET = ("desk lamp", "brass", "warm light")
SAMPLE = TermSample(key=1, split="train", history=(("pen",),), target=TARGET)
GOOD = (
    "I notice a pen and then a notebook, which tells me that somebody writes at home. The latest of them is for the evening, "
    'so I set the garden hose aside. What is missing is light, and I expect "Desk Lamp", brass, and warm light.'
)
DISTILLED = (
    GOOD
    + " My first drafts were dull, so I would write one lit corner of a room, seen from low down, and never its name."
)


def test_a_good_paragraph_has_no_problem():
    assert identifier_problem(GOOD, SAMPLE) == "" == distilled_problem(DISTILLED, SAMPLE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace(". ", ".\n\n", 1), "2 paragraphs"),
        (GOOD.replace(". ", ".\n- ", 1), "list"),
        ("# Thoughts\n" + GOOD, "heading"),
        ("I expect desk lamp, brass, warm light.", "has 7 words"),
        (GOOD.replace("What is missing", "The target terms are light"), '"target terms"'),
        (GOOD.replace("I notice", "One notices").replace("tells me", "tells us").replace("I set", "one sets").replace("I expect", "one expects"), "first person"),
        (GOOD + " That is all.", "does not end"),
        (GOOD.replace('"Desk Lamp", brass', 'brass, "Desk Lamp"'), "does not end"),
        (GOOD.replace("warm light.", "warm lights."), "does not end"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_paragraph_is_said(text, said):
    assert said in identifier_problem(text, SAMPLE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I see {latest}.", ""),
        ("Here is {latest}.", "first person"),
        ("I see more.", "does not name {latest}"),
        ("I see {latest} " + "and more " * 12, "not at most 24"),
    ],
)
def test_a_clue_names_the_latest_item(text, said):
    latest = SAMPLE.history[-1][0]
    found = clue_problem(text.format(latest=latest), SAMPLE)
    assert said.format(latest=latest) in found and bool(said) == bool(found)


def test_the_letter_i_is_not_the_first_person():
    assert not paragraphs.first_person("The buyer likes World War I models of Type I planes.")
    assert not paragraphs.first_person("In World War I planes were slow.")
    assert all(
        map(
            paragraphs.first_person,
            ["Then I’d say so.", '"I see it', "That tells me a lot.", "From it I gather this"],
        )
    )


@pytest.mark.parametrize(
    "word", ["selection", "Crossover", "mutations", "mutated", "founder", "elites", "mate"]
)
def test_words_of_the_search_are_banned_but_not_within_terms(word):
    assert word.lower() in distilled_problem(DISTILLED.replace("drafts", word), SAMPLE)
    assert paragraphs.banned(f"my {word} drink, a yerba {word}", BANNED, [f"yerba {word}"]) == [word.lower()]
    assert paragraphs.banned(f"I would have a Yerba {word}.", BANNED, [f"yerba {word}"]) == []
    told = replace(SAMPLE, history=(("pen",), (f"yerba {word}", "tea")))
    said = DISTILLED.replace("the garden hose", f"the Yerba {word}")
    assert distilled_problem(said, told) == "" != distilled_problem(said, SAMPLE)
    assert word.lower() in distilled_problem(said.replace("drafts", word), told)
    assert paragraphs.banned("material, estimate, profoundly selective", BANNED, []) == []


def test_the_target_is_named_near_the_end():
    long = "I look at a brass pen. " + "It is one more thing to write with. " * 9
    early = DISTILLED.replace("brass, and", "and")
    assert distilled_problem(long + DISTILLED, SAMPLE) == ""
    assert distilled_problem(long + early, SAMPLE) == "its end does not name brass"
    ten = [f"word{n} of it" for n in range(10)]  # 30 words, and 30 after them
    assert (
        paragraphs.missing_near_end(f"I took {', '.join(ten)}. " + "So I write it plainly. " * 6, ten) == []
    )


# Drafts.

PLAIN_SCORES = {"consistency": 9, "novelty": 8, "aesthetic": 9, "executability": 9, "reasoning": "clear"}


def test_scores_by_hand():
    assert overall(PLAIN_SCORES) == pytest.approx(8.8)
    assert overall(PLAIN_SCORES | {"consistency": 4.9}) == pytest.approx(8.8 - 0.35 * 4.1 - 1)
    assert overall(PLAIN_SCORES | {"executability": 4}) == pytest.approx(8.8 - 1 - 1)
    assert verdict(PLAIN_SCORES, "an armchair at a party", ["art", "chair", "a"]).overall == pytest.approx(
        8.8
    )
    quoting = verdict(PLAIN_SCORES, "Fine ART on a wall", ["art"])
    assert quoting.overall == pytest.approx(7.025) and quoting.quoted_terms == ["art"]
    assert (quoting.scores["consistency"], quoting.scores["executability"]) == (6.5, 7)
    # the loss brings consistency below 5: 4 -> 1.5, and 1 more is lost
    low = verdict(PLAIN_SCORES | {"consistency": 4}, "art", ["art"])
    assert low.overall == pytest.approx(0.35 * 1.5 + 0.2 * 8 + 0.25 * 9 + 0.2 * 7 - 1 - 0.5)
    wild = verdict(
        {"consistency": 95, "novelty": -3, "aesthetic": 10, "executability": 10, "reasoning": ""}, "x", []
    )
    assert wild.scores == {"consistency": 10, "novelty": 0, "aesthetic": 10, "executability": 10}
    assert verdict(PLAIN_SCORES | {"consistency": 1}, "art", ["art"]).scores["consistency"] == 0


@given(st.text("abc -.", max_size=30), st.lists(st.text("abc-", min_size=1, max_size=3), max_size=3))
def test_quoted_terms_are_whole_words(prompt, target):
    words = "".join(c if c in "abc" else " " for c in prompt).split()
    for term in target:
        if term.isalpha() and len(term) > 1:
            assert (term in quoted_terms(prompt, target)) == (term in words)


def test_the_earlier_of_equals_is_first_and_the_story_is_plain():
    drafts = [Draft(mode, f"A view, {mode[:1]}.", "so") for mode in FOUNDERS]
    same = [verdict(PLAIN_SCORES, one.prompt, []) for one in drafts]
    first = ranked(drafts, same)
    assert [one.mode for one, _ in first] == list(FOUNDERS)
    children = [Draft("crossover", "Both.", "so"), Draft("mutation", "One changed.", "so")]
    last = ranked(
        [drafts[0], *children], [same[0], verdict(PLAIN_SCORES | {"novelty": 9}, "Both.", []), same[0]]
    )
    told = summary(drafts, [first, last], [children])
    assert "Kept: the cautious draft; what is good in it went together with the balanced draft." in told
    assert "The kept cautious draft got 8.8 of 10" in told and told.endswith(
        "Chosen: the blended draft, 9.0 of 10: Both."
    )
    assert paragraphs.banned(told, BANNED, []) == []
