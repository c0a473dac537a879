"""The customers of the generated store, simulated in chunks with numpy.

A customer follows two projects at a time. Each purchase is, in this order of precedence: a follow-up of an earlier
purchase that has come due (after one to four other purchases), a random popular item (noise), or an item of the current
stage of one of the two projects. Within a stage popularity, the season and a favourite brand per department decide, and
nothing recent is bought twice. A finished project is replaced by a related one, and now and then an interest drifts.

So the last purchase alone does not say what comes next: the other project's stage stands further back, and so do the
purchases whose follow-ups are still open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.generator.catalogue import BRANDS_PER_DEPARTMENT, NUM_STAGES, Catalogue
from data.generator.words import TREE

CHUNK_USERS = 4096
MAX_PURCHASES = 40
NOISE = 0.05
STAY_WITH_PROJECT = 0.15
ADVANCE = 0.97
DRIFT = 0.02
FOLLOW_UP = 0.5
LOYALTY = 3.0
SAME_TASTE = 0.8
SEASON = 0.6
SAME_DAY = 0.12
MEAN_GAP_DAYS = 24.0
RECENT = 12


@dataclass(frozen=True)
class Purchases:
    """Interactions of one chunk, sorted by time: user and item numbers int64, day int64 from the store's first, rating."""

    user: np.ndarray
    item: np.ndarray
    day: np.ndarray
    rating: np.ndarray

    def first(self, count: int) -> Purchases:
        """The first `count` interactions."""
        return Purchases(self.user[:count], self.item[:count], self.day[:count], self.rating[:count])


def simulate(catalogue: Catalogue, num_users: int, *, days: int) -> Iterator[Purchases]:
    """Purchases of `num_users` users in chunks; a chunk depends on the seed and its own number only."""
    for chunk, first in enumerate(range(0, num_users, CHUNK_USERS)):
        rng = np.random.default_rng([catalogue.seed, 3, chunk])
        yield _Chunk(catalogue, rng, days).run(first, min(CHUNK_USERS, num_users - first))


