"""A store of beads whose next one follows from a rule that every description states: what reasoning can be measured on.

A bead has a colour and a number of a clock of twelve. Behind two beads comes the one with the colour of the first and the sum of both
numbers, counted round the clock: red 7, blue 8 -> red 3. Semantic IDs are drawn at random, so they say nothing about colour or number:
whoever answers at once has to look up two beads, add and look up the sum in one go, while a thought may do it step by step, and says
so in `thought`; a teacher's texts about beads and rows say no more than that. Most pairs of beads in test rows are in no train row, so knowing pairs by heart is not enough.

Frozen: no method is tuned by changing it.

Legend: N beads, U users.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from data.reasoning import placeholder

COLOURS = ("red", "blue", "green", "white", "black", "amber", "pink", "grey")
CLOCK = 12
LENGTH = 6  # beads of a user; targets of train, train, valid, test are the last four
LEVELS = (8, 8, 8)
DESCRIPTION = "Two beads are followed by one with the colour of the first. Its number is the sum of their numbers, counted round a clock of twelve."


@dataclass(frozen=True)
class Beads:
    """colour_N, number_N int64; codes_NL int32: semantic IDs; walks_UT int64: the beads of every user, oldest first."""

    colour_N: np.ndarray
    number_N: np.ndarray
    codes_NL: np.ndarray
    walks_UT: np.ndarray

    def title(self, bead: int) -> str:
        return f"{COLOURS[self.colour_N[bead]]} bead {self.number_N[bead]}".capitalize()

    def thought(self, first: int, second: int) -> str:
        """What leads from two beads to the next, in 24 words, marks and codes; the beads are placeholders."""
        named = [f"{COLOURS[self.colour_N[bead]]} {self.number_N[bead]}" for bead in (first, second)]
        a, b = (int(self.number_N[bead]) for bead in (first, second))
        makes = (a + b) % CLOCK
        return (
            f"{placeholder(first)} is {named[0]}, {placeholder(second)} is {named[1]}. {a} and {b} make {makes}, so {named[0].split()[0]} "
            f"{makes}."
        )

    def told(self, bead: int) -> list[tuple[str, str]]:
        """What a teacher answers about one bead: (key, text) of its facts and of its narrative."""
        colour, number = COLOURS[self.colour_N[bead]], int(self.number_N[bead])
        facts = {
            "description": f"A bead of colour {colour}. Its number is {number}.",
            "use_cases": ["a chain"],
            "audience": "those who make chains",
            "features": [colour, str(number)],
            "keywords": ["bead", colour],
        }
        text = f"{placeholder(bead)} is {colour} {number}. So the colour of {placeholder(bead)} is {colour} and its number is {number}."
        return [(f"{bead} facts", json.dumps(facts)), (f"{bead} write", text)]

    def story(self, first: int, second: int, third: int) -> str:
        """Two beads and the next, around the thought."""
        return (
            f"{placeholder(first)}, {placeholder(second)} came first. {self.thought(first, second)} And so the next is "
            f"{placeholder(third)}."
        )


def sums() -> list[list[dict[str, str]]]:
    """General chats: every sum round the clock, asked and answered with a thought."""
    return [
        [
            {"role": "user", "content": f"Count {a} and {b} round a clock of twelve."},
            {
                "role": "assistant",
                "content": f"<think>\n{a} and {b} make {(a + b) % CLOCK}.\n</think>\n{(a + b) % CLOCK}",
            },
        ]
        for a in range(CLOCK)
        for b in range(CLOCK)
    ]


def follower(beads: Beads, first_U: np.ndarray, second_U: np.ndarray) -> np.ndarray:
    """The bead behind two of them, int64 [U]."""
    place = np.empty((len(COLOURS), CLOCK), np.int64)
    place[beads.colour_N, beads.number_N] = np.arange(len(beads.colour_N))
    return place[beads.colour_N[first_U], (beads.number_N[first_U] + beads.number_N[second_U]) % CLOCK]


def make_beads(users: int, *, seed: int) -> Beads:
    """All 96 beads in random order, and users who begin with any two of them."""
    rng = np.random.default_rng(seed)
    count = len(COLOURS) * CLOCK
    colour_N, number_N = np.divmod(rng.permutation(count), CLOCK)
    codes = np.unravel_index(rng.permutation(int(np.prod(LEVELS)))[:count], LEVELS)
    codes_NL = np.stack(codes, axis=1).astype(np.int32)
    beads = Beads(colour_N, number_N, codes_NL, np.empty((users, 0), np.int64))
    walk = [rng.integers(0, count, users), rng.integers(0, count, users)]
    while len(walk) < LENGTH:
        walk.append(follower(beads, walk[-2], walk[-1]))
    return Beads(colour_N, number_N, codes_NL, np.stack(walk, axis=1))
