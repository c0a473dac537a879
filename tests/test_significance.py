"""The bootstrap: against a loop with the same draws, and its coverage where rows of a user are alike."""

from __future__ import annotations

import numpy as np

from infer.significance import Clusters


def test_intervals_equal_a_loop_over_resamples():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 6, 25) * 11
    values, mask = rng.random((25, 2)), rng.random(25) < 0.6
    clusters = Clusters(users, resamples=300, seed=4)
    distinct = np.unique(users)
    means = []
    for counts in np.concatenate(list(clusters.draws())):
        picked = np.concatenate(
            [np.tile(np.flatnonzero(users == user), int(n)) for user, n in zip(distinct, counts, strict=True)]
        ).astype(int)
        kept = picked[mask[picked]]
        means.append([values[picked, 0].mean(), values[kept, 1].mean() if len(kept) else np.nan])
    expected = np.nanquantile(means, [0.025, 0.975], axis=0)
    sums = clusters.sums(np.stack([values[:, 0], values[:, 1] * mask], axis=1))
    weights = clusters.sums(np.stack([np.ones(25), mask], axis=1))
    assert np.allclose(clusters.interval(sums, weights, np.array([0, 1])), expected)


def test_every_draw_has_as_many_users_and_the_seed_decides():
    clusters = Clusters(np.arange(9), resamples=50, seed=1)
    draws = np.concatenate(list(clusters.draws()))
    assert draws.shape == (50, 9) and (draws.sum(1) == 9).all() and draws.std() > 0
    again = np.concatenate(list(Clusters(np.arange(9), resamples=50, seed=1).draws()))
    other = np.concatenate(list(Clusters(np.arange(9), resamples=50, seed=2).draws()))
    assert (draws == again).all() and (draws != other).any()


def test_the_interval_holds_the_truth_as_often_as_it_says_when_rows_of_a_user_are_alike():
    """One coin per user decides all 10 rows: intervals that took rows for independent would be far too short."""
    rng = np.random.default_rng(3)
    held, held_naive, trials = 0, 0, 200
    for trial in range(trials):
        values = np.repeat(rng.random(80) < 0.3, 10).astype(float)
        for by_row in (False, True):
            users = np.arange(800) if by_row else np.repeat(np.arange(80), 10)
            clusters = Clusters(users, resamples=200, seed=trial)
            low, high = clusters.interval(
                clusters.sums(values[:, None]), clusters.sums(np.ones((800, 1))), np.array([0])
            )
            inside = low[0] <= 0.3 <= high[0]
            held, held_naive = held + (not by_row and inside), held_naive + (by_row and inside)
    assert 0.90 <= held / trials <= 0.99
    assert held_naive / trials < 0.6
