"""The bootstrap: against a loop with the same draws, and its coverage where rows of a user are alike."""

from __future__ import annotations

import numpy as np
import pytest

from configs.program import InputError
from infer.metrics.significance import Clusters, paired_differences


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
    weights = np.stack([np.ones(25), mask], axis=1)
    both = clusters.collect(values * weights, weights, np.array([0, 1]))
    assert np.allclose(clusters.interval([both]), expected)
    # The same in two parts, one of them without the rows that add nothing.
    rows = np.flatnonzero(mask)
    parts = [
        clusters.collect(values[:, :1], weights[:, :1], np.array([0])),
        clusters.collect(values[rows, 1:], weights, np.array([1]), rows_H=rows),
    ]
    assert np.allclose(clusters.interval(parts), expected)
    nothing = clusters.collect(np.zeros((0, 1)), weights, np.array([1]), rows_H=np.zeros(0, np.int64))
    assert np.nanmax(clusters.interval([nothing])) == 0


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
            ones = np.ones((800, 1))
            low, high = clusters.interval([clusters.collect(values[:, None], ones, np.array([0]))])
            inside = low[0] <= 0.3 <= high[0]
            held, held_naive = held + (not by_row and inside), held_naive + (by_row and inside)
    assert 0.90 <= held / trials <= 0.99
    assert held_naive / trials < 0.6


def test_a_paired_difference_equals_a_loop_with_the_same_draws():
    rng = np.random.default_rng(5)
    users, weight = rng.integers(0, 7, 30), rng.random(30)
    ours, theirs = rng.random((30, 2)), rng.random((30, 2))
    clusters = Clusters(users, resamples=400, seed=3)
    found = paired_differences(ours, theirs, weight, clusters)
    drawn = []
    for counts in np.concatenate(list(clusters.draws())):
        times = counts[np.searchsorted(np.unique(users), users)] * weight
        drawn.append(((ours - theirs) * times[:, None]).sum(0) / times.sum())
    for metric in range(2):
        observed = np.average(ours[:, metric] - theirs[:, metric], weights=weight)
        values = np.array(drawn)[:, metric]
        extreme = sum(abs(value - observed) >= abs(observed) for value in values)
        assert np.isclose(found[metric].value, observed)
        assert np.isclose(found[metric].p_value, (1 + extreme) / 401)
        assert np.allclose([found[metric].low, found[metric].high], np.quantile(values, [0.025, 0.975]))
    same = paired_differences(ours, ours, weight, clusters)[0]
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_p_values_are_right_as_often_as_they_say_and_see_a_real_difference():
    """Two models whose rows of a user agree: without a difference p < 0.05 in about 5 % of data sets."""
    rng = np.random.default_rng(6)
    users, false_alarms, found = np.repeat(np.arange(60), 5), 0, 0
    for trial in range(200):
        ours, theirs = (np.repeat(rng.random(60) < 0.4, 5).astype(float)[:, None] for _ in range(2))
        clusters = Clusters(users, resamples=199, seed=trial)
        false_alarms += paired_differences(ours, theirs, np.ones(300), clusters)[0].p_value < 0.05
        better = np.maximum(theirs, np.repeat(rng.random(60) < 0.3, 5)[:, None])
        found += paired_differences(better, theirs, np.ones(300), clusters)[0].p_value < 0.05
    assert 0.01 <= false_alarms / 200 <= 0.12
    assert found / 200 > 0.9


def test_a_paired_test_needs_two_users_that_count():
    """Rows of one user alone give every resample the same difference: p would be its least value whatever is compared."""
    users, values = np.array([0, 0, 1, 2]), np.array([[1.0], [0.0], [1.0], [0.0]])
    clusters = Clusters(users, resamples=200, seed=0)
    for weights in (np.zeros(4), np.array([1.0, 1.0, 0, 0])):
        with pytest.raises(InputError, match="fewer than two users have rows that count"):
            paired_differences(values, 1 - values, weights, clusters)
    # User 0's rows do not count: of the resamples of users 1 and 2, those with neither are left out.
    [found] = paired_differences(values, 1 - values, np.array([0.0, 0, 1, 1]), clusters)
    assert found.value == 0 and found.p_value == 1 and (found.low, found.high) == (-1, 1)
