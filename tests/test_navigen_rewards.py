"""NaviGen's rewards against the worked numbers of its code and its README; the judge as a reward; routing by task."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs.program import InputError, ServiceError
from data.sid import SidTable, sid_format
from infer.chat.client import ChatSettings, chat_client
from infer.chat.judge import SCORES, Judge, word_overlap
from infer.chat.limits import Budget
from tests.fake_openai_server import serving
from train.rewards import RolloutBatch
from train.rewards.judged import RewardJudge, instruction_grade, terms_f1
from train.rewards.mixture import build_mixture
from train.rewards.navigen import navigen_instruction, navigen_item, navigen_sum_instruction, navigen_sum_item
from train.rewards.needs import Sources
from train.rewards.spec import RewardSpec
from train.rewards.structure import penalty
from train.rewards.thoughts import thought_present

SIDS = SidTable(np.array([[1, 2, 3], [1, 2, 4], [6, 5, 4]], np.int32), (7, 6, 5))
NAVIGEN = sid_format("navigen")
READ = {"sids": SIDS, "sid_format": NAVIGEN}
THOUGHT = "<think>\nthey often take bolts\n</think>\n\n"
TERMS = ("steel bolt", "workshop")


def cid(*codes: int) -> str:
    return '{"target_cid":"' + NAVIGEN.text(codes) + '"}'


def told(instruction: str = "A bolt on oak.", terms: tuple[str, ...] = TERMS) -> str:
    return json.dumps({"target_tid": list(terms), "target_ins": instruction}, separators=(",", ":"))


def batch(*answers: str, task: str = "history_to_sid", **row: object) -> RolloutBatch:
    """One group; the target is item 0 with codes (1, 2, 3) and TERMS."""
    given = {"target": [0], "example_id": 5, "task": task, "history": [1], "answer": {"terms": list(TERMS)}}
    count = len(answers)
    codes = np.zeros((1, count, 3), np.int64)
    return RolloutBatch([given | row], codes, [[(0,)] * count], np.zeros((1, count)), answers=[list(answers)])


def judge(client=None, *, stop_after: int = 0) -> RewardJudge:
    client = client or chat_client(ChatSettings(backend="heuristic"), heuristic=word_overlap)
    return RewardJudge(Judge(client, batch=1), stop_after=stop_after)


EXAMPLES = [
    ("perfect", THOUGHT + cid(1, 2, 3), 1.0, 3.0),
    ("right without a thought", cid(1, 2, 3), 0.28, 2.0),
    ("an item with no right code", THOUGHT + cid(6, 5, 4), 0.235, 2.15),
    ("text behind it", THOUGHT + cid(1, 2, 3) + " as I said", 0.685, 3.0),
    ("broken off", THOUGHT + cid(1, 2, 3)[:-2], 0.86, 3.0),
    ("a thought that only ends", "they often take bolts\n</think>\n\n" + cid(1, 2, 3), 0.172, 2.0),
    ("nothing", "", 0.0, 0.0),
]


@pytest.mark.parametrize(
    ("text", "by_code", "by_readme"), [one[1:] for one in EXAMPLES], ids=[e[0] for e in EXAMPLES]
)
def test_the_published_examples(text, by_code, by_readme):
    assert navigen_item(batch(text), **READ) == [[pytest.approx(by_code, abs=5e-4)]]
    assert navigen_sum_item(batch(text), **READ) == [[pytest.approx(by_readme)]]


def test_codes_count_by_themselves_and_every_weight_is_a_parameter():
    texts = [THOUGHT + cid(*codes) for codes in ((1, 2, 4), (6, 2, 3), (6, 6, 6))]
    assert navigen_item(batch(*texts), **READ) == [pytest.approx([0.82, 0.55, 0.1])]
    changed = {"values": [1, 0, 0], "task_weight": 1, "format_weight": 0, "think_floor": 0}
    assert navigen_item(batch(texts[0], cid(1, 2, 3)), **READ, **changed) == [[1.0, 0.0]]
    cut = THOUGHT + cid(1, 2, 3)[:-2]
    assert navigen_item(batch(cut), **READ, strict_format=True) == [[pytest.approx(0.9 * 0.86)]]
    assert navigen_item(batch(cut), **READ, structure_floor=1) == [[pytest.approx(1.0)]]
    with pytest.raises(InputError, match="think_floor 2"):
        navigen_item(batch(cut), **READ, think_floor=2)
    with pytest.raises(InputError, match="3 values"):
        navigen_item(batch(cut), sids=SidTable(SIDS.codes_NL[:, :2], (7, 6)), sid_format=NAVIGEN)


def test_a_bare_semantic_id_is_an_answer_too():
    letters = sid_format("letters")
    texts = [THOUGHT + letters.text((1, 2, 3)), THOUGHT + letters.text((1, 2, 3)) + " and"]
    assert navigen_item(batch(*texts), sids=SIDS, sid_format=letters) == [pytest.approx([1.0, 0.685])]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (THOUGHT + told(), 0.0),
        (THOUGHT + THOUGHT + told(), 0.2),
        (told() + THOUGHT, 0.1),
        (THOUGHT + "So: " + told(), 0.2),
        (THOUGHT + told() + told(), 0.2 + 0.2),
        ("<think>" + told() + " x", 0.35 + 0.2 + 0.45),
        ("<think><think> a </think> b " + cid(1, 2, 3) * 5 + " c", 1.0),
    ],
)
def test_penalties_by_hand(text, found):
    assert penalty(text, sids=NAVIGEN, num_levels=3) == pytest.approx(found)


def fixed(turn: str, call: int) -> tuple[str, str]:
    """A grade of .625 for all but what says `poison`."""
    if "poison" in turn:
        return "broken", '{"sample_1": {'
    return "ok", json.dumps({"sample_1": dict(zip(SCORES, (1, 1, 0, 0, 0.5, 0.5, 1), strict=True))})


def served(url: str, **settings) -> ChatSettings:
    usual = {
        "model": "fake",
        "api_key_env": "",
        "backoff": 0.01,
        "retries": 0,
        "useless_retries": 0,
        "stop_after": 0,
    }
    return ChatSettings(backend="openai", base_url=url, **usual | settings)


def test_an_instruction_is_worth_what_the_judge_says_and_a_failure_is_none():
    texts = [THOUGHT + told("one"), told("one"), THOUGHT + told("poison"), "", THOUGHT + '{"target_tid":["x']
    asked = batch(*texts, task="history_to_instruction")
    with serving(write=fixed) as (url, log):
        one = judge(chat_client(served(url)))
        given = navigen_instruction(asked, **READ, judge=one)
        assert given == [[pytest.approx(0.6625), pytest.approx(0.2125), None, 0.0, 0.0]]
        assert len(log.bodies) == 2, "equal answers are asked about once, what cannot be read never"
        assert navigen_instruction(asked, **READ, judge=one, ungraded=0.1)[0][2] == 0.1
        assert len(log.bodies) == 3, "only the failure is asked about again"
        assert instruction_grade(asked, judge=one) == [[0.625, 0.625, None, 0.0, 0.0]]
        sums = navigen_sum_instruction(asked, **READ, judge=one)
    assert sums == [[pytest.approx(2.625), pytest.approx(1.625), None, 0.0, pytest.approx(1.0)]]


def test_a_judge_that_never_answers_or_wants_payment_ends_the_run():
    asked = batch(THOUGHT + told("poison 1"), THOUGHT + told("poison 2"), task="history_to_instruction")
    with serving(write=fixed) as (url, _):
        one = judge(chat_client(served(url)), stop_after=4)
        assert instruction_grade(asked, judge=one) == [[None, None]]
        with pytest.raises(ServiceError, match="no grade for 4 instructions in a row"):
            instruction_grade(asked, judge=one)
    with (
        serving(write=lambda turn, call: ("402", "")) as (url, _),
        pytest.raises(ServiceError, match="wants payment"),
    ):
        instruction_grade(asked, judge=judge(chat_client(served(url))))


def test_a_budget_counts_over_all_calls_of_a_judge():
    texts = [batch(THOUGHT + told(f"text {n}"), task="history_to_instruction") for n in range(3)]
    with serving(write=fixed) as (url, log):
        one = judge(chat_client(served(url, budget=Budget(calls=2))))
        assert [instruction_grade(texts[n], judge=one) for n in (0, 1, 0)] == [[[0.625]]] * 3
        with pytest.raises(ServiceError, match=r"budget.calls 2 is spent"):
            instruction_grade(texts[2], judge=one)
    assert len(log.bodies) == 2


def test_terms_and_thoughts_by_hand():
    texts = [THOUGHT + told(terms=("Steel bolt", "red", "big")), told(), "none"]
    assert terms_f1(batch(*texts, task="history_to_instruction")) == [[pytest.approx(0.4), 1.0, 0.0]]
    assert thought_present(batch(*texts)) == [[1.0, 0.0, 0.0]]
    with pytest.raises(InputError, match="have no text"):
        terms_f1(
            RolloutBatch(
                [{"target": [0], "answer": {"terms": []}}], np.zeros((1, 1, 3)), [[()]], np.zeros((1, 1))
            )
        )


def test_rewards_speak_for_their_own_task():
    """By hand: item rewards are silent for instructions and the other way round; a spec may say otherwise."""
    item, said = batch(THOUGHT + cid(1, 2, 3)), batch(THOUGHT + told(), task="history_to_instruction")
    both = RolloutBatch(
        [*item.rows, *said.rows], np.zeros((2, 1, 3)), [[(0,)], [(0,)]], np.zeros((2, 1)),
        answers=[*item.answers, *said.answers],
    )  # fmt: skip
    sources = Sources(SIDS, sid_format=NAVIGEN, judge=judge())
    total, given = build_mixture(
        [RewardSpec("navigen_item"), RewardSpec("navigen_instruction"), RewardSpec("thought_present", 0.5)],
        sources,
    )(both)
    assert given["navigen_item"][:, 0, 0].tolist() == [1.0, pytest.approx(np.nan, nan_ok=True)]
    assert given["navigen_instruction"][0, 0, 0] != given["navigen_instruction"][0, 0, 0], "NaN"
    assert total[0, 0, 0] == 1.5 and 0.6 < total[1, 0, 0] < 1.5
    total, _ = build_mixture([RewardSpec("exact_match")], sources)(both)
    assert total[:, 0, 0].tolist() == [1.0, pytest.approx(np.nan, nan_ok=True)]
    everywhere = RewardSpec("exact_match", tasks=["history_to_sid", "history_to_instruction"])
    assert build_mixture([everywhere], sources)(both)[0][:, 0, 0].tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="unknown tasks sing"):
        RewardSpec("exact_match", tasks=["sing"])
    with pytest.raises(InputError, match=r"needs a judge -> say which with --judge.client.backend"):
        build_mixture([RewardSpec("instruction_grade")], Sources(SIDS))
