"""Popularity, transitions and item-kNN: hand arithmetic, and the program against scores computed by loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.rows import Rows, TrainLog
from data.store.output import read_manifest
from infer.models import counting, tuning
from tests.handmade import call, refuse, succeed
from tests.store import ITEMS, sequences, write_store


def train_log(walks: list[list[int]], num_items: int) -> TrainLog:
    users = np.repeat(np.arange(len(walks)), [len(walk) for walk in walks]).astype(np.int32)
    return TrainLog(users, np.array([item for walk in walks for item in walk], np.int32), num_items)


def history(*items: int) -> Rows:
    return Rows(
        np.zeros(1, int),
        np.zeros(1, int),
        np.array([0, len(items)]),
        np.array(items, np.int32),
        np.zeros(1, int),
    )


def test_transitions_by_hand():
    train = train_log([[0, 1, 1, 2], [0, 1]], 4)
    following = counting.transition_matrix(train).toarray()
    assert following.nonzero()[0].tolist() == [0, 1, 1] and following[0, 1] == 2 and following[1, 2] == 1
    matrix = counting.transition_matrix(train, reach=3).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = 1 + 1 / 2 + 1  # user 0 at distances 1 and 2, user 1 at distance 1
    expected[0, 2] = 1 / 3
    expected[1, 1] = 1
    expected[1, 2] = 1 / 2 + 1
    assert np.allclose(matrix, expected)


def test_item_similarity_by_hand():
    """Item 0 has users 0, 1, 2; item 1 users 0, 1; item 2 user 2. Buying twice counts once."""
    train = train_log([[0, 1, 1], [1, 0], [2, 0, 0]], 3)
    cosine = counting.item_similarity(train).toarray()
    assert np.allclose(cosine, [[0, 2 / 6**0.5, 1 / 3**0.5], [2 / 6**0.5, 0, 0], [1 / 3**0.5, 0, 0]])
    assert counting.item_similarity(train, shrink=2.0)[0, 1] == pytest.approx(2 / (6**0.5 + 2))


def test_history_weights_count_an_item_once_at_its_newest_place():
    weights = counting.history_weights(history(4, 3, 4, 2, 4, 1), 5, decay=0.5).toarray()[0]
    assert weights.tolist() == [0, 1, 0.25, 0.5**4, 0.5]
    last_three = counting.history_weights(history(4, 3, 4, 2, 4, 1), 5, last=3).toarray()[0]
    assert last_three.tolist() == [0, 1, 1, 0, 1]
    assert counting.history_weights(history(), 5).nnz == 0


def loop_scores(
    name: str, walks: list[list[int]], past: list[int], *, decay: float, shrink: float, own: float | None
) -> list[float]:
    """Scores of every item, straight from the definitions."""
    scores = [0.0] * ITEMS
    if name in ("last", "recent"):
        for walk in walks:
            for i, item in enumerate(walk):
                for distance in (1, 2, 3) if name == "recent" else (1,):
                    if item == past[-1] and i + distance < len(walk):
                        scores[walk[i + distance]] += 1 / distance
    if name.startswith("itemknn"):
        users = {item: {u for u, walk in enumerate(walks) if item in walk} for item in range(ITEMS)}
        recent = list(dict.fromkeys(past[::-1][:10]))
        for item in recent:
            weight = decay ** past[::-1].index(item)
            for other in range(ITEMS):
                both = len(users[item] & users[other])
                if other != item and both:
                    size = math.sqrt(len(users[item]) * len(users[other]))
                    scores[other] += weight * both / (size + shrink)
    for item in dict.fromkeys(past[::-1][: 1 if name in ("last", "recent") else 10]):
        scores[item] += (own or 0.0) * decay ** past[::-1].index(item)
    return [-1.0 if own is None and item in past else round(score, 9) for item, score in enumerate(scores)]


def loop_figures(name: str, split_offset: int, **settings: float | None) -> tuple[float, float]:
    """(HR@10, NDCG@10) over all users, ties in random order."""
    walks = sequences()
    train = [walk[:-2] for walk in walks]
    popularity = [sum(walk.count(item) for walk in train) for item in range(ITEMS)]
    hits, gains = [], []
    for walk in walks:
        target, past = walk[-1 - split_offset], walk[: -1 - split_offset]
        scores = loop_scores(name, train, past, **settings)
        key = list(zip(scores, popularity, strict=True))
        before, tied = sum(k > key[target] for k in key), sum(k == key[target] for k in key)
        inside = range(before, min(before + tied, 10))
        hits.append(len(inside) / tied)
        gains.append(sum(1 / math.log2(rank + 2) for rank in inside) / tied)
    return sum(hits) / len(hits), sum(gains) / len(gains)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("baselines")
    data = write_store(root / "store")
    command = (
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        root / "eval",
        "--tune.decays",
        "[1.0,0.6]",
    )
    call(*command, "--tune.shrinks", "[0.0,4.0]")
    return root, data, command


@pytest.mark.parametrize("name", ["pop", "last", "recent", "itemknn", "itemknn_tuned"])
def test_program_and_evaluation_equal_the_loops(run, name):
    root, data, _ = run
    facts = read_manifest(root / "eval" / f"{name}.test")["facts"]
    settings = {
        "decay": facts.get("decay", 1.0),
        "shrink": facts.get("shrink", 0.0),
        "own": facts.get("own", 0.0),
    }
    for offset, split in ((0, "test"), (1, "valid")):
        directory = root / "eval" / f"{name}.{split}"
        call("infer.evaluate", "--predictions", directory, "--data", data, "--resamples", 50)
        values = json.loads((directory / "metrics" / "metrics.json").read_text())
        hr, ndcg = loop_figures(name, offset, **settings)
        assert values["item_level/hr@10"]["value"] == pytest.approx(hr, abs=1e-6)
        assert values["item_level/ndcg@10"]["value"] == pytest.approx(ndcg, abs=1e-6)
        assert 0 < values["item_level/ndcg@10"]["value"] < 1
        assert values["protocol"]["fitted_on"] == "train"


def test_tuning_takes_the_best_point_on_valid(run):
    root, _, _ = run
    facts = read_manifest(root / "eval" / "itemknn_tuned.test")["facts"]
    grid = {
        (decay, shrink, own): loop_figures("itemknn", 1, decay=decay, shrink=shrink, own=own)[1]
        for decay in (1.0, 0.6)
        for shrink in (0.0, 4.0)
        for own in (0.0, None, 0.03, 0.1, 0.3, 1.0)
    }
    best = max(grid, key=grid.get)
    assert (facts["decay"], facts["shrink"]) == best[:2]
    assert facts["valid_ndcg@10"] == pytest.approx(grid[*best[:2], facts["own"]], abs=1e-6)
    own = {own: loop_figures("recent", 1, decay=1.0, shrink=0.0, own=own)[1] for own in (0.0, None, 0.3, 1.0)}
    chosen = read_manifest(root / "eval" / "recent.test")["facts"]
    assert own[chosen["own"]] == pytest.approx(max(own.values())) and own[None] < own[0.0]
    assert chosen["valid_ndcg@10"] == pytest.approx(own[chosen["own"]], abs=1e-6)


def test_what_a_history_counts_is_measured_as_if_all_were_placed_anew():
    """Histories with repeats, targets among them, equal scores and popularities."""
    rng = np.random.default_rng(1)
    train = train_log([rng.integers(0, 9, 6).tolist() for _ in range(30)], 12)
    lengths, asked = rng.integers(0, 6, 80), rng.integers(0, 12, 80)
    rows = Rows(
        np.arange(80),
        np.arange(80),
        np.append(0, np.cumsum(lengths)),
        rng.integers(0, 12, lengths.sum()),
        asked,
    )
    weights = counting.history_weights(rows, 12, last=3, decay=0.5)
    scores, owns = weights @ counting.transition_matrix(train).sign(), [0.0, 0.5, None, 1.0]
    found = tuning.own_ndcgs(scores, weights, rows, train.popularity_N, owns)
    for own, ndcg_R in zip(owns, found, strict=True):
        whole = counting.with_own(scores, weights, rows, own)
        assert ndcg_R.tolist() == pytest.approx(tuning.ndcgs_of(whole, rows, train.popularity_N).tolist())


def test_a_history_that_never_comes_again_is_left_out(tmp_path):
    """Permutations: what was taken is often the neighbour of what was taken, and never the target."""
    rng = np.random.default_rng(0)
    data = write_store(tmp_path / "store", [rng.permutation(ITEMS)[:12].tolist() for _ in range(60)])
    names = ("last", "recent", "itemknn_tuned", "mixture")
    call(
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        tmp_path / "eval",
        "--models",
        f"[{','.join(names)}]",
    )
    rows = pq.read_table(data / "sequences.parquet").to_pylist()
    taken = {row["example_id"]: row["history"] for row in rows}
    for name in names:
        facts = read_manifest(tmp_path / "baselines" / name)["facts"]
        if name == "mixture":
            assert facts["repeats"]["shift"] < 0
            continue
        assert facts["own"] is None
        lists = pq.read_table(
            tmp_path / "eval" / f"{name}.test" / "predictions-00000-of-00001.parquet"
        ).to_pylist()
        assert not any(row["item_ids"][0] in taken[row["example_id"]] for row in lists if row["rank"] <= 10)


def test_finished_directories_are_kept_and_a_sample_is_seeded(run):
    root, data, command = run
    assert succeed(*command, "--tune.shrinks", "[0.0,4.0]").count("already complete") == 10
    assert "another run" in refuse(*command, "--tune.shrinks", "[0.0,4.0]", "--tune.repeats", "[null]")
    assert "another run" in refuse(*command[:-2], "--models", "[pop]", "--depth", 20)
    sampled = (
        "infer.run_baselines",
        "--data",
        data,
        "--models",
        "[pop]",
        "--splits",
        "[test]",
        "--max_rows",
        25,
    )
    for folder in ("a", "b"):
        call(*sampled, "--output_root", root / folder)
    first, second = (
        pq.read_table(root / f / "pop.test" / "predictions-00000-of-00001.parquet") for f in "ab"
    )
    assert first.equals(second) and len(set(first["example_id"].to_pylist())) == 25


def test_bad_arguments_are_refused(run, tmp_path):
    _, data, _ = run
    common = ("infer.run_baselines", "--data", data, "--output_root", tmp_path / "eval")
    assert "unknown baseline 'svd'" in refuse(*common, "--models", "[svd]")
    assert "unknown split 'dev'" in refuse(*common, "--splits", "[dev]")
    assert not (tmp_path / "eval").exists()


def test_ages_come_from_the_log_before_the_target(tmp_path):
    """User 0 bought 3 on days 0 and 9, 5 on day 4, 7 on day 6 and 2 on day 8; item 6 has no time.

    What was bought in the target's own second is no later than the target: 3 on day 9, but not a second before it. A target
    that was bought before does not date that purchase (example 45); of two occurrences the older one has the older time (46),
    or none where the log has one (47).
    """
    import pyarrow as pa

    from data.rows import read_rows
    from data.store.output import open_output
    from infer.models.recency import DAY, gap_levels, with_ages
    from tests.handmade import Made

    start = 1_500_000_000
    bought = [(3, 0), (5, 4), (6, None), (7, 6), (2, 8), (3, 9)]
    log = {
        "user_id": pa.array([0] * len(bought), pa.int32()),
        "item_id": pa.array([item for item, _ in bought], pa.int32()),
        "order": pa.array(range(len(bought)), pa.int32()),
        "rating": pa.array([5.0] * len(bought), pa.float32()),
        "timestamp": pa.array([None if day is None else start + day * DAY for _, day in bought], pa.int64()),
        "split": ["train"] * len(bought),
    }
    rows = {
        "example_id": pa.array([40, 41, 42, 43, 44, 45, 46, 47], pa.int64()),
        "user_id": pa.array([0] * 8, pa.int32()),
        "history": pa.array(
            [[3, 5, 6, 7], [3, 5], [], [5, 3], [3, 5], [3, 5, 7, 2], [3, 7, 3], [2, 7, 2]],
            pa.list_(pa.int32()),
        ),
        "target": pa.array([2, 2, 2, 2, 2, 3, 4, 4], pa.int32()),
        "timestamp": pa.array(
            [start + 8 * DAY, None, start, start + 9 * DAY, start + 9 * DAY - 1, *[start + 9 * DAY] * 3],
            pa.int64(),
        ),
        "split": ["test"] * 8,
    }
    with open_output(Made(), "prepare", version=1, inputs={}, directory=tmp_path) as out:
        out.write_table("interactions.parquet", pa.table(log))
        out.write_table("sequences.parquet", pa.table(rows))
    aged = with_ages(read_rows(tmp_path, "test", num_items=8), tmp_path, num_items=8)
    assert gap_levels(aged).tolist() == [0, 3, 0, 0, 0, 0, 0, 3, 0, 3, 0, 3, 2, 2, 0, 3, 3, 0, 0, 2]
    expected = [6, 2, np.nan, 0, np.nan, np.nan, 5, 0, 4, 0, 8, 4, 2, 0, 9, 3, 0, np.nan, 2, 0]
    assert np.array_equal(aged.age_H, expected, equal_nan=True)
    one = aged.take(np.array([0]))
    weights = counting.history_weights(one, 8, decay=0.9, half_life=2.0).toarray()[0]
    assert np.allclose(weights, [0, 0, 0, 0.5**3, 0, 0.5, 0.9, 1])


def test_what_is_bought_behind_the_target_at_its_own_time_dates_nothing(tmp_path):
    """Days as timestamps. User 0 takes item 0 again on the target's day, behind it; user 1 takes item 1 three times on one day, and which
    of them a row asks for is told by what stands before it."""
    import pyarrow as pa

    from data.rows import read_rows
    from data.store.output import open_output
    from infer.models.recency import DAY, with_ages
    from tests.handmade import Made

    walks = [
        [(0, 0), (3, 2), (1, 5), (2, 10), (0, 10)],
        [(4, 1), (1, 7), (2, 7), (1, 7), (1, 7), (4, 7)],
        [(4, 7), (4, 7), (4, 7), (2, 7)],  # the one before, of another user, ends with its first item
    ]
    told = [
        (user, order, item, day) for user, walk in enumerate(walks) for order, (item, day) in enumerate(walk)
    ]
    log = {
        "user_id": pa.array([user for user, *_ in told], pa.int32()),
        "item_id": pa.array([item for *_, item, _ in told], pa.int32()),
        "order": pa.array([order for _, order, *_ in told], pa.int32()),
        "timestamp": pa.array([day * DAY for *_, day in told], pa.int64()),
    }
    rows = {
        "example_id": pa.array([0, 1, 2, 3, 4], pa.int64()),
        "user_id": pa.array([0, 1, 1, 1, 2], pa.int32()),
        "history": pa.array([[0, 3, 1], [4], [4, 1, 2], [4, 1, 2, 1], [4]], pa.list_(pa.int32())),
        "target": pa.array([2, 1, 1, 1, 4], pa.int32()),
        "timestamp": pa.array([10 * DAY, *[7 * DAY] * 4], pa.int64()),
        "split": ["valid"] * 5,
    }
    with open_output(Made(), "prepare", version=1, inputs={}, directory=tmp_path) as out:
        out.write_table("interactions.parquet", pa.table(log))
        out.write_table("sequences.parquet", pa.table(rows))
    aged = with_ages(read_rows(tmp_path, "valid", num_items=5), tmp_path, num_items=5)
    assert aged.age_H.tolist() == [5, 3, 0, 0, 6, 0, 0, 6, 0, 0, 0, 0]
