"""Refusals in words, and thoughts in the first person that begin like one."""

from __future__ import annotations

import doctest

import pytest

from infer.chat import refusals
from infer.chat.messages import ChatRequest, Reply, judge
from infer.chat.refusals import is_refusal
from preprocess.teacher.captions import Captions

REFUSALS = (
    "I can't help with that.",
    "I can’t help you with this request.",
    "I cannot help",
    "I can't help write instructions for that.",
    "I'm sorry, but I can't assist",
    "I’m sorry, I can't help users do that.",
    "I am very sorry. I cannot comply with this.",
    "Sorry, I won't be able to help in this case.",
    "Sorry, I can't do that",
    "I apologize, but I am unable to write a story about a real person.",
    "My apologies, I'm not able to identify who that is.",
    "As an AI language model, I cannot describe",
    "Unfortunately, as an AI, I can't access external links.",
    "Unfortunately, I'm unable to view images.",
    "I can't view the picture that you sent.",
    "I cannot create content that sexualises minors.",
    "I can't generate explicit or sexually suggestive content.",
    "I'm not able to identify the person in this image.",
    "I cannot provide predictions about a person.",
    "I won't provide instructions for that.",
    "I can't describe how to build it.",
    "I cannot write a first-person paragraph about this.",
    "I can't answer that question.",
    "I cannot complete this task.",
    "I can't fulfill your request.",
    "I can't provide that for you.",
    "I can't continue.",
    "I can't engage with this topic.",
    "I must decline.",
    "I'm sorry, but I must decline to write this.",
    "很抱歉，我无法这样做",
    "我不能提供这些内容",
    "我无法满足您的要求",
)
THOUGHTS = (
    "I can't help but notice that desk lamps come back in what I chose so far, and I expect the next to be a brass lamp.",
    "I cannot help noticing how often brass comes back.",
    "I can’t help thinking of the strings as the start of a set.",
    "I can't help it: lamps draw me in.",
    "I can't help my back without a firm pillow, so a firm pillow it will be.",
    "Unfortunately, I can't help but see one gap on the shelf.",
    "Sorry, I can't help but smile at three kettles in a row.",
    "I'm sorry, but I can't help it, the drums are what I came for.",
    "I can't view these as chance: the lamps come back.",
    "I cannot view the pictures as mere decoration.",
    "I can't view my photos on so small a frame.",
    "I can't identify one single reason, yet all of them are made of oak.",
    "I can't describe the pull of brass any better than by the next piece.",
    "I can't write with a dry pen, so refills come next.",
    "I cannot access the back of the shed, and a longer ladder follows.",
    "I can't create beads out of nothing: thread and clasps come next.",
    "I can't support the shelf without brackets.",
    "I can't complete the set, I expect, before the last bolt is there.",
    "I won't continue with plastic after three purchases of steel.",
    "I can't do that with a dull blade, so a whetstone follows.",
    "I must decline this one, since steel it is.",
    "I must decline the plastic ones by now; steel it is.",
    "I can't say why, but the drums point to sticks.",
    "我无法满足于普通的台灯，下一件会是黄铜台灯。",
)


def test_the_examples_hold():
    assert doctest.testmod(refusals).failed == 0 < doctest.testmod(refusals).attempted


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one(text):
    assert is_refusal(text) and is_refusal(f"\n{text.upper()}\n\nIs there anything else?")


@pytest.mark.parametrize("text", THOUGHTS)
def test_a_thought_that_begins_like_a_refusal_is_an_answer(text):
    assert not is_refusal(text)
    asked = ChatRequest(key="k", messages=[{"role": "user", "content": "why?"}])
    assert judge(asked, Reply(text=text))[:2] == ("ok", text)
    captions = Captions()
    captions.add("B1", text)
    assert captions.texts == {"B1": text}