class _Chunk:
    """State of the users of one chunk; rows of all arrays are users."""

    def __init__(self, catalogue: Catalogue, rng: np.random.Generator, days: int) -> None:
        self.catalogue, self.rng, self.days = catalogue, rng, days
        projects = len(catalogue.cells)
        taste = np.random.default_rng([catalogue.seed, 4])
        weights = 1 / np.arange(1, projects + 1) ** 0.25
        self.project_cumulative = np.cumsum(taste.permutation(weights / weights.sum()))
        self.item_cumulative = np.cumsum(catalogue.popularity.astype(np.float64) ** 1.0)

    def run(self, first_user: int, count: int) -> Purchases:
        """Simulate users first_user .. first_user + count - 1."""
        rng = self.rng
        length = np.where(
            rng.random(count) < 0.35, rng.integers(1, 5, count), 5 + rng.geometric(0.25, count) - 1
        ).clip(max=MAX_PURCHASES)
        day = self._days(length)
        self.interest = self._projects((count, 2))
        self.stage = rng.integers(NUM_STAGES // 2, size=(count, 2))
        self.current = np.zeros(count, np.int64)
        same = rng.random((count, len(TREE))) < SAME_TASTE
        main = rng.integers(BRANDS_PER_DEPARTMENT, size=(count, 1))
        self.favourite = np.where(same, main, rng.integers(BRANDS_PER_DEPARTMENT, size=(count, len(TREE))))
        self.open = np.full((count, 3), -1, np.int64)
        self.wait = np.zeros((count, 3), np.int64)
        bought = np.full((count, MAX_PURCHASES), -1, np.int64)
        for step in range(int(length.max())):
            users = np.flatnonzero(step < length)
            recent = bought[users, max(0, step - RECENT) : step]
            bought[users, step] = self._purchase(users, recent, day[users, step])
        made = (np.arange(MAX_PURCHASES) < length[:, None]) & (day < self.days)
        user, position = np.nonzero(made)
        order = np.argsort(day[user, position], kind="stable")
        user, position = user[order], position[order]
        rating = rng.choice(np.arange(1.0, 6.0), size=len(user), p=[0.04, 0.05, 0.11, 0.2, 0.6])
        return Purchases(user + first_user, bought[user, position], day[user, position], rating)

    def _days(self, length: np.ndarray) -> np.ndarray:
        """Day of every purchase, int64 [users, MAX_PURCHASES], non-decreasing; days after the last are cut later."""
        shape = (len(length), MAX_PURCHASES)
        gap = 1 + self.rng.exponential(MEAN_GAP_DAYS, shape).astype(np.int64)
        gap[self.rng.random(shape) < SAME_DAY] = 0
        gap[:, 0] = self.rng.integers(0, self.days, len(length))
        return np.cumsum(gap, axis=1)

    def _projects(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.searchsorted(self.project_cumulative, self.rng.random(shape)).clip(
            max=len(self.project_cumulative) - 1
        )

    def _purchase(self, users: np.ndarray, recent: np.ndarray, day: np.ndarray) -> np.ndarray:
        rng = self.rng
        stays = rng.random(len(users)) < STAY_WITH_PROJECT
        slot = np.where(stays, self.current[users], 1 - self.current[users])
        self.current[users] = slot
        item = self._from_stage(users, slot, recent, day)
        noise = rng.random(len(users)) < NOISE
        anywhere = rng.random(len(users)) * self.item_cumulative[-1]
        item = np.where(noise, np.searchsorted(self.item_cumulative, anywhere), item)
        item = self._take_due(users, item)
        self._remember(users, item, noise)
        return item

    def _from_stage(
        self, users: np.ndarray, slot: np.ndarray, recent: np.ndarray, day: np.ndarray
    ) -> np.ndarray:
        """One item of the slot's current stage for each user."""
        catalogue, rng = self.catalogue, self.rng
        offered = catalogue.cells[self.interest[users, slot], self.stage[users, slot]]
        month = (day // 30) % 12
        score = np.log(catalogue.popularity[offered])
        season = np.cos((month[:, None] - catalogue.peak_month[offered]) * (2 * np.pi / 12))
        favourite = self.favourite[users[:, None], catalogue.department[offered]]
        score += SEASON * season + np.log(LOYALTY) * (
            catalogue.brand[offered] % BRANDS_PER_DEPARTMENT == favourite
        )
        score -= 6.0 * (catalogue.release[offered] > day[:, None])
        score -= 6.0 * (offered[:, :, None] == recent[:, None, :]).any(axis=2)
        score[offered < 0] = -np.inf
        best = np.argmax(score + rng.gumbel(size=score.shape), axis=1)
        return offered[np.arange(len(users)), best]

    def _take_due(self, users: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Replace the choice by an open follow-up that has come due, with probability FOLLOW_UP."""
        self.wait[users] -= 1
        due = (self.open[users] >= 0) & (self.wait[users] <= 0)
        which = np.argmax(due, axis=1)
        takes = due.any(axis=1) & (self.rng.random(len(users)) < FOLLOW_UP)
        taken = users[takes]
        item = item.copy()
        item[takes] = self.open[taken, which[takes]]
        self.open[taken, which[takes]] = -1
        return item

    def _remember(self, users: np.ndarray, item: np.ndarray, noise: np.ndarray) -> None:
        """Open the item's follow-up and move its project on."""
        catalogue, rng = self.catalogue, self.rng
        follow_up = catalogue.follow_up[item]
        opens = (follow_up >= 0) & (self.open[users] < 0).any(axis=1)
        free = np.argmax(self.open[users] < 0, axis=1)
        self.open[users[opens], free[opens]] = follow_up[opens]
        delay = np.where(
            catalogue.refill[item], rng.integers(3, 6, len(users)), rng.integers(1, 5, len(users))
        )
        self.wait[users[opens], free[opens]] = delay[opens]
        for slot in range(2):
            mine = (self.interest[users, slot] == catalogue.project[item]) & ~noise
            moved = users[mine]
            self.stage[moved, slot] = catalogue.stage[item[mine]] + (rng.random(len(moved)) < ADVANCE)
        drifts = rng.random((len(users), 2)) < DRIFT
        for slot in range(2):
            done = self.stage[users, slot] >= NUM_STAGES
            changes = users[done | drifts[:, slot]]
            near = catalogue.related[self.interest[changes, slot], rng.integers(3, size=len(changes))]
            self.interest[changes, slot] = np.where(
                rng.random(len(changes)) < 0.75, near, self._projects((len(changes),))
            )
            self.stage[changes, slot] = rng.integers(NUM_STAGES // 2, size=len(changes))
